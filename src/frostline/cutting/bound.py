"""Half of a cut over a model: at each call it looks the model's tensors up, and the model over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, fx, nn

from frostline.cutting.graphs import OpenGraph, Place
from frostline.cutting.watching import Look, Watch, changed
from frostline.errors import CutError
from frostline.units import some_of

_SHOWN = 3


@final
class Half:
    """A graph, and what must be true of a model for which it stands.

    A call costs about a microsecond for each module that is watched, and a tenth of that for each
    module and parameter below the line. It holds no tensor; what it has found of one model it
    leaves behind when it is copied or pickled.
    """

    def __init__(self, graph: OpenGraph, below: Sequence[Place], watch: Watch) -> None:
        """Take over `graph`.

        Args:
            below: parameters that the features are computed with: they must want no gradient.
            watch: the modules on whose structure the graph rests.
        """
        self._graph = graph
        self._below = tuple(below)
        self._watch = watch
        self._found: _Found | None = None

    def __call__(self, model: nn.Module, values: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What the graph gives for `values`, over the tensors that the model has now.

        Raises:
            CutError: the model is not what was cut.
        """
        return self.run(self.tensors(model), values)

    def run(self, tensors: Sequence[Tensor], values: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What the graph gives for `values`, over what `tensors` gave."""
        return self._graph.run(tensors, values)

    def read(self, model: nn.Module) -> list[tuple[str, Tensor]]:
        """All tensors that the graph reads, as the model has them now; raises as a call does."""
        return self._graph.read(self.tensors(model))

    def over(self, model: nn.Module) -> fx.GraphModule:
        """The graph as a module over the tensors that the model has now; raises as a call does."""
        return self._graph.over(self.tensors(model))

    def __deepcopy__(self, memo: dict[int, object]) -> Half:
        return Half(self._graph, self._below, self._watch)

    def __reduce__(self) -> tuple[Any, ...]:
        return Half, (self._graph, self._below, self._watch)

    @torch.compiler.disable(reason="a cut looks its model over")  # type: ignore[untyped-decorator, no-untyped-call]  # torch's own
    def tensors(self, model: nn.Module) -> list[Tensor]:
        """Those that the graph reads, as the model has them now.

        torch.compile guards what it sees, and sees no module in the graph: so it does not follow.

        Raises:
            CutError: as a call.
        """
        found = self._found  # one reading: replicas of a model share this in several threads
        if found is None or found.model is not model or not _is_current(found):
            found = self._found = self._find(model)
        tensors: list[Any] = [owned.get(leaf) for owned, leaf in found.tensors]
        for place, tensor in zip(self._graph.places, tensors, strict=True):
            if not place.holds(tensor):
                raise _other_form(model, place, tensor)
        for owned, leaf, other, tie in found.ties:
            if owned.get(leaf) is not other.get(tie):
                raise changed(model, f"{leaf} and {tie} are not one tensor")
        return tensors

    def _find(self, model: nn.Module) -> _Found:
        below = [(place.name, _spot(model, place, place.name)) for place in self._below]
        trainable = [name for name, (owned, leaf) in below if owned[leaf].requires_grad]
        if trainable:
            raise trainable_below(trainable)
        look = self._watch.look(model)
        places = self._graph.places
        return _Found(
            model,
            look,
            [_spot(model, place, place.name) for place in places],
            [
                (*_spot(model, place, place.name), *_spot(model, place, tie))
                for place in places
                for tie in place.ties
            ],
            [spot for _, spot in below],
            list(_standing(model, self._below)),
        )


class _Found(NamedTuple):
    """Where one model keeps what a half reads: dicts of its modules, with the keys in them."""

    model: nn.Module
    look: Look
    tensors: list[tuple[dict[str, Any], str]]
    ties: list[tuple[dict[str, Any], str, dict[str, Any], str]]
    below: list[tuple[dict[str, Any], str]]
    standing: list[tuple[dict[str, Any], str, nn.Module, type]]


def _is_current(found: _Found) -> bool:
    """Whether nothing has changed; if not, finding all again tells what."""
    for owned, leaf in found.below:
        tensor = owned.get(leaf)
        if tensor is None or tensor.requires_grad:
            return False
    for around, leaf, module, kind in found.standing:
        if around.get(leaf) is not module or module.__class__ is not kind:
            return False
    return found.look.is_current()


def _standing(
    model: nn.Module, below: Sequence[Place]
) -> list[tuple[dict[str, Any], str, nn.Module, type]]:
    """The modules on the way to the parameters below, each with the dict that it stands in."""
    paths: dict[str, None] = {}
    for place in below:
        path = place.name.rpartition(".")[0]
        while path and path not in paths:
            paths[path] = None
            path = path.rpartition(".")[0]
    found = []
    for path in paths:
        up, _, leaf = path.rpartition(".")
        module = model.get_submodule(path)
        found.append((vars(model.get_submodule(up))["_modules"], leaf, module, type(module)))
    return found


def _spot(model: nn.Module, place: Place, name: str) -> tuple[dict[str, Any], str]:
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
        f"{some_of(names, most=_SHOWN)} {verb} below the frost line of this cut, where nothing is "
        "trained. Freeze it, or cut again: fl.cut(model, example)."
    )


def _other_form(model: nn.Module, place: Place, tensor: object) -> CutError:
    now = _form(tensor.shape, tensor.dtype, tensor.device) if isinstance(tensor, Tensor) else "gone"
    was = _form(place.shape, place.dtype, place.device)
    return changed(model, f"{place.name} is {now}, and was {was}")


def _form(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> str:
    sizes = " x ".join(map(str, shape)) or "one number,"
    return f"{sizes} {str(dtype).removeprefix('torch.')} on {device}"
