"""Content hashes of parameters and buffers, and how far a tensor is from what it was.

A tensor's digest covers dtype, shape and every byte (xxh3, 128 bits, at the speed of memory); a
fingerprint covers names and digests. NaN payloads and the sign of zero count: bits, not values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self, final

import torch
import xxhash
from torch import Tensor, nn

from frostline.fingerprints.parts import bytes_of, plain_parts
from frostline.fingerprints.unlisted import saved_state
from frostline.selectors import Selection, SelectorLike, everything, select
from frostline.selectors.ranges import suffix
from frostline.wrapped import is_wrapped

SAMPLED_NUMBERS = 4096
BLOCK_NUMBERS = 65536


@final
class Fingerprint(str):
    """A content hash as text, equal when the contents are.

    Attributes:
        tensors: tensor name -> digest, in the model's order.

    Example:
        >>> before = fl.fingerprint(model, "head")
        >>> print(before)
        xxh3:...
        >>> list(before.tensors)
        ['head.2.weight', 'head.2.bias']
    """

    tensors: Mapping[str, str]
    __slots__ = ("tensors",)

    def __new__(cls, tensors: Mapping[str, str]) -> Self:
        lines = "".join(f"{name} {digest}\n" for name, digest in tensors.items())
        value = super().__new__(cls, f"xxh3:{xxhash.xxh3_128_hexdigest(lines.encode())}")
        value.tensors = dict(tensors)
        return value

    def __reduce__(self) -> tuple[type[Fingerprint], tuple[Mapping[str, str]]]:
        return Fingerprint, (self.tensors,)


def fingerprint(model: nn.Module, selector: SelectorLike = everything) -> Fingerprint:
    """Content hash of the selected parameters and of the buffers that belong to them.

    Equal exactly when names, shapes, dtypes and bits are; the device and memory layout do not
    count. A module's buffers belong to the selection when all its own parameters do. So does what
    its class itself saves, as packed weights and `get_extra_state`; tensors that are plain
    attributes do not. Of a model that `fully_shard` sharded it is that of the whole model: all
    processes call it, and gather one tensor at a time.

    Raises:
        SelectorError: as `select`.
        FrostlineError: a tensor has no data (it lives on the meta device).

    Example:
        >>> before = fl.fingerprint(model, "backbone")
        >>> model.train()(images).sum().backward()
        >>> fl.fingerprint(model, "backbone") == before
        True
    """
    selection = select(model, selector)
    whole = selection.whole

    def all_own(module: nn.Module) -> bool:
        own: list[Tensor] = [p for p in module._parameters.values() if p is not None]
        own = own or [b for b in module._buffers.values() if b is not None]
        return all(id(tensor) in whole for tensor in own)

    found = {name: tensor for name, tensor, _ in named_tensors(selection, all_own)}
    return fingerprint_of({**found, **saved_state(selection.inventory.modules, whole)})


def fingerprint_of(tensors: Mapping[str, Tensor]) -> Fingerprint:
    """Content hash of named tensors, in the given order."""
    return Fingerprint({name: digest(tensor, name=name) for name, tensor in tensors.items()})


def named_tensors(
    selection: Selection, with_buffers: Callable[[nn.Module], bool]
) -> Iterator[tuple[str, Tensor, range | None]]:
    """The selected parameters under each of their names, and the buffers of some modules.

    Selected rows of a parameter are under its name with the rows, as `embed.weight[0:100]`, and
    come with them.
    """
    pieces = selection.by_tensor
    for path, module in selection.inventory.modules.items():
        prefix = f"{path}." if path else ""
        for name, parameter in module._parameters.items():
            for entry in pieces.get(id(parameter), ()):
                yield prefix + name + suffix(entry.rows), entry.content, entry.rows
        if with_buffers(module):
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    yield prefix + name, buffer, None


def digest(tensor: Tensor, *, name: str = "tensor") -> str:
    """Hash of one tensor's dtype, shape and bytes, wherever they lie.

    A sharded tensor is gathered for it, so all processes call it.

    Raises:
        FrostlineError: the tensor has no data, or none that can be read.
    """
    return _hashed(tensor, *plain_parts(tensor, name))


def _hashed(tensor: Tensor, kind: str, parts: Sequence[Tensor]) -> str:
    state = xxhash.xxh3_128(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    for part in parts:
        if kind:  # a plain tensor has its hash of old
            state.update(f"{kind} {part.dtype} {tuple(part.shape)}".encode())
        if part.numel():
            state.update(bytes_of(part.cpu()).numpy().data)
    return state.hexdigest()


@final
@dataclass(frozen=True, slots=True)
class Record:
    """What is kept of a tensor to prove later that it did not move, and say how far it did.

    A hash for the proof; for the distance a sample of evenly spaced numbers (all of them in small
    tensors) and the sum of each block. A second copy would tell more, but would double the memory
    of what freezing is to make free.

    Attributes:
        nbytes: how many bytes were recorded.
        rows: for a record of some rows of a tensor, which; all else is of these rows alone.
        wrapped: class of a tensor that is made of others, of which the first gives the sample.
    """

    digest: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    sample: Tensor
    block_sums: Tensor
    nbytes: int
    rows: range | None = None
    wrapped: str = ""

    @classmethod
    def of(cls, tensor: Tensor, *, name: str, at: range | None = None) -> Self:
        """Take down `tensor` as it is now; with `at`, it is these rows of a larger one."""
        kind, parts = plain_parts(tensor, name)
        hashed = _hashed(tensor, kind, parts)
        sample, sums = _sample(parts[0]), _block_sums(parts[0])
        size = sum(part.numel() * part.dtype.itemsize for part in parts)
        shape, wrapped = tuple(tensor.shape), _class_of(tensor)
        return cls(hashed, tensor.dtype, shape, sample, sums, size, at, wrapped)

    def moved(self, tensor: Tensor, *, name: str) -> str | None:
        """How far `tensor` is from this record, in words; `None` when no bit differs.

        Of a record of rows, `tensor` is the whole tensor now.
        """
        if self.rows is not None:
            tensor = tensor.detach()[self.rows.start : self.rows.stop]
        if digest(tensor, name=name) == self.digest:
            return None
        if tensor.dtype != self.dtype:
            return f"dtype changed from {self.dtype} to {tensor.dtype}"
        if tuple(tensor.shape) != self.shape:
            return f"shape changed from {self.shape} to {tuple(tensor.shape)}"
        kind = _class_of(tensor)
        if kind != self.wrapped:
            return f"is kept otherwise now, as {kind or 'a plain tensor'}"
        return self._distance(plain_parts(tensor, name)[1][0])

    def _distance(self, tensor: Tensor) -> str:
        steps = _steps(_sample(tensor), self.sample)
        largest = float(steps.max())
        if largest != 0 and steps.numel() >= tensor.numel():
            count = int((steps != 0).sum())
            return f"moved by up to {largest:.3g} ({count} of {steps.numel()} numbers)"
        if largest != 0:
            return f"moved by at least {largest:.3g} ({steps.numel()} of {tensor.numel()} compared)"
        shifts = _steps(_block_sums(tensor), self.block_sums)
        block = int(shifts.argmax())
        if shifts[block] == 0:
            scaled = "; what these are scaled by may have moved" if self.wrapped else ""
            return f"differs in bits, by less than its numbers tell{scaled}"
        first, last = block * BLOCK_NUMBERS, min((block + 1) * BLOCK_NUMBERS, tensor.numel()) - 1
        return f"moved by about {float(shifts[block]):.3g} within numbers {first} to {last}"


def _class_of(tensor: Tensor) -> str:
    """Of one that is made of others, the class; detached, a parameter is of its own."""
    return type(tensor.detach()).__name__ if is_wrapped(tensor) else ""


def _steps(now: Tensor, before: Tensor) -> Tensor:
    """Distances; 0 between equal infinities and between NaNs, whose difference would be NaN."""
    now, before = now.double(), before.double()
    same = (now == before) | (now.isnan() & before.isnan())
    return (now - before).abs().masked_fill(same, 0)


def _sample(tensor: Tensor) -> Tensor:
    """A copy of up to `SAMPLED_NUMBERS` evenly spaced numbers, on the CPU."""
    flat = tensor.detach().reshape(-1)
    if flat.numel() > SAMPLED_NUMBERS:
        flat = flat[:: math.ceil(flat.numel() / SAMPLED_NUMBERS)]
    flat = flat.to("cpu", copy=True)
    return torch.view_as_real(flat).flatten() if flat.is_complex() else flat


def _block_sums(tensor: Tensor) -> Tensor:
    """The sum of each block of `BLOCK_NUMBERS` numbers, on the CPU."""
    flat = tensor.detach().reshape(-1)
    numbers = flat.abs() if flat.is_complex() else flat
    dtype = torch.float64 if numbers.dtype == torch.float64 else torch.float32
    whole = numbers.numel() // BLOCK_NUMBERS * BLOCK_NUMBERS
    sums = numbers[:whole].view(-1, BLOCK_NUMBERS).sum(dim=1, dtype=dtype)
    return torch.cat([sums, numbers[whole:].sum(dtype=dtype).reshape(1)]).cpu()
