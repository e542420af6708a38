"""One forward pass as hooks on the modules see it."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

Key = tuple[int, int, int, int]  # of a tensor as it is now: place, numbers, version, width

_TRANSPARENT = (nn.Identity, nn.Flatten, nn.modules.dropout._DropoutNd)
_ZEROING = (nn.ReLU, nn.ReLU6, nn.Threshold)
_REENTRANT = "None of the inputs have requires_grad=True"  # torch.utils.checkpoint, torch 2.15


@final
@dataclass(frozen=True, slots=True)
class PartCall:
    """The arguments that one module was called with, and the versions of the tensors in them."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    versions: tuple[int, ...]

    @property
    def is_fresh(self) -> bool:
        """Whether nothing has written into the arguments since."""
        return self.versions == _versions((self.args, self.kwargs))


@final
@dataclass(slots=True)
class Watch:
    """What the hooks noted; every list holds module paths, in the order of the calls.

    Attributes:
        crossed: owners of frozen parameters whose input wants a gradient.
        dead: ReLUs that gave nothing but zeros.
        cut: the innermost modules with parameters into which went what wants a gradient, and out of
            which came nothing that does.
        reentrant: the innermost modules in which reentrant checkpointing cut the gradient.
        last: the last layer called.
        parts: the first call of each module that was to be noted.
    """

    crossed: list[str] = field(default_factory=list)
    dead: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    reentrant: list[str] = field(default_factory=list)
    last: tuple[str, nn.Module] | None = None
    parts: dict[str, PartCall] = field(default_factory=dict)
    _sources: dict[Key, str] = field(default_factory=dict)
    _readers: dict[Key, list[tuple[str, nn.Module]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    _same: dict[Key, Key] = field(default_factory=dict)
    _held: list[Tensor] = field(default_factory=list)  # else an address is used again

    def stacked(self, root: nn.Module) -> tuple[tuple[str, str], ...]:
        """Pairs of linear layers of which the second reads the first and nothing else does.

        Not where the width between them is the smallest: that is a factorisation, and meant.
        """
        found = []
        for key, first in self._sources.items():
            readers = self._readers.get(key, [])
            if len(readers) == 1 and isinstance(readers[0][1], nn.Linear):
                before, after = root.get_submodule(first), readers[0][1]
                assert isinstance(before, nn.Linear)
                if before.out_features >= min(before.in_features, after.out_features):
                    found.append((first, readers[0][0]))
        return tuple(found)


@contextmanager
def watching(root: nn.Module, parts: Iterable[str] = ()) -> Iterator[Watch]:
    """Note what the modules below `root` are called with, while the block runs.

    Warnings within the block are kept from the caller: they are a stranger's, about a pass that
    nobody asked for.

    Args:
        parts: paths of modules whose arguments are to be kept.
    """
    watch, wanted, frames = Watch(), set(parts), list[int]()
    with warnings.catch_warnings(record=True) as caught, ExitStack() as hooks:
        warnings.simplefilter("always")
        for path, module in root.named_modules():
            enter = partial(_enter, watch, path, path in wanted, frames, caught)
            leave = partial(_leave, watch, path, frames, caught)
            before = module.register_forward_pre_hook(enter, with_kwargs=True)
            after = module.register_forward_hook(leave, with_kwargs=True)
            hooks.callback(before.remove)
            hooks.callback(after.remove)
        yield watch


def _enter(
    watch: Watch,
    path: str,
    is_wanted: bool,
    frames: list[int],
    caught: list[warnings.WarningMessage],
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    frames.append(len(caught))
    if is_wanted and path not in watch.parts:
        watch.parts[path] = PartCall(module, args, kwargs, _versions((args, kwargs)))
    tensors = tensors_in((args, kwargs))
    if any(t.requires_grad for t in tensors) and _owns_frozen(module) and path not in watch.crossed:
        watch.crossed.append(path)
    if tensors and _is_layer(module) and not isinstance(module, _TRANSPARENT):
        key = _key(tensors[0])
        source = watch._same.get(key, key)
        if source in watch._sources:
            watch._readers[source].append((path, module))


def _leave(
    watch: Watch,
    path: str,
    frames: list[int],
    caught: list[warnings.WarningMessage],
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Any,
) -> None:
    before = frames.pop()
    if any(_REENTRANT in str(warning.message) for warning in caught[before:]):
        watch.reentrant.append(path)
        del caught[before:]
    if _cuts(module, (args, kwargs), output) and not any(
        _is_within(inner, path) for inner in watch.cut
    ):
        watch.cut.append(path)
    if not _is_layer(module):
        return
    watch.last = (path, module)
    if not isinstance(output, Tensor) or output.is_nested:
        return
    if isinstance(module, _ZEROING) and not output.any():
        watch.dead.append(path)
    if isinstance(module, nn.Linear):
        watch._held.append(output)
        watch._sources[_key(output)] = path
    elif isinstance(module, _TRANSPARENT) and args and isinstance(args[0], Tensor):
        source = watch._same.get(_key(args[0]), _key(args[0]))
        if source in watch._sources and _key(output) != source:
            watch._held.append(output)
            watch._same[_key(output)] = source


def _cuts(module: nn.Module, given: Any, output: Any) -> bool:
    """Whether a gradient ends here; of what has no parameters, as a mask, nobody expects one."""
    results = tensors_in(output)
    return (
        torch.is_grad_enabled()  # else it ends in the module around, which switched it off
        and bool(results)
        and not any(t.requires_grad for t in results)
        and any(t.requires_grad for t in tensors_in(given))
        and next(module.parameters(), None) is not None
    )


def _is_within(path: str, above: str) -> bool:
    return path == above or path.startswith(f"{above}.") or not above


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or next(module.children(), None) is None


def _owns_frozen(module: nn.Module) -> bool:
    return any(not p.requires_grad for p in module.parameters(recurse=False))


def _key(tensor: Tensor) -> Key:
    """A view of all of it that leaves the last dimension alone has the same key."""
    width = tensor.shape[-1] if tensor.dim() and tensor.stride(-1) == 1 else 0
    return tensor.data_ptr(), tensor.numel(), tensor._version, width


def tensors_in(tree: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists and dicts; one that is a nest itself has no strides."""
    leaves = pytree.tree_leaves(tree)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and not leaf.is_nested]


def _versions(tree: Any) -> tuple[int, ...]:
    return tuple(tensor._version for tensor in tensors_in(tree))
