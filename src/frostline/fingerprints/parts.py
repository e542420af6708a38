"""A tensor of any kind as plain dense ones: sharded, quantised, sparse and wrapped tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from frostline.errors import FrostlineError
from frostline.sharding import whole
from frostline.wrapped import is_wrapped

_SPARSE = {
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}


def plain_parts(tensor: Tensor, name: str) -> tuple[str, list[Tensor]]:
    """Its kind in words, empty for a plain one, and the dense tensors that hold all its bits.

    A sharded tensor is gathered for it, so all processes call it.

    Raises:
        FrostlineError: it has no data, or is of a kind whose bits cannot be reached.
    """
    value = tensor.detach()
    if value.is_meta:
        raise FrostlineError(
            f"{name} has no data to hash: it lives on the meta device. Load the weights first."
        )
    value = whole(value)
    if value.is_quantized:
        return _quantised(value)
    if value.layout is not torch.strided:
        return _sparse(value, name)
    if is_wrapped(value):
        return _wrapped(value, name)
    if value.is_nested:
        raise FrostlineError(
            f"the bits of {name} cannot be read: it is a nested tensor without a layout of its "
            "own. Use torch.nested with layout=torch.jagged."
        )
    return "", [value]


def is_finite(tensor: Tensor, name: str) -> bool:
    """Whether none of the numbers that it is made of is NaN or infinite.

    Raises:
        FrostlineError: as `plain_parts`.
    """
    return all(bool(part.isfinite().all()) for part in plain_parts(tensor, name)[1] if _may(part))


def same_bits(tensor: Tensor, other: Tensor) -> bool:
    """Whether dtype, shape and every bit are the same, of whatever the tensors are made of.

    Raises:
        FrostlineError: as `plain_parts`.
    """
    if tensor.dtype != other.dtype or tensor.shape != other.shape:
        return False
    (kind, parts), (other_kind, others) = (plain_parts(t, "a tensor") for t in (tensor, other))
    shapes = [part.shape for part in parts] == [part.shape for part in others]
    same = map(torch.equal, map(bytes_of, parts), map(bytes_of, others))
    return kind == other_kind and shapes and all(same)


def bytes_of(part: Tensor) -> Tensor:
    """All bits of a plain dense tensor, in one dimension of bytes."""
    dense = part.detach().resolve_conj().resolve_neg().contiguous()
    return dense.flatten().view(torch.uint8)


def _may(part: Tensor) -> bool:
    """Whether the dtype has NaN or infinity; torch 2.15 asks it of no float of four bits."""
    has_exponent = part.is_floating_point() or part.is_complex()
    return has_exponent and not str(part.dtype).startswith("torch.float4")


def _quantised(tensor: Tensor) -> tuple[str, list[Tensor]]:
    numbers = tensor.int_repr()
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return f"quantised by {tensor.q_scale()!r} {tensor.q_zero_point()}", [numbers]
    scales = [tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()]
    return f"quantised along {tensor.q_per_channel_axis()}", [numbers, *scales]


def _sparse(tensor: Tensor, name: str) -> tuple[str, list[Tensor]]:
    kind = str(tensor.layout)
    if tensor.layout is torch.sparse_coo:
        return kind, [tensor._indices(), tensor._values()]
    if tensor.layout in _SPARSE:
        return kind, [getattr(tensor, part)() for part in _SPARSE[tensor.layout]]
    try:
        return kind, [tensor.to_dense()]
    except RuntimeError as error:
        raise FrostlineError(
            f"the bits of {name} cannot be read: it has the layout {kind}. Make it dense first."
        ) from error


def _wrapped(tensor: Any, name: str) -> tuple[str, list[Tensor]]:
    """A subclass that says itself which tensors it is made of."""
    names, context = tensor.__tensor_flatten__()
    kinds, parts = [], []
    for inner in names:
        kind, found = plain_parts(getattr(tensor, inner), f"{name}.{inner}")
        kinds.append(f"{inner} {kind}")
        parts += found
    values = " ".join(_plain_values(context))
    return f"{type(tensor).__name__} {values} {' '.join(kinds)}", parts


def _plain_values(context: Any) -> Iterator[str]:
    """What its context says in plain values; others might show an address, which is none."""
    if isinstance(context, dict):
        for key, value in context.items():
            yield from (str(key), *_plain_values(value))
    elif isinstance(context, list | tuple):
        for value in context:
            yield from _plain_values(value)
    elif context is None or isinstance(context, str | int | float | torch.dtype):
        yield repr(context)
