"""What happens at each call of a module with narrow weights: wide copies for the time of the call.

A module that has parameters of its own is called with the narrow weights of its childless children
wide as well, since such a module may read them without calling the child (multi-head attention does
so with its output projection). Of an embedding the rows that are looked up are widened, not the
table, unless a subclass computes with them in a forward of its own.

Where a gradient passes through, autograd would keep the wide copy until the backward. It keeps the
narrow weight instead and widens it again there, unless hooks on saved tensors are at work: these
get the wide one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

_CASTS = "_frostline_narrow"
_CHILDREN = "_frostline_narrow_children"
_CALLS = "_frostline_wide"
_RAW = "_raw_saved_"


@final
@dataclass(frozen=True, slots=True)
class Cast:
    """In which dtype a weight is kept, and in which it was and is computed with."""

    kept: torch.dtype
    former: torch.dtype


@final
@dataclass(frozen=True, slots=True)
class _Swap:
    """A narrow weight of a module that lies aside while its wide copy stands in for it."""

    owner: nn.Module
    leaf: str
    narrow: Tensor
    wide: Tensor


def casts_of(module: nn.Module) -> Mapping[str, Cast]:
    """How the module's own tensors are kept that are cast, by their names."""
    notes: dict[str, Cast] = module.__dict__.get(_CASTS, {})
    return notes


def hang(owner: nn.Module, leaf: str, cast: Cast | None, above: nn.Module | None) -> None:
    """Note on the module how its tensor is kept, with the hooks it takes; none removes both."""
    casts = {name: known for name, known in casts_of(owner).items() if name != leaf}
    _put(owner, _CASTS, casts if cast is None else {**casts, leaf: cast})
    _settle(owner)
    if above is not None:
        has_own = any(parameter is not None for parameter in above._parameters.values())
        _put(above, _CHILDREN, has_own and any(map(casts_of, above.children())))
        _settle(above)


def _put(module: nn.Module, name: str, value: object) -> None:
    module.__dict__.pop(name, None)
    if value:
        module.__dict__[name] = value


def _settle(module: nn.Module) -> None:
    """Have the hooks exactly where there is a note."""
    due = bool(casts_of(module)) or _CHILDREN in module.__dict__
    ours = [key for key, hook in module._forward_pre_hooks.items() if hook is _before]
    if due and not ours:
        module.register_forward_pre_hook(_before, prepend=True)  # before what reads the weights
        module.register_forward_hook(_after, with_kwargs=True, always_call=True)
    elif not due and ours:
        for key in ours:
            del module._forward_pre_hooks[key]
        for key in [key for key, hook in module._forward_hooks.items() if hook is _after]:
            del module._forward_hooks[key]
            module._forward_hooks_with_kwargs.pop(key, None)
            module._forward_hooks_always_called.pop(key, None)


def _before(module: nn.Module, _: object) -> None:
    swaps = [] if _looks_up(module) else list(_widened(module))
    if _CHILDREN in module.__dict__:
        for child in module.children():
            if not any(True for _ in child.children()):
                swaps += _widened(child)
    module.__dict__.setdefault(_CALLS, []).append(swaps)


def _after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
    calls: list[list[_Swap]] = module.__dict__.get(_CALLS, [])
    swaps = calls.pop() if calls else []
    if not calls:
        module.__dict__.pop(_CALLS, None)
    for swap in swaps:
        swap.owner._parameters[swap.leaf] = swap.narrow  # type: ignore[assignment]  # a Parameter
        _refresh(swap.owner)
    if _looks_up(module) and isinstance(output, Tensor):
        return output.to(casts_of(module)["weight"].former)
    if swaps and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        _save_narrow(output, (args, kwargs), swaps)
    return None


def _looks_up(module: nn.Module) -> bool:
    """Whether the call does nothing but look up rows, so that they can be widened after it."""
    is_plain = isinstance(module, nn.Embedding) and type(module).forward is nn.Embedding.forward
    return is_plain and "weight" in casts_of(module)


def _widened(module: nn.Module) -> Iterator[_Swap]:
    """Put wide copies in place of the module's narrow tensors; they may be wide from above."""
    for leaf, cast in casts_of(module).items():
        narrow = module._parameters[leaf]
        if narrow is not None and narrow.dtype == cast.kept:
            wide = narrow.detach().to(cast.former)
            module._parameters[leaf] = wide  # type: ignore[assignment]  # for the time of a call
            _refresh(module)
            yield _Swap(module, leaf, narrow, wide)


def _refresh(module: nn.Module) -> None:
    """A recurrent layer computes with a list of its weights."""
    if isinstance(module, nn.RNNBase):
        names = module._flat_weights_names
        module.__dict__["_flat_weights"] = [module._parameters[name] for name in names]


def _save_narrow(output: Any, inputs: Any, swaps: list[_Swap]) -> None:
    """Have autograd keep narrow weights where it keeps their wide copies."""
    if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
        return
    narrow_of = {swap.wide.untyped_storage().data_ptr(): swap.narrow for swap in swaps}
    for node in _nodes_between(output, inputs):
        for raw, saved in _saved_by(node):
            narrow = narrow_of.get(saved.untyped_storage().data_ptr())
            if narrow is not None:
                place = (saved.size(), saved.stride(), saved.storage_offset())
                again = partial(_widened_again, narrow.detach(), saved.dtype, place)
                with suppress(RuntimeError):  # somebody has hooked this one already
                    raw.register_hooks(lambda _: None, again)


def _widened_again(narrow: Tensor, dtype: torch.dtype, place: tuple[Any, ...], _: None) -> Tensor:
    return narrow.to(dtype).as_strided(*place)


def _nodes_between(output: Any, inputs: Any) -> Iterator[Any]:
    """The autograd nodes of a call, from its outputs down to its inputs."""
    below = {leaf.grad_fn for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)}
    due = [leaf.grad_fn for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    seen = set(below) | {None}
    while due:
        node = due.pop()
        if node not in seen:
            seen.add(node)
            yield node
            due += [above for above, _ in node.next_functions]  # type: ignore[union-attr]  # not None


def _saved_by(node: Any) -> Iterator[tuple[Any, Tensor]]:
    """What a node keeps: each as that which takes hooks, and as the tensor."""
    kind: type = type(node)
    for name, own in _saved_names(kind):
        raw, saved = getattr(node, name), getattr(node, own, None)
        pairs = zip(raw, saved, strict=True) if isinstance(saved, tuple) else [(raw, saved)]
        for one, tensor in pairs:
            if isinstance(tensor, Tensor):
                yield one, tensor


@cache
def _saved_names(kind: type) -> tuple[tuple[str, str], ...]:
    """Of a built-in operation `_raw_saved_self` and `_saved_self`; one in Python has no dash."""
    names = [name for name in dir(kind) if name.startswith(_RAW)]
    dash = "" if hasattr(kind, "saved_tensors") else "_"
    return tuple((name, dash + name.removeprefix("_raw_")) for name in names)
