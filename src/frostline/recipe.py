"""How to train, as data: one definition for the engine, `fl.fit` and the command line."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails

from frostline.choices import AUTO_MONITOR, OptimizerName, Schedule, StepPrecision
from frostline.errors import ConfigError, nearest, shortened

_SHOWN = 80  # characters of a value in a message
_PRECISIONS = ("auto", "exact", "bf16", "fp16")


def refuse_truth(given: object) -> object:
    """A yes or no is no number, though Python and pydantic take `epochs = true` for 1."""
    if isinstance(given, bool):
        raise ValueError("true and false are no numbers; write a number")
    return given


class Data(BaseModel):
    """Abstract base of recipes, plans and settings: frozen, checked when made.

    Raises:
        ConfigError: when one is made of options that are unknown, out of their range or at odds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, /, **options: Any) -> None:
        with config_errors(type(self).model_fields):
            super().__init__(**options)

    # Inside another model pydantic then checks the fields itself, and names the one at fault by
    # its whole path, as `until.patience`; without the mark it would call `__init__` there.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]  # pydantic's own mark

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, given: object, field: ValidationInfo) -> object:
        kind = cls.model_fields[str(field.field_name)].annotation
        return given if bool in (kind, *get_args(kind)) else refuse_truth(given)

    def as_dict(self) -> dict[str, Any]:
        """What differs from the defaults, as JSON and TOML can hold it; `**` makes it whole."""
        return self.model_dump(mode="json", exclude_defaults=True)

    def __repr__(self) -> str:
        fields = type(self).model_fields
        given = (
            f"{name}={value!r}"
            for name, value in self.__dict__.items()
            if value != fields[name].get_default(call_default_factory=True)
        )
        return f"fl.{type(self).__name__}({', '.join(given)})"

    def __str__(self) -> str:
        return repr(self)


class Recipe(Data):
    """Optimizer, schedule, loss and stopping of one training run.

    Raises:
        ConfigError: names each option that is unknown or out of its range.

    Example:
        >>> fl.Recipe(epochs=5, lr=1e-3, patience=2)
        fl.Recipe(epochs=5, lr=0.001, patience=2)
    """

    epochs: int = Field(default=10, ge=1, le=10**9, description="Passes over the training data.")
    lr: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Peak learning rate; by default 3e-3 for a head alone, else 3e-4.",
    )
    optimizer: OptimizerName = Field(
        default="adamw", description="Optimizer, with fused kernels where torch has them."
    )
    weight_decay: float = Field(
        default=0.01,
        ge=0,
        allow_inf_nan=False,
        description="Weight decay; biases and norms have none.",
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Momentum of SGD.")
    schedule: Schedule = Field(default="cosine", description="Learning rate after the warm-up.")
    warmup: float = Field(
        default=0.5, ge=0, allow_inf_nan=False, description="Epochs of linear warm-up."
    )
    layer_decay: float = Field(
        default=1.0, gt=0, le=1, description="Learning-rate factor for each stage below the head."
    )
    clip_norm: float | None = Field(
        default=None, gt=0, description="Clip the gradient's norm to this; none by default."
    )
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="Label smoothing.")
    class_weights: Literal["none", "balanced"] = Field(
        default="none", description="Weigh classes in the loss by the inverse of their frequency."
    )
    precision: str = Field(
        default="auto",
        description="auto: float32, the frozen part in the first form that suits the processor "
        "and is within 2 % error; exact: float32 throughout, bit for bit; a number: that error; "
        "bf16 or fp16: mixed precision.",
    )
    lean: bool = Field(
        default=False,
        description="Keep for the backward pass only what the wanted gradients need; bit for bit "
        "the same in float32.",
    )
    sync_norm: bool = Field(
        default=False,
        description="Of several processes: trainable batch norms take statistics over the samples "
        "of all, as one process does; else each over its own, and the first one's are kept.",
    )
    monitor: str = Field(
        default=AUTO_MONITOR,
        description="Validation metric that decides the best epoch: accuracy, macro_f1 or loss, or "
        "one of your task; ties go to the lower loss. auto: the first, and accuracies that so few "
        "samples cannot tell apart are ties.",
    )
    patience: int | None = Field(
        default=None, ge=1, description="Stop after this many epochs without a better metric."
    )
    keep: int = Field(
        default=1, ge=1, description="How many of the last checkpoints stay, beside the best."
    )
    seed: int = Field(
        default=0, ge=0, lt=2**32, description="Seed of everything random in the run."
    )

    @field_validator("precision", mode="before")
    @classmethod
    def _known_precision(cls, given: object) -> str:
        text = str(given)
        if text == "fp32":  # as runs before 0.2 wrote it
            return "exact"
        try:
            known = text in _PRECISIONS or 0 < float(text) < math.inf
        except ValueError:
            known = False
        if not known:
            raise ValueError("use auto, exact, bf16, fp16 or the relative error to allow, as 0.01")
        return text

    @property
    def mixed(self) -> StepPrecision:
        """The mixed precision of forward and backward."""
        return {"bf16": "bf16", "fp16": "fp16"}.get(self.precision, "fp32")  # type: ignore[return-value]  # a str to mypy

    @property
    def prefix_precision(self) -> Literal["exact", "auto"] | float:
        """How faithful the frozen part must be to its float32."""
        if self.precision == "exact":
            return "exact"
        return "auto" if self.precision in _PRECISIONS else float(self.precision)


def recipe_from(
    recipe: Recipe | None, options: Mapping[str, object], asked: Callable[..., object]
) -> Recipe:
    """The recipe that was given, or one from options by name.

    Args:
        asked: what takes the options; its own ones are named beside a recipe's.
    Raises:
        ConfigError: both are given, or an option is unknown or out of its range.
    """
    if recipe is None:
        own = (p.name for p in signature(asked).parameters.values() if p.kind is p.KEYWORD_ONLY)
        with config_errors((*Recipe.model_fields, *own)):
            return Recipe.model_validate(options)
    if options:
        raise ConfigError(
            f"got a recipe and {', '.join(options)} beside it. Put all into one of the two."
        )
    return recipe


def check_alone(**given: object) -> None:
    """Refuse several arguments that say the same thing; one that is None was not given.

    Raises:
        ConfigError: names those that were given.
    """
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        *most, last = given
        raise ConfigError(
            f"got {' and '.join(names)} together. Give one of {', '.join(most)} and {last}, which "
            "say the same thing."
        )


@contextmanager
def config_errors(fields: Iterable[str] = ()) -> Iterator[None]:
    """Turn pydantic's report into one `ConfigError` that names each option.

    Args:
        fields: options that there are; an unknown one is told with the nearest and with all.
    """
    try:
        yield
    except ValidationError as error:
        known, problems = tuple(fields), error.errors(include_url=False)
        found = [_one_problem(one, known) for one in problems]
        text = "; ".join(found).removesuffix(".") + "."
        if known and ("extra_forbidden", 1) in [(p["type"], len(p["loc"])) for p in problems]:
            text += f" The options are {', '.join(known)}."
        raise ConfigError(text) from error


def _one_problem(problem: ErrorDetails, fields: Sequence[str]) -> str:
    message = problem["msg"].removeprefix("Value error, ")
    message = f"{message[:1].lower()}{message[1:]}"
    name = ".".join(map(str, problem["loc"]))
    if not name:  # of several options together
        return message
    if problem["type"] == "extra_forbidden":
        near = nearest(name[:_SHOWN], fields, count=1)
        return f"there is no option '{shortened(name)}'" + (
            f" (nearest: '{near[0]}')" if near else ""
        )
    if problem["type"] == "missing":
        return f"the option '{name}' is missing"
    return f"{name}={_shown(problem['input'])}: {message}"


def _shown(value: object) -> str:
    """A value in a message, cut short: a module given for a selector would fill pages."""
    try:
        first, *more = repr(value).splitlines() or [""]
    except ValueError:  # Python writes out no number of more than some thousand digits
        return f"<a number of {value.bit_length():,} bits>" if isinstance(value, int) else "..."
    return f"{first[:_SHOWN]}..." if more or len(first) > _SHOWN else first
