"""One forward pass as hooks on the modules see it."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

Key = tuple[int, int, int, int]  # of a tensor as it is now: place, numbers, version, width

_TRANSPARENT = (nn.Identity, nn.Flatten, nn.modules.dropout._DropoutNd)
_ZEROING = (nn.ReLU, nn.ReLU6, nn.Threshold)
_REENTRANT = "None of the inputs have requires_grad=True"  # torch.utils.checkpoint, torch 2.15


class PartCall(NamedTuple):
    """The arguments that one module was called with, and the versions of the tensors in them."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    versions: tuple[int, ...]


@final
class ForwardWatch:
    """What hooks saw in one forward pass; every list holds module paths, in the order of calls.

    Attributes:
        crossed: owners of frozen parameters whose input wants a gradient.
        dead: ReLUs that gave nothing but zeros.
        cut: the innermost modules with parameters into which went what wants a gradient, and out of
            which came nothing that does.
        reentrant: the innermost modules in which reentrant checkpointing cut the gradient.
        stacked: pairs of linear layers of which the second reads the first and nothing else does.
        last: the last layer called, by path and class.
        last_linear: the last linear one, by path.
        parts: the first call of each module whose arguments were to be kept.
    """

    def __init__(self, wanted: Iterable[str], caught: list[warnings.WarningMessage]) -> None:
        self.crossed: list[str] = []
        self.dead: list[str] = []
        self.cut: list[str] = []
        self.reentrant: list[str] = []
        self.stacked: tuple[tuple[str, str], ...] = ()
        self.last = ("", "")
        self.last_linear = ""
        self.parts: dict[str, PartCall] = {}
        self._wanted, self._caught = set(wanted), caught
        self._warned_before: list[int] = []  # warnings caught before each module that runs now
        self._sources: dict[Key, tuple[str, nn.Linear]] = {}
        self._readers: dict[Key, list[tuple[str, nn.Module]]] = defaultdict(list)
        self._same: dict[Key, Key] = {}  # what a transparent layer gave -> what it was given
        self._held: list[Tensor] = []  # else an address is used again

    def enter(self, path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        """The module at `path` is called."""
        self._warned_before.append(len(self._caught))
        if path in self._wanted and path not in self.parts:
            self.parts[path] = PartCall(module, args, kwargs, versions_in((args, kwargs)))
        tensors = tensors_in((args, kwargs))
        owns_frozen = any(not p.requires_grad for p in module.parameters(recurse=False))
        if owns_frozen and any(t.requires_grad for t in tensors) and path not in self.crossed:
            self.crossed.append(path)
        if tensors and _is_layer(module) and not isinstance(module, _TRANSPARENT):
            source = self._source(tensors[0])
            if source in self._sources:  # else not held, and a later output may lie where it lay
                self._readers[source].append((path, module))

    def leave(self, path: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """The module at `path` has given `output`."""
        before = self._warned_before.pop()
        if any(_REENTRANT in str(warning.message) for warning in self._caught[before:]):
            self.reentrant.append(path)
            del self._caught[before:]
        within = f"{path}." if path else ""
        is_outer = any(inner == path or inner.startswith(within) for inner in self.cut)
        if not is_outer and _cuts(module, (args, kwargs), output):
            self.cut.append(path)
        if not _is_layer(module):
            return
        self.last = (path, type(module).__name__)
        if isinstance(module, nn.Linear):
            self.last_linear = path
        if not isinstance(output, Tensor) or output.is_nested:
            return
        if isinstance(module, _ZEROING) and not output.any():
            self.dead.append(path)
        if isinstance(module, nn.Linear):
            self._held.append(output)
            self._sources[_key(output)] = (path, module)
        elif isinstance(module, _TRANSPARENT) and args and isinstance(args[0], Tensor):
            source = self._source(args[0])
            if source in self._sources:
                self._held.append(output)
                self._same[_key(output)] = source

    def finish(self) -> None:
        """The pass is over: find the pairs, and let the tensors go.

        No pair where the width between two layers is the smallest: a factorisation, and meant.
        """
        pairs = []
        for key, (first, before) in self._sources.items():
            readers = self._readers[key]
            path, after = readers[0] if len(readers) == 1 else ("", None)
            if isinstance(after, nn.Linear) and before.out_features >= min(
                before.in_features, after.out_features
            ):
                pairs.append((first, path))
        self.stacked = tuple(pairs)
        self._held.clear()

    def _source(self, tensor: Tensor) -> Key:
        key = _key(tensor)
        return self._same.get(key, key)


@contextmanager
def watching(root: nn.Module, parts: Iterable[str] = ()) -> Iterator[ForwardWatch]:
    """Record what the modules below `root` are called with, while the block runs.

    Warnings within the block are kept from the caller: they are a stranger's, about a pass that
    nobody asked for.

    Args:
        parts: paths of modules whose arguments are to be kept.
    """
    with warnings.catch_warnings(record=True) as caught, ExitStack() as hooks:
        warnings.simplefilter("always")
        watch = ForwardWatch(parts, caught)
        for path, module in root.named_modules():
            enter, leave = partial(watch.enter, path), partial(watch.leave, path)
            before = module.register_forward_pre_hook(enter, with_kwargs=True)
            after = module.register_forward_hook(leave, with_kwargs=True)
            hooks.callback(before.remove)
            hooks.callback(after.remove)
        yield watch
        watch.finish()


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


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or next(module.children(), None) is None


def _key(tensor: Tensor) -> Key:
    """A view of all of it that leaves the last dimension alone has the same key."""
    width = tensor.shape[-1] if tensor.dim() and tensor.stride(-1) == 1 else 0
    return tensor.data_ptr(), tensor.numel(), tensor._version, width


def tensors_in(tree: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists and dicts; one that is a nest itself has no strides."""
    leaves = pytree.tree_leaves(tree)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and not leaf.is_nested]


def versions_in(tree: Any) -> tuple[int, ...]:
    """How often each of the tensors was written to."""
    return tuple(tensor._version for tensor in tensors_in(tree))
