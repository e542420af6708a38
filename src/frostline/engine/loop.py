"""The loop: phase by phase, epoch by epoch, batch by batch."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Protocol, final

from torch import Tensor, nn

from frostline.data import Batch, Batches
from frostline.devices import MixedPrecision
from frostline.engine.judging import judge, predictions
from frostline.engine.randomness import random_state_kept, seed_epoch, set_random_state
from frostline.engine.steps import Fed, Forward, Stepper
from frostline.engine.training import Hook, Left, Proven, Spent, Training
from frostline.freezing.modes import modes_kept
from frostline.plans import Phase
from frostline.recipe import Recipe

_NAMED_AT_MOST = 3


class Course(Protocol):
    """What a run does between its phases."""

    def enter(self, training: Training, /) -> None:
        """Freeze what the present phase freezes; at its beginning, put the weights it starts from.

        Called again where a resumed run goes on within a phase.
        """
        ...

    def feed(self, training: Training, /) -> Fed:
        """The batches of the phase, which will be trained on."""
        ...

    def leave(self, training: Training, /) -> Left:
        """After the phase: prove that what was frozen in it did not move."""
        ...


def train(
    model: nn.Module,
    batches: Batches,
    validation: Batches,
    *,
    recipe: Recipe,
    classes: Sequence[str],
    device: str = "auto",
    class_weights: Tensor | None = None,
    forward: Forward | None = None,
    hooks: Iterable[Hook] = (),
) -> Training:
    """Train what is trainable in `model`, epoch by epoch, and validate after each.

    The trainable part is in train mode while training; validation is in eval mode without
    gradients. Afterwards every module has the mode it had before, and torch's random state is
    as it was.

    Args:
        forward: what batches go through, if not `model` itself: the suffix of a cut, whose mode
            and parameters are the model's.

    Raises:
        FreezeError: nothing is trainable.
        NonFiniteLoss: the loss is NaN or infinite, before a step is made with it; or an output
            is NaN in validation, before the epoch is reported.
        DataError: a label is outside the classes.
        TrainingError: a batch does not go through the model; says why and what to do.
    """
    course = _Once(Fed(batches, validation, model if forward is None else forward))
    training = Training(
        model, recipe, (Phase(epochs=recipe.epochs).completed(recipe),), len(batches)
    )
    return train_phases(
        training,
        course,
        classes=classes,
        device=device,
        class_weights=class_weights,
        hooks=hooks,
    )


def train_phases(
    training: Training,
    course: Course,
    *,
    classes: Sequence[str],
    device: str = "auto",
    class_weights: Tensor | None = None,
    hooks: Iterable[Hook] = (),
) -> Training:
    """Train phase after phase; gives the `training` that was handed in, at its end.

    Raises:
        as `train`, and what `course` raises.
    """
    loop = _Loop(
        training, course, MixedPrecision(device, training.recipe.mixed), classes, tuple(hooks)
    )
    with modes_kept(training.model), random_state_kept(), _ended(loop.hooks):
        training.model.to(loop.arithmetic.device)
        for hook in loop.hooks:
            hook.on_start(training)
        loop.run(class_weights)
    return training


@final
class _Once:
    """One phase of a model that is frozen already."""

    def __init__(self, fed: Fed) -> None:
        self._fed = fed

    def enter(self, training: Training, /) -> None:
        """Nothing is left to do."""

    def feed(self, training: Training, /) -> Fed:  # noqa: ARG002 - the protocol's signature
        return self._fed

    def leave(self, training: Training, /) -> Left:  # noqa: ARG002 - the protocol's signature
        return Left(Proven(0, 0, ""))


@final
class _Loop:
    """One run through the phases of a training."""

    def __init__(
        self,
        training: Training,
        course: Course,
        arithmetic: MixedPrecision,
        classes: Sequence[str],
        hooks: tuple[Hook, ...],
    ) -> None:
        self.training = training
        self.arithmetic = arithmetic
        self.hooks = hooks
        self._course = course
        self._classes = classes

    def run(self, class_weights: Tensor | None) -> None:
        """From the training's position to the end of its last phase."""
        training = self.training
        while True:
            self._course.enter(training)
            stepper = Stepper(training, self.arithmetic, class_weights)
            if not training.phase_end:
                start = time.perf_counter()
                fed = self._course.feed(training)
                training.position.feed_seconds += time.perf_counter() - start
                self._phase(stepper, fed)
            training.restored = None
            left = self._course.leave(training)
            if len(training.phase_history) <= training.position.phase:
                training.end_phase(left)
                for hook in self.hooks:
                    hook.on_phase(training)
            if training.is_over:
                return
            training.begin_next_phase(left.moved)

    def _phase(self, stepper: Stepper, fed: Fed) -> None:
        training = self.training
        training.restart_clock()
        while not training.phase_end:
            seconds = self._train_epoch(stepper, fed)
            start = time.perf_counter()
            found = predictions(
                training.model, fed.validation, self.arithmetic, fed.forward, self.hooks
            )
            training.tick()
            training.position.spent.validation_seconds += time.perf_counter() - start
            rates = {float(group["lr"]) for group in stepper.optimizer.param_groups}
            figures = judge(found, self._classes)
            training.end_epoch(tuple(sorted(rates, reverse=True)), figures, seconds)
            training.found = found
            for hook in self.hooks:
                hook.on_epoch(training)
            training.found = None

    def _train_epoch(self, stepper: Stepper, fed: Fed) -> float:
        """One pass over the training data, or what is left of it; gives its seconds."""
        training, at = self.training, self.training.position
        count, check = len(fed.train), not training.history
        start = time.perf_counter()
        seed_epoch(training.recipe.seed, at.epochs)
        training.model.train()
        with closing(fed.train.epoch(at.epochs, start=at.batches)) as given:
            if training.restored is not None:
                self._go_on_within(training)
            for batch in _timed(given, fed, at.spent):
                factor = training.phase.lr_factor(at.phase_epochs * count + at.batches, count)
                began = time.perf_counter()
                loss, correct = stepper.step(fed.forward, batch, factor, check=check)
                at.spent.step_seconds += time.perf_counter() - began
                training.count_step(loss, correct, len(batch.targets))
                self._tell(stepper, count)
                if training.stops_within_epoch:
                    break
        training.settle_sums()
        return time.perf_counter() - start

    def _tell(self, stepper: Stepper, count: int) -> None:
        training = self.training
        if training.position.phase_steps == 1 and stepper.unreached:
            self._warn_of(stepper.unreached)
        for hook in self.hooks:
            hook.on_batch("train", training.position.batches, count)
            hook.on_step(training)

    def _warn_of(self, unreached: tuple[str, ...]) -> None:
        more = ", ..." if len(unreached) > _NAMED_AT_MOST else ""
        for hook in self.hooks:
            hook.on_notice(
                f"Warning   {len(unreached)} trainable tensors got no gradient from the first "
                f"batch: {', '.join(unreached[:_NAMED_AT_MOST])}{more}. The forward does not use "
                "them, or reentrant checkpointing stands around them (use_reentrant=False)."
            )

    def _go_on_within(self, training: Training) -> None:
        """Random numbers as they were between the two batches where the run was cut."""
        assert training.restored is not None
        if training.position.batches:
            set_random_state(training.restored["random"])
        training.restored = None


def _timed(given: Iterator[Batch], fed: Fed, spent: Spent) -> Iterator[Batch]:
    """The batches; what each took to come is counted."""
    while True:
        start, before = time.perf_counter(), fed.prefix.seconds
        batch = next(given, None)
        computing = fed.prefix.seconds - before
        spent.prefix_seconds += computing
        spent.idle_seconds += max(0.0, time.perf_counter() - start - computing)
        if batch is None:
            return
        yield batch


@contextmanager
def _ended(hooks: tuple[Hook, ...]) -> Iterator[None]:
    with ExitStack() as stack:  # each is told, also where another fails
        for hook in reversed(hooks):
            stack.callback(hook.on_end)
        yield
