"""`fl.estimate`: what training would cost in memory, time and disk, before anything runs."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import cache, partial
from math import ceil
from typing import Any, TypeVar, get_args

import torch
from torch import nn

from frostline.backward import is_lean
from frostline.backward import lean as lean_backward
from frostline.calling import in_turn
from frostline.choices import StepPrecision
from frostline.cutting import cut
from frostline.devices import on_threads
from frostline.errors import ConfigError, CutError, one_line
from frostline.estimates.calibrating import OPERATIONS_SHARE, calibrated
from frostline.estimates.measuring import STEP_ERRORS, Progress, StepCost, Stopwatch, counted
from frostline.estimates.nested import depths, evenly, prices_between, rows
from frostline.estimates.pricing import Prices, measure_prices
from frostline.estimates.results import BudgetFit, Estimate, PhaseCost, StageCost, Step
from frostline.estimates.skeleton import real_batch
from frostline.estimates.steps import STATE_BYTES, Setup
from frostline.estimates.tracing import StepTrace
from frostline.freezing import freeze as freeze_part
from frostline.freezing import freezes_kept, train_only
from frostline.plans import Phase, Plan
from frostline.recipe import check_alone
from frostline.selectors import SelectorLike
from frostline.session import freeze_for
from frostline.tasks import Task, task_of
from frostline.wrapped import is_wrapped
from frostline.wrappers import check_is_model

__all__ = ["Estimate", "estimate"]

_PRECISIONS = get_args(StepPrecision)
_LARGEST_BATCH = 1 << 20
_SECOND_BATCH = 16  # beside a batch of one, to see how memory grows
_CUT_SAMPLES = 2  # on which a cut is checked; it computes them some ten times
_DEPTHS = 6  # stages up to which all is frozen in the table; each costs a trace of the model

Freezing = Callable[[], object]  # freezes the model in some way
_Found = TypeVar("_Found")


# Long by its arguments and by those of what it gives.
@in_turn
def estimate(
    model: nn.Module,
    example: Any,
    *,
    optimizer: str = "adamw",
    batch_size: int = 32,
    precision: str = "fp32",
    lean: bool = False,
    freeze: SelectorLike | None = None,
    train: SelectorLike | None = None,
    plan: Plan | None = None,
    epochs: int = 1,
    samples: int | tuple[int, int] = 0,
    stages: bool = False,
    budget: int | None = None,
    check: bool = False,
    task: Task | str | None = None,
    calibration_seconds: float = 2.5,
    progress: Progress | None = None,
) -> Estimate:
    """Say what a training step and a whole plan would cost, before anything runs.

    The step runs on fake tensors: PyTorch's own code decides what is saved and nothing is computed.
    Saved activations, gradients and optimizer state are exact where the model's forward takes the
    same way for any numbers; the workspace of a CPU's fused LSTM beyond 64 samples is within 1 %.
    Seconds are those of the operations as timed alone on this machine, scaled by a few real steps
    of as many samples as there is time and memory for. Weights, buffers, gradients, modes and
    random numbers are afterwards what they were.

    Args:
        example: one batch as the model takes it, a tensor, tuple or mapping; two samples are
            enough.
        optimizer: `adamw`, `adam`, or `sgd` with momentum.
        batch_size: samples in a step.
        precision: `fp32`, or `bf16` or `fp16` for autocast.
        lean: with what `fl.lean` saves; a model that is leaned already is so anyway.
        freeze, train: a selector, applied as `fl.freeze` or `fl.train_only` would, then undone;
            else the model as it is frozen.
        plan: its phases, each with its own freeze.
        epochs: of a run without a plan, or of a phase that does not say.
        samples: to train on, or (to train on, to validate on): for the time of epochs, which is
            where a cut is looked for, and the disk that their features take where they are as long
            as the example is.
        stages: also a step with everything up to each stage frozen, for at most 6 of them evenly
            from none to all but the last. Of these, less that trains is never said to take longer:
            seconds that noise has put the other way round are pooled.
        budget: bytes: the largest batch and the deepest thaw that fit.
        check: also run a real step of what trains first; its weights do not move.
        task: whose loss is taken, as for `fl.fit`; by default classification.
        calibration_seconds: to spend, about, a third on timing operations, the rest on real steps
            of what is asked and, for `stages`, of the whole model and of its last stage; with 0
            seconds are first guesses.
        progress: called with (parts of the work done, parts in all).

    Raises:
        ConfigError: `model` is no module, an argument is out of range, the model has quantised
            weights, or its step needs numbers.
        SelectorError, FreezeError: a selector or phase does not fit the model.

    Example:
        >>> cost = fl.estimate(model, images, batch_size=64, calibration_seconds=0)
        >>> cost.step.memory.saved
        3076
    """
    check_is_model(model)
    _check_asked(optimizer, batch_size, precision)
    _check_plain(model)
    _check_batch(model, example)
    check_alone(freeze=freeze, train=train, plan=plan)
    counts = samples if isinstance(samples, tuple) else (samples, 0)
    setup = Setup(model, example, optimizer, precision, task_of(task), batch_size)
    leaned = lean_backward(model) if lean else nullcontext()
    phases: tuple[Phase, ...] = plan.phases if plan is not None else (Phase(epochs=epochs),)
    with torch.random.fork_rng(devices=()), freezes_kept(model), leaned:
        if freeze is not None:
            freeze_part(model, freeze)
        elif train is not None:
            train_only(model, train)
        choices = depths(model)
        shown = evenly(choices, _DEPTHS) if stages else []
        ways = list(_phase_freezes(model, phases))
        deeper = [partial(train_only, model, thawed) for _, thawed in shown]
        done = counted(progress, 3 * len(ways) + len(deeper))
        traces = _each(model, ways, done(setup.trace))
        deep = _each(model, deeper, done(setup.trace))
        watch = Stopwatch()
        prices = measure_prices(
            (op for trace in (*traces, *deep) for op in trace.ops),
            optimizer=optimizer,
            seconds=calibration_seconds * OPERATIONS_SHARE,
        )
        rest = calibration_seconds * (1 - OPERATIONS_SHARE) / (len(ways) + 2 * bool(deep))
        calibrate = partial(calibrated, prices, setup, seconds=rest)
        own = _each(model, ways, done(calibrate), traces)
        steps = _each(model, ways, setup.step, traces, own)
        stage_rows: tuple[StageCost, ...] = ()
        if deep:
            known = list(zip(traces, own, strict=True))
            each = _stage_prices(setup, deeper, deep, calibrate, known)
            found = _each(model, deeper, setup.step, deep, each)
            stage_rows = tuple(rows([frozen for frozen, _ in shown], found))
            rows_known = [(trace, row.step) for trace, row in zip(deep, stage_rows, strict=True)]
            steps = [
                _of_same(trace, rows_known) or step
                for trace, step in zip(traces, steps, strict=True)
            ]
        watch.stop()
        cost_of = partial(_phase_cost, setup, counts=counts, epochs=epochs)
        costs = tuple(_each(model, ways, done(cost_of), phases, steps))
        ways[0]()
        return Estimate(
            type(model).__name__,
            optimizer,
            precision,
            lean=lean or is_lean(model),
            phases=costs,
            samples=counts,
            stages=stage_rows,
            budget=None if budget is None else _budget_fit(setup, budget, choices),
            check=_real_step(setup) if check else None,
            measured_seconds=watch.seconds,
            core_share=watch.core_share,
            stages_left=len(choices) - len(shown) if shown else 0,
        )


def _stage_prices(
    setup: Setup,
    deeper: Sequence[Freezing],
    deep: Sequence[StepTrace],
    calibrate: Callable[[StepTrace], Prices],
    known: Sequence[tuple[StepTrace, Prices]],
) -> list[Prices]:
    """Of each stage's step; real steps run for the first and the last, where none have yet."""
    ends = []
    for freeze, trace in ((deeper[0], deep[0]), (deeper[-1], deep[-1])):
        found = _of_same(trace, known)
        ends.append(found or _each(setup.model, [freeze], calibrate, [trace])[0])
    return prices_between(deep, *ends)


def _of_same(trace: StepTrace, known: Iterable[tuple[StepTrace, _Found]]) -> _Found | None:
    """What is known of the same selection, so that one has one figure."""
    return next((found for one, found in known if one == trace), None)


def _check_asked(optimizer: str, batch_size: int, precision: str) -> None:
    if optimizer not in STATE_BYTES:
        raise ConfigError(f"no optimizer '{optimizer}'. Give one of {', '.join(STATE_BYTES)}.")
    if precision not in _PRECISIONS:
        raise ConfigError(f"no precision '{precision}'. Give one of {', '.join(_PRECISIONS)}.")
    if batch_size < 1:
        raise ConfigError(f"a batch of {batch_size} samples. Give one of at least 1.")


def _check_batch(model: nn.Module, example: Any) -> None:
    for part in example if isinstance(example, tuple) else ():
        if isinstance(part, list) and any(isinstance(one, Mapping) for one in part):
            raise ConfigError(
                f"{type(model).__name__} takes a list with an entry for each sample, and batches "
                "of other sizes are made by a dimension of tensors. Estimate the part that takes "
                "a batch, as its backbone."
            )


def _check_plain(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_wrapped(tensor):
            raise ConfigError(
                f"{name} is of class {type(tensor).__name__}, which is made of other tensors, and "
                "an estimate follows the memory of plain ones. Estimate the model before its "
                "weights are quantised."
            )


def _phase_freezes(model: nn.Module, phases: Sequence[Phase]) -> Iterator[Freezing]:
    """What freezes the model as each phase asks: nothing, until the first that names something."""
    named = False
    for number, phase in enumerate(phases):
        named = named or phase.names_part
        yield partial(freeze_for, model, phases, number) if named else lambda: None


def _each(
    model: nn.Module,
    ways: Sequence[Freezing],
    work: Callable[..., _Found],
    *given: Sequence[object],
) -> list[_Found]:
    """What `work` gives, of one of each of `given`, in each way to freeze; then all is as before.

    No generator: one that an error leaves open would put its own "before" back long afterwards.
    """
    found = []
    with freezes_kept(model):
        for freeze, *one in zip(ways, *given, strict=True):
            freeze()
            found.append(work(*one))
    return found


def _phase_cost(
    setup: Setup, phase: Phase, step: Step, counts: tuple[int, int], epochs: int
) -> PhaseCost:
    if not counts[0]:  # neither the time of epochs nor a store to tell of
        return PhaseCost(phase.name, phase.epochs or epochs, step)
    train, validation = (count / step.batch_size for count in counts)
    planned, steps = _length(phase, epochs, train)
    once = step.forward_seconds * (train + validation)
    forwards = step.forward_seconds * (steps + planned * validation)
    plain = step.seconds * steps + step.forward_seconds * planned * validation
    try:
        # Two samples share no work; on a busy machine threads that wait for each other burn cores.
        with on_threads(1):
            found = cut(setup.model, real_batch(setup.example, _CUT_SAMPLES))
    except CutError as error:
        return PhaseCost(phase.name, planned, step, plain, f"none ({error})", 0, 0.0, plain)
    share = found.share if found.share == found.share else 0.0
    return PhaseCost(
        phase.name,
        planned,
        step,
        plain,
        f"{found.why}; {share:.0%} of the forward lies below",
        int(found.frontier.nbytes * sum(counts)),
        share * once,
        plain - share * forwards + share * once,
    )


def _length(phase: Phase, epochs: int, steps_per_epoch: float) -> tuple[int, float]:
    """Epochs of a phase, the last one begun, and its steps."""
    whole = ceil(steps_per_epoch)
    most = phase.total_steps(whole) or epochs * whole
    begun = ceil(most / whole)
    return begun, min(most, begun * steps_per_epoch)


def _budget_fit(setup: Setup, nbytes: int, found: Sequence[tuple[str, str]]) -> BudgetFit:
    batch_size = setup.batch_size
    largest, total = _largest_batch(lambda rows: setup.memory(setup.trace(rows)).total, nbytes)

    @cache
    def needed(place: int) -> int:
        freeze = partial(train_only, setup.model, found[place][1])
        return _each(setup.model, [freeze], lambda: setup.memory(setup.trace()).total)[0]

    # Less that trains keeps no more.
    place = bisect_left(range(len(found)), True, key=lambda at: needed(at) <= nbytes)
    if place == len(found):
        return BudgetFit(nbytes, largest, total, None, batch_size, 0)
    return BudgetFit(nbytes, largest, total, found[place][1], batch_size, needed(place))


def _real_step(setup: Setup) -> StepCost:
    batch_size = setup.batch_size
    try:
        return setup.measure(batch_size)
    except STEP_ERRORS as error:
        raise ConfigError(
            f"a real step of {batch_size} samples does not run ({one_line(error)}). "
            "Give an example that the model takes and a batch size that fits, or leave check out."
        ) from error


def _largest_batch(total: Callable[[int], int], nbytes: int) -> tuple[int, int]:
    """The largest batch that fits by `total`, which grows about evenly, and what it takes."""
    known = {1: total(1)}
    if known[1] > nbytes:
        return 0, 0
    fits, beyond, rows = 1, _LARGEST_BATCH, _SECOND_BATCH
    while beyond - fits > 1:
        known[rows] = total(rows)
        if known[rows] <= nbytes:
            fits = rows
        else:
            beyond = rows
        slope = max(1.0, (known[rows] - known[1]) / (rows - 1))
        rows = fits + int((nbytes - known[fits]) / slope)
        rows = min(max(rows, fits + 1), beyond - 1)
    return fits, known[fits]
