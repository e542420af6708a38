"""`Freeze`: a plan of frozen and trained parts as a callback of Lightning's Trainer."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, final

from torch import Tensor
from torch.optim import Optimizer

from frostline.choices import NormPolicy
from frostline.lightning.checkpoints import DeltasBeside
from frostline.lightning.package import Callback, LightningModule, Trainer
from frostline.lightning.refusals import check_callbacks, check_optimizers, check_run
from frostline.plans import Plan
from frostline.selectors import SelectorLike
from frostline.session import (
    Attachable,
    Attached,
    checked_state,
    part_of,
    plan_of,
    prepare_optimizer,
    restore_random,
)

# Under the one whose lines Lightning shows.
_log = logging.getLogger(Callback.__module__.partition(".callbacks")[0]).getChild("frostline")


@final
class Freeze(Attachable, Callback):
    """Goes through a plan while Lightning's Trainer trains, and proves each phase.

    At the beginning of each phase the rest of the model is frozen (gradients, buffers and mode,
    whatever calls `train()`), and the optimizer and its schedules are brought to what trains.
    What a phase froze is compared bit for bit at its end. Learning rates stay those of
    `configure_optimizers`, but for what a phase says itself. Training stops with the plan:
    `Trainer(max_epochs=-1)` leaves its length to it.

    Phases by epochs end with these, those by steps or minutes after that step; an epoch counts for
    the phase in which it ends. A phase that watches a metric reads what the module logged.

    A checkpoint holds the plan, the place in it and random numbers. `trainer.fit(...,
    ckpt_path=...)` goes on within any phase to the same bits: from the end of an epoch, and from
    within one if the loader can be resumed. Beside each checkpoint is a delta, which holds what
    was trained and names its base: `fl.load_delta(model, "….delta.safetensors")`.

    Args:
        plan: phases; or a selector of what is frozen as long as the Trainer trains.
        module: path in the LightningModule of the part that the plan is about, as "model"; by
            default all of it. Selectors are paths in that part, and it is what a delta fits.
        norm: of a selector: whether frozen norms hold their statistics.
        monitor: the logged metric that phases go by which name none.
        deltas: whether to write them.

    Attributes:
        ends: the phases that have ended, each with its proof.

    Raises:
        ConfigError: there is no such plan. As fitting starts: another callback, the strategy or
            the optimizer cannot be kept in step with it.
        SelectorError, FreezeError: as fitting starts: a phase does not fit the model.
        DriftError: at the end of a phase or at a checkpoint: something frozen moved.
    """

    _verb = "fit"

    def __init__(
        self,
        plan: Plan | SelectorLike,
        *,
        module: str = "",
        norm: NormPolicy = "hold",
        monitor: str | None = None,
        deltas: bool = True,
    ) -> None:
        self.plan = plan_of(plan, norm=norm)
        self._module = module
        self._monitor = monitor
        self._deltas = deltas
        self._attached: Attached | None = None
        self._restored: Mapping[str, Any] | None = None
        self._steps = 0  # that the Trainer had made when we last looked
        self._is_within_epoch = False
        self._metrics: dict[str, float] = {}  # which Lightning does not keep for a restart
        self._undo_deltas: Callable[[], None] | None = None

    # Before training

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        check_callbacks(trainer.callbacks)  # type: ignore[attr-defined]  # not declared
        check_run(trainer.strategy, pl_module)
        self._attached = self._restored = None
        self._is_within_epoch, self._metrics = False, {}
        self._finish()
        if self._deltas:
            strategy, inner = trainer.strategy, trainer.strategy.checkpoint_io
            strategy.checkpoint_io = DeltasBeside(inner, self.save_delta)  # type: ignore[assignment]
            self._undo_deltas = lambda: setattr(strategy, "checkpoint_io", inner)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # One of a run without Freeze is where a plan may begin.
        self._restored = checkpoint.get("callbacks", {}).get(self.state_key) or None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_optimizers(trainer.optimizers, pl_module)
        optimizer = trainer.optimizers[0]
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        self._attached = Attached(
            pl_module,
            self.plan,
            optimizer=optimizer,
            part=part_of(pl_module, self._module),
            monitor=self._monitor,
            schedulers=schedulers,
        )
        self._steps = trainer.global_step
        if (state := self._restored) is None:
            return
        # Before Lightning loads the states, which go by position.
        prepare_optimizer(optimizer, pl_module, checked_state(state), schedulers=schedulers)
        self._is_within_epoch = bool(state["within_epoch"])
        self._metrics = dict(state["metrics"])
        if not self._is_within_epoch:  # the loader is about to draw the order of the next epoch
            restore_random(state)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not earlier: Lightning warns of modules in eval mode until here.
        state, self._restored = self._restored, None
        if state is not None and self._is_within_epoch:
            restore_random(state)
        self._steps = trainer.global_step
        batches = trainer.num_training_batches
        if batches != math.inf:
            steps = -(-int(batches) // trainer.accumulate_grad_batches)
            self.session.steps_per_epoch = steps
        self._begun.begin(state)
        trainer.should_stop |= self._begun.is_over
        self._tell()

    # While training

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        before = self.session.position
        self._begun.begin_epoch()
        if self.session.position is not before:
            self._tell()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._is_within_epoch and batch_idx == 0:
            # Saved after the last step of an epoch, of which Lightning leaves out the end.
            _log.warning("%s", _NO_END)
            self.on_train_epoch_end(trainer, pl_module)
            self.on_train_epoch_start(trainer, pl_module)
        self._is_within_epoch = True

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        self._begun.before_step()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if trainer.global_step == self._steps:  # gradients of more batches make a step
            return
        self._steps = trainer.global_step
        before = self.session.position
        self._begun.after_step(ends_epoch=trainer.is_last_batch)
        trainer.should_stop |= self._begun.is_over
        if self.session.position is not before:
            self._tell()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._is_within_epoch = False
        self._begun.end_epoch(self._metrics | _numbers(trainer.callback_metrics))
        trainer.should_stop |= self._begun.is_over

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not as training ends, when other callbacks may still write into the model.
        self._begun.end("training ended")
        for end in self.ends:
            _log.info("%s", end)
        at, count = self.session.position.phase + 1, len(self.session.phases)
        if at < count:
            _log.info("training ended in phase %d of %d; max_epochs=-1 goes through all", at, count)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._metrics |= _numbers(trainer.callback_metrics)

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """What goes into a checkpoint; `on_load_checkpoint` takes it out."""
        if self._attached is None:
            return {}
        own = {"within_epoch": self._is_within_epoch, "metrics": dict(self._metrics)}
        return self._attached.state_dict() | own

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._finish()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._finish()

    def _finish(self) -> None:
        if self._attached is not None:
            self._attached.close()
        if self._undo_deltas is not None:
            self._undo_deltas()
            self._undo_deltas = None

    def _tell(self) -> None:
        trained = [p.numel() for p in self.session.model.parameters() if p.requires_grad]
        _log.info("%s: %s of its parameters train", self._begun.label, f"{sum(trained):,}")


_NO_END = (
    "the checkpoint was saved between the last step of an epoch and its validation, which "
    "Lightning leaves out as it resumes: that epoch counts with the metrics of the one before, and "
    "random numbers may go on otherwise than in one run. Save at the end of epochs, or within them."
)


def _numbers(metrics: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if value.numel() == 1}
