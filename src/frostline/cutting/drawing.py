"""The frost line drawn in the graphs of both modes; drawn once for a model that does not change.

Following a model takes longer than training a head on stored features, and a second run with
another learning rate starts from the same model, or from it with a new head of the same form. What
is reused is compared with the model as at each call of a cut, its tensors with its key, and it is
checked on the example like anything new.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn

from frostline.cutting.cheapest import choose, forward_share, row_bytes
from frostline.cutting.checking import Checked
from frostline.cutting.dividing import GraphLine, build_prefix, build_suffix
from frostline.cutting.effects import upwards
from frostline.cutting.evaluated import evaluated
from frostline.cutting.graphs import OpenGraph
from frostline.cutting.layouts import RowLayout, row_sizes, row_symbols
from frostline.cutting.lengths import OwnLength, length_symbols, own_length, varying
from frostline.cutting.reasons import nothing_kept, why_there
from frostline.cutting.signatures import outline, prefix_key, prefix_tensors, settled, signatures
from frostline.cutting.structures import InputSpec, Rebuild
from frostline.cutting.tracing import (
    Traced,
    Unfollowed,
    forget_symbols,
    operation,
    trace,
)
from frostline.cutting.trial import Observed, rearrange, run_trial
from frostline.cutting.verdicts import LABELS, verdicts_on
from frostline.cutting.watching import Structure
from frostline.errors import NothingFrozen, one_line
from frostline.standins import StandIn
from frostline.units import format_bytes


@final
@dataclass(frozen=True, slots=True)
class FrontierValue:
    """One value that crosses the frost line.

    Attributes:
        name: the module and operation that give it.
        shape: of one sample; None for a size that varies with the sample.
        dtype: as computed.
        nbytes: of one sample as computed, before any storage dtype; as long as the example is.
        lengths: what each size that varies follows; None for the others.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: torch.dtype
    nbytes: int
    lengths: tuple[OwnLength | None, ...] = field(default=(), repr=False)

    def own_shape(self, tensors: Sequence[Tensor]) -> tuple[int, ...]:
        """The shape that a sample's value has where it is a batch of its own, of these inputs."""
        pairs = zip(self.shape, self.lengths or self.shape, strict=True)
        return tuple(
            length.of(tensors) if isinstance(length, OwnLength) else int(size or 0)
            for size, length in pairs
        )

    def __str__(self) -> str:
        sizes = " x ".join("?" if size is None else str(size) for size in self.shape) or "1"
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.name}: {sizes} {dtype}, {format_bytes(self.nbytes)} per sample"


@final
@dataclass(frozen=True)
class Drawn:
    """All of a cut that does not refer to the model object itself.

    Attributes:
        training, evaluation: the suffix in each mode, and what makes the model's output of it.
        varying: numbers of the inputs that may be as long as the samples are.
    """

    prefix: OpenGraph
    training: tuple[OpenGraph, Rebuild]
    evaluation: tuple[OpenGraph, Rebuild]
    frontier: tuple[FrontierValue, ...]
    why: str
    share: float
    key: Mapping[str, str]
    varying: tuple[int, ...]


# One entry for each model that is alive; it goes with the model.
_KEPT: WeakKeyDictionary[nn.Module, tuple[object, Drawn, Checked]] = WeakKeyDictionary()


def is_known(model: nn.Module) -> bool:
    """Whether something was drawn for this model, whatever it was then."""
    return model in _KEPT


def recall(
    model: nn.Module, spec: InputSpec, tensors: list[Tensor]
) -> tuple[Drawn, Checked] | None:
    """What was drawn for this model and what its check saw, if the form of all is as it was.

    Whether the model is still what was checked is to be asked of the halves.
    """
    state, drawn, seen = _KEPT.get(model, (None, None, None))
    if drawn is None or seen is None or state != _state(model, spec, tensors):
        return None
    return drawn, seen


def remember(
    model: nn.Module, spec: InputSpec, tensors: list[Tensor], drawn: Drawn, seen: Checked
) -> None:
    """Keep a line that was checked on the model, which is in train mode, for `recall`."""
    _KEPT[model] = _state(model, spec, tensors), drawn, seen


def draw(model: nn.Module, spec: InputSpec, tensors: list[Tensor]) -> Drawn:
    """Follow the model in both modes and draw the line.

    Once for both, where one can be told from the other.

    The model is in train mode afterwards.

    Raises:
        NothingFrozen, CutError: as `cut`.
    """
    # Long, since each step needs what the ones before it found.
    model.train()
    traced = trace(model, spec, tensors)
    structure = Structure.of(model, traced.reads)
    with _for_few_samples(model):
        trial = run_trial(traced, tensors)
        verdicts = verdicts_on(trial)
        mixed, layouts = rearrange(trial, verdicts.carriers)
    if mixed:
        verdicts = verdicts_on(trial, mixed=mixed)
    below, crossing = choose(verdicts, trial, layouts)
    if all(node.op == "placeholder" for node in below):
        raise NothingFrozen(nothing_kept(model, traced, verdicts, layouts.keys()))
    hashes = signatures(trial)
    ends = settled(trial, hashes, below)
    alike = defaultdict[str, list[fx.Node]](list)  # of those of equal content one is enough
    for node in crossing:
        alike[ends[node]].append(node)
    firsts = [nodes[0] for nodes in alike.values()]
    ways = tuple(layouts[node] for node in firsts)
    both = frozenset(verdicts.carriers).intersection(upwards(crossing)) - below
    line = GraphLine(below, verdicts.free, tuple(map(tuple, alike.values())), ways, trial, both)
    prefix, held = build_prefix(line, model)
    training = evaluation = build_suffix(line, model)
    model.eval()
    other = evaluated(traced, structure, model) or trace(model, spec, tensors)
    if outline(other) != outline(traced):
        with _for_few_samples(model):
            tried = run_trial(other, tensors)
        evaluation = build_suffix(_same_line(tried, line, hashes, ends), model)
    share = forward_share(held, trial)
    drawn = Drawn(
        prefix,
        (training, traced.rebuild),
        (evaluation, other.rebuild),
        tuple(_value(node, trial, way) for node, way in zip(firsts, ways, strict=True)),
        why_there(crossing, below, verdicts, share),
        share,
        {"prefix": _prefix_key(traced, held, firsts), "tensors": prefix_tensors(traced, held)},
        varying(traced.module.graph),
    )
    forget_symbols(*{each.module.graph: None for each in (traced, other)})
    model.train()
    return drawn


@contextmanager
def _for_few_samples(model: nn.Module) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, IndexError, ValueError) as error:  # as operations refuse their sizes
        raise Unfollowed(
            f"the forward of {type(model).__name__} does not hold for batches of 2 or 3 samples: "
            f"{one_line(error, first=True)}."
        ) from error


def _same_line(
    trial: Observed, line: GraphLine, hashes: Mapping[fx.Node, str], ends: Mapping[fx.Node, str]
) -> GraphLine:
    """The line of the training graph, whose hashes these are, in another graph."""
    nodes, found = trial.traced.nodes, signatures(trial)
    # Of equal computations one may lie below and another above; both are then above here.
    wanted = {hashes[node] for node in line.below}
    wanted -= {hashed for node, hashed in hashes.items() if node not in line.below}
    below = frozenset(node for node in nodes if found[node] in wanted)
    found_ends = settled(trial, found, below)
    crossing = tuple(
        tuple(node for node in nodes if found_ends[node] == ends[held[0]]) for held in line.crossing
    )
    free = verdicts_on(trial).free - below
    return GraphLine(below, free, crossing, line.layouts, trial)


def _value(node: fx.Node, trial: Observed, layout: RowLayout) -> FrontierValue:
    symbols = length_symbols(node.graph)
    lengths = tuple(
        None if isinstance(size, int) else own_length(size, symbols)
        for size in row_symbols(node, layout)
    )
    shape, dtype = row_sizes(node, layout), trial.values[node].dtype
    return FrontierValue(operation(node), shape, dtype, row_bytes(node, trial), lengths)


def _prefix_key(traced: Traced, held: Collection[fx.Node], crossing: Collection[fx.Node]) -> str:
    """Of what is computed: labels cross as they are, so features are the same without them."""
    labels = {n for n in traced.nodes if n.op == "placeholder" and operation(n) == LABELS}
    return prefix_key(
        traced, [n for n in held if n not in labels], [n for n in crossing if n not in labels]
    )


def _state(model: nn.Module, spec: InputSpec, tensors: list[Tensor]) -> tuple[object, ...]:
    """Names, classes, switches and modes, hooks, autocast, shapes of inputs."""
    modules = list(model.named_modules())
    return (
        tuple((path, type(m), m.training, _own_forward(m)) for path, m in modules),
        tuple((*m._forward_hooks, None, *m._forward_pre_hooks) for _, m in modules),
        tuple((name, p.requires_grad, p.device) for name, p in model.named_parameters()),
        tuple(name for name, _ in model.named_buffers()),
        tuple((t.shape[1:], t.dtype, t.device) for t in tensors),
        tuple(
            (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in {t.device.type for t in tensors}
        ),
        spec.tree,
        spec.leaves,
    )


def _own_forward(module: nn.Module) -> int | None:
    """The identity of a forward that is not the class's; ours changes no number."""
    own = vars(module).get("forward")
    return None if own is None or isinstance(own, StandIn) else id(own)
