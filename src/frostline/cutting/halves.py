"""A half of a cut over a model: each call looks the model's tensors up, and the model over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, fx, nn

from frostline.cutting.checking import Refusal
from frostline.cutting.graphs import OpenGraph, TensorPlace
from frostline.cutting.structures import Rebuild
from frostline.cutting.watching import Structure, changed, upwards
from frostline.errors import CutError
from frostline.units import some_of


@final
class Half:
    """A graph, and what must be true of a model for which it stands.

    A call costs about a microsecond for each module that is watched, and a tenth of that for each
    module and parameter below the line. It holds no tensor; what it has found of one model it
    leaves behind when it is copied or pickled.
    """

    def __init__(
        self, graph: OpenGraph, below: Sequence[TensorPlace], structure: Structure
    ) -> None:
        """Take over `graph`.

        Args:
            below: parameters that the features are computed with: they must want no gradient.
            structure: that of the modules on which the graph rests.
        """
        self._graph = graph
        self._below = below
        self._structure = structure
        self._found: _Spots | None = None

    def run(self, tensors: Sequence[Tensor], values: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What the graph gives for `values`, over what `tensors` gave."""
        return self._graph.run(tensors, values)

    def read(self, model: nn.Module) -> list[tuple[str, Tensor]]:
        """All tensors that the graph reads, as the model has them now; raises as `tensors`."""
        return self._graph.read(self.tensors(model))

    def over(self, model: nn.Module) -> fx.GraphModule:
        """The graph as a module over the tensors that the model has now; raises as `tensors`."""
        return self._graph.over(self.tensors(model))

    def __deepcopy__(self, memo: dict[int, object]) -> Half:
        return Half(self._graph, self._below, self._structure)

    def __reduce__(self) -> tuple[Any, ...]:
        return Half, (self._graph, self._below, self._structure)

    @torch.compiler.disable(reason="a cut looks its model over")  # type: ignore[untyped-decorator, no-untyped-call]  # torch's own
    def tensors(self, model: nn.Module) -> list[Tensor]:
        """Those that the graph reads, as the model has them now.

        torch.compile guards what it sees, and sees no module in the graph: so it does not follow.

        Raises:
            CutError: the model is not what was cut.
        """
        found = self._found  # one reading: replicas of a model share this in several threads
        if found is None or found.model is not model or not found.is_current():
            found = self._found = self._find(model)
        tensors: list[Any] = [owned.get(leaf) for owned, leaf in found.tensors]
        for place, tensor in zip(self._graph.places, tensors, strict=True):
            if not place.holds(tensor):
                now = _form(tensor) if isinstance(tensor, Tensor) else "gone"
                raise changed(model, f"{place.name} is {now}, and was {_form(place)}")
        for owned, leaf, other, tie in found.ties:
            if owned.get(leaf) is not other.get(tie):
                raise changed(model, f"{leaf} and {tie} are not one tensor")
        return tensors

    def _find(self, model: nn.Module) -> _Spots:
        below = [_spot(model, place, place.name) for place in self._below]
        names = [place.name for place in self._below]
        wanting = [owned[leaf].requires_grad for owned, leaf in below]
        if any(wanting):
            raise trainable_below(list(compress(names, wanting)))
        standing, unchanged = _standing(model, names), self._structure.look(model)
        places = self._graph.places
        tensors = [_spot(model, place, place.name) for place in places]
        ties = [
            (*spot, *_spot(model, place, tie))
            for place, spot in zip(places, tensors, strict=True)
            for tie in place.ties
        ]

        def is_current() -> bool:
            """Whether nothing has changed; if not, finding all again tells what."""
            for owned, leaf in below:
                tensor = owned.get(leaf)
                if tensor is None or tensor.requires_grad:
                    return False
            for around, leaf, module, kind in standing:
                if around.get(leaf) is not module or module.__class__ is not kind:
                    return False
            return all(is_as_it_was() for is_as_it_was in unchanged)

        return _Spots(model, is_current, tensors, ties)


_Spot = tuple[dict[str, Any], str]  # a dict of a module, and a key in it


class _Spots(NamedTuple):
    """Where one model keeps what a half reads."""

    model: nn.Module
    is_current: Callable[[], bool]
    tensors: list[_Spot]
    ties: list[tuple[dict[str, Any], str, dict[str, Any], str]]


def _standing(
    model: nn.Module, below: Sequence[str]
) -> list[tuple[dict[str, Any], str, nn.Module, type]]:
    """The modules on the way to the parameters below, each with the dict that it stands in."""
    found = []
    for path in dict.fromkeys(up for name in below for up in upwards(name) if up):
        up, _, leaf = path.rpartition(".")
        module = model.get_submodule(path)
        found.append((vars(model.get_submodule(up))["_modules"], leaf, module, type(module)))
    return found


def _spot(model: nn.Module, place: TensorPlace, name: str) -> _Spot:
    """The dict in which the model has the tensor now, and its key in it."""
    path, _, leaf = name.rpartition(".")
    try:
        owned = place.owned(model.get_submodule(path))
    except AttributeError:
        owned = {}
    if owned.get(leaf) is None:
        raise changed(model, f"it has no {name}")
    return owned, leaf


def trainable_below(names: Sequence[str]) -> CutError:
    """The error that names parameters which the features were computed with while frozen."""
    verb = "is trainable now and lies" if len(names) == 1 else "are trainable now and lie"
    return CutError(
        f"{some_of(names, most=3)} {verb} below the frost line of this cut, where nothing is "
        "trained. Freeze it, or cut again: fl.cut(model, example)."
    )


def _form(of: Tensor | TensorPlace) -> str:
    sizes = " x ".join(map(str, of.shape)) or "one number,"
    return f"{sizes} {str(of.dtype).removeprefix('torch.')} on {of.device}"


@final
@dataclass(frozen=True, slots=True)
class Above:
    """The suffix of one mode: from the frontier's values to what the model answers, or refuses."""

    half: Half
    rebuild: Rebuild
    refusal: Refusal | None

    def __call__(self, tensors: Sequence[Tensor], values: Sequence[Tensor]) -> Any:
        """The model's output, over what `half.tensors` gave; raises what the model raises."""
        if self.refusal is not None and values[0].shape[0] == 1:
            raise self.refusal()
        return self.rebuild(iter(self.half.run(tensors, values)))
