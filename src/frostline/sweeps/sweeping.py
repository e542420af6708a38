"""`fl.sweep`: features computed once, members trained together, the winner trained by itself."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol, final

from torch import Tensor, nn

from frostline.calling import in_turn
from frostline.config import DataSettings, FeatureSettings, ModelSettings, RunSettings
from frostline.cutting.chains import Chain, chain_of
from frostline.cutting.suffix import Suffix
from frostline.devices import Compute
from frostline.engine import Hook
from frostline.errors import TrainingError
from frostline.features import FeatureBatches, LiveLastBatches
from frostline.fitting import Outset, Run, check_settings, fit, outset, task_given
from frostline.groups import default_lr, param_groups
from frostline.recipe import Recipe, recipe_from
from frostline.records import RunFolder
from frostline.session import Pipeline
from frostline.session.pipelines import pipeline
from frostline.sweeps.alone import trained_alone
from frostline.sweeps.heads import (
    chain_for,
    check_dropout,
    copied,
    first_tensors,
    put_setting,
    trainable,
)
from frostline.sweeps.ranking import ranked
from frostline.sweeps.results import Member, Sweep
from frostline.sweeps.settings import (
    Asked,
    Head,
    Numbers,
    Setting,
    Single,
    every_setting,
    refuse_plan,
)
from frostline.sweeps.stacks import Ground, Stack, in_stacks, stacked
from frostline.sweeps.together import Together
from frostline.tasks import Classification, Task
from frostline.units import format_seconds
from frostline.wording import option
from frostline.world import ALONE, refuse_several

Progress = Callable[[int, int], None]
# How far rounding may move a member's validation loss from that of its own run.
BOUND, FLOOR = 1e-3, 1e-4


@in_turn
def sweep(
    model: nn.Module,
    train: object,
    val: object,
    *,
    lr: Numbers = None,
    weight_decay: Numbers = None,
    heads: Iterable[int | Sequence[int]] | None = None,
    dropout: Numbers = None,
    seeds: Iterable[int] | int | None = None,
    drop: bool = True,
    out: str | Path | None = None,
    recipe: Recipe | None = None,
    batch_size: int = 32,
    task: Task | str | None = None,
    classes: Sequence[str] | None = None,
    device: str = "auto",
    features: str | Path = "auto",
    hooks: Iterable[Hook] = (),
    progress: Progress | None = None,
    **options: object,
) -> Sweep:
    """Train many settings on features that are computed once, and the best of them as a run.

    Each combination of the values is a member. Members whose part above the frost line is a chain
    of linear layers, activations and dropout are trained together; each sees the batches and the
    dropout of its own single run of `fl.fit`, and its validation loss stays within 0.1 % of that
    run's, or 1e-4 (on an accelerator dropout is drawn otherwise, and the bound is statistical).
    Others are trained one after the other, and a line says why.

    Each stands by its best epoch, as a run keeps it. Those that the validation samples cannot tell
    from the most accurate member, by McNemar's test, come first, by their losses. Losers are
    dropped early: past an eighth of the epochs, after each one, those of the highest loss now, so
    that half of the members are left after a quarter of the epochs, a quarter after half, and an
    eighth at the end; of members that are alike so far all but one go first. The winner is
    then trained by itself, by `fl.fit` on the same features, into `out`; the model holds its best
    weights and has its head.

    Args:
        train, val, out, recipe, batch_size, task, classes, device, features, hooks: as for
            `fl.fit`; features are always stored. Other options of a recipe go by name.
        lr, weight_decay: one value or several; by default the recipe's.
        heads: hidden widths of heads that are put in place of the classifier, drawn by each
            member's seed, as `[(), 100, (256, 64)]`; by default the model keeps the head it has.
        dropout: probabilities of all dropout above the line; new heads get dropout behind each
            hidden layer.
        seeds: of the order of the batches, dropout and new heads.
        drop: whether losers are dropped early; without, all are trained to the end.
        progress: called with (done, total) in epochs of members.

    Raises:
        ConfigError: a value is out of its range, a list is empty, there is a plan, or there is no
            dropout to set.
        TrainingError: no member's loss stayed a number; or several processes were started.
        FrostlineError: as `fl.fit`.

    Example:
        >>> found = fl.sweep(model, data, data, lr=[1e-3, 1e-2], weight_decay=[0, 0.1], epochs=2)
        >>> len(found.members), found.run.proof.tensors
        (4, 7)
    """
    refuse_several("a sweep")
    refuse_plan(options.pop("plan", None))
    recipe = recipe_from(recipe, options, sweep)
    settings = RunSettings(
        model=ModelSettings.from_python(type(model).__name__),
        data=DataSettings(batch_size=batch_size),
        training=recipe,
        features=FeatureSettings(store=str(features)),
        device=device,
    )
    given = InPython(model, (train, val), settings, task_given(task, classes))
    asked = Asked(lr, weight_decay, heads, dropout, seeds, drop)
    return swept(given, asked, out=out, hooks=tuple(hooks), progress=progress)


class Subject(Protocol):
    """A model with its data, and how single runs on them are made."""

    @property
    def model(self) -> nn.Module:
        """Frozen as asked, with the head that it has or that members replace."""
        ...

    @property
    def data(self) -> tuple[object, object]:
        """To train on, and to validate on."""
        ...

    @property
    def settings(self) -> RunSettings:
        """Of a run, but for what varies."""
        ...

    @property
    def task(self) -> Task: ...

    def check(self, settings: Sequence[Setting]) -> None:
        """Refuse members that cannot share features, before anything is computed."""
        ...

    def run(self, one: Single) -> Run:
        """A member's own run, of a model of its own; nothing is written."""
        ...

    def win(self, one: Single, out: str | Path | None) -> Run:
        """The winner's own run, of the model itself, into `out`."""
        ...


@final
@dataclass(frozen=True)
class InPython:
    """A model that was handed over."""

    model: nn.Module
    data: tuple[object, object]
    settings: RunSettings
    task: Task

    def check(self, settings: Sequence[Setting]) -> None:
        """All members have one frozen part."""

    def run(self, one: Single) -> Run:
        return self._fit(copied(self.model), one, None)

    def win(self, one: Single, out: str | Path | None) -> Run:
        return self._fit(self.model, one, out)

    def _fit(self, model: nn.Module, one: Single, out: str | Path | None) -> Run:
        settings = self.settings
        put_setting(model, one.setting, one.classes)
        return fit(
            model,
            *self.data,
            out=out,
            recipe=one.setting.recipe(settings.training),
            batch_size=settings.data.batch_size,
            task=self.task,
            device=settings.device,
            features=settings.features.store,
            forms=(one.form,),
            hooks=one.hooks,
        )


def swept(
    subject: Subject,
    asked: Asked,
    *,
    out: str | Path | None = None,
    hooks: Sequence[Hook] = (),
    progress: Progress | None = None,
) -> Sweep:
    """As `sweep`, of any subject."""
    recipe = subject.settings.training
    usual_lr = default_lr(subject.model, optimizer=recipe.optimizer)
    every = every_setting(recipe, asked, usual_lr=usual_lr)
    check_settings(subject.settings)
    if out is not None:
        RunFolder(Path(out)).check_free()  # before all the work, of which it would be the end
    subject.check(every)
    start = time.perf_counter()
    begin = outset(subject.model, subject.data, subject.task, subject.settings, ALONE)
    made = _pipeline(subject.model, begin, len(every))
    shapes = _Shapes.of(subject.model, made, begin, every)
    settings = shapes.settings
    single = partial(Single, classes=begin.task.width, form=made.facts.form)
    begun = time.perf_counter()
    counted = _Counted(progress, len(settings) * recipe.epochs)
    members = [
        *_together(subject.model, made, begin, settings, shapes, counted, drop=asked.drop),
        *_one_by_one(subject.run, single, settings, shapes, counted),
    ]
    members = _in_order(members, recipe.monitor)
    now = time.perf_counter()
    seconds, training_seconds = now - start, now - begun
    winner = members[0]
    if winner.metrics is None:
        raise TrainingError(
            f"no member's loss stayed a number in {len(members)}. Lower the learning rates "
            f"({option('lr')}), or clip gradients ({option('clip_norm', 1)})."
        )
    start = time.perf_counter()
    run = subject.win(single(winner.setting, hooks=tuple(hooks)), out)
    says = (*shapes.says(len(members), seconds), *_held_against(winner, run))
    run_seconds = time.perf_counter() - start
    found = Sweep(tuple(members), run, recipe.epochs, says, seconds, training_seconds, run_seconds)
    if run.folder is not None:
        found.write(run.folder)
    return found


def _pipeline(model: nn.Module, begin: Outset, members: int) -> Pipeline:
    """Stored features, however few forwards they save: the members are many."""
    epochs = members * begin.settings.training.epochs
    asked = replace(begin.asked, epochs=epochs, operations_per_sample=math.inf)
    return pipeline(model, begin.first.inputs, begin.data, begin.plain, asked)


@final
@dataclass
class _Shapes:
    """Which members go together, and why the others do not.

    Attributes:
        settings: of the members; those that are alike but for dropout that is nowhere count once.
        chains: of each member that can be stacked, by its number.
        reasons: of each other one.
    """

    settings: list[Setting] = field(default_factory=list)
    chains: dict[int, Chain] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls, model: nn.Module, made: Pipeline, begin: Outset, settings: Sequence[Setting]
    ) -> _Shapes:
        found = cls()
        reason, chain = _why_not(made, begin), None
        if not reason and isinstance(made.forward, Suffix):
            chain = chain_of(made.forward)
            reason = chain if isinstance(chain, str) else ""
        every: list[Chain | str] = []
        known = set()
        for setting in settings:
            one = reason if not isinstance(chain, Chain) else chain_for(model, chain, setting)
            if isinstance(one, Chain) and (why := trainable(model, one)):
                one = why
            every.append(one)
            alike = one, setting.head, setting.lr, setting.weight_decay, setting.seed
            if isinstance(one, Chain) and alike in known:
                continue
            known.add(alike)
            found._add(setting, one)
        check_dropout(every, [setting.dropout for setting in settings])
        return found

    def _add(self, setting: Setting, one: Chain | str) -> None:
        number = len(self.settings)
        self.settings.append(setting)
        if isinstance(one, Chain):
            self.chains[number] = one
        else:
            self.reasons[number] = one

    def alike(self) -> list[tuple[Chain, list[int]]]:
        """Members by the chain that they have, with the same widths."""
        groups: dict[tuple[Chain, Head | None], list[int]] = {}
        for number, chain in self.chains.items():
            groups.setdefault((chain, self.settings[number].head), []).append(number)
        return [(chain, numbers) for (chain, _), numbers in groups.items()]

    def says(self, members: int, seconds: float) -> Iterable[str]:
        """For people: how they were trained."""
        stacked_ones = len(self.chains)
        if stacked_ones:
            yield (
                f"Together  {stacked_ones} of {members} members; all and their features in "
                f"{format_seconds(seconds)}"
            )
        for reason in dict.fromkeys(self.reasons.values()):
            count = sum(one == reason for one in self.reasons.values())
            yield f"Singly    {count} of {members} members, one after the other: {reason}"


def _why_not(made: Pipeline, begin: Outset) -> str:
    """Why no members can be trained together; empty if they can."""
    recipe = begin.settings.training
    if not isinstance(begin.task, Classification):
        return "only a classification is trained together"
    if recipe.patience is not None:
        return f"{option('patience')} ends each by itself"
    if recipe.mixed != "fp32" or recipe.lean:
        return f"{option('precision')} or {option('lean')} asks for other steps"
    if not isinstance(made.forward, Suffix):
        return "nothing is stored: " + (made.says[-1] if made.says else "the model is not cut")
    if _stored(made.train) is None or _stored(made.validation) is None:
        return "features are computed in each epoch"
    return ""


def _stored(batches: object) -> FeatureBatches | None:
    """The stored rows; of last batches that are computed anew too, from which they differ by last
    bits."""
    if isinstance(batches, LiveLastBatches):
        return batches.stored
    return batches if isinstance(batches, FeatureBatches) else None


def _together(
    model: nn.Module,
    made: Pipeline,
    begin: Outset,
    settings: Sequence[Setting],
    shapes: _Shapes,
    counted: _Counted,
    *,
    drop: bool,
) -> list[Member]:
    train, validation = _stored(made.train), _stored(made.validation)
    task, recipe = begin.task, begin.settings.training
    if not shapes.chains or train is None or validation is None:
        return []
    assert isinstance(task, Classification)
    ground = Ground(
        train,
        validation,
        task,
        recipe,
        Compute(begin.settings.device),
        _shares(model, recipe, shapes),
    )
    stacks = []
    for chain, numbers in shapes.alike():
        for part in in_stacks(settings, numbers):
            starts = [first_tensors(model, chain, settings[n], task.width) for n in part]
            own = [settings[number] for number in part]
            stacks.append(Stack(ground, chain, part, own, stacked(starts)))
    targets = validation.data.targets
    assert isinstance(targets, Tensor)
    together = Together(ground, stacks, targets, counted)
    together.train(drop=drop)
    return together.members(settings)


def _shares(model: nn.Module, recipe: Recipe, shapes: _Shapes) -> dict[str, tuple[float, float]]:
    """Factors of rate and decay of each tensor, by the rule of a run's optimizer groups."""
    groups = param_groups(model, lr=1.0, weight_decay=1.0, layer_decay=recipe.layer_decay)
    known = {n: (g["lr"], g["weight_decay"]) for g in groups for n in g["param_names"]}
    last = known[groups[-1]["param_names"][-1]][0]
    names = {name for chain in shapes.chains.values() for name in chain.tensors}
    # A new head is the last stage, and its biases do not decay.
    fresh = {name: (last, 0.0 if name.endswith(".bias") else 1.0) for name in names}
    return {name: known.get(name, fresh[name]) for name in names}


def _one_by_one(
    run: Callable[[Single], Run],
    single: Callable[..., Single],
    settings: Sequence[Setting],
    shapes: _Shapes,
    counted: _Counted,
) -> Iterable[Member]:
    for number in shapes.reasons:
        setting = settings[number]

        def fit_one(hook: Hook, setting: Setting = setting) -> Run:
            return run(single(setting, hooks=(hook,)))

        yield trained_alone(number + 1, setting, fit_one, counted)


def _held_against(winner: Member, run: Run) -> Iterable[str]:
    """A line where its own run gives the winner another loss than it had among the others."""
    if not winner.together or winner.metrics is None:
        return
    own, among = run.history[winner.epoch - 1].validation["loss"], winner.metrics["loss"]
    if abs(own - among) > BOUND * own + FLOOR:
        yield (
            f"Note      after epoch {winner.epoch} its own run has the loss {own:.4g}, and had "
            f"{among:.4g} among the others: further apart than {BOUND:.1%} by rounding. Look at "
            "the learning rate; so large a one makes a run swing."
        )


def _in_order(members: Sequence[Member], monitor: str) -> list[Member]:
    by_number = {member.number: member for member in sorted(members, key=lambda m: m.number)}
    found = {number: member.standing for number, member in by_number.items()}
    return [by_number[number] for number in ranked(found, monitor)]


@final
class _Counted:
    """Counts epochs of members, for progress."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self, epochs: int) -> None:
        self._done += epochs
        if self._progress is not None:
            self._progress(self._done, self._total)
