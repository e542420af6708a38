"""Which form was chosen for a prefix on this machine, kept beside the features.

One small JSON file in the store; losing it costs one more measurement.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import final

from frostline._files import write_text
from frostline.errors import OutputError
from frostline.tuning import Form, Tuned

_FILE = "forms.json"


@final
@dataclass(frozen=True, slots=True)
class Decisions:
    """The decisions of one store."""

    root: Path

    def find(self, name: str) -> Tuned | None:
        """What was decided under `name`; None if nothing that can be read."""
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            kept = json.loads((self.root / _FILE).read_text())[name]
            return Tuned(
                Form.parse(kept["form"]),
                float(kept["error"]),
                int(kept["batch_size"]),
                (),
                kept["seconds_per_sample"],
                kept["plain_seconds_per_sample"],
            )
        return None

    def keep(self, name: str, tuned: Tuned) -> None:
        """Note a decision; where nothing can be written it is made again next time."""
        kept: dict[str, object] = {}
        with suppress(OSError, ValueError):
            found = json.loads((self.root / _FILE).read_text())
            kept = found if isinstance(found, dict) else {}
        kept[name] = {
            "form": str(tuned.form),
            "error": tuned.error,
            "batch_size": tuned.batch_size,
            "seconds_per_sample": tuned.seconds_per_sample,
            "plain_seconds_per_sample": tuned.plain_seconds_per_sample,
        }
        with suppress(OutputError):
            write_text(self.root / _FILE, json.dumps(kept, indent=1))
