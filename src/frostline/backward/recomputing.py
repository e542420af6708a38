"""What is computed again in the backward pass instead of kept.

SiLU, GELU and layer norm keep their input. A layer whose weight is wanted, or a product, keeps
their output on top of it, although the one follows from the other at the price of an elementwise
pass. The same holds for what a frozen layer makes of the batch: the batch is smaller, and there
anyway. So those who make such a tensor note where it comes from, and an operation that would keep
it runs under hooks that keep its origin instead; its own backward kernel gets the same numbers.

By the same hooks a rule keeps bits, or nothing but a layout, where a kernel needs no more.

The hooks pass on to whoever hooks saved tensors outside, who sees the origin in place of the
tensor: checkpointing, offloading and counting go on as before. Origins are forgotten when the
outermost forward ends.

An elementwise pass is cheap beside any network; a layer is not. It counts as cheap below 4 % of the
multiplications of the last forward of the same model, or where there was none: the first layer of
ResNet-50 has 2.9 %, and a step takes 1.02 times as long; that of ResNet-18 has 6.5 %, and it takes
1.08 times as long, for which it is kept.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from frostline.backward.bits import is_dense
from frostline.backward.tensors import Layout, memory_of

T = TypeVar("T")
Hooks = tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]
Source = Tensor | weakref.ref[Tensor]
Again = Callable[[], Tensor]


class Remake(NamedTuple):
    """A tensor is `make(*sources)`, laid out so."""

    make: Callable[..., Tensor]
    sources: tuple[Tensor, ...]
    layout: Layout


Choose = Callable[[Tensor], Remake | None]


def layout_only(kept: Tensor) -> Remake:
    """For `keeping`, where the backward kernel goes by the layout of `kept` alone."""
    layout = Layout(kept)
    return Remake(layout.stand_in, (), layout)


def note(output: Tensor, make: Callable[..., Tensor], *sources: Source) -> None:
    """`output` is `make(*sources)`, for as long as neither it nor they are written to.

    Sources are held until the forward is over, but for those given by a weak reference.
    """
    if output.nbytes != output.untyped_storage().nbytes() or not is_dense(output):
        return  # others may lie in the same memory
    versions, layout = _versions(output, *_present(sources)), Layout(output)
    origin = _Origin(weakref.ref(output), make, sources, layout, versions, outer_pack())
    _running.origins[id(output)] = origin


def begin(model: nn.Module) -> None:
    """The outermost forward begins: that of `model`."""
    _running.model = model
    _running.products = 0


def end(*, whole: bool = True) -> None:
    """The outermost forward is over, or was broken off: let go of all origins."""
    if whole and _running.model is not None:
        _products[_running.model] = _running.products
    _running.model = None
    _running.origins.clear()


def is_cheap(output: Tensor, weight: Tensor) -> bool:
    """Whether that layer is a small part of the forward, as the last one had it."""
    model = _running.model
    whole = float("inf") if model is None else _products.get(model, float("inf"))
    return _products_of(output, weight) <= _SMALL_PART * whole


def _products_of(output: Tensor, weight: Tensor) -> int:
    """Multiplications of a convolution or a linear layer."""
    return output.numel() * weight.numel() // weight.shape[0]


def count(func: Callable[..., Any], args: tuple[Any, ...], output: Any) -> None:
    """An operation has run: what it multiplied is part of the forward."""
    if func in _LAYERS and len(args) > 1:
        _running.products += _products_of(output, args[1])


def run(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`func(*args, **kwargs)`, keeping the origins of its arguments instead of them."""
    # A frozen linear layer keeps its weight alone; a convolution keeps its input too.
    keeps_weight = func in _LINEAR and len(args) > 1 and not args[1].requires_grad
    if not _running.origins or func not in _KEEPERS or keeps_weight:
        return func(*args, **kwargs)
    remakes = _known((*args, *kwargs.values()))
    if not remakes:
        return func(*args, **kwargs)
    return keeping(partial(func, *args, **kwargs), lambda kept: remakes.get(memory_of(kept)))


def keeping(run: Callable[[], T], choose: Choose) -> T:
    """What `run()` gives, keeping what `choose` names instead of a tensor that it would keep.

    Args:
        choose: is asked once for each tensor, in PyTorch's order; None keeps the tensor itself.
    """
    if not torch._C._autograd._saved_tensors_hooks_is_enabled():  # type: ignore[attr-defined]
        return run()
    hooks = outer_hooks()
    asked = [choose]
    with saved_tensors_hooks(
        lambda kept: _replaced(kept, asked[0](kept), hooks), lambda again: again()
    ):
        try:
            return run()
        finally:
            asked.clear()  # autograd keeps the hook, and who chooses may hold what it has seen


def outer_hooks() -> Hooks | None:
    """The saved-tensor hooks that hold at this moment."""
    found: Hooks | None = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return found


def outer_pack() -> object:
    """What tells those hooks from others; None where there are none."""
    hooks = outer_hooks()
    return hooks and hooks[0]


class _Origin(NamedTuple):
    output: weakref.ref[Tensor]
    make: Callable[..., Tensor]
    sources: tuple[Source, ...]
    layout: Layout
    versions: tuple[int, ...]
    outer: object


class _Running(threading.local):
    """Of the outermost forward that runs in this thread."""

    def __init__(self) -> None:
        self.origins: dict[int, _Origin] = {}  # by id of the tensor; its reference tells reuse
        self.model: nn.Module | None = None
        self.products = 0


_running = _Running()
_products: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
_SMALL_PART = 1 / 25


def _known(given: Iterable[Any]) -> dict[int, Remake]:
    """By memory, since an operation may keep a view of what it is given."""
    found = {}
    for value in given:
        origin = _running.origins.get(id(value))
        if origin is None or (output := origin.output()) is None or output is not value:
            continue
        sources = _present(origin.sources)
        # A checkpoint hands its function other tensor objects when it repeats it: what was made
        # outside of it counts in neither pass.
        if origin.outer is outer_pack() and origin.versions == _versions(output, *sources):
            found[memory_of(output)] = Remake(origin.make, sources, origin.layout)
    return found


def _present(sources: Iterable[Source]) -> tuple[Tensor, ...]:
    """Those that are not gone."""
    tensors = (s() if isinstance(s, weakref.ref) else s for s in sources)
    return tuple(tensor for tensor in tensors if tensor is not None)


def _versions(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(tensor._version for tensor in tensors)


def _replaced(kept: Tensor, remake: Remake | None, hooks: Hooks | None) -> Again:
    """What stands for a tensor that an operation wanted to keep: gives it, or the view kept."""
    sources = [_saved(tensor, hooks) for tensor in ((kept,) if remake is None else remake.sources)]
    if remake is None:
        return sources[0]
    make, layout = remake.make, remake.layout
    view, offset = Layout(kept), kept.storage_offset()

    def again() -> Tensor:
        if not sources:
            return make()
        tensors = [source() for source in sources]
        with torch.no_grad(), torch.autocast(tensors[0].device.type, enabled=False):
            made = make(*tensors)
        if not layout.is_of(made):  # who offloads may forget the order of memory
            made = layout.stand_in().copy_(made)
        return made.as_strided(view.sizes, view.strides, offset)

    return again


def _saved(tensor: Tensor, hooks: Hooks | None) -> Again:
    """A tensor as outer hooks keep it, or itself with the number of writes to it."""
    if hooks is not None:
        pack, unpack = hooks
        return partial(unpack, pack(tensor))
    # Detached, or an operation that keeps its own output would hold itself for good.
    kept, version = tensor.detach(), tensor._version

    def again() -> Tensor:
        if kept._version != version:
            sizes = "x".join(map(str, kept.shape)) or "one number"
            raise RuntimeError(
                "a tensor that is needed for the gradients was written to in place between the "
                f"forward and the backward pass: one of {sizes}, now at version {kept._version} "
                f"and not {version}. Write to a copy of it instead."
            )
        return kept

    return again


_aten = torch.ops.aten
_LINEAR = frozenset({F.linear, _aten.linear.default})
_LAYERS = frozenset(
    {
        *_LINEAR,
        *(torch.conv1d, torch.conv2d, torch.conv3d),
        *(_aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default),
    }
)
# Operations that write to none of their arguments.
_KEEPERS = frozenset(
    {
        *_LAYERS,
        *(torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d),
        *(torch.convolution, _aten.conv_transpose2d.input, _aten.convolution.default),
        *(torch.addmm, torch.mm, torch.bmm, torch.matmul),
        *(Tensor.matmul, Tensor.__matmul__, _aten.addmm.default, _aten.mm.default),
        *(_aten.matmul.default, _aten.bmm.default),
        *(torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, _aten.mul.Tensor),
        *(F.batch_norm, torch.batch_norm, _aten.batch_norm.default),
        *(F.layer_norm, torch.layer_norm, _aten.layer_norm.default),
        *(F.group_norm, torch.group_norm, _aten.group_norm.default),
    }
)
