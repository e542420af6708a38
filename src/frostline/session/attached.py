"""A session under a loop of another library, which tells what happens and asks for nothing.

The loop's callback says when training begins, around each step and where an epoch ends; phases
begin and end here. A phase by steps or minutes ends within an epoch, whose rest is the next one's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from torch import nn
from torch.optim import Optimizer

from frostline.choices import AUTO_MONITOR, NormPolicy
from frostline.deltas import delta_content, save_delta
from frostline.errors import ConfigError, nearest
from frostline.freezing import Proof
from frostline.optimizer_sync import group_names, regroup
from frostline.plans import Phase, Plan
from frostline.recipe import Recipe
from frostline.selectors import SelectorLike
from frostline.session.randomness import random_state, set_random_state
from frostline.session.session import Session

_FORMAT = "frostline attached session 1"
_ENDLESS = 10**9  # epochs: as long as the loop goes on


@final
@dataclass(frozen=True, slots=True)
class PhaseEnd:
    """A phase that is over: what ended it, and the proof that what it froze did not move."""

    name: str
    reason: str
    epochs: int
    steps: int
    proof: Proof

    def __str__(self) -> str:
        return f"{self.name} ({self.reason}): {self.proof}"


@final
class Attached:
    """Goes through a plan while a loop of another library trains.

    Learning rates stay those of the loop's optimizer, but for what a phase says itself.

    Args:
        root: all that the optimizer may train.
        plan: phases; or a selector of what is frozen as long as the loop goes on.
        part: the module in `root` that the plan is about; by default all of it.
        norm: of a selector: whether frozen norms hold their statistics.
        monitor: the metric by which an epoch is the best, and that phases watch which name none.
        schedulers: all learning rate schedules that the loop steps.
        steps_per_epoch: where it is known.

    Raises:
        SelectorError, FreezeError: a phase does not fit the model.
        ConfigError: the optimizer holds something beside the model, or the plan leaves open what
            this loop cannot know.
    """

    def __init__(
        self,
        root: nn.Module,
        plan: Plan | SelectorLike,
        *,
        optimizer: Optimizer,
        part: nn.Module | None = None,
        norm: NormPolicy = "hold",
        monitor: str | None = None,
        schedulers: Sequence[Any] = (),
        steps_per_epoch: int | None = None,
    ) -> None:
        phases = plan_of(plan, norm=norm)
        _check_metrics(phases, monitor)
        _check_schedules(phases, schedulers)
        group_names(optimizer, root)  # refuses what is not of the model
        self.root = root
        self.model = root if part is None else part
        self.ends: list[PhaseEnd] = []
        self.session = Session(
            self.model,
            phases,
            optimizer=optimizer,
            recipe=Recipe(schedule="constant", warmup=0, monitor=monitor or AUTO_MONITOR),
            schedulers=schedulers,
            steps_per_epoch=steps_per_epoch,
        )
        self._is_left = True  # until the first phase is entered

    @property
    def is_over(self) -> bool:
        """Whether the last phase has ended, so that the loop is to stop."""
        return self.session.is_over

    @property
    def label(self) -> str:
        """The name of the present phase."""
        at = self.session.position
        return self.session.phase.label(at.phase + 1)

    def begin(self, state: Mapping[str, Any] | None = None) -> None:
        """Before the first step: enter the first phase, or go on from `state`.

        The model, the optimizer and the schedulers are as the loop restored them; see
        `prepare_optimizer` and `restore_random`.

        Raises:
            SelectorError, FreezeError, ConfigError, DriftError: as `Session.enter`.
        """
        if state is not None:
            self.session.load_state_dict(checked_state(state)["session"])
        self._enter()
        if reason := self.session.phase_end:  # it was saved where a phase had just ended
            self._leave(reason)

    def begin_epoch(self) -> None:
        """Enter the next phase where one has ended.

        Raises:
            SelectorError, FreezeError, ConfigError: as `Session.enter`.
        """
        if self._is_left and not self.is_over:
            self._enter()

    def before_step(self) -> None:
        """Before each step of the optimizer."""
        if not self._is_left:
            self.session.before_step()

    def after_step(self, *, ends_epoch: bool) -> None:
        """Count a step; a phase by steps or minutes ends with it.

        Args:
            ends_epoch: whether it is the last of its epoch: then the phase ends with that.

        Raises:
            DriftError: something frozen moved in the phase that ends.
            SelectorError, FreezeError, ConfigError: as `Session.enter`.
        """
        if self._is_left:
            return
        session = self.session
        session.after_step()
        if ends_epoch or not session.stops_within_epoch:
            return
        phase, at = session.phase, session.position
        out_of_steps = phase.steps is not None and at.phase_steps >= phase.steps
        self._leave(f"{at.phase_steps} steps" if out_of_steps else "out of time")
        if not self.is_over:
            self._enter()

    def end_epoch(self, metrics: Mapping[str, Any] | None = None) -> None:
        """Count an epoch for the phase in which it ends, and end that where it is over.

        Raises:
            DriftError: something frozen moved in the phase that ends.
            ConfigError: the metric that the phase watches is not there, or is no number.
        """
        if self._is_left or not self.session.position.phase_steps:
            return
        self.session.end_epoch(metrics)
        if reason := self.session.phase_end:
            self._leave(reason)

    def end(self, reason: str) -> None:
        """Training is over, in whichever phase: prove what was frozen in it, and in all phases.

        Raises:
            DriftError: something moved; names it.
        """
        if not self._is_left:
            self._leave(reason)
        elif self.ends:
            self.session.frozen.verify()  # again: something may have written since
        self.session.planned.verify(self.model)

    def close(self) -> None:
        """Undo what must not outlast training, however it ended."""
        self.session.close()

    def state_dict(self) -> dict[str, Any]:
        """All that going on needs but what the loop saves itself, as weights and optimizer.

        Plain data and tensors, which `torch.load(weights_only=True)` reads.
        """
        optimizer = self.session.optimizer
        return {
            "format": _FORMAT,
            "session": self.session.state_dict(optimizer=False),
            "optimizer": type(optimizer).__name__,
            "groups": group_names(optimizer, self.root),
            "random": random_state(),
        }

    def save_delta(self, path: str | Path) -> None:
        """Write what training changed until now, beside what it was made from.

        Raises:
            DriftError: something frozen moved; names it.
            OutputError: the file cannot be written.
        """
        if not self._is_left:
            self.session.frozen.verify()
        moved = self.session.position.moved
        save_delta(self.model, path, content=delta_content(self.model, also=moved))

    def _enter(self) -> None:
        self.session.enter()
        self._is_left = False

    def _leave(self, reason: str) -> None:
        at, name = self.session.position, self.label
        proof = self.session.leave()
        self._is_left = True
        self.ends.append(PhaseEnd(name, reason, at.phase_epochs, at.phase_steps, proof))


class Attachable:
    """What a callback shows of the session under its loop, whichever library's that is."""

    _attached: Attached | None = None
    _verb: str  # by which the loop begins

    @property
    def session(self) -> Session:
        """The session under the Trainer's loop: phase, position and handle on what is frozen.

        Raises:
            ConfigError: the Trainer has not begun.
        """
        return self._begun.session

    @property
    def ends(self) -> tuple[PhaseEnd, ...]:
        """The phases that have ended, each with its proof."""
        return tuple(self._attached.ends) if self._attached else ()

    def save_delta(self, path: str | Path) -> None:
        """Write what was trained until now, with the hash of what it belongs to.

        Raises:
            ConfigError: the Trainer has not begun.
            DriftError: something frozen moved.
            OutputError: the file cannot be written.
        """
        self._begun.save_delta(path)

    @property
    def _begun(self) -> Attached:
        if self._attached is None:
            raise ConfigError(
                f"Freeze has no session before the Trainer {self._verb}s. Call "
                f"trainer.{self._verb}."
            )
        return self._attached


def plan_of(given: Plan | SelectorLike, *, norm: NormPolicy = "hold") -> Plan:
    """The plan itself; of a selector, one phase that freezes it as long as the loop goes on.

    Raises:
        ConfigError: the selector cannot be read, or has no text.
    """
    if isinstance(given, Plan):
        return given
    if isinstance(given, Phase):
        raise ConfigError(f"got a phase. A plan is made of phases: fl.Plan([{given!r}]).")
    # A phase makes a text of it, or says that it has none.
    return Plan([Phase(freeze=given, norm=norm, epochs=_ENDLESS)])  # type: ignore[arg-type]


def part_of(module: nn.Module, path: str) -> nn.Module:
    """The module at that path; raises ConfigError where there is none."""
    known: dict[str, nn.Module] = dict(module.named_modules())
    if path not in known:
        near = nearest(path, [*known]) or [name for name, _ in module.named_children()]
        raise ConfigError(
            f"{type(module).__name__} has no module '{path}', which Freeze(..., module=...) "
            f"names. Nearest: {', '.join(near)}."
        )
    return known[path]


def checked_state(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state itself; raises ConfigError where it is none that this version reads."""
    if not isinstance(state, Mapping) or state.get("format") != _FORMAT:
        raise ConfigError(
            "this is no state of a freeze that this version reads. Resume from a checkpoint that "
            "was saved with the callback, by the same version."
        )
    return state


def prepare_optimizer(
    optimizer: Optimizer, root: nn.Module, state: Mapping[str, Any], *, schedulers: Sequence[Any]
) -> None:
    """Give a new optimizer the groups that were saved, so that the loop can load its state.

    Raises:
        ConfigError: it is another kind of optimizer, or one of another model.
    """
    saved, found = checked_state(state)["optimizer"], type(optimizer).__name__
    if saved != found:
        raise ConfigError(
            f"the checkpoint was saved with {saved}, and this run has {found}, which keeps other "
            "numbers. Make the optimizer that was saved, or start anew from the weights alone."
        )
    regroup(optimizer, root, state["groups"], schedulers=schedulers)


def restore_random(state: Mapping[str, Any]) -> None:
    """Go on with the random numbers of the moment at which the state was saved."""
    set_random_state(checked_state(state)["random"])


def _check_metrics(plan: Plan, monitor: str | None) -> None:
    for number, phase in enumerate(plan, 1):
        until = phase.until
        waits = until and (until.target is not None or until.patience is not None)
        unnamed = waits and until and until.monitor is None
        if monitor is None and (unnamed or phase.start == "best"):
            raise ConfigError(
                f"{phase.label(number)} goes by a metric and does not say which, and a loop of "
                "another library names its metrics as it likes. Name one that it logs: "
                "monitor='val_loss', for all phases, or fl.Until(monitor='val_loss', ...)."
            )


def _check_schedules(plan: Plan, schedulers: Sequence[Any]) -> None:
    for number, phase in enumerate(plan, 1):
        if schedulers and (phase.schedule is not None or phase.warmup is not None):
            raise ConfigError(
                f"{phase.label(number)} has a schedule of its own, and so has the loop: "
                f"{type(schedulers[0]).__name__}. Keep one: leave schedule and warmup out of the "
                "phase, or give the loop no scheduler."
            )
