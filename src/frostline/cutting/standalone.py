"""A suffix alone: copies of the tensors that it reads, and no more of its model."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, Self, final

from torch import Tensor, nn

from frostline.cutting.graphs import OpenGraph, TensorPlace
from frostline.cutting.halves import Above
from frostline.freezing.modes import is_held


@final
class Standalone(nn.Module):
    """A suffix over a copy of its model that has only the modules whose tensors are read.

    It gives the bits of the suffix in training and in evaluation, and trains without touching the
    model; each copy of it is one more start from the same place, no larger than what lies above
    the line.

    Attributes:
        model: these modules, under the names that they have in the model.
    """

    def __init__(self, model: nn.Module, above: tuple[Above, Above]) -> None:
        super().__init__()
        self._above = above
        self.model = copy.deepcopy(model)
        self.training = self.model.training
        places = [place for part in above for place in part.half.graph.places]
        _keep_only(self.model, {name for p in places for name in (p.name, *p.ties)})

    def copied(self) -> Standalone:
        """A copy with tensors of its own; it shares the graph, which holds none."""
        return copy.deepcopy(self, {id(self._above): self._above})

    def forward(self, *values: Tensor) -> Any:
        """The model's output for the frontier's values, each `(batch, *shape)`."""
        half, rebuild, refusal = self._above[self.training]
        if refusal is not None and values[0].shape[0] == 1:
            raise refusal()
        return rebuild(iter(half.graph.run(list(self._tensors(half.graph)), values)))

    def train(self, mode: bool = True) -> Self:
        """As of any module; a `train` of the model's own would look for modules that are gone."""
        self.training = mode
        for module in self.model.modules():
            module.training = mode and not is_held(module)
        return self

    def _tensors(self, graph: OpenGraph) -> Iterator[Tensor]:
        return (_read(self.model, place) for place in graph.places)


def _read(model: nn.Module, place: TensorPlace) -> Tensor:
    path, _, leaf = place.name.rpartition(".")
    found: Tensor = getattr(model.get_submodule(path), leaf)
    return found


def _keep_only(module: nn.Module, names: set[str], path: str = "") -> bool:
    """Take away all parameters, buffers and modules of other names; whether something is left."""
    kept = any(name.rpartition(".")[0] == path.removesuffix(".") for name in names)
    for owned in (module._parameters, module._buffers):
        for leaf in [leaf for leaf in owned if f"{path}{leaf}" not in names]:
            del owned[leaf]
    for child, part in list(module._modules.items()):
        if part is not None and _keep_only(part, names, f"{path}{child}."):
            kept = True
        else:
            del module._modules[child]
    return kept
