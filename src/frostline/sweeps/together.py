"""Stacks trained from rung to rung: at each the losers are dropped, among all stacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from frostline.sweeps.ranking import Standing, leading, rungs
from frostline.sweeps.results import Member
from frostline.sweeps.settings import Setting
from frostline.sweeps.stacks import Ground, Judged, Stack
from frostline.tasks import Best, Metric, Metrics, class_metrics

_LOST = "the loss was no number"


@final
@dataclass(slots=True)
class _Course:
    """How a member fares."""

    best: Best = field(default_factory=Best)
    history: list[Metrics] = field(default_factory=list)
    hits: Tensor | None = None
    failed: str = ""

    @property
    def standing(self) -> Standing | None:
        """By its best epoch."""
        best = self.best.epoch
        return Standing(self.history[best - 1], self.hits) if best else None


@final
class Together:
    """Trains stacks, and keeps what each member gave.

    Args:
        targets: of the validation samples, `(samples,)`.
        told: called with how many epochs of members were trained or need not be.
    """

    def __init__(
        self, ground: Ground, stacks: Sequence[Stack], targets: Tensor, told: Callable[[int], None]
    ) -> None:
        self._ground = ground
        self._stacks = list(stacks)
        self._targets = targets
        self._told = told
        numbers = sorted(number for stack in stacks for number in stack.numbers)
        self._courses = {number: _Course() for number in numbers}

    def train(self, *, drop: bool) -> None:
        """All epochs; with `drop`, of fewer and fewer members."""
        epochs, done = self._ground.recipe.epochs, 0
        stops = rungs(epochs, len(self._courses)) if drop else {}
        for stop in (*stops, epochs):
            for stack in self._stacks:
                for number in range(done, stop):
                    self._epoch(stack, number)
            done = stop
            if stop in stops:
                self._drop(stops[stop], epochs - stop)

    def members(self, settings: Sequence[Setting]) -> list[Member]:
        """What each gave, in the order of their numbers."""
        return [
            Member(
                number + 1,
                settings[number],
                course.best.epoch,
                course.standing,
                tuple(course.history),
                together=True,
                failed=course.failed,
            )
            for number, course in self._courses.items()
        ]

    def _epoch(self, stack: Stack, number: int) -> None:
        if not stack.numbers:
            return
        for member, judged in zip(list(stack.numbers), stack.epoch(number), strict=True):
            course = self._courses[member]
            if not judged.is_finite:
                course.failed = f"{_LOST} in epoch {number + 1}"
                self._told(self._ground.recipe.epochs - number - 1)
                continue
            course.history.append(self._metrics(judged))
            before = course.best
            monitor = self._ground.recipe.monitor
            course.best = before.after(number + 1, course.history[-1], monitor)
            if course.best.epoch == number + 1:
                course.hits = judged.predicted == self._targets
        self._told(len(stack.numbers))
        left = [number for number in stack.numbers if not self._courses[number].failed]
        if len(left) < len(stack.numbers):
            stack.keep(left)

    def _metrics(self, judged: Judged) -> Metrics:
        """Those of an epoch of a single run; macro F1, which takes long, where it decides."""
        hits = judged.predicted == self._targets
        found = [Metric("accuracy", float(hits.double().mean()))]
        if self._ground.recipe.monitor == "macro_f1":
            names = self._ground.task.classes
            pairs = self._targets * len(names) + judged.predicted
            counts = torch.bincount(pairs, minlength=len(names) ** 2).view(len(names), -1)
            found.append(Metric("macro_f1", class_metrics(counts, names)[0]))
        found.append(Metric("loss", judged.loss, "lower"))
        return Metrics(tuple(found), len(hits))

    def _drop(self, keep: int, epochs_left: int) -> None:
        living = [number for stack in self._stacks for number in stack.numbers]
        found = {number: self._courses[number].history for number in living}
        staying = set(leading(found, self._ground.recipe.monitor)[:keep])
        for stack in self._stacks:
            left = [number for number in stack.numbers if number in staying]
            self._told((len(stack.numbers) - len(left)) * epochs_left)
            if left != stack.numbers:
                stack.keep(left)
