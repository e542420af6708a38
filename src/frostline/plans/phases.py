"""One phase of a plan as data: what trains, for how long, at which learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Literal, Self, TypeVar, final

from pydantic import BeforeValidator, Field, field_validator, model_validator

from frostline.choices import NormPolicy, Schedule, Snapshot
from frostline.errors import ConfigError, SelectorError, one_line
from frostline.recipe import Data, Recipe, refuse_truth
from frostline.selectors import as_selector, parse

_Value = TypeVar("_Value")
_MOST = 10**9  # epochs or steps; no run comes near
_LONGEST_NAME = 200  # characters
_SHARES = ("accuracy", "macro_f1")  # metrics that lie from 0 to 1


def _selector_text(value: object) -> object:
    """The text of a selector, which a file can hold; refuses those that have none."""
    if value is None:
        return None
    try:
        selector = as_selector(value)  # type: ignore[arg-type]  # it refuses what is none
    except SelectorError as error:
        # The error goes on with the text and a mark below it; here the text stands before it.
        reason = one_line(error, first=True, named=False)
        raise ValueError(reason.replace(" at the mark", "")) from error
    text = value if isinstance(value, str) else str(selector)
    with suppress(SelectorError):
        if parse(text) == selector:
            return text
    raise ValueError(
        "a plan keeps selectors as text, and a function, a module or a tensor has none; write a "
        "path, stage:, kind:, type: or re:"
    )


Factor = Annotated[float, BeforeValidator(refuse_truth), Field(gt=0, allow_inf_nan=False)]
SelectorText = Annotated[str, BeforeValidator(_selector_text)]


@final
class Until(Data):
    """A phase ends early when any of these holds; at least one is given.

    Attributes:
        monitor: the validation metric that is watched; the recipe's by default.
        patience: epochs without a better one.
        min_change: smaller improvements do not count as better.
        target: the metric is reached: this or more, or this or less where lower is better.
        minutes: of wall clock in this phase; a run that is resumed goes on counting.

    Raises:
        ConfigError: a value is out of its range, or nothing is given that could end a phase.

    Example:
        >>> fl.Phase(train="head", epochs=50, until=fl.Until(monitor="accuracy", patience=3))
        fl.Phase(train='head', epochs=50, until=fl.Until(monitor='accuracy', patience=3))
    """

    monitor: str | None = None
    patience: int | None = Field(default=None, ge=1, le=_MOST)
    min_change: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    target: float | None = Field(default=None, allow_inf_nan=False)
    minutes: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _ends_something(self) -> Self:
        if self.patience is None and self.target is None and self.minutes is None:
            raise ValueError("nothing here ends a phase; give patience, target or minutes")
        if self.monitor in _SHARES and self.target is not None and not 0 <= self.target <= 1:
            raise ValueError(
                f"a target of {self.target:g} is never or always met, as {self.monitor} lies from "
                "0 to 1; write 0.95 for 95 %"
            )
        return self


@final
class Phase(Data):
    """What trains, for how long and how; None is what the recipe says.

    Attributes:
        name: for people; `phase 2` without one.
        train: selector of what trains; everything else is frozen.
        freeze: selector of what is frozen; everything else trains. With neither, as the model is.
        norm: frozen norms hold their statistics, or let them adapt to the data.
        epochs: passes over the training data.
        steps: optimizer steps; the smaller of both where epochs are given as well.
        until: what ends the phase early; epochs and steps are then the most it may take.
        lr: peak learning rate; by default the recipe's, else one by what is trainable.
        layer_decay: learning-rate factor for each stage below the last.
        weight_decay: weight decay; biases and norms have none.
        schedule: learning rate after the warm-up; constant where the length is not known.
        warmup: epochs of linear warm-up.
        lr_mult: selector -> factor of the learning rate.
        start: weights from the best or the last epoch of the phase before; the first has none.
        state: the optimizer's state of what stays trainable is kept or begins fresh; from the
            best epoch it begins fresh.

    Raises:
        ConfigError: a value is out of its range, two contradict each other, or the phase would
            have no end.

    Example:
        >>> fl.Phase(train="head", epochs=5, lr=1e-3)
        fl.Phase(train='head', epochs=5, lr=0.001)
    """

    name: str = ""
    train: SelectorText | None = None
    freeze: SelectorText | None = None
    norm: NormPolicy = "hold"
    epochs: int | None = Field(default=None, ge=1, le=_MOST)
    steps: int | None = Field(default=None, ge=1, le=_MOST)
    until: Until | None = None
    lr: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    layer_decay: float | None = Field(default=None, gt=0, le=1)
    weight_decay: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    schedule: Schedule | None = None
    warmup: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    lr_mult: dict[str, Factor] = Field(default_factory=dict)
    start: Snapshot = "last"
    state: Literal["keep", "fresh"] = "keep"

    @field_validator("name")
    @classmethod
    def _one_line(cls, name: str) -> str:
        if not name.isprintable() or name != name.strip():
            raise ValueError("a name is one line of text without spaces around it")
        if len(name) > _LONGEST_NAME:
            raise ValueError(f"a name has at most {_LONGEST_NAME} characters, not {len(name):,}")
        return name

    @field_validator("lr_mult", mode="before")
    @classmethod
    def _keys_as_text(cls, given: object) -> object:
        if not isinstance(given, Mapping):
            return given
        return {_selector_text(key): factor for key, factor in given.items()}

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.train is not None and self.freeze is not None:
            raise ValueError("give one of train and freeze; the other is the rest")
        capped = self.epochs is not None or self.steps is not None
        if not capped and self.until is None:
            raise ValueError("the phase has no length; give epochs, steps or until")
        if not capped and self.until and self.until.patience is self.until.minutes is None:
            raise ValueError(
                f"a target of {self.until.target:g} may never be reached, and then the phase has "
                "no end; give epochs as a cap"
            )
        if not capped and self.schedule == "cosine":
            raise ValueError(
                "the cosine falls over a known length, and until alone gives none; give epochs as "
                "a cap, or schedule='constant'"
            )
        return self

    @property
    def names_part(self) -> bool:
        """Whether it says what trains or what is frozen; else it takes the model as it is."""
        return self.train is not None or self.freeze is not None

    def completed(self, recipe: Recipe) -> Phase:
        """This phase with what it leaves open filled in from `recipe`.

        The recipe's epochs are not used: a phase has its own length. `lr` stays None where both
        leave it to what is trainable. `completed` again changes nothing.
        """
        capped = self.epochs is not None or self.steps is not None
        until = self.until
        if until is None and recipe.patience is not None:
            until = Until(patience=recipe.patience)
        if until is not None and until.monitor is None:
            until = Until(**{**until.as_dict(), "monitor": recipe.monitor})
        options = {**dict(self), "until": until}
        for name in ("lr", "layer_decay", "weight_decay", "schedule", "warmup"):
            if options[name] is None:
                options[name] = getattr(recipe, name)
        if self.schedule is None and not capped:
            options["schedule"] = "constant"
        return Phase(**options)

    def total_steps(self, steps_per_epoch: int) -> int | None:
        """Optimizer steps at most: the smaller of epochs and steps; None where neither is given."""
        given = (self.epochs * steps_per_epoch if self.epochs else None, self.steps)
        return min((count for count in given if count is not None), default=None)

    def lr_factor(self, step: int, steps_per_epoch: int) -> float:
        """Share of the peak learning rate at optimizer step `step` of the phase (from 0).

        Raises:
            ConfigError: schedule or warmup is still open; see `completed`.
        """
        warmup = round(_completed(self.warmup, "warmup") * steps_per_epoch)
        schedule = _completed(self.schedule, "schedule")
        if step < warmup:
            return (step + 1) / (warmup + 1)
        total = self.total_steps(steps_per_epoch)
        if schedule == "constant" or total is None:
            return 1.0
        left = max(1, total - warmup)
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / left))

    def label(self, number: int) -> str:
        """The phase's name, or `phase 2` for the second without one; counted from 1."""
        return self.name or f"phase {number}"


def _completed(value: _Value | None, name: str) -> _Value:
    if value is None:
        raise ConfigError(
            f"{name} is left to the recipe and not filled in yet; use what "
            "phase.completed(recipe) gives."
        )
    return value
