"""The suffix of one mode: from the frontier's values to what the model answers, or refuses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, final

from torch import Tensor

from frostline.cutting.bound import Half
from frostline.cutting.checking import Refusal
from frostline.cutting.graphs import OpenGraph, Place
from frostline.cutting.structures import Rebuild
from frostline.cutting.watching import Watch


@final
@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen of a model in one mode.

    Attributes:
        watch: the modules that its forward reads.
        refusal: what it says to one sample, if it does not take that.
    """

    watch: Watch = field(default_factory=Watch)
    refusal: Refusal | None = None


@final
@dataclass(frozen=True, slots=True)
class Above:
    """`above(half.tensors(model), values)` is the model's output, if it is what was cut."""

    half: Half
    rebuild: Rebuild
    refusal: Refusal | None

    def __call__(self, tensors: Sequence[Tensor], values: Sequence[Tensor]) -> Any:
        """The model's output for the frontier's values; raises what the model raises."""
        if self.refusal is not None and values[0].shape[0] == 1:
            raise self.refusal.error()
        return self.rebuild(iter(self.half.run(tensors, values)))


def above(
    part: tuple[OpenGraph, Rebuild], prefix: OpenGraph, seen: Seen, others: frozenset[str]
) -> Above:
    """The suffix of one mode.

    Args:
        part: its graph, and what makes the model's output of it.
        others: modules that one mode's suffix enters, the other's included.
    """
    graph, rebuild = part
    watch = seen.watch.without(prefix.entered - others)
    return Above(Half(graph, parameters_of(prefix), watch), rebuild, seen.refusal)


def parameters_of(graph: OpenGraph) -> list[Place]:
    """The parameters that a graph reads."""
    return [place for place in graph.places if place.kind == "_parameters"]
