"""The frost line: a model cut in two where the computation that is frozen ends."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from itertools import count
from math import isnan
from typing import Any, final

import torch
from torch import Tensor, fx, nn

from frostline.calling import in_turn
from frostline.cutting.at_module import ModuleSplit
from frostline.cutting.checking import Checked, CutForward, check, compared_on_one, state_kept
from frostline.cutting.drawing import Drawn, draw, is_known, recall, remember
from frostline.cutting.drawing import FrontierValue as FrontierValue
from frostline.cutting.halves import Above, Half
from frostline.cutting.kept import KeptLines as KeptLines
from frostline.cutting.kept import Origin as Origin
from frostline.cutting.keys import At, at_key, at_line, check_current
from frostline.cutting.outside import draws_kept, numbers_kept
from frostline.cutting.reasons import behind_one, offer
from frostline.cutting.structures import (
    Inputs,
    InputSpec,
    read_inputs,
    rows_of,
    varying_inputs,
)
from frostline.cutting.suffix import Suffix as Suffix
from frostline.cutting.tracing import Unfollowed
from frostline.cutting.trial import few_samples
from frostline.cutting.verdicts import LABELS as LABELS
from frostline.errors import CutError, FrostlineError, one_line
from frostline.freezing.modes import modes_kept
from frostline.sharding import is_sharded
from frostline.tables import Displayed, hanging
from frostline.units import format_bytes
from frostline.wrappers import check_is_model


@final
@dataclass(frozen=True, slots=True)
class Frontier:
    """All that crosses the line, in the order in which prefix and suffix hand it over."""

    values: tuple[FrontierValue, ...]

    @property
    def nbytes(self) -> int:
        """Bytes per sample, as computed."""
        return sum(value.nbytes for value in self.values)

    @property
    def names(self) -> tuple[str, ...]:
        """By which the suffix takes them as keyword arguments; distinct identifiers."""
        found: dict[str, None] = {}
        for value in self.values:
            found[_keyword(value.name, found)] = None
        return tuple(found)

    def __len__(self) -> int:
        return len(self.values)


def _keyword(name: str, taken: Collection[str]) -> str:
    """An identifier of the words of a value's name; what trainers call labels is one value's."""
    if name == LABELS:
        return name
    words = re.sub(r"\W+", "_", name).strip("_")
    if not words[:1].isalpha() or words in (LABELS, "label", "label_ids"):
        words = f"value_{words}"
    again = (f"{words}_{number}" for number in count(2))
    return words if words not in taken else next(each for each in again if each not in taken)


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
    def has_graph(self) -> bool:
        """Whether `graph` gives one; asking for that takes a while."""
        return isinstance(self._half, Half)

    @property
    def graph(self) -> fx.GraphModule | None:
        """Flat inputs to the tuple of values, for tuning, over the tensors that the model has now.

        None behind a named submodule.
        """
        half = self._half
        return half.graph.over(half.tensors(self._model)) if isinstance(half, Half) else None

    @property
    def read(self) -> list[tuple[str, Tensor]]:
        """The tensors that it reads, as the model has them now; none behind a named submodule."""
        half = self._half
        return half.graph.read(half.tensors(self._model)) if isinstance(half, Half) else []

    def forward(self, *inputs: Any, **named: Any) -> tuple[Tensor, ...]:
        """The values, each `(batch, *shape)`.

        Raises:
            CutError: the inputs are built otherwise than the example was, or the model is not what
                was cut any more.
        """
        return self.run_flat(self.spec.flatten(named or inputs))

    @property
    def in_step(self) -> bool:
        """Whether all processes call it as one: each holds a part of the model."""
        return isinstance(self._half, ModuleSplit) and is_sharded(self._model)

    def check_same(self) -> None:
        """Raise CutError where the model is not what was cut."""
        if isinstance(self._half, Half):
            self._half.tensors(self._model)

    def run_flat(self, tensors: list[Tensor]) -> tuple[Tensor, ...]:
        """The values for the inputs' tensors, in the order of `spec`."""
        half = self._half
        if isinstance(half, Half):
            values = half.graph.run(half.tensors(self._model), tensors)
        else:
            values = half.prefix(tensors)
        return tuple(value.detach() for value in values)


@final
@dataclass(frozen=True)
class Cut(Displayed):
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
        varying: numbers of the inputs that may be as long as the samples are, of all in order.

    Example:
        >>> print(fl.cut(model, images))
        Frost line of Sequential
        where    behind head.1, since head.2.weight is trainable
        below    99.6% of the forward's cost
        crosses  head.1 (flatten): 8 float32, 32 B per sample
        ...
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
    varying: tuple[int, ...] = field(default=(), repr=False)

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
        return "\n".join([title, *(hanging(f"{word:9}{text}", indent=9) for word, text in lines)])


@in_turn
def cut(model: nn.Module, example: Inputs, *, at: str | None = None) -> Cut:
    """Cut `model` along its frost line.

    `suffix(*prefix(x))` equals `model(x)` in train and in eval mode, with the gradients, buffers
    and random numbers of the plain forward; checked on `example` before returning. The line is a
    minimum cut: reading what crosses it, and computing again what is frozen above it, costs an
    epoch least there. Parameters stay the model's own objects; a cut is valid as long as the
    model's frozen tensors, modes and device stay as they are.

    A model that `fully_shard` sharded is cut behind a submodule, and its own forward runs up to
    there, gathered part by part: all processes call this with the same example, and call the
    halves as often as one another.

    Args:
        example: one batch as the model takes it: a tensor `(batch, ...)`, a tuple of positional
            arguments, or a mapping of keyword arguments; best of samples that differ.
        at: dotted path of a frozen submodule; the line then runs behind its output. For models
            that torch.export cannot follow.
    Raises:
        NothingFrozen: no value below the first trainable parameter can be kept; names that.
        ConfigError: `model` is no module.
        CutError: the model cannot be followed, or the cut model does not give what the model
            gives; says why.
    Source: torch.export's graph; Ford and Fulkerson for the minimum cut.

    Example:
        >>> cut = fl.cut(model, images)
        >>> torch.equal(cut.suffix(*cut.prefix(images)), model(images))
        True
    """
    model, spec, tensors = _given(model, example)
    with _looked_at(model):
        if at:
            return _behind(model, spec, at, tensors)
        if is_sharded(model):
            return behind_one(model, lambda path: _behind(model, spec, path, tensors))
        known = recall(model, spec, tensors)
        if known is not None:
            drawn, seen = known
            with suppress(CutError):  # something of it has changed
                _check_same(drawn, model, spec, seen)
                made = _made(drawn, model, spec, tensors)
                made.check_current()
                return made
        try:
            return _made(draw(model, spec, tensors), model, spec, tensors)
        except Unfollowed as error:
            offered = offer(model, lambda path: _behind(model, spec, path, tensors))
            raise CutError(f"{error}{offered}") from error.__cause__


@in_turn
def kept_cut(
    model: nn.Module, example: Inputs, lines: KeptLines
) -> tuple[Cut, Mapping[str, float]] | None:
    """A cut along a line that is kept, if there is one for this model; and its facts.

    That the model is what was checked is proven anew, as `kept.py` says; but for a model from the
    user's own file the frozen part does not run for it.
    """
    model, spec, tensors = _given(model, example)
    with _looked_at(model):
        found = lines.find(model, spec, tensors)
        if found is None:
            return None
        drawn, seen, facts = found
        with suppress(CutError):
            _check_same(drawn, model, spec, seen)
            made = _cut_of(drawn, seen, model, spec, tensors)
            made.check_current()
            if lines.origin.is_own and not _is_same_for_one(made, tensors):
                return None
            return made, facts
    return None


@in_turn
def keep_cut(
    model: nn.Module, example: Inputs, lines: KeptLines, facts: Mapping[str, float]
) -> None:
    """Keep the line of the model's last cut, if that was along its frost line.

    Args:
        facts: kept with it.
    """
    model, spec, tensors = _given(model, example)
    with _looked_at(model):
        if (known := recall(model, spec, tensors)) is not None:
            lines.keep(model, spec, tensors, *known, facts)


def is_followed(model: nn.Module) -> bool:
    """Whether a line was drawn for this model in this process, perhaps before it changed."""
    return is_known(model)


def is_current(made: Cut, model: nn.Module) -> bool:
    """Whether a cut is one of this model as it is built now, in both modes."""
    if made.suffix.model is not model:
        return False
    with modes_kept(model), suppress(CutError):
        for training in (False, True):
            model.train(training)
            made.prefix.check_same()
            made.suffix.check_same()
        return True
    return False


def _given(model: nn.Module, example: Inputs) -> tuple[nn.Module, InputSpec, list[Tensor]]:
    check_is_model(model)
    # The model inside torch.compile's wrapper has the same parameters, and a forward to follow.
    inner = model.__dict__.get("_modules", {}).get("_orig_mod")
    model = inner if isinstance(inner, nn.Module) else model
    spec, tensors = read_inputs(example)
    if rows_of(tensors) == 1:
        # From one sample nothing tells which sizes are the batch's.
        tensors = [t.repeat(2, *[1] * (t.dim() - 1)) if t.dim() else t for t in tensors]
    return model, spec, tensors


@contextmanager
def _looked_at(model: nn.Module) -> Iterator[None]:
    """In it the model is in train mode; afterwards it is as it was."""
    # What torch.compile makes of a part draws other random numbers; the line is the plain model's.
    # Where dynamo was not imported, nothing is compiled.
    is_compiling = "torch._dynamo.eval_frame" in sys.modules
    eager = torch.compiler.set_stance("force_eager") if is_compiling else nullcontext()
    with numbers_kept(model), modes_kept(model), state_kept(model), draws_kept(model), eager:
        model.train()
        yield


def _is_same_for_one(made: Cut, tensors: list[Tensor]) -> bool:
    """Whether one sample goes through the model, in evaluation, to what its halves make of it."""
    model = made.suffix.model
    model.eval()
    return compared_on_one(model, made.prefix.spec, tensors, _through(made.prefix, made.suffix))


def _made(drawn: Drawn, model: nn.Module, spec: InputSpec, tensors: list[Tensor]) -> Cut:
    """What was drawn, for this model: checked, and to be compared with it at each call."""
    seen = _checked(*_halves(drawn, model, spec, Checked()), tensors)
    model.train()
    remember(model, spec, tensors, drawn, seen)
    return _cut_of(drawn, seen, model, spec, tensors)


def _cut_of(
    drawn: Drawn, seen: Checked, model: nn.Module, spec: InputSpec, tensors: list[Tensor]
) -> Cut:
    prefix, suffix = _halves(drawn, model, spec, seen)
    frontier, rows, vary = Frontier(drawn.frontier), rows_of(tensors), drawn.varying
    found = drawn.why, drawn.share, seen.error
    return Cut(prefix, suffix, frontier, *found, samples=rows, key=drawn.key, varying=vary)


def _check_same(drawn: Drawn, model: nn.Module, spec: InputSpec, seen: Checked) -> None:
    """Compare the model, maybe with another head, with what a check saw of it, in both modes.

    Raises:
        CutError: it is not what was cut.
    """
    prefix, suffix = _halves(drawn, model, spec, seen)
    for training in (False, True):
        model.train(training)
        prefix.check_same()
        suffix.check_same()


def _halves(
    drawn: Drawn, model: nn.Module, spec: InputSpec, seen: Checked
) -> tuple[Prefix, Suffix]:
    parts = {True: drawn.training, False: drawn.evaluation}
    entered = parts[True][0].entered | parts[False][0].entered
    below = [place for place in drawn.prefix.places if place.kind == "_parameters"]

    def above(mode: bool) -> Above:
        graph, rebuild = parts[mode]
        # A module that only the other mode's suffix enters counts here too.
        structure = seen.structures[mode].without(drawn.prefix.entered - entered)
        return Above(Half(graph, below, structure), rebuild, seen.refusals.get(mode))

    own = seen.structures[True].also_in(seen.structures[False])
    structure = own.without(entered - drawn.prefix.entered)
    prefix = Prefix(spec, model, Half(drawn.prefix, below, structure))
    return prefix, Suffix(model, (above(False), above(True)), Frontier(drawn.frontier).names)


def _checked(
    prefix: Prefix, suffix: Suffix, tensors: list[Tensor], *, is_own: bool = False
) -> Checked:
    halves = _through(prefix, suffix)
    return check(suffix.model, prefix.spec, tensors, halves, is_own=is_own)


def _through(prefix: Prefix, suffix: Suffix) -> CutForward:
    def halves(given: list[Tensor]) -> object:
        # As a store gives them back.
        return suffix(*(value.contiguous() for value in prefix.run_flat(given)))

    return halves


def _behind(model: nn.Module, spec: InputSpec, at: str, tensors: list[Tensor]) -> Cut:
    try:
        return _cut_at(model, spec, at, tensors)
    except FrostlineError:
        raise
    except Exception as error:  # whatever the model's own forward raises
        raise CutError(
            f"{type(model).__name__} cannot be cut behind {at}: its forward fails on single "
            "samples of the example, or on batches of 2 or 3 of them: "
            f"{one_line(error, first=True)}. Each tensor of the example must hold the batch in "
            "dimension 0; a list with a tensor for each sample, or such targets beside it, cannot "
            "be kept by sample."
        ) from error


def _cut_at(model: nn.Module, spec: InputSpec, at: str, tensors: list[Tensor]) -> Cut:
    split = ModuleSplit(model, spec, at, tensors)
    values = split.prefix(tensors)
    rows = rows_of(tensors)
    if any(value.dim() == 0 or value.shape[0] != rows for value in values):
        raise CutError(
            f"{at} answers without a row for each sample: "
            f"{', '.join(str(tuple(v.shape)) for v in values)}. Name another submodule."
        )
    line = at_line(model, at, lambda: split.prefix(few_samples(tensors)))
    names = [f"{at}[{i}]" for i in range(len(values))] if len(values) > 1 else [at]
    frontier = Frontier(
        tuple(
            FrontierValue(name, tuple(value.shape[1:]), value.dtype, value.nbytes // rows)
            for name, value in zip(names, values, strict=True)
        )
    )
    key = at_key(model, line)
    prefix, suffix = Prefix(spec, model, split), Suffix(model, split, frontier.names)
    error = _checked(prefix, suffix, tensors, is_own=True).error
    why, vary = f"behind {at}, as asked", tuple(varying_inputs(tensors))
    return Cut(prefix, suffix, frontier, why, float("nan"), error, rows, key, line, vary)
