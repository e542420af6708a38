"""The pipelines of a run's phases: made, recorded in its folder, and announced."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import final

from frostline.config import RunSettings
from frostline.engine import Hook, Training
from frostline.records import BY_MODEL, Journal, RunFolder
from frostline.session import Pipeline
from frostline.units import format_count, format_seconds


@final
class PhasePipelines(Hook):
    """Makes the pipeline of each phase, says what a phase costs and keeps the run's journal.

    Stands behind the saver among the hooks, which puts the position of a resumed run.

    Args:
        make: `Session.data` of the run, but for what depends on the phase.
        folder: where the forms of the phases are written down, beside the other settings.
        hooks: the others that are called with notices and progress.

    Attributes:
        settings: of the run, with the forms of the phases that were begun.
        says: lines for people on what was computed once, or why nothing could be.
        computed: rows of features that were computed.
    """

    def __init__(
        self,
        make: partial[Pipeline],
        settings: RunSettings,
        folder: RunFolder | None,
        journal: Journal,
        hooks: tuple[Hook, ...],
    ) -> None:
        self._make = make
        self.settings = settings
        self._folder = folder
        self._journal = journal
        self._hooks = hooks
        self._is_plain = True
        self.says: tuple[str, ...] = ()
        self.computed = 0

    def __call__(self, training: Training) -> Pipeline:
        """The phase's batches through its own frost line; says how they will go."""
        number = training.position.phase
        if len(training.session.phases) > 1:
            self.say(*self._announcement(training))
        form = dict(enumerate(self.settings.features.forms)).get(number, "")
        start = time.perf_counter()
        made = self._make(form=form, explains=number == 0, progress=self._progress)
        seconds = time.perf_counter() - start
        self._journal.pipeline(replace(made.facts, phase=number + 1, seconds=seconds))
        self._is_plain = made.facts.form == BY_MODEL
        if not form:
            self._record_form(number, made.facts.form)
        self.say(*made.says)
        self.says += made.says
        self.computed += made.facts.computed
        return made

    def _record_form(self, phase: int, form: str) -> None:
        features = self.settings.features
        features = features.model_copy(update={"forms": (*features.forms[:phase], form)})
        self.settings = self.settings.model_copy(update={"features": features})
        if self._folder is not None:
            self.settings.write(self._folder.settings)

    def on_start(self, training: Training) -> None:
        self._journal.start(training.position.mark)

    def on_notice(self, text: str, /) -> None:
        self._journal.notice(text)

    def on_phase(self, training: Training) -> None:
        if len(training.session.phases) > 1:
            record = training.phase_history[-1]
            cost = "" if self._is_plain else _plain_cost(record.plain_step_seconds * record.steps)
            self.say(
                f"          {record.ended} in {format_seconds(record.seconds)}{cost}; what was "
                "frozen did not move"
            )
        self._journal.write()

    def on_end(self) -> None:
        self._journal.write()

    def _progress(self, done: int, total: int) -> None:
        """Call hooks with rows of features in batches, as with every other stage."""
        size = self.settings.data.batch_size
        for hook in self._hooks:
            hook.on_batch("features", -(-done // size), -(-total // size))

    def _announcement(self, training: Training) -> Iterator[str]:
        """What trains, and what the steps would cost in a plain loop; at first, those of all."""
        at, session = training.position, training.session
        each = session.steps_per_epoch or 0
        costs = [
            seconds * (phase.total_steps(each) or 0)
            for seconds, phase in zip(session.planned.step_seconds, session.phases, strict=True)
        ]
        if at.phase == 0 and all(costs):
            words = " + ".join(map(format_seconds, costs))
            yield f"Plan      {len(costs)} phases; the steps of a plain loop take about {words}"
        parameters = list(training.model.parameters())
        trains = sum(p.numel() for p in parameters if p.requires_grad)
        yield (
            f"Phase     {at.phase + 1} of {len(session.phases)}, "
            f"{session.phase.label(at.phase + 1)}: trains {format_count(trains)} of "
            f"{format_count(sum(p.numel() for p in parameters))} parameters"
            f"{_plain_cost(costs[at.phase])}"
        )

    def say(self, *lines: str) -> None:
        """Lines for people, to all hooks and the journal."""
        for hook in (self, *self._hooks):
            for line in lines:
                hook.on_notice(line)


def _plain_cost(seconds: float) -> str:
    return f"; the steps of a plain loop take about {format_seconds(seconds)}" if seconds else ""
