"""Which form was chosen for a prefix on this machine, kept beside the features.

One small JSON file in the store; losing it costs one more measurement. What stands in it is only
taken where it keeps the promise that was asked for.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from frostline._files import write_text
from frostline.errors import ConfigError, OutputError
from frostline.tuning import Form, Tuned

_FILE = "forms.json"
_MOST_BYTES: Final = 4 << 20
_LARGEST_BATCH: Final = 1 << 16


@final
@dataclass(frozen=True, slots=True)
class Decisions:
    """The decisions of one store."""

    root: Path

    def find(self, name: str, *, tolerance: float) -> Tuned | None:
        """What was decided under `name`, if its error is within `tolerance`.

        None where nothing was decided, or nothing that can be used.
        """
        with suppress(KeyError, TypeError, ValueError, ConfigError):
            kept = self._read()[name]
            return Tuned(
                Form.parse(_text(kept["form"])),
                _number(kept["error"], most=tolerance),
                _batch_size(kept["batch_size"]),
                (),
                _seconds(kept["seconds_per_sample"]),
                _seconds(kept["plain_seconds_per_sample"]),
            )
        return None

    def keep(self, name: str, tuned: Tuned) -> None:
        """Note a decision; where nothing can be written it is made again next time."""
        kept = {
            **self._read(),
            name: {
                "form": str(tuned.form),
                "error": tuned.error,
                "batch_size": tuned.batch_size,
                "seconds_per_sample": tuned.seconds_per_sample,
                "plain_seconds_per_sample": tuned.plain_seconds_per_sample,
            },
        }
        with suppress(OutputError):
            write_text(self.root / _FILE, json.dumps(kept, indent=1))

    def _read(self) -> dict[str, Any]:
        """All that is noted; nothing where the file is none, or none that this wrote."""
        with suppress(OSError, ValueError, RecursionError):
            if (self.root / _FILE).stat().st_size <= _MOST_BYTES:
                found = json.loads((self.root / _FILE).read_bytes())
                return found if isinstance(found, dict) else {}
        return {}


def _text(found: object) -> str:
    if not isinstance(found, str):
        raise TypeError("no text")
    return found


def _number(found: object, *, most: float) -> float:
    # NaN fails the comparison.
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found <= most:
        raise ValueError("no number in this range")
    return float(found)


def _batch_size(found: object) -> int:
    if type(found) is not int or not 1 <= found <= _LARGEST_BATCH:
        raise ValueError("no batch size")
    return found


def _seconds(found: object) -> float | None:
    return None if found is None else _number(found, most=1e6)
