"""Stand-ins for what lies below a line behind a named submodule: shapes without numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from frostline.cutting.structures import Rebuild, flatten_output
from frostline.errors import CutError

# What stands for a module's call with its hooks; torch.compile puts its own there (torch 2.15).
CALL = "_compiled_call_impl"


@final
@dataclass(frozen=True, slots=True)
class _Answer:
    """Of what form a module's answer was, to a batch of `rows`."""

    forms: tuple[tuple[tuple[int, ...], torch.dtype], ...]
    rebuild: Rebuild
    rows: int

    @classmethod
    def of(cls, output: object, rows: int) -> _Answer:
        tensors, rebuild = flatten_output(output)
        return cls(tuple((tuple(t.shape), t.dtype) for t in tensors), rebuild, rows)

    def unread(self, rows: int) -> Any:
        """The same for a batch of `rows`, without numbers to read."""
        shapes = ((rows, *s[1:]) if s[:1] == (self.rows,) else s for s, _ in self.forms)
        pairs = zip(shapes, (dtype for _, dtype in self.forms), strict=True)
        return self.rebuild(iter(unread(shape, dtype) for shape, dtype in pairs))


@final
@dataclass(frozen=True, slots=True)
class Skipped:
    """A module below the line, which need not run where it is given what nobody may read.

    Attributes:
        answers: to its calls, in their order.
    """

    path: str
    answers: list[_Answer]

    @classmethod
    def of(cls, path: str, outputs: Sequence[object], rows: int) -> Skipped:
        """Of the module at `path`, and what it gave for a batch of `rows`.

        Raises:
            CutError: that cannot be taken apart.
        """
        return cls(path, [_Answer.of(output, rows) for output in outputs])

    def skipping(self, model: nn.Module, rows: int) -> AbstractContextManager[None]:
        """While in the block, calls with unread inputs give unread outputs, and run nothing."""
        module, left = model.get_submodule(self.path), iter(self.answers)
        run = vars(module).get(CALL) or module._call_impl

        def call(*args: Any, **kwargs: Any) -> Any:
            leaves = pytree.tree_leaves((args, kwargs))
            is_below = any(isinstance(leaf, Unread) for leaf in leaves)
            known = next(left, None) if is_below else None
            return run(*args, **kwargs) if known is None else known.unread(rows)

        return put(module, CALL, call)


@contextmanager
def put(module: nn.Module, name: str, function: Callable[..., object]) -> Iterator[None]:
    """While in the block, `function` is this attribute of the module."""
    own = vars(module)
    former = own.get(name)
    own[name] = function
    try:
        yield
    finally:
        own.pop(name)
        if former is not None:
            own[name] = former


def is_frozen(module: nn.Module) -> bool:
    wanted = [parameter.requires_grad for parameter in module.parameters()]
    return bool(wanted) and not any(wanted)


def unread(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta").as_subclass(Unread)


class Unread(Tensor):
    """Stands for a value below the line: it has a shape, but no numbers to read.

    What is computed from one is one, with whatever it meets; if the output is one, it was missed.
    """

    mixed_by = ""  # the first operation that took it together with real numbers

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.to:  # its device, as `fully_shard` moves what goes into a model
            return args[0]
        given = (args, kwargs or {})
        leaves = [leaf for leaf in pytree.tree_leaves(given) if isinstance(leaf, Tensor)]
        real = [leaf for leaf in leaves if not isinstance(leaf, cls)]
        name = getattr(func, "__name__", str(func))
        if (real and real[0] is leaves[0] and _writes(name)) or "out" in given[1]:
            raise reads_input(name)
        try:
            args, named = pytree.tree_map_only(Tensor, _on_meta, given) if real else given
            found = super().__torch_function__(func, types, args, named)  # type: ignore[no-untyped-call]  # torch's own
        except (RuntimeError, NotImplementedError) as error:
            raise reads_input(name) from error
        mixed = [leaf.mixed_by for leaf in leaves if isinstance(leaf, cls) and leaf.mixed_by]
        for made in pytree.tree_leaves(found):
            if isinstance(made, cls):
                made.mixed_by = mixed[0] if mixed else name if real else ""
        return found


def _writes(name: str) -> bool:
    """Whether an operation of that name writes into its first argument."""
    return name == "__setitem__" or name.startswith("__i") or (name[-1] == "_" != name[-2])


def _on_meta(tensor: Tensor) -> Tensor:
    return tensor if isinstance(tensor, Unread) else tensor.detach().to("meta")


def reads_input(name: str) -> CutError:
    return CutError(
        f"what stands above the line reads the model's input itself (by {name}), so the "
        "features alone do not do. Name another submodule, or train with features off."
    )
