"""A half of a cut over a model: each call looks the model's tensors up, and the model over."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from frostline.cutting.checking import Refusal
from frostline.cutting.graphs import OpenGraph, TensorPlace
from frostline.cutting.structures import Rebuild
from frostline.cutting.watching import Identities, Structure, changed, upwards
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
        self.graph = graph
        self._below = below
        self._structure = structure
        self._found: _Spots | None = None

    def over(self, graph: OpenGraph) -> Half:
        """The same of a model, with another graph over the same tensors."""
        return Half(graph, self._below, self._structure)

    def __reduce__(self) -> tuple[Any, ...]:
        return Half, (self.graph, self._below, self._structure)

    def tensors(self, model: nn.Module) -> list[Tensor]:
        """Those that the graph reads, as the model has them now.

        torch.compile guards what it sees, and sees no module in the graph: so it does not follow.

        Raises:
            CutError: the model is not what was cut.
        """
        if torch.compiler.is_compiling():
            from frostline.cutting.untraced import untraced

            found: list[Tensor] = untraced(self._tensors, model)
            return found
        return self._tensors(model)

    def _tensors(self, model: nn.Module) -> list[Tensor]:
        found = self._found  # one reading: replicas of a model share this in several threads
        if found is None or found.model is not model or not found.are_current():
            found = self._found = self._find(model)
        tensors: list[Any] = [owned.get(leaf) for owned, leaf in found.tensors]
        for place, tensor in zip(self.graph.places, tensors, strict=True):
            if not place.holds(tensor):
                now = _form(tensor) if isinstance(tensor, Tensor) else "gone"
                raise changed(model, f"{place.name} is {now}, and was {_form(place)}")
        for (owned, leaf), (other, tie) in found.ties:
            if owned.get(leaf) is not other.get(tie):
                raise changed(model, f"{leaf} and {tie} are not one tensor")
        return tensors

    def _find(self, model: nn.Module) -> _Spots:
        names = [place.name for place in self._below]
        below = [_spot(model, place, place.name) for place in self._below]
        wanting = [owned[leaf].requires_grad for owned, leaf in below]
        if any(wanting):
            raise trainable_below(list(compress(names, wanting)))
        standing = dict.fromkeys(up for name in names for up in upwards(name) if up)
        identities = self._structure.look(model, standing)
        tensors = [_spot(model, place, place.name) for place in self.graph.places]
        ties = [
            (spot, _spot(model, place, tie))
            for place, spot in zip(self.graph.places, tensors, strict=True)
            for tie in place.ties
        ]
        return _Spots(model, identities, below, tensors, ties)


_Spot = tuple[dict[str, Any], str]  # a dict of a module, and a key in it


class _Spots(NamedTuple):
    """Where one model keeps what a half reads."""

    model: nn.Module
    identities: Identities
    below: list[_Spot]
    tensors: list[_Spot]
    ties: list[tuple[_Spot, _Spot]]

    def are_current(self) -> bool:
        """Whether nothing has changed; if not, finding all again tells what."""
        for owned, leaf in self.below:
            tensor = owned.get(leaf)
            if tensor is None or tensor.requires_grad:
                return False
        return self.identities.hold()


def _spot(model: nn.Module, place: TensorPlace, name: str) -> _Spot:
    """The dict in which the model has the tensor now, and its key in it."""
    path, _, leaf = name.rpartition(".")
    try:
        own = vars(model.get_submodule(path))
        owned = own if place.kind == "__dict__" else own[place.kind]
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


class Above(NamedTuple):
    """The suffix of one mode, and what it refuses a single sample with, where the model does."""

    half: Half
    rebuild: Rebuild
    refusal: Refusal | None
