"""`Freeze`: a plan of frozen and trained parts as a callback of transformers' Trainer."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from torch import nn
from torch.optim import Optimizer

from frostline.choices import NormPolicy
from frostline.cutting import Suffix
from frostline.errors import ConfigError
from frostline.plans import Plan
from frostline.selectors import SelectorLike
from frostline.session import Attachable, Attached, part_of, plan_of
from frostline.transformers.package import (
    ExportableState,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from frostline.transformers.refusals import (
    check_arguments,
    check_members,
    check_plan,
    check_state,
    inner,
)
from frostline.transformers.saved import SavedForms
from frostline.transformers.weights import bring_back_best, bring_back_resumed, weights_of

DELTA = "delta.safetensors"
_log = logging.getLogger("transformers.frostline")  # which the Trainer's verbosity governs


@final
class Freeze(Attachable, TrainerCallback, ExportableState):
    """Goes through a plan while transformers' Trainer trains, and proves each phase.

    At the beginning of each phase the rest of the model is frozen (gradients, buffers and mode,
    whatever calls `train()`), and the Trainer's optimizer and schedule are brought to what trains;
    what joins has the rate and decay that the Trainer had for it, but for what a phase says
    itself. What a phase froze is compared bit for bit at its end. Training stops with the plan, or
    where the Trainer's own `num_train_epochs` or `max_steps` end; the schedule is over these.

    Phases by epochs end with these, those by steps or minutes after that step. A phase that
    watches a metric reads what the Trainer evaluated, as "eval_loss".

    A checkpoint holds the plan, the place in it and the groups of the optimizer by name, in
    `trainer_state.json`. `trainer.train(resume_from_checkpoint=True)` with the same plan goes on
    to the same bits. Beside the weights of each is `delta.safetensors`, which holds what was
    trained and names its base. With `load_best_model_at_end` proofs are made before the best
    weights come back.

    The Sentence Transformers trainers take it too, with losses without weights of their own.

    Args:
        plan: phases; or a selector of what is frozen as long as the Trainer trains.
        module: path in the Trainer's model of the part that the plan is about, as "model"; by
            default all of it. Selectors are paths in that part, and it is what a delta fits.
        norm: of a selector: whether frozen norms hold their statistics.
        monitor: the metric that phases go by which name none.
        deltas: whether to write them.

    Attributes:
        ends: the phases that have ended, each with its proof.

    Raises:
        ConfigError: there is no such plan; the arguments ask for several devices; or, as training
            starts: the optimizer, or the checkpoint that is resumed from, does not fit the plan.
        SelectorError, FreezeError: as training starts: a phase does not fit the model.
        DriftError: at the end of a phase or at a checkpoint: something frozen moved.

    Example:
        >>> freeze = Freeze(fl.Plan([fl.Phase(train="classifier", epochs=1)]))  # doctest: +SKIP
        >>> Trainer(model, args, train_dataset=data, callbacks=[freeze]).train()  # doctest: +SKIP
    """

    _verb = "train"

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
        check_plan(self.plan)
        self._module = module
        self._monitor = monitor
        self._deltas = deltas
        self._attached: Attached | None = None
        self._forms: SavedForms | None = None
        self._scheduler: Any = None
        self._metrics: dict[str, float] = {}
        self._is_within_epoch = False
        self._awaits_metrics = False  # an epoch is over that has yet to be evaluated
        self._is_proven = False

    @property
    def _forms_now(self) -> SavedForms:
        assert self._forms is not None  # along with the session
        return self._forms

    # Before training

    def on_init_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        check_arguments(args)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **given: Any,
    ) -> None:
        check_arguments(args)
        check_state(state)
        model, lr_scheduler = given["model"], given["lr_scheduler"]
        saved = _saved(state) if state.global_step else None
        root = model.model if isinstance(model, Suffix) else model
        self._forms = self._forms_of(inner(given["optimizer"]), root)
        if saved is None:
            self._forms.reset()
        else:
            self._forms.restore(saved, lr_scheduler)
        self._forms.watch(lr_scheduler)
        self._scheduler, self._is_proven = lr_scheduler, False
        self._is_within_epoch = bool(saved and saved["within_epoch"])
        # Saved after the last step of an epoch, of which the Trainer leaves out the end.
        self._awaits_metrics = self._is_within_epoch and _ends_epoch(state)
        self._metrics = dict(saved["metrics"]) if saved else {}
        self._attached = Attached(
            root,
            self.plan,
            optimizer=self._forms.optimizer,
            part=part_of(root, self._module),
            monitor=self._monitor,
            schedulers=[lr_scheduler],
        )
        before = f"{self._module}." if self._module else ""
        held = {name.removeprefix(before) for group in self._forms.names for name in group}
        check_members(self.session, held)
        if self._awaits_metrics and args.eval_strategy != "no":
            _log.warning("%s", _NO_END)
        if self._is_within_epoch and (how := other_order(args, state)):
            _log.warning(_OTHER_ORDER, how)
        if saved is not None:
            bring_back_resumed(root, saved["weights"], args, state)
        with self._forms.as_they_are():
            self._attached.begin(saved)
        self._tell(control)

    def _forms_of(self, optimizer: Optimizer, root: nn.Module) -> SavedForms:
        """Those of before, where the Trainer goes on with its optimizer."""
        if self._forms is not None and self._forms.optimizer is optimizer:
            return self._forms
        return SavedForms(optimizer, root)

    # While training

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._end_epoch(control)
        before = self.session.position
        with self._forms_now.as_they_are():
            self._begun.begin_epoch()
        if self.session.position is not before:
            self._tell(control)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._begun.before_step()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        before, self._is_within_epoch = self.session.position, True
        with self._forms_now.as_they_are():
            self._begun.after_step(ends_epoch=_ends_epoch(state))
        if self._begun.is_over or self.session.position is not before:
            self._tell(control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._awaits_metrics = _ends_epoch(state)
        if not control.should_evaluate:
            self._end_epoch(control)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        metrics: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if self._attached is None:
            return
        numbers = {n: float(v) for n, v in (metrics or {}).items() if isinstance(v, int | float)}
        self._metrics |= numbers
        self._end_epoch(control)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        logs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        # The Trainer's last line: best weights, if any, are put back after it.
        if self._attached is not None and "train_runtime" in (logs or {}):
            self._prove(control)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if not self._is_proven:
            self._prove(control)
        elif args.load_best_model_at_end and state.best_model_checkpoint:
            bring_back_best(self._begun.root, state.best_model_checkpoint, type(self).__name__)
        self.session.planned.verify(self.session.model)
        self._begun.close()
        for end in self.ends:
            _log.info("%s", end)
        at, count = self.session.position.phase + 1, len(self.session.phases)
        if at < count:
            _log.warning(
                "training ended in phase %d of %d, by num_train_epochs or max_steps", at, count
            )

    def _end_epoch(self, control: TrainerControl) -> None:
        if self._awaits_metrics:
            self._awaits_metrics = self._is_within_epoch = False
            self._begun.end_epoch(self._metrics)
            if self._begun.is_over:
                control.should_training_stop = True

    def _prove(self, control: TrainerControl) -> None:
        self._end_epoch(control)
        self._begun.end("training ended")
        self._is_proven = True

    def _tell(self, control: TrainerControl) -> None:
        if self._begun.is_over:
            control.should_training_stop = True
            return
        trained = [p.numel() for p in self.session.model.parameters() if p.requires_grad]
        _log.info("%s: %s of its parameters train", self._begun.label, f"{sum(trained):,}")

    # Checkpoints

    def state(self) -> dict[str, Any]:
        """What stands in `trainer_state.json`."""
        if self._attached is None or self._forms is None:
            return {"args": {}, "attributes": {}}
        made = self._attached.state_dict()
        del made["random"]  # the Trainer restores random numbers itself
        session = {**made["session"], "random": None}
        weights = weights_of(self._attached.root)
        own = {
            "within_epoch": self._is_within_epoch,
            "weights": weights,
            "metrics": self._metrics,
            **self._forms.state(self._scheduler),
        }
        return {"args": {}, "attributes": {**made, "session": session, **own}}

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if self._deltas and self._attached is not None and folder.is_dir():
            self.save_delta(folder / DELTA)


_NO_END = (
    "the checkpoint was saved between the last step of an epoch and its evaluation, which the "
    "Trainer leaves out as it resumes: that epoch counts with the metrics of the one before, and "
    "random numbers may go on otherwise than in one run. Save at the end of epochs, or within them."
)


_OTHER_ORDER = (
    "resumed within an epoch, the Trainer goes through %s in another order than a run that was not "
    "cut: samples may be trained on twice, or not at all. Save at the end of epochs."
)


def other_order(args: TrainingArguments, state: TrainerState) -> str:
    """What of the data comes in another order (seen in 5.24); "" where nothing does."""
    by_length = getattr(args, "train_sampling_strategy", "") == "group_by_length"
    if by_length and state.epoch and state.epoch >= 1:
        return "samples that it groups by length"
    if args.dataloader_persistent_workers and state.epoch and state.epoch < 1:
        return "the later epochs of persistent workers"
    return ""


def _saved(state: TrainerState) -> Mapping[str, Any]:
    """What `Freeze.state` gave for the checkpoint that is resumed from."""
    kept: Any = state.stateful_callbacks
    found = kept.get(Freeze.__name__)
    if isinstance(found, list):
        raise ConfigError(
            f"the checkpoint has the states of {len(found)} Freeze callbacks. Give one plan to one."
        )
    if not found or not found["attributes"]:
        raise ConfigError(
            "the checkpoint was saved without Freeze, so it has no place in a plan. Load its "
            "weights into the model and start anew; or resume without Freeze."
        )
    attributes: Mapping[str, Any] = found["attributes"]
    return attributes


def _ends_epoch(state: TrainerState) -> bool:
    """Whether the step that was counted last is the last of its epoch."""
    return state.epoch is not None and float(state.epoch).is_integer()
