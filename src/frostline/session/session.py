"""A session: what freezing needs from a training loop, whoever's loop it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, replace
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from frostline.backward import Lean, is_lean, lean
from frostline.choices import AUTO_MONITOR
from frostline.data import Batch, Batches, open_data
from frostline.deltas import all_tensors, delta_content, put_tensors
from frostline.devices import device_of
from frostline.errors import ConfigError, DataError, DriftError, a_type
from frostline.freezing import Frozen, Proof
from frostline.freezing.modes import is_held
from frostline.plans import Phase, Plan
from frostline.recipe import Recipe, recipe_from
from frostline.session.optimizers import MakeOptimizer, PhasedOptimizer
from frostline.session.pipelines import Pipeline, PipelineOptions, compiled, pipeline
from frostline.session.position import Position, goes_on
from frostline.session.randomness import (
    DrawnAlike,
    random_state,
    seed_epoch,
    seeded_apart,
    set_random_state,
)
from frostline.session.survey import freeze_for, survey
from frostline.tasks import Metrics
from frostline.tasks.metrics import metrics_from
from frostline.world import ALONE, World, gathered_names

_FORMAT = "frostline session 1"
_OPEN_EPOCHS = 10  # of a phase that ends by what it reaches


@final
class Session:
    """Goes through a plan while any loop trains: freezes, syncs the optimizer, counts, proves.

    A loop of another library calls `enter` once its optimizer is there, `before_step` and
    `after_step` around each step, `end_epoch` with its metrics, and `leave` where `phase_end` says
    so; it needs neither `data` nor `epoch`.

    Args:
        plan: phases to train in; without one, what is trainable now for `epochs`.
        optimizer: one that the session keeps and syncs; its learning rates stay where neither a
            phase nor an option here says others. Or what makes one of parameter groups, anew for
            each phase, as `torch.optim.AdamW`; by default what the recipe says.
        recipe: what phases leave open; or name its options here: `lr=1e-3, patience=3, seed=1`.
        schedulers: of an optimizer that is kept: the learning rates are theirs then. Without any,
            the session puts them by the phase's schedule before each step.
        steps_per_epoch: that schedules count with, where `epoch` is not asked for the batches.
        accumulate: batches that make up a step; `step_is_due` says where one is complete.
        measure: called with the model frozen as in each phase; gives seconds of a plain step.
        world: who else trains this model.

    Raises:
        SelectorError, FreezeError: a phase does not fit the model.
        ConfigError: an option is unknown or out of its range, or the plan does not fit the model.

    Example:
        >>> session = fl.Session(model, optimizer=torch.optim.AdamW, epochs=1)
        >>> while not session.is_over:
        ...     session.enter()
        ...     batches = session.data(data, data, batch_size=8)
        ...     while not session.phase_end:
        ...         for batch in session.epoch(batches.train):
        ...             loss = nn.functional.cross_entropy(batches(batch), batch.targets)
        ...             loss.backward()
        ...             session.optimizer.step()
        ...             session.optimizer.zero_grad()
        ...             session.after_step()
        ...         session.end_epoch({"loss": loss.item()})
        ...     print(session.leave())
        7 frozen tensors (1.03 KB) are bit for bit as they were
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan | None = None,
        *,
        optimizer: torch.optim.Optimizer | MakeOptimizer | None = None,
        recipe: Recipe | None = None,
        schedulers: Sequence[Any] = (),
        steps_per_epoch: int | None = None,
        accumulate: int = 1,
        measure: Callable[[], float] | None = None,
        world: World = ALONE,
        **options: object,
    ) -> None:
        if accumulate < 1:
            raise ConfigError(f"asked for steps of {accumulate} batches. Use 1 or more.")
        self.model = model
        self.recipe = recipe_from(recipe, options, Session)
        self._plan = _phases(plan, self.recipe)
        self._plan_text = Plan(self._plan).dumps()
        self.phases = tuple(phase.completed(self.recipe) for phase in self._plan)
        self.planned = survey(model, self.phases, measure=measure)
        self.world = world
        self.position = Position()
        self.steps_per_epoch = steps_per_epoch
        self.step_is_due = False
        self._accumulate = accumulate
        self._optimizer = PhasedOptimizer(model, self.recipe, optimizer, schedulers)
        self._frozen: Frozen | None = None
        self._lean: Lean | None = None
        self._is_left = False
        self._batches = 0  # of this epoch that were handed out
        self._is_last = False  # whether the last of them was
        self._clock: float | None = None
        self._restored: Mapping[str, Any] | None = None
        self._random: Mapping[str, Any] | None = None
        self._alike = DrawnAlike(world)
        self._phase_best: dict[str, Tensor] = {}

    @property
    def phase(self) -> Phase:
        """The present phase, with what it leaves open filled in from the recipe."""
        return self.phases[self.position.phase]

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of the present phase.

        Raises:
            ConfigError: no phase was entered yet.
        """
        if self._optimizer.present is None:
            raise ConfigError(f"the session has no optimizer yet. {_ENTER}")
        return self._optimizer.present

    @property
    def frozen(self) -> Frozen:
        """The handle on what the present phase froze.

        Raises:
            ConfigError: no phase was entered yet.
        """
        if self._frozen is None:
            raise ConfigError(f"the session has frozen nothing yet. {_ENTER}")
        return self._frozen

    @property
    def is_over(self) -> bool:
        """Whether the last phase was left."""
        return self._is_left and self.position.phase == len(self.phases) - 1

    @property
    def phase_end(self) -> str:
        """What ended the present phase, for people; empty while it goes on."""
        phase, at, until = self.phase, self.position, self.phase.until
        if phase.steps is not None and at.phase_steps >= phase.steps and not at.batches:
            return f"{at.phase_steps} step{'s' if at.phase_steps > 1 else ''}"
        if phase.epochs is not None and at.phase_epochs >= phase.epochs:
            return f"{at.phase_epochs} epoch{'s' if at.phase_epochs > 1 else ''}"
        if until is None or at.batches or not at.phase_epochs:
            return ""
        if until.minutes is not None and at.phase_seconds >= 60 * until.minutes:
            return f"{until.minutes:g} minutes"
        watched = at.plateau.metric or until.monitor  # the former is not in states of 0.1
        if at.is_reached:
            return f"{watched} reached {until.target:g}"
        waited = at.epochs - at.plateau.epoch
        if until.patience is not None and at.plateau.epoch and waited >= until.patience:
            return f"no better {watched} for {waited} epoch{'s' if waited > 1 else ''}"
        return ""

    @property
    def stops_within_epoch(self) -> bool:
        """Whether the epoch under way is to be cut short here: no steps or no time are left."""
        phase, at = self.phase, self.position
        out_of_steps = phase.steps is not None and at.phase_steps >= phase.steps
        minutes = phase.until.minutes if phase.until else None
        return out_of_steps or (minutes is not None and at.phase_seconds >= 60 * minutes)

    @property
    def ends_epoch(self) -> bool:
        """Whether the step that was counted last is the last of its epoch."""
        return self._is_last or self.stops_within_epoch

    def enter(self) -> None:
        """Begin the next phase, or go on within one: freeze, and bring the optimizer to it.

        At its beginning a phase with `start="best"` gets the best weights of the one before.

        Raises:
            SelectorError, FreezeError: the phase does not fit the model.
            ConfigError: the plan is over, or the optimizer does not fit the phase.
            DriftError: the session was restored, and what was frozen in this phase is not what
                it was.
        """
        if self.is_over:
            raise ConfigError("the last phase of the plan was left. Make a new session for more.")
        if self._is_left:
            self.position, self._is_left, self._clock = self.position.next_phase(), False, None
        at, phase = self.position, self._plan[self.position.phase]
        is_new = not at.phase_steps
        from_best = is_new and bool(at.phase) and phase.start == "best"
        if from_best:
            put_tensors(self.model, self._phase_best)
        self._phase_best = {} if is_new else self._phase_best
        self._frozen = freeze_for(self.model, self.phases, at.phase)
        found = str(self._frozen.fingerprint)
        if at.frozen and at.frozen != found:
            raise DriftError(
                f"cannot resume within {phase.label(at.phase + 1)}: what was frozen in this phase "
                "is not what it was. Give the same model and plan, or start a new run."
            )
        self._check_alike(found)
        at.frozen = found
        restored, self._restored = self._restored, None
        # From the best weights it begins fresh: the state belongs to those of the last epoch.
        fresh = bool(at.phase) and is_new and (from_best or phase.state == "fresh")
        upto = self._plan[: at.phase + 1]
        self._optimizer.enter(upto, restored and restored["optimizer"], fresh=fresh)

    def data(
        self,
        train: object,
        val: object,
        options: PipelineOptions | None = None,
        *,
        plain: tuple[Batches, Batches] | None = None,
        example: Any = None,
        **changes: Any,
    ) -> Pipeline:
        """Batches for the present phase: stored features where asked for, or plain ones.

        Args:
            train, val: as `fl.fit` takes them.
            options: what is asked of the pipeline; by default what the recipe says.
            plain: the batches of a plain loop over them, where they were made before.
            example: a few samples on the device, to cut on, where they were loaded before.
            changes: fields of the options, as `batch_size=64, features="folder/"`.

        Raises:
            ConfigError: no phase was entered, or it was left.
            DataError: there is no data, or of another kind.
            OutputError, StoreError: the store that was named cannot be used.
        """
        self._check_entered("data")
        recipe, phase, samples = self.recipe, self.phase, (open_data(train), open_data(val))
        by_recipe = PipelineOptions(
            device=device_of(self.model),
            seed=recipe.seed,
            precision=recipe.prefix_precision,
            world=self.world,
        )
        asked = replace(options or by_recipe, **changes)
        plain = plain or asked.plain(*samples)
        epochs = phase.epochs or -(-(phase.steps or 0) // len(plain[0])) or _OPEN_EPOCHS
        made = pipeline(self.model, example, samples, plain, replace(asked, epochs=epochs))
        if recipe.lean and isinstance(made.forward, nn.Module) and not is_lean(made.forward):
            self._lean = lean(made.forward)
        return replace(made, forward=compiled(made.forward)) if asked.compile else made

    def epoch(self, batches: Batches) -> Generator[Batch, None, None]:
        """The batches of the epoch, or what is left of it; the model is put in train mode.

        Random numbers of an epoch depend on the recipe's seed and the epoch alone, so that a
        session which was restored goes on to the same bits. Of several processes each draws its
        own as it loads a batch; what the model draws is for the whole batch, see `drawing_alike`.

        Raises:
            ConfigError: no phase was entered, or it was left.
            DataError: these are batches of something else than `data`.
        """
        self._check_entered("epoch")
        if isinstance(batches, DataLoader):
            raise DataError(
                "session.epoch goes through what session.data(...) gave, as data.train, and got a "
                "DataLoader. Pass the loader to session.data; or go through it yourself, with "
                "before_step() and after_step() around each step."
            )
        at, whole = self.position, len(batches)
        self.steps_per_epoch = -(-whole // self._accumulate)
        seed_epoch(self.recipe.seed, at.epochs)
        self.model.train()
        self._clock = self._clock or time.perf_counter()
        with closing(batches.epoch(at.epochs, start=at.batches)) as given:
            # As they were between the two batches where the epoch was cut.
            if self._random and at.batches:
                set_random_state(self._random)
                self._alike.go_on(device_of(self.model), self._random.get("alike"))
            self._random = None
            for number, batch in enumerate(self._drawn(given), at.batches + 1):
                if (number - 1) % self._accumulate == 0:
                    self.before_step()
                self._batches = number
                self._is_last = number == whole
                self.step_is_due = number % self._accumulate == 0 or self._is_last
                yield batch
                if self.stops_within_epoch:
                    return

    def _drawn(self, given: Iterator[Batch]) -> Iterator[Batch]:
        if self.world.size == 1:
            return given
        seed, at, alike = self.recipe.seed, self.position, self._alike
        begun = partial(alike.begin, device_of(self.model))
        return seeded_apart(
            given, seed=seed, epoch=at.epochs, first=at.batches, rank=self.world.rank, begun=begun
        )

    def drawing_alike(self, whole: int) -> AbstractContextManager[None]:
        """In it torch draws what one process would, from the same state in all processes.

        Args:
            whole: samples of the batch in all processes.
        """
        return self._alike.drawing(device_of(self.model), whole)

    def before_step(self) -> None:
        """Put the learning rates to where the phase's schedule is; `epoch` does so itself.

        A rate that the phase keeps constant is left as it is found.

        Raises:
            ConfigError: the schedule counts steps of an epoch, and no one said how many.
        """
        self._optimizer.before_step(self._lr_factor)

    def _lr_factor(self) -> float | None:
        if self.phase.schedule == "constant" and not self.phase.warmup:
            return None
        if self.steps_per_epoch is None:
            raise ConfigError(
                "the schedule of a phase counts steps, and the session does not know how many an "
                "epoch has. Give Session(..., steps_per_epoch=len(loader)), or its schedulers."
            )
        return self.phase.lr_factor(self.position.phase_steps, self.steps_per_epoch)

    def after_step(self) -> None:
        """Count an optimizer step.

        Raises:
            ConfigError: no phase was entered, or it was left.
        """
        self._check_entered("after_step")
        at = self.position
        at.phase_steps += 1
        at.batches = self._batches = max(self._batches, at.batches + 1)
        self.tick()

    def _check_entered(self, asked: str) -> None:
        if self._frozen is None or self._is_left:
            raise ConfigError(f"session.{asked}() was called in no phase. {_ENTER}")

    def tick(self) -> None:
        """Count the wall clock since the last tick, or the phase's first batch."""
        now, at = time.perf_counter(), self.position
        passed = 0.0 if self._clock is None else now - self._clock
        until = self.phase.until
        if self.world.size > 1 and until is not None and until.minutes is not None:
            # By the first process's clock, since all must end the phase at the same step.
            own = torch.tensor([passed if self.world.rank == 0 else 0.0], dtype=torch.float64)
            passed = self.world.sum(own).item()
        at.phase_seconds, at.epoch_seconds = at.phase_seconds + passed, at.epoch_seconds + passed
        self._clock = now

    def end_epoch(self, metrics: Metrics | Mapping[str, float] | None = None) -> None:
        """Count an epoch with its validation metrics, by which a phase may end or be the best.

        Of metrics by name alone, those that end in `loss` are better where they are lower, and
        accuracy or else the first decides where the recipe's `monitor` names none.

        Raises:
            ConfigError: no phase was entered, or it was left; a value is no number; or the metric
                that the phase's `until` watches is not among them.
        """
        self._check_entered("end_epoch")
        found = metrics_from(metrics)
        self.tick()
        at, until = self.position, self.phase.until
        at.epochs, at.phase_epochs = at.epochs + 1, at.phase_epochs + 1
        at.batches, self._batches, at.epoch_seconds = 0, 0, 0.0
        monitor = self.recipe.monitor
        if found.has(monitor):
            at.best = at.best.after(at.epochs, found, monitor)
            at.phase_best = at.phase_best.after(at.epochs, found, monitor)
        is_wanted = any(phase.start == "best" for phase in self.phases[at.phase + 1 :][:1])
        if is_wanted and at.phase_best.epoch == at.epochs:
            self._phase_best = delta_content(self.model, also=at.moved)
        if until is None or (until.target is None and until.patience is None):
            return
        watched = until.monitor or monitor
        if not found.has(watched):
            given = ", ".join(found.headline()) or "no metrics"
            name = "accuracy" if watched == AUTO_MONITOR else watched
            raise ConfigError(
                f"{self.phase.label(at.phase + 1)} watches {name}, and the epoch ended with "
                f"{given}. Give it: session.end_epoch({{'{name}': ...}})."
            )
        at.is_reached = until.target is not None and found.metric(watched).reaches(until.target)
        is_strict = watched != AUTO_MONITOR or until.min_change > 0
        change = until.min_change if is_strict else None
        at.plateau = at.plateau.after(at.epochs, found, watched, min_change=change)

    def leave(self) -> Proof:
        """End the phase: prove that what was frozen in it did not move.

        Raises:
            DriftError: it did; names the tensors.
        """
        self.close()
        try:
            proof = self.frozen.verify()
        except DriftError as error:
            if self.world.size == 1:
                raise
            raise DriftError(f"process {self.world.rank}: {error}", error.drifts) from error
        self._check_alike(str(proof.fingerprint))
        model, moved = self.frozen.model, set(self.position.moved)
        moved.update(name for name, p in model.named_parameters() if p.requires_grad)
        for name, _ in model.named_buffers():
            if not is_held(model.get_submodule(name.rpartition(".")[0])):
                moved.add(name)
        self.position.moved = tuple(sorted(moved & all_tensors(model).keys()))
        self._is_left = True
        return proof

    def _check_alike(self, fingerprint: str) -> None:
        """Raise DriftError where the frozen part is not the same in all processes."""
        every = gathered_names(self.world, [fingerprint])
        others = [str(rank) for rank, found in enumerate(every) if found != every[0]]
        if others:
            raise DriftError(
                f"what is frozen in process {', '.join(others)} is not what it is in process 0. "
                "Load the same weights in all of them, and look for code that writes them."
            )

    def close(self) -> None:
        """Make what was leaned for a phase plain again, however the phase ended."""
        if self._lean is not None:
            self._lean.remove()
            self._lean = None

    def verify(self) -> Proof:
        """Prove that what no phase was to move is what it was before the first.

        Of one phase alone it is all that the phase froze, rows too.

        Raises:
            DriftError: it is not; names the tensors.
        """
        if len(self.phases) == 1 and self._frozen is not None:
            return self._frozen.verify()
        return self.planned.verify(self.model)

    def state_dict(self, *, optimizer: bool = True) -> dict[str, Any]:
        """All that a session needs to go on later but the model's weights; taken after a step.

        Plain data and tensors, which `torch.load(weights_only=True)` reads.

        Args:
            optimizer: whether the optimizer's state is part of it; not where the loop keeps that.
        """
        if self._restored is not None:  # nothing has happened since
            return dict(self._restored)
        return {
            "format": _FORMAT,
            "plan": self._plan_text,
            "position": asdict(self.position),
            "optimizer": self._optimizer.state() if optimizer and self._optimizer.present else None,
            "left": dict(self._optimizer.left),
            # Between two epochs they depend on the seed alone.
            "random": self._random_state() if self.position.batches else None,
            "phase_best": dict(self._phase_best),
        }

    def _random_state(self) -> dict[str, Any]:
        alike = {"alike": self._alike.state} if self.world.size > 1 else {}
        return {**random_state(), **alike}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was taken; call `enter` next.

        The model has the weights of that moment already, from wherever the loop keeps them. The
        plan may have grown: its last phase may have other epochs, and more may follow it.

        Raises:
            ConfigError: it is no such state, or one of another plan.
        """
        if state.get("format") != _FORMAT:
            raise ConfigError(
                "this is no state of a session that this version reads. Pass what "
                "session.state_dict() gave."
            )
        if not goes_on(Plan.loads(state["plan"]).phases, self._plan):
            raise ConfigError(
                "the state is of another plan. Give Session the plan that it was saved with; only "
                "its last phase may have other epochs, and phases may follow."
            )
        self.position = Position.read(state["position"])
        self._restored, self._random, self._frozen = state, state["random"], None
        self._phase_best = dict(state["phase_best"])
        self._optimizer.left = dict(state.get("left", {}))  # not in states of 0.1
        self._batches, self._is_left, self._clock = self.position.batches, False, None


def _phases(plan: Plan | None, recipe: Recipe) -> tuple[Phase, ...]:
    if plan is None:
        return (Phase(epochs=recipe.epochs),)
    if not isinstance(plan, Plan):
        raise ConfigError(
            f"the plan is {a_type(plan)}. Give fl.Plan([fl.Phase(...)]), or fl.Plan.load(file)."
        )
    return plan.phases


_ENTER = "Enter a phase first: session.enter()."
