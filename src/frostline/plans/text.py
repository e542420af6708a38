"""Plans as TOML: a `[[phase]]` table for each phase, only what differs from the defaults."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from frostline.errors import ConfigError, nearest, shortened
from frostline.plans.parts import naming
from frostline.plans.phases import Phase, Until
from frostline.wording import either

_COMPARED = 200  # characters of a key that are held against the known ones


def to_toml(phases: Iterable[Phase]) -> str:
    """The phases as TOML that a person can edit; reads back as equal phases."""
    tables = (
        "[[phase]]\n" + "".join(f"{n} = {_value(v)}\n" for n, v in phase.as_dict().items())
        for phase in phases
    )
    return "\n".join(tables)


def from_toml(text: str) -> tuple[Phase, ...]:
    """The phases that the text holds; raises as `Plan.loads`."""
    try:
        content = tomllib.loads(text)
    except RecursionError:
        raise ConfigError(
            "the plan is nested too deep to be read. A phase is a [[phase]] table with options, "
            f"as {either('Plan.save', '`frostline plan`')} writes it."
        ) from None
    except ValueError as error:  # TOML's own errors, and Python's for numbers of endless digits
        reason = str(error).partition(";")[0]
        raise ConfigError(f"the plan is no TOML: {reason}. Fix it there.") from error
    _refuse_unknown(content, ["phase"])
    tables = content.get("phase", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError("each phase is a table under [[phase]], with two pairs of brackets.")
    if not tables:
        raise ConfigError(
            "the plan has no phase. Begin one with [[phase]], as "
            f"{either('Plan.save', '`frostline plan`')} writes it."
        )
    return tuple(_phase(number, table) for number, table in enumerate(tables, start=1))


def read_text(path: Path) -> str:
    """The text of a plan's file; raises as `Plan.load`."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(
            f"there is no plan at {path}.{_neighbours(path)} "
            + either(
                "fl.Plan([fl.Phase(...)]).save(path)",
                "`frostline plan MODEL --kind lp_ft --out FILE`",
            )
            + " writes one."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}. Give a plan's TOML file.") from error


def _value(value: Any) -> str:
    """One value; a table on one line, so that a phase stays in one piece."""
    if isinstance(value, dict):
        inner = (tomli_w.dumps({key: entry}).strip() for key, entry in value.items())
        return f"{{ {', '.join(inner)} }}"
    return tomli_w.dumps({"value": value}).strip().removeprefix("value = ")


def _phase(number: int, table: Mapping[str, Any]) -> Phase:
    name = table.get("name")
    named = isinstance(name, str) and name
    with naming(f"phase {number} ({shortened(name)})" if named else f"phase {number}"):
        _refuse_unknown(table, list(Phase.model_fields))
        if isinstance(until := table.get("until"), dict):
            _refuse_unknown(until, list(Until.model_fields), within="until.")
        return Phase(**table)


def _refuse_unknown(table: Mapping[str, Any], known: Sequence[str], *, within: str = "") -> None:
    for key in table:
        if key not in known:
            near = nearest(key[:_COMPARED], known, count=1)
            hint = f"Did you mean {within}{near[0]}?" if near else f"Known: {', '.join(known)}."
            raise ConfigError(f"there is no option '{within}{shortened(key)}'. {hint}")


def _neighbours(path: Path) -> str:
    try:
        names = sorted(other.name for other in path.parent.glob("*.toml"))
    except OSError:
        return ""
    near = nearest(path.name, names, count=1)
    return f" Nearest: {path.parent / near[0]}." if near else ""
