"""The frost line: a model cut in two where the computation that is frozen ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from math import isnan
from typing import Any, final

import torch
from torch import Tensor, fx, nn

from frostline.calling import in_turn
from frostline.cutting.above import Above, Seen, above, parameters_of
from frostline.cutting.at_key import At, at_key, at_line
from frostline.cutting.at_module import ModuleSplit, cut_at
from frostline.cutting.bound import Half
from frostline.cutting.cheapest import Choice, choose, forward_share, row_bytes
from frostline.cutting.checking import check, check_one, state_kept
from frostline.cutting.current import check_current
from frostline.cutting.halves import Line, build_prefix, build_suffix
from frostline.cutting.layouts import Layout, row_sizes
from frostline.cutting.nothing import nothing_kept
from frostline.cutting.offering import Unfollowed, offer
from frostline.cutting.packing import forget_symbols
from frostline.cutting.reuse import Drawn, keep, recall
from frostline.cutting.signatures import outline, prefix_key, prefix_tensors, settled, signatures
from frostline.cutting.structures import Inputs, InputSpec, read_inputs, rows_of
from frostline.cutting.sweep import Swept, sweep
from frostline.cutting.tracing import Traced, module_path, one_line, operation, trace
from frostline.cutting.trial import Trial, few_samples, rearrange, run_trial
from frostline.cutting.watching import Watch
from frostline.errors import CutError, FrostlineError, NothingFrozen
from frostline.freezing.modes import modes_kept
from frostline.tables import hanging
from frostline.units import format_bytes

__all__ = ["Cut", "Frontier", "FrontierValue", "Prefix", "Suffix", "cut"]


@final
@dataclass(frozen=True, slots=True)
class FrontierValue:
    """One value that crosses the frost line.

    Attributes:
        name: the module and operation that give it.
        shape: of one sample; None for a size that varies with the sample.
        dtype: as computed.
        nbytes: of one sample as computed, before any storage dtype.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: torch.dtype
    nbytes: int

    def __str__(self) -> str:
        sizes = " x ".join("?" if size is None else str(size) for size in self.shape) or "1"
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.name}: {sizes} {dtype}, {format_bytes(self.nbytes)} per sample"


@final
@dataclass(frozen=True, slots=True)
class Frontier:
    """All that crosses the line, in the order in which prefix and suffix hand it over."""

    values: tuple[FrontierValue, ...]

    @property
    def nbytes(self) -> int:
        """Bytes per sample, as computed."""
        return sum(value.nbytes for value in self.values)

    def __len__(self) -> int:
        return len(self.values)


class Prefix(nn.Module):
    """The frozen side: `prefix(*inputs)`, called as the model is, gives the frontier's values.

    Computes in the gradient mode it is called in, since some kernels (LSTM's) give other last
    bits under `no_grad`; what it gives never wants a gradient. Holds no parameter of its own, and
    reads those that the model has when it is called.
    """

    def __init__(self, spec: InputSpec, model: nn.Module, half: Half | ModuleSplit) -> None:
        super().__init__()
        self.spec = spec
        object.__setattr__(self, "_model", model)  # not a submodule: nothing here is owned
        self._half = half

    _model: nn.Module

    @property
    def graph(self) -> fx.GraphModule | None:
        """Flat inputs to the tuple of values, for tuning, over the tensors that the model has now.

        None behind a named submodule.
        """
        return self._half.over(self._model) if isinstance(self._half, Half) else None

    @property
    def read(self) -> list[tuple[str, Tensor]]:
        """The tensors that it reads, as the model has them now; none behind a named submodule."""
        return self._half.read(self._model) if isinstance(self._half, Half) else []

    def forward(self, *inputs: Any, **named: Any) -> tuple[Tensor, ...]:
        """The values, each `(batch, *shape)`.

        Raises:
            CutError: the inputs are built otherwise than the example was, or the model is not what
                was cut any more.
        """
        return self.run_flat(self.spec.flatten(named or inputs))

    def run_flat(self, tensors: list[Tensor]) -> tuple[Tensor, ...]:
        """The values for the inputs' tensors, in the order of `spec`."""
        if isinstance(self._half, Half):
            values = self._half(self._model, tensors)
        else:
            values = self._half.prefix(tensors)
        return tuple(value.detach() for value in values)


class Suffix(nn.Module):
    """The rest: `suffix(*values)` gives what the model gives, in the mode that the model is in.

    Its only submodule is the model itself, so `train()`, `eval()` and `parameters()` are the
    model's; gradients, buffers and random numbers are those of the plain forward. It reads the
    tensors that the model has when it is called, so it may be copied, averaged and pickled as any
    module is.
    """

    def __init__(self, model: nn.Module, above: ModuleSplit | tuple[Above, Above]) -> None:
        """Over `model`; `above` is what lies above the line, in evaluation and in training."""
        super().__init__()
        self.model = model
        self.training = model.training
        self._above = above

    def forward(self, *values: Tensor) -> Any:
        """The model's output.

        Args:
            values: the frontier's, each `(batch, *shape)`; they are not written into.
        Raises:
            CutError: a parameter below the line is trainable now, or the model is not what was cut
                any more in what it computes here. Otherwise what the model raises.
        """
        if isinstance(self._above, ModuleSplit):
            return self._above.suffix(values)
        above = self._above[self.model.training]
        # Here, where torch.compile can follow all the rest as one.
        tensors = above.half.tensors(self.model)
        return above(tensors, values)


@final
@dataclass(frozen=True)
class Cut:
    """A model in two halves.

    Attributes:
        prefix: the frozen side.
        suffix: the rest, over the model's own parameters and buffers.
        frontier: what crosses the line.
        why: where the line runs and why it runs there, in one line.
        share: share of the forward's cost that lies below, by counted operations; NaN where
            these were not counted.
        error: relative error against the model on the example; 0.0 is bit for bit, gradients,
            buffers and random numbers included.
        samples: on how many samples that was checked.
        key: what the prefix computes (`prefix`) and on which tensors (`tensors`), as hashes.
        at: the line behind a named submodule; None where the graph tells it.
    """

    prefix: Prefix
    suffix: Suffix
    frontier: Frontier
    why: str
    share: float
    error: float
    samples: int
    key: Mapping[str, str] = field(repr=False)
    at: At | None = field(default=None, repr=False)

    def check_current(self) -> None:
        """Make sure that what the prefix computes now belongs under `key`.

        Every tensor that it reads is hashed, at the speed of memory: whoever keeps what was
        computed asks before and after. That nobody changed a tensor and changed it back in between
        is not proven.

        Raises:
            CutError: tensors of the frozen part are trainable now, were changed or replaced, or
                the modules of a cut behind a named submodule are others; names them.
        """
        check_current(self.suffix.model, self.at or self.prefix.read, self.key)

    def __str__(self) -> str:
        exact = "bit for bit" if self.error == 0 else f"to a relative error of {self.error:.1g}"
        lines = [("where", self.why)]
        if not isnan(self.share):
            lines.append(("below", f"{self.share:.1%} of the forward's cost"))
        lines += [("crosses", str(value)) for value in self.frontier.values]
        if len(self.frontier) > 1:
            lines.append(("", f"{format_bytes(self.frontier.nbytes)} per sample in all"))
        many = "1 sample" if self.samples == 1 else f"{self.samples} samples"
        lines.append(("checked", f"{exact} on {many}, in training and in evaluation"))
        title = f"Frost line of {type(self.suffix.model).__name__}"
        return "\n".join([title, *(_wrapped(word, text) for word, text in lines)])


def _wrapped(word: str, text: str) -> str:
    return hanging(f"{word:9}{text}", indent=9)


@in_turn
def cut(model: nn.Module, example: Inputs, *, at: str | None = None) -> Cut:
    """Cut `model` along its frost line.

    `suffix(*prefix(x))` equals `model(x)` in train and in eval mode, with the gradients, buffers
    and random numbers of the plain forward; checked on `example` before returning. The line is a
    minimum cut: reading what crosses it, and computing again what is frozen above it, costs an
    epoch least there. Parameters stay the model's own objects; a cut is valid as long as the
    model's frozen tensors, modes and device stay as they are.

    Args:
        example: one batch as the model takes it: a tensor `(batch, ...)`, a tuple of positional
            arguments, or a mapping of keyword arguments; best of samples that differ.
        at: dotted path of a frozen submodule; the line then runs behind its output. For models
            that torch.export cannot follow.
    Raises:
        NothingFrozen: no value below the first trainable parameter can be kept; names that.
        CutError: the model cannot be followed, or the cut model does not give what the model
            gives; says why.
    Source: torch.export's graph; Ford and Fulkerson for the minimum cut.
    """
    model = _unwrapped(model)
    spec, tensors = read_inputs(example)
    if rows_of(tensors) == 1:
        # From one sample nothing tells which sizes are the batch's.
        tensors = [t.repeat(2, *[1] * (t.dim() - 1)) if t.dim() else t for t in tensors]
    # What torch.compile makes of a part draws other random numbers; the line is the plain model's.
    with modes_kept(model), state_kept(model), torch.compiler.set_stance("force_eager"):
        model.train()
        if at:
            return _behind(model, spec, at, tensors)
        known = recall(model, spec, tensors)
        if known is not None:
            with suppress(CutError):  # something that identities do not tell has changed
                made = _made(known, model, spec, tensors)
                made.check_current()
                return made
        model.train()
        try:
            drawn = _draw(model, spec, tensors)
            model.train()
            keep(model, spec, tensors, drawn)
            return _made(drawn, model, spec, tensors)
        except Unfollowed as error:
            offered = offer(model, lambda path: _behind(model, spec, path, tensors))
            raise CutError(f"{error}{offered}") from error.__cause__


def _made(drawn: Drawn, model: nn.Module, spec: InputSpec, tensors: list[Tensor]) -> Cut:
    """What was drawn, for this model: checked, and to be compared with it at each call."""
    made = _halves(drawn, model, spec, tensors, (Seen(), Seen()))
    checked, seen = _checked(made, model, spec, tensors)
    watching = _halves(drawn, model, spec, tensors, seen)
    return replace(checked, prefix=watching.prefix, suffix=watching.suffix)


def _halves(
    drawn: Drawn, model: nn.Module, spec: InputSpec, tensors: list[Tensor], seen: tuple[Seen, Seen]
) -> Cut:
    entered = drawn.training[0].entered | drawn.evaluation[0].entered
    watch = seen[0].watch.without(entered - drawn.prefix.entered).held_modes_only()
    return Cut(
        Prefix(spec, model, Half(drawn.prefix, parameters_of(drawn.prefix), watch)),
        Suffix(
            model,
            (
                above(drawn.evaluation, drawn.prefix, seen[1], entered),
                above(drawn.training, drawn.prefix, seen[0], entered),
            ),
        ),
        Frontier(drawn.frontier),
        drawn.why,
        drawn.share,
        0.0,
        rows_of(tensors),
        drawn.key,
    )


def _draw(model: nn.Module, spec: InputSpec, tensors: list[Tensor]) -> Drawn:
    traced = trace(model, spec, tensors)
    with _for_few_samples(model):
        trial = run_trial(traced, tensors, judging=True)
        swept = sweep(traced, trial)
        reached = [n for n in traced.nodes if swept.is_frozen(n) and n not in swept.free]
        seen = rearrange(traced, trial, reached)
    if seen.mixed:
        swept = sweep(traced, trial, mixed=seen.mixed)
    choice = choose(traced.nodes, swept, trial, seen.layouts)
    if all(node.op == "placeholder" for node in choice.below):
        raise NothingFrozen(nothing_kept(model, traced, swept))
    hashes = signatures(traced, trial)
    ends = settled(traced, trial, hashes, choice.below)
    alike = _alike(choice, ends)
    layouts = tuple(seen.layouts[nodes[0]] for nodes in alike)
    line = Line(choice.below, swept.free, alike, layouts, trial.values)
    graph, held = build_prefix(traced, line, model)
    training = build_suffix(traced, line, model)
    model.eval()
    evaluated = trace(model, spec, tensors)
    evaluation = (
        training
        if outline(evaluated) == outline(traced)
        else build_suffix(
            evaluated, _same_line(model, evaluated, tensors, line, hashes, ends), model
        )
    )
    drawn = Drawn(
        graph,
        (training, traced.rebuild),
        (evaluation, evaluated.rebuild),
        tuple(
            _value(nodes[0], trial, layout)
            for nodes, layout in zip(line.crossing, layouts, strict=True)
        ),
        _why(choice, swept),
        forward_share(held, trial),
        {
            "prefix": prefix_key(traced, held, [nodes[0] for nodes in line.crossing]),
            "tensors": prefix_tensors(traced, held),
        },
    )
    forget_symbols(traced.module.graph, evaluated.module.graph)
    return drawn


@contextmanager
def _for_few_samples(model: nn.Module) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, IndexError, ValueError) as error:  # as operations refuse their sizes
        raise Unfollowed(
            f"the forward of {type(model).__name__} does not hold for batches of 2 or 3 samples: "
            f"{one_line(error)}."
        ) from error


def _alike(choice: Choice, hashes: Mapping[fx.Node, str]) -> tuple[tuple[fx.Node, ...], ...]:
    """The crossing nodes, with those of equal content together: one of them is enough."""
    groups: dict[str, list[fx.Node]] = {}
    for node in choice.crossing:
        groups.setdefault(hashes[node], []).append(node)
    return tuple(tuple(nodes) for nodes in groups.values())


def _same_line(
    model: nn.Module,
    traced: Traced,
    tensors: list[Tensor],
    line: Line,
    hashes: Mapping[fx.Node, str],
    ends: Mapping[fx.Node, str],
) -> Line:
    """The line of the training graph, whose hashes these are, in another graph."""
    with _for_few_samples(model):
        trial = run_trial(traced, tensors, judging=False)
    swept = sweep(traced, trial)
    found = signatures(traced, trial)
    # Of equal computations one may lie below and another above; both are then above here.
    wanted = {hashes[node] for node in line.below}
    wanted -= {hashed for node, hashed in hashes.items() if node not in line.below}
    below = frozenset(node for node in traced.nodes if found[node] in wanted)
    found_ends = settled(traced, trial, found, below)
    crossing = tuple(
        tuple(node for node in traced.nodes if found_ends[node] == ends[nodes[0]])
        for nodes in line.crossing
    )
    return Line(below, swept.free - below, crossing, line.layouts, trial.values)


def _behind(model: nn.Module, spec: InputSpec, at: str, tensors: list[Tensor]) -> Cut:
    try:
        return _checked(_cut_at(model, spec, at, tensors), model, spec, tensors)[0]
    except FrostlineError:
        raise
    except Exception as error:  # whatever the model's own forward raises
        raise CutError(
            f"{type(model).__name__} cannot be cut behind {at}: its forward fails on single "
            f"samples of the example, or on batches of 2 or 3 of them: {one_line(error)}. Each "
            "tensor of the example must hold the batch in dimension 0; a list with a tensor for "
            "each sample, or such targets beside it, cannot be kept by sample."
        ) from error


def _cut_at(model: nn.Module, spec: InputSpec, at: str, tensors: list[Tensor]) -> Cut:
    split: ModuleSplit = cut_at(model, spec, at, tensors)
    values = split.prefix(tensors)
    rows = rows_of(tensors)
    if any(value.dim() == 0 or value.shape[0] != rows for value in values):
        raise CutError(
            f"{at} answers without a row for each sample: "
            f"{', '.join(str(tuple(v.shape)) for v in values)}. Name another submodule."
        )
    line = at_line(model, at, lambda: split.prefix(few_samples(tensors)))
    frontier = Frontier(
        tuple(
            FrontierValue(
                f"{at}[{i}]" if len(values) > 1 else at,
                tuple(v.shape[1:]),
                v.dtype,
                v.nbytes // rows,
            )
            for i, v in enumerate(values)
        )
    )
    return Cut(
        Prefix(spec, model, split),
        Suffix(model, split),
        frontier,
        f"behind {at}, as asked",
        float("nan"),
        0.0,
        rows,
        at_key(model, line),
        line,
    )


def _checked(
    made: Cut, model: nn.Module, spec: InputSpec, tensors: list[Tensor]
) -> tuple[Cut, tuple[Seen, Seen]]:
    """The cut with its error against the model, and what was seen of the model in each mode."""

    def halves(given: list[Tensor]) -> object:
        # As a store gives them back.
        return made.suffix(*(value.contiguous() for value in made.prefix.run_flat(given)))

    error, watches = 0.0, dict[bool, Watch]()
    for training in (True, False):
        found, watches[training] = check(model, spec, tensors, halves, training=training)
        error = max(error, found)
    seen = []
    for training, watch in watches.items():
        refusal = check_one(model, spec, tensors, halves, training=training)
        model.train(training)
        seen.append(Seen(watch.settled(model), refusal))
    return replace(made, error=error), (seen[0], seen[1])


def _value(node: fx.Node, trial: Trial, layout: Layout) -> FrontierValue:
    return FrontierValue(
        operation(node), row_sizes(node, layout), trial.values[node].dtype, row_bytes(node, trial)
    )


def _why(choice: Choice, swept: Swept) -> str:
    computed = [n for n in choice.crossing if n.op != "placeholder"] or list(choice.crossing)
    names = list(dict.fromkeys(module_path(n) or operation(n) for n in reversed(computed)))
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    where = ", ".join(names[:2]) if more else " and ".join(names[:2])
    reason, steps = _first_reason(computed, choice, swept)
    between = "; what lies between costs less to compute again than to read" if steps else ""
    return f"behind {where}{more}, since {reason}{between}"


def _first_reason(crossing: list[fx.Node], choice: Choice, swept: Swept) -> tuple[str, int]:
    """Why the nearest operation above the line is not frozen, and how many steps off it is."""
    level = [user for node in reversed(crossing) for user in node.users if user not in choice.below]
    steps = 0
    while level:
        for node in level:
            if node in swept.reasons and node.op != "output":
                return swept.reasons[node], steps
        level = list(dict.fromkeys(user for node in level for user in node.users))
        steps += 1
    return "what follows is the model's output", 0


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model inside `torch.compile`'s wrapper: the same parameters, and a forward to follow."""
    inner = model.__dict__.get("_modules", {}).get("_orig_mod")
    return inner if isinstance(inner, nn.Module) else model
