"""What the values of a plan have in common: frozen, checked when made, repr that reads back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from pydantic_core import ErrorDetails

from frostline.errors import ConfigError, nearest, shortened
from frostline.recipe import refuse_truth

_SHOWN = 80  # characters of a value in a message


class Data(BaseModel):
    """Abstract base of the values a plan is made of.

    Raises:
        ConfigError: when one is made of options that are unknown, out of their range or at odds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, **options: Any) -> None:
        try:
            super().__init__(**options)
        except ValidationError as error:
            raise _config_error(error, tuple(type(self).model_fields)) from error

    # Inside another model pydantic then checks the fields itself, and names the one at fault by
    # its whole path, as `until.patience`; without the mark it would call `__init__` there.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]  # pydantic's own mark

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth(cls, given: object) -> object:
        return refuse_truth(given)

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


def _config_error(error: ValidationError, fields: Sequence[str]) -> ConfigError:
    """One error for all that is wrong, as `recipe.config_errors` makes it, but for two things.

    What no single option is to blame for is said without one, and a value is cut short: a module
    that was given for a selector would fill pages.
    """
    found = (_one_problem(problem, fields) for problem in error.errors(include_url=False))
    return ConfigError("; ".join(found) + ".")


def _one_problem(problem: ErrorDetails, fields: Sequence[str]) -> str:
    message = problem["msg"].removeprefix("Value error, ")
    message = f"{message[:1].lower()}{message[1:]}"
    place = ".".join(map(str, problem["loc"]))
    if not place:
        return message
    if problem["type"] == "extra_forbidden":
        near = nearest(place[:_SHOWN], fields, count=1)
        return f"there is no option '{shortened(place)}'" + (
            f" (nearest: '{near[0]}')" if near else ""
        )
    return f"{place}={_shown(problem['input'])}: {message}"


def _shown(value: object) -> str:
    try:
        first, *more = repr(value).splitlines() or [""]
    except ValueError:  # Python writes out no number of more than some thousand digits
        return f"<a number of {value.bit_length():,} bits>" if isinstance(value, int) else "..."
    return f"{first[:_SHOWN]}..." if more or len(first) > _SHOWN else first
