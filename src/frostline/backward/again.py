"""What is computed again in the backward pass instead of kept.

SiLU, GELU and hard swish keep their input. A layer whose weight is wanted, or a product, keeps
their output on top of it, although the one follows from the other at the price of an elementwise
pass. The same holds for what a frozen layer makes of the batch: the batch is smaller, and there
anyway. So those who make such a tensor say what it comes from, and an operation that would keep it
runs under hooks that keep its origin instead; its own backward kernel gets the same numbers.

The hooks pass on to whoever hooks saved tensors outside, who sees the origin in place of the
tensor: checkpointing, offloading and counting go on as before. Origins are forgotten when the
outermost forward ends.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from frostline.backward.bits import is_dense
from frostline.backward.tensors import Layout

Again = Callable[..., Tensor]
Hooks = tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]


def note(output: Tensor, again: Again, *sources: Tensor) -> None:
    """`output` is `again(*sources)`; for as long as neither it nor they are written to."""
    if output.nbytes != output.untyped_storage().nbytes() or not is_dense(output):
        return  # others may lie in the same memory
    versions = tuple(source._version for source in sources)
    found = Origin(weakref.ref(output), output._version, again, sources, versions, outer_hooks())
    _thread.origins[id(output)] = found


def forget() -> None:
    """Let go of all origins; the outermost forward is over."""
    _thread.origins.clear()


def run(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`func(*args, **kwargs)`, keeping the origins of its arguments instead of them."""
    if func not in _KEEPERS or not _thread.origins:
        return func(*args, **kwargs)
    hooks = outer_hooks()
    swaps = list(_swaps((*args, *kwargs.values()), hooks))
    if not swaps or not torch._C._autograd._saved_tensors_hooks_is_enabled():
        return func(*args, **kwargs)

    def pack(tensor: Tensor) -> _Kept:
        for storage, origin in swaps:
            if tensor.untyped_storage()._cdata == storage:
                return _Kept.remade(tensor, origin, hooks)
        return _Kept.whole(tensor, hooks)

    with saved_tensors_hooks(pack, _Kept.get):
        return func(*args, **kwargs)


def caught(func: Callable[[], Tensor]) -> tuple[Tensor, list[Tensor]]:
    """What `func()` gives, and what is kept for it."""
    kept: list[Tensor] = []
    if not torch._C._autograd._saved_tensors_hooks_is_enabled():
        return func(), kept
    hooks = outer_hooks()

    def pack(tensor: Tensor) -> _Kept:
        kept.append(tensor)
        return _Kept.whole(tensor, hooks)

    with saved_tensors_hooks(pack, _Kept.get):
        return func(), kept


def outer_hooks() -> Hooks | None:
    """The saved-tensor hooks that hold at this moment."""
    found: Hooks | None = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return found


class Origin(NamedTuple):
    """How a tensor was made, and under which saved-tensor hooks."""

    output: weakref.ref[Tensor]
    version: int
    again: Again
    sources: tuple[Tensor, ...]
    versions: tuple[int, ...]
    hooks: Hooks | None


class _Thread(threading.local):
    def __init__(self) -> None:
        self.origins: dict[int, Origin] = {}  # by id of the tensor, whose reference tells reuse


_thread = _Thread()


def _swaps(given: Iterable[Any], hooks: Hooks | None) -> Iterable[tuple[int, Origin]]:
    for value in given:
        origin = _thread.origins.get(id(value))
        if origin is None or origin.output() is not value or value._version != origin.version:
            continue
        if any(s._version != v for s, v in zip(origin.sources, origin.versions, strict=True)):
            continue
        # A checkpoint hands its function other tensor objects when it repeats it: what was made
        # outside of it counts in neither pass.
        if (hooks and hooks[0]) is (origin.hooks and origin.hooks[0]):
            yield value.untyped_storage()._cdata, origin


@final
class _Saved:
    """A tensor as outer hooks keep it, or itself with the number of writes to it."""

    __slots__ = ("kept", "unpack", "version")

    def __init__(self, tensor: Tensor, hooks: Hooks | None) -> None:
        self.kept = hooks[0](tensor) if hooks else tensor
        self.unpack = hooks[1] if hooks else None
        self.version = tensor._version

    def get(self) -> Tensor:
        if self.unpack is not None:
            return self.unpack(self.kept)
        if self.kept._version != self.version:
            raise RuntimeError(
                "a tensor that is needed for the gradients was written to in place between the "
                f"forward and the backward pass: one of {_shape(self.kept)}, now at version "
                f"{self.kept._version} and not {self.version}. Write to a copy of it instead."
            )
        found: Tensor = self.kept
        return found


@final
class _Kept:
    """What stands for a tensor that an operation wanted to keep."""

    __slots__ = ("again", "layout", "offset", "saved", "whole_layout")

    def __init__(self, saved: list[_Saved], again: Again | None = None) -> None:
        self.saved = saved
        self.again = again

    @classmethod
    def whole(cls, tensor: Tensor, hooks: Hooks | None) -> _Kept:
        return cls([_Saved(tensor, hooks)])

    @classmethod
    def remade(cls, tensor: Tensor, origin: Origin, hooks: Hooks | None) -> _Kept:
        output = origin.output()
        assert output is not None
        kept = cls([_Saved(source.detach(), hooks) for source in origin.sources], origin.again)
        kept.layout = Layout(tensor)
        kept.offset = tensor.storage_offset()
        kept.whole_layout = Layout(output)
        return kept

    def get(self) -> Tensor:
        """The tensor, or the view of it that was to be kept."""
        sources = [saved.get() for saved in self.saved]
        if self.again is None:
            return sources[0]
        with torch.no_grad(), torch.autocast(sources[0].device.type, enabled=False):
            made = self.again(*sources)
        if not self.whole_layout.is_of(made):  # who offloads may forget the order of memory
            made = self.whole_layout.stand_in().copy_(made)
        return made.as_strided(self.layout.sizes, self.layout.strides, self.offset)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "one number"


_aten = torch.ops.aten
_KEEPERS = frozenset(
    {
        *(torch.conv1d, torch.conv2d, torch.conv3d, torch.convolution),
        *(torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d),
        *(_aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default),
        *(_aten.conv_transpose2d.input, _aten.convolution.default),
        *(F.linear, _aten.linear.default, torch.addmm, torch.mm, torch.bmm, torch.matmul),
        *(Tensor.matmul, Tensor.__matmul__, _aten.addmm.default, _aten.mm.default),
        *(_aten.matmul.default, _aten.bmm.default),
        *(torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, _aten.mul.Tensor),
        *(F.batch_norm, torch.batch_norm, _aten.batch_norm.default),
        *(F.layer_norm, torch.layer_norm, _aten.layer_norm.default),
        *(F.group_norm, torch.group_norm, _aten.group_norm.default),
    }
)
