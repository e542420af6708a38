"""A model's inputs and outputs as flat lists of tensors, and back.

Inputs are what a batch holds: one tensor, a tuple of positional ones, or a dict of keyword ones.
Outputs may be tensors, tuples, dicts, dataclasses or the output classes of transformers, nested.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, final

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from frostline.errors import CutError, a_type

Inputs = Any  # a tensor, a tuple or list of positional arguments, or a mapping of keyword arguments
Rebuild = Callable[[Iterator[Tensor]], Any]


@final
@dataclass(frozen=True)
class InputSpec:
    """How a batch's flat tensors stand in the model's arguments.

    Attributes:
        leaves: `Tensor` where a tensor stands; anything else is passed as it is.
        names: what to call each tensor: the argument's name, or its place among several.
    """

    tree: pytree.TreeSpec
    leaves: tuple[object, ...]
    names: tuple[str, ...]

    @property
    def keywords(self) -> dict[str, Any]:
        """Keyword arguments in their order: `Tensor` for one that holds tensors, else its value."""
        _, named = pytree.tree_unflatten(self.leaves, self.tree)
        return {
            name: Tensor if Tensor in pytree.tree_leaves(part) else part
            for name, part in named.items()
        }

    def flatten(self, inputs: Inputs) -> list[Tensor]:
        """The tensors of `inputs`, which must be built like the example.

        Raises:
            CutError: they are built otherwise.
        """
        leaves, tree = pytree.tree_flatten(_arguments(inputs))
        if tree != self.tree or _known(leaves) != self.leaves:
            raise CutError(
                "these inputs are not built like the example that the model was cut with"
                f"{self._differs(leaves, tree)}. Give the same arguments with the same names, or "
                "cut it again with these."
            )
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    def _differs(self, leaves: Sequence[object], tree: pytree.TreeSpec) -> str:
        """By which names, if by any."""
        (known, known_named), (given, named) = (
            pytree.tree_unflatten(every, one)
            for every, one in ((self.leaves, self.tree), (leaves, tree))
        )
        if len(known) != len(given):
            return f": {len(given)} by position in place of {len(known)}"
        lacks = ", ".join(name for name in known_named if name not in named)
        more = ", ".join(name for name in named if name not in known_named)
        said = (f"without {lacks}" if lacks else "", f"with {more}" if more else "")
        return f": {' and '.join(filter(None, said))}" if lacks or more else ""

    def call(self, model: nn.Module, tensors: list[Tensor]) -> Any:
        """`model` called with the tensors in their places."""
        given = iter(tensors)
        leaves = [next(given) if leaf is Tensor else leaf for leaf in self.leaves]
        positional, named = pytree.tree_unflatten(leaves, self.tree)
        return model(*positional, **named)


def read_inputs(inputs: Inputs) -> tuple[InputSpec, list[Tensor]]:
    """How `inputs` are built, and their tensors.

    Raises:
        CutError: there is no tensor in them, or None stands for one.
    """
    positional, named = _arguments(inputs)
    leaves, tree = pytree.tree_flatten((positional, named))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if not tensors or any(leaf is None for leaf in leaves):
        raise CutError(
            f"a model cannot be cut on an example without tensors, or with None in it; found "
            f"{type(inputs).__name__}. Give one batch as the model takes it."
        )
    word = "the input" if len(tensors) == 1 else "input {}"
    parts = [*((word.format(i), part) for i, part in enumerate(positional)), *named.items()]
    names = [n for n, part in parts for t in pytree.tree_leaves(part) if isinstance(t, Tensor)]
    return InputSpec(tree, _known(leaves), tuple(names)), tensors


def _known(leaves: list[Any]) -> tuple[object, ...]:
    return tuple(Tensor if isinstance(leaf, Tensor) else leaf for leaf in leaves)


def _arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), {name: inputs[name] for name in sorted(inputs)}
    if isinstance(inputs, tuple | list):
        return tuple(inputs), {}
    return (inputs,), {}


def flatten_output(output: Any) -> tuple[list[Tensor], Rebuild]:
    """The tensors of a model's output in a fixed order, and what builds the output from such.

    Raises:
        CutError: something in it is neither a tensor, a plain value nor a known container.
    """
    tensors: list[Tensor] = []
    return tensors, _read(output, tensors)


def _read(output: Any, found: list[Tensor]) -> Rebuild:
    """Built of functions with names alone, so that it can be pickled."""
    if isinstance(output, Tensor):
        found.append(output)
        return next
    if output is None or isinstance(output, bool | int | float | str):
        return partial(_as_it_was, output)
    if isinstance(output, tuple | list):
        make = getattr(output, "_make", type(output))  # a named tuple's takes one list too
        return partial(_build_listed, make, [_read(value, found) for value in output])
    kind = type(output) if dataclasses.is_dataclass(output) else dict
    if isinstance(output, Mapping):  # transformers' ModelOutput is also a dataclass
        parts = {name: _read(value, found) for name, value in output.items()}
        return partial(_build_named, kind, parts)
    if kind is not dict and not isinstance(output, type):
        names = [field.name for field in dataclasses.fields(output) if field.init]
        parts = {name: _read(getattr(output, name), found) for name in names}
        return partial(_build_named, kind, parts)
    raise CutError(
        f"the model returns {a_type(output)}, which cannot be taken apart. Let it return "
        "tensors, tuples, dicts or dataclasses; with transformers, pass use_cache=False. A prefix "
        "that is trained by way of the cache is returned all the same: train that without a cut."
    )


def _as_it_was(output: object, _given: Iterator[Tensor]) -> object:
    return output


def _build_named(kind: type, parts: dict[Any, Rebuild], given: Iterator[Tensor]) -> Any:
    built = {name: part(given) for name, part in parts.items()}
    return built if kind is dict else kind(**built)


def _build_listed(make: Callable[..., Any], parts: list[Rebuild], given: Iterator[Tensor]) -> Any:
    return make([part(given) for part in parts])


def plain_rebuild(rebuild: Rebuild) -> Any:
    """The same as plain data, where it builds tensors, containers and classes of transformers.

    Raises:
        ValueError: it builds something else.
    """
    if rebuild is next:
        return "tensor"
    if isinstance(rebuild, partial):
        if rebuild.func is _as_it_was:
            return {"value": rebuild.args[0]}
        made, parts = rebuild.args
        if rebuild.func is _build_listed and made in (tuple, list):
            return {made.__name__: [plain_rebuild(part) for part in parts]}
        if rebuild.func is _build_named and (made is dict or _is_transformers(made)):
            name = "" if made is dict else f"{made.__module__}.{made.__qualname__}"
            return {"named": [name, [[key, plain_rebuild(part)] for key, part in parts.items()]]}
    raise ValueError("an output of a class of someone's own")


def rebuild_of(told: Any, find: Callable[[str], type]) -> Rebuild:
    """What `plain_rebuild` was given.

    Args:
        find: gives a class by its name.
    """
    if told == "tensor":
        return next
    ((kind, value),) = told.items()
    if kind == "value":
        return partial(_as_it_was, value)
    if kind == "named":
        name, parts = value
        built = {key: rebuild_of(part, find) for key, part in parts}
        return partial(_build_named, find(name) if name else dict, built)
    made = {"tuple": tuple, "list": list}[kind]
    return partial(_build_listed, made, [rebuild_of(part, find) for part in value])


def _is_transformers(kind: Any) -> bool:
    return isinstance(kind, type) and kind.__module__.startswith("transformers.")


def varying_inputs(tensors: Sequence[Tensor]) -> list[int]:
    """Numbers of the inputs whose second dimension may be as long as the samples are.

    Those are ids and masks `(batch, length)`, and real numbers with a mask of their shape beside
    them, as recordings have it.
    """
    flat = {i: t for i, t in enumerate(tensors) if t.dim() == 2 and t.shape[1] > 1}
    masks = {t.shape for t in flat.values() if not t.is_floating_point()}
    return [i for i, t in flat.items() if t.shape in masks]


def rows_of(tensors: list[Tensor]) -> int:
    """Samples in a batch.

    Raises:
        CutError: the first tensor has no batch dimension.
    """
    if tensors[0].dim() == 0:
        raise CutError("the example's first tensor has no batch dimension. Give a batch.")
    return int(tensors[0].shape[0])
