"""How batches reach the model: through stored features, a tuned prefix, or plainly.

Whatever stands in the way of a cut or a store is no error: training is then plain, to the same
numbers, and one line says why.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import nn

from frostline.calling import call_with
from frostline.choices import Storage
from frostline.cutting import Cut, KeptLines, Origin, cut, is_current, is_followed
from frostline.data import (
    AsTargets,
    Batch,
    Batches,
    ImageSamples,
    Samples,
    class_targets,
    count_threads,
    first_batch,
    make_batches,
    some_rows,
)
from frostline.devices import to_device
from frostline.errors import CutError, OutputError, StoreError
from frostline.features import (
    Computing,
    Decisions,
    FeatureData,
    LiveLastBatches,
    Padding,
    PaddingMatters,
    PrefixedBatches,
    computing,
    computing_of_first,
    cut_by_all,
    differences,
    extract,
    in_form,
    in_passes_of,
    of_first,
    padding_of_first,
    probable_decoding,
    with_decoding,
)
from frostline.records import BY_MODEL, PipelineFacts
from frostline.store import FeatureStore, is_address, user_cache
from frostline.tuning import PLAIN, WEIGHTS_STAY_WEIGHTS, Form
from frostline.units import Stopwatch, format_bytes, format_seconds
from frostline.wording import either
from frostline.world import ALONE, World

CHECKED_SAMPLES = 4  # on which a cut is checked against the model
TRIED_SAMPLES = 8  # on which forms are tried
DEFAULT_BUDGET_BYTES = 50 * 10**9
# A run whose plain forwards need fewer floating-point operations altogether, about two seconds of
# them, is over before a cut would be made. Counted, not timed: the same run is cut each time.
WORTH_OPERATIONS = {"cpu": 2e11}
_WORTH_ON_OTHERS = 2e13
_SINCE = "computed, since"


Forward = Callable[..., Any]


@final
@dataclass(frozen=True)
class Pipeline:
    """Batches, and what they go through.

    Attributes:
        forward: the suffix of a cut, or the model itself.
        device: where it computes.
        facts: the form of the frozen part, and what it took.
        says: lines for people: what was saved, or why nothing could be.
        prefix: runs while the frozen part of a batch is computed as the batch is asked for.
    """

    train: Batches
    validation: Batches
    forward: Forward
    device: torch.device
    facts: PipelineFacts = field(default_factory=PipelineFacts)
    says: tuple[str, ...] = ()
    prefix: Stopwatch = field(default_factory=Stopwatch)

    def __call__(self, batch: Batch) -> Any:
        """The model's output for a batch; a dict goes in by name, a tuple or list by position."""
        return call_with(self.forward, to_device(batch.inputs, self.device))


@final
@dataclass(frozen=True)
class PipelineOptions:
    """What is asked of a pipeline.

    Attributes:
        features: folder or address of the feature store; `auto` is one in the user's cache folder
            where storing is worth it, `off` is the plain loop.
        storage: dtype in which they are stored; `auto` keeps every bit that was computed.
        precision: how faithful the frozen part must be to its float32.
        epochs: in which the features will be used.
        form: of the frozen part, as decided before; empty lets the machine choose.
        explains: whether to say what is other than in what the store has; not where a later phase
            of a plan has another line or other weights, which is meant.
        seconds_per_sample, operations_per_sample: of one plain forward; operations are those of
            floating point.
        compile: compile what is trained with `torch.compile`.
        progress: called with (rows done, rows to compute).
        as_targets: makes the tensor of the targets; by default class indices.
        world: the processes that share each epoch.
        lines: where lines of this model are kept.
        known: its cut, where one was made before.
    """

    device: torch.device
    batch_size: int = 32
    seed: int = 0
    features: str = "off"
    storage: Storage = "auto"
    budget_bytes: int | None = None
    precision: Literal["exact", "auto"] | float = "auto"
    epochs: int = 1
    form: str = ""
    explains: bool = True
    seconds_per_sample: float = 0.0
    operations_per_sample: float = 0.0
    compile: bool = False
    progress: Callable[[int, int], None] | None = None
    as_targets: AsTargets = class_targets
    world: World = ALONE
    lines: KeptLines | None = None
    known: Cut | None = None

    def plain(self, train: Samples, val: Samples) -> tuple[Batches, Batches]:
        """The batches of a plain loop."""
        made = partial(
            make_batches,
            batch_size=self.batch_size,
            seed=self.seed,
            as_targets=self.as_targets,
            world=self.world,
        )
        return made(train, shuffle=True), made(val, shuffle=False)


def pipeline(
    model: nn.Module,
    example: Any,
    data: tuple[Samples, Samples],
    plain: tuple[Batches, Batches],
    options: PipelineOptions,
) -> Pipeline:
    """The shortest way for `data` (training, validation) through `model`.

    Args:
        example: a few samples, on the device, to cut on; None takes those of the first batch.
        plain: the batches of a plain loop over the same data.

    Raises:
        OutputError, StoreError: the store that was named cannot be used.
    """
    by_model = Pipeline(*plain, model, options.device)
    if options.features == "off" or options.form == BY_MODEL:
        return by_model
    if options.features == "auto" and not options.form:
        forwards = plain[0].samples * options.epochs
        worth = WORTH_OPERATIONS.get(options.device.type, _WORTH_ON_OTHERS)
        if options.operations_per_sample * forwards < worth:
            seconds = format_seconds(options.seconds_per_sample * forwards)
            line = (
                f"Features  none are stored: all forwards of the run take about {seconds}, less "
                f"than a cut would. {either('features=folder', '--features DIR')} stores them all "
                "the same"
            )
            return replace(by_model, says=(line,))
    try:
        sides = tuple(map(_Side, data, plain))
        with _loading_ahead(model, data, options):
            return _made(model, example, sides, options)
    except (CutError, StoreError, OutputError) as error:
        if options.features != "auto" and not isinstance(error, CutError):
            raise
        return replace(by_model, says=(f"Features  none are stored: {error}",))


def _made(
    model: nn.Module, example: Any, sides: tuple[_Side, ...], options: PipelineOptions
) -> Pipeline:
    made = options.known
    if made is None or not is_current(made, model):
        few = sides[0].first(options, CHECKED_SAMPLES) if example is None else example
        each = {"seconds": options.seconds_per_sample, "operations": options.operations_per_sample}
        made = cut_by_all(options.world, model, few, lines=options.lines, facts=each)
    if options.precision == "exact" and made.error:
        raise CutError(
            "to be exact they are computed in each epoch, for this cut gives what the model gives "
            f"to a relative error of {made.error:.0e}: torch computes parts of it by other kernels "
            "where a model calls them itself"
        )
    return _Making(options, sides).through(made)


@contextmanager
def _loading_ahead(
    model: nn.Module, data: Sequence[Samples], options: PipelineOptions
) -> Iterator[None]:
    """Where the model has to be followed, pictures are decoded on the cores that are idle then.

    Not where it was followed before, since its features may be stored.
    """
    planned = sum(len(samples) for samples in data)
    new = options.known is None and not is_followed(model) and options.world.size == 1
    cores = count_threads(None) > 1
    pictures = [d for d in data if isinstance(d, ImageSamples) and not d.why_not_stored()]
    before = None
    with ExitStack() as stack:
        for samples in pictures if new and cores else ():
            decoding = probable_decoding(samples, options.precision, options.form, planned)
            samples.begin(decoding, after=before)
            stack.callback(samples.end)
            before = samples
        yield


def prefixed(
    model: nn.Module, batches: Batches, form: str, device: torch.device
) -> tuple[Batches, Forward]:
    """Batches through the frozen part in the form that a run was trained with, and the suffix.

    The model itself where that form is its own float32, or where it cannot be cut any more.
    """
    if form in ("", BY_MODEL, str(PLAIN)):
        return batches, model
    try:
        with closing(batches.epoch(0)) as given:
            few = some_rows(next(given).inputs, slice(CHECKED_SAMPLES))
        made = cut(model, to_device(few, device))
    except CutError:
        return batches, model
    compute = in_form(made, Form.parse(form), batch_size=32, device=device)
    return PrefixedBatches(batches, compute), made.suffix


def compiled(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled for one phase; what others compiled of the same code counts for no limit of it."""
    # torch runs a code uncompiled that it compiled eight times; 2.9 can do no other.
    known = signature(torch.compile).parameters
    apart: dict[str, Any] = {"isolate_recompiles": True} if "isolate_recompiles" in known else {}
    made: Callable[..., Any] = torch.compile(forward, options=WEIGHTS_STAY_WEIGHTS, **apart)
    return made


def default_store() -> Path | str:
    """`$FROSTLINE_FEATURES`, which may be an address, or a folder in the user's cache folder."""
    given = os.environ.get("FROSTLINE_FEATURES")
    if given:
        return given if is_address(given) else Path(given)
    return user_cache() / "features"


def kept_lines(features: str, origin: Origin) -> KeptLines | None:
    """Where lines of a model are kept, beside the features; None where these are off."""
    return None if features == "off" else KeptLines(store_folder(features) / "lines", origin)


def store_folder(features: str) -> Path:
    """The folder on this machine where features are kept."""
    return _store_of(features).root


def _store_of(features: str, budget_bytes: int | None = None) -> FeatureStore:
    where = default_store() if features == "auto" else features
    return FeatureStore(where, budget_bytes=budget_bytes or DEFAULT_BUDGET_BYTES)


@final
@dataclass(frozen=True)
class _Side:
    """Training or validation data: its samples, and their batches in a plain loop."""

    samples: Samples
    plain: Batches

    def first(self, options: PipelineOptions, count: int = TRIED_SAMPLES) -> Any:
        """A batch of a few samples."""
        few = first_batch(self.samples, count, options.as_targets)
        return to_device(few.inputs, options.device)


class _Making:
    """A pipeline through one cut in the making."""

    def __init__(self, options: PipelineOptions, sides: tuple[_Side, ...]) -> None:
        self._options = options
        self._train, self._validation = sides
        self._store = _store_of(options.features, options.budget_bytes)
        self._stored: list[FeatureData] = []
        self._notes: list[str] = []
        self._by_padding: float | None = None  # where samples are of different lengths
        self._unpadded = ""  # why samples of different lengths are not stored

    def through(self, made: Cut) -> Pipeline:
        compute = self._compute(made)
        of_training, of_evaluation = self._of_each_mode(compute)
        train = self._batches(made, self._train, of_training, shuffle=True)
        validation = self._batches(made, self._validation, of_evaluation, shuffle=False)
        facts = PipelineFacts(
            form=str(compute.tuned.form),
            seconds=sum(data.seconds for data in self._stored),
            decode_seconds=sum(data.decode_seconds for data in self._stored),
            prefix_seconds=sum(data.prefix_seconds for data in self._stored),
            computed=sum(data.computed for data in self._stored),
            nbytes=sum(data.nbytes for data in self._stored),
            stored_samples=sum(map(len, self._stored)),
        )
        if facts.nbytes:
            each = self._plain_seconds(compute, facts)
            facts = replace(facts, plain_seconds_per_sample=each)
        suffix = self._suffix(made)
        says = tuple(self._says(made, compute, facts))
        device = self._options.device
        return Pipeline(train, validation, suffix, device, facts, says, compute.watch)

    def _suffix(self, made: Cut) -> Forward:
        """Without rows that nobody reads, where last bits do not count."""
        if self._options.precision == "exact":
            return made.suffix
        narrowed = made.suffix.narrowed(made.frontier.values)
        if narrowed is not None:
            self._notes.append("above the line rows that the head does not read are left out")
        return narrowed or made.suffix

    def _compute(self, made: Cut) -> Computing:
        options = self._options
        if options.form and options.precision != "exact":
            form, size = Form.parse(options.form), options.batch_size
            return in_form(made, form, batch_size=size, device=options.device)
        choose = partial(self._chosen, made)
        return computing_of_first(options.world, made, choose, options.device)

    def _chosen(self, made: Cut) -> Computing:
        """How to compute, and how much of pictures to decode, by measuring on a few samples."""
        options, decisions = self._options, Decisions(self._store.root)
        planned = self._train.plain.samples + self._validation.plain.samples
        compute = computing(
            made,
            partial(self._train.first, options),
            precision=options.precision,
            batch_size=options.batch_size,
            device=options.device,
            planned_samples=planned,
            decisions=decisions,
        )
        return with_decoding(
            compute,
            self._train.samples,
            precision=options.precision,
            planned_samples=planned,
            decisions=decisions,
        )

    def _of_each_mode(self, compute: Computing) -> tuple[Computing, Computing]:
        """Plain float32 as a training step and as evaluation compute it, where that differs."""
        if compute.tuned.form != PLAIN:
            return compute, compute
        training = replace(compute, training=True)

        def differ() -> bool:
            inputs = self._validation.first(self._options)
            pairs = zip(training(inputs), compute(inputs), strict=True)
            return not all(torch.equal(a, b) for a, b in pairs)

        differs = of_first(self._options.world, differ, cut=compute.cut)
        return training if differs else compute, compute

    def _batches(self, made: Cut, side: _Side, compute: Computing, *, shuffle: bool) -> Batches:
        options, samples = self._options, side.samples
        if why := samples.why_not_stored():
            self._notes.append(why)
            return PrefixedBatches(side.plain, compute)
        try:
            padding = padding_of_first(options.world, made, samples, options.device)
        except PaddingMatters as error:
            self._unpadded = self._unpadded or str(error)
            return PrefixedBatches(side.plain, compute)
        if padding.varies and compute.tuned.form == PLAIN:
            self._by_padding = max(self._by_padding or 0.0, padding.difference)
        difference = 0.0
        if options.precision == "exact" and not padding.varies:
            size = min(options.batch_size, len(samples))
            by_place, difference = of_first(
                options.world,
                lambda: differences(
                    compute,
                    first_batch(samples, size, options.as_targets).inputs,
                    len(samples) % size,
                ),
                cut=compute.cut,
            )
            if by_place:
                self._notes.append(
                    f"rows differ by up to {by_place:.0e} with their place in a batch on this "
                    "machine, so to be exact they are computed in each epoch"
                )
                return PrefixedBatches(side.plain, compute)
            # Rows as whole batches give them, which those of a smaller last one may differ from.
            compute = in_passes_of(compute, size)
        batches = self._extracted(made, samples, compute, padding).batches(
            batch_size=options.batch_size, shuffle=shuffle, seed=options.seed, world=options.world
        )
        if not difference:
            return batches
        self._notes.append(
            f"rows differ by up to {difference:.0e} with the number of rows in a pass, so the last "
            f"{len(samples) % options.batch_size} of {len(samples)} are computed in each epoch"
        )
        return LiveLastBatches(batches, samples, compute)

    def _extracted(
        self, made: Cut, samples: Samples, compute: Computing, padding: Padding
    ) -> FeatureData:
        options = self._options
        found = extract(
            made,
            samples,
            self._store,
            storage=options.storage,
            progress=options.progress,
            compute=compute,
            as_targets=options.as_targets,
            padding=padding,
            world=options.world,
        )
        self._stored.append(found)
        if found.storage_error:
            self._notes.append(
                f"stored as {options.storage}, relative error {found.storage_error:.2g}"
            )
        said = any(note.startswith(_SINCE) for note in self._notes)
        if found.why and options.explains and not said:
            self._notes.append(f"{_SINCE} {found.why}")
        return found

    def _says(self, made: Cut, compute: Computing, facts: PipelineFacts) -> Iterator[str]:
        yield f"Frost     {made.why}"
        rows, took = sum(len(d) * d.views for d in self._stored), format_seconds(facts.seconds)
        how = f"{facts.computed} rows computed in {took}"
        if not facts.computed:
            how = "all in the store, no forward pass of the frozen part"
        elif facts.computed < rows:
            how = f"{rows - facts.computed} of {rows} rows were in the store; {how}"
        if facts.nbytes:
            yield f"Features  {how}; {format_bytes(facts.nbytes)}"
        yield f"          {compute.words}"
        if self._unpadded:
            yield f"          {self._unpadded}"
        if self._by_padding is not None:
            moved = (
                f"differ by up to {self._by_padding:.0e}" if self._by_padding else "are the same"
            )
            yield f"          rows of the samples tried {moved} however far their batch is padded"
        for note in dict.fromkeys(self._notes):
            yield f"          {note}"
        epochs = self._options.epochs
        each = facts.plain_seconds_per_sample
        saved = each * facts.stored_samples * epochs - facts.seconds
        if saved > 0:
            yield (
                f"Saved     about {format_seconds(saved)}: the frozen part does not run in each of "
                f"{epochs} epochs"
            )

    def _plain_seconds(self, compute: Computing, facts: PipelineFacts) -> float:
        """That the frozen part takes for a sample in a plain loop.

        Where rows were computed, by what they took: hundreds of samples say more than the few
        that forms were timed on, perhaps while something else was running.
        """
        here = sum(data.computed_by[self._options.world.rank] for data in self._stored)
        if here and facts.prefix_seconds:
            return compute.tuned.speedup * facts.prefix_seconds / here
        timed = (compute.tuned.plain_seconds_per_sample, self._options.seconds_per_sample)
        return min(filter(None, timed), default=0.0)  # what stood in the way only added to it
