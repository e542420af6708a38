"""The loop: phase by phase, epoch by epoch, batch by batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import final

from frostline.data import Batch
from frostline.devices import on_threads
from frostline.engine.steps import Stepper, predict, summarised
from frostline.engine.threads import step_threads
from frostline.engine.training import Hook, Training
from frostline.freezing.modes import modes_kept
from frostline.records import Spent
from frostline.session import Pipeline, random_state, set_random_state
from frostline.tasks import Task
from frostline.world import gathered_names

_NAMED_AT_MOST = 3


def train_phases(
    training: Training,
    pipeline: Callable[[Training], Pipeline],
    *,
    task: Task,
    hooks: Iterable[Hook] = (),
) -> None:
    """Train phase after phase, and validate after each epoch.

    The trainable part is in train mode while training; validation is in eval mode without
    gradients. Afterwards every module has the mode it had before, and torch's random state is
    as it was.

    Args:
        pipeline: gives the batches of the phase that was entered, and what they go through.

    Raises:
        FreezeError: nothing is trainable.
        NonFiniteLoss: the loss is NaN or infinite, before a step is made with it; or an output
            is NaN in validation, before the epoch is reported.
        DataError: a target does not go with the task.
        TrainingError: a batch does not go through the model; says why and what to do.
        DriftError: something frozen moved in a phase.
    """
    loop = _Loop(training, pipeline, task, tuple(hooks))
    with modes_kept(training.model), ExitStack() as stack:
        stack.callback(set_random_state, random_state())
        for hook in reversed(loop.hooks):  # each is called, also where another fails
            stack.callback(hook.on_end)
        stack.callback(training.session.close)
        training.model.to(training.compute.device)
        for hook in loop.hooks:
            hook.on_start(training)
        loop.run()


@final
@dataclass(frozen=True)
class _Loop:
    """One run through the phases of a training."""

    training: Training
    pipeline: Callable[[Training], Pipeline]
    task: Task
    hooks: tuple[Hook, ...]

    def run(self) -> None:
        """From the session's position to the end of its last phase, or until it is stopped."""
        training, session = self.training, self.training.session
        while not session.is_over:
            session.enter()
            stepper = Stepper(training, self.task)
            trains = not session.phase_end
            if trains:
                start = time.perf_counter()
                data = self.pipeline(training)
                training.sums.pipeline_seconds += time.perf_counter() - start
                threads = step_threads(training, data, self.task)
            while not session.phase_end:
                self._epoch(stepper, data, threads)
                if training.stopped:
                    break
            stepper.close()
            proof = session.leave()
            # One that was stopped and goes on has a record already, of what it was then.
            if trains or len(training.phase_history) <= session.position.phase:
                training.end_phase(proof)
                for hook in self.hooks:
                    hook.on_phase(training)
            if training.stopped:
                return

    def _epoch(self, stepper: Stepper, data: Pipeline, threads: int | None) -> None:
        training, start = self.training, time.perf_counter()
        with on_threads(threads):
            self._train(stepper, data)
            trained = time.perf_counter()
            found = predict(
                training.model,
                data.validation,
                training.compute,
                task=self.task,
                keep="summary",
                forward=data.forward,
                hooks=self.hooks,
                world=training.session.world,
            )
        training.session.tick()
        training.sums.spent.validation_seconds += time.perf_counter() - trained
        rates = {float(group["lr"]) for group in training.session.optimizer.param_groups}
        metrics = summarised(self.task, found)
        training.end_epoch(tuple(sorted(rates, reverse=True)), metrics, trained - start)
        training.found = found
        for hook in self.hooks:
            hook.on_epoch(training)
        training.found = None
        world = training.session.world
        if world.size > 1:
            training.stopped = next(filter(None, gathered_names(world, [training.stopped])), "")

    def _train(self, stepper: Stepper, data: Pipeline) -> None:
        """One pass over the training data, or what is left of it."""
        training, spent, check = self.training, self.training.sums.spent, not self.training.history
        with closing(training.session.epoch(data.train)) as given:
            for batch in _timed(given, data, spent):
                began = time.perf_counter()
                made = stepper.step(data.forward, batch, check=check)
                spent.step_seconds += time.perf_counter() - began
                training.count_step(made.loss, made.sums, made.samples)
                self._tell(stepper, len(data.train))
        training.settle_sums()
        stepper.settle()

    def _tell(self, stepper: Stepper, count: int) -> None:
        training = self.training
        if training.position.phase_steps == 1 and (names := stepper.unreached):
            more = ", ..." if len(names) > _NAMED_AT_MOST else ""
            for hook in self.hooks:
                hook.on_notice(
                    f"Warning   {len(names)} trainable tensors got no gradient from the first "
                    f"batch: {', '.join(names[:_NAMED_AT_MOST])}{more}. The forward does not use "
                    "them, or reentrant checkpointing stands around them (use_reentrant=False)."
                )
        for hook in self.hooks:
            hook.on_batch("train", training.position.batches, count)
            hook.on_step(training)


def _timed(given: Iterator[Batch], data: Pipeline, spent: Spent) -> Iterator[Batch]:
    """The batches; what each took to come is counted."""
    while True:
        start, before = time.perf_counter(), data.prefix.seconds
        batch = next(given, None)
        computing = data.prefix.seconds - before
        spent.prefix_seconds += computing
        spent.idle_seconds += max(0.0, time.perf_counter() - start - computing)
        if batch is None:
            return
        yield batch
