"""What an exported file says of itself, as texts in the place that its format has for them.

format         "frostline-export"
version        "1"
model          as in `--model`; `head` is a JSON object of where the head is and its widths
classes        JSON array, the names of the outputs in their order
preprocessing  JSON object: `resize` in pixels of the shorter side or [height, width], `crop`
               [height, width], `mean` and `std` of the channels from 0 to 1, `interpolation`
levels         JSON array: what becomes black and white in pictures of more than 8 bits; or null
base           fingerprint of the frozen tensors (see fingerprints/)
folded         "true" where batch norms are folded into the layers before them
checked        JSON object: the largest `difference` from the run's own outputs, the largest
               `output`, on how many `pictures`, `same_class` on how many, `which` they were
frostline      version that wrote it; `torch` likewise
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Self, final

import torch
from pydantic import TypeAdapter

from frostline._version import __version__
from frostline.choices import HeadPlace
from frostline.data import Levels
from frostline.errors import ConfigError
from frostline.preprocessing import Preprocessing

_FORMAT, _VERSION = "frostline-export", "1"


@final
@dataclass(frozen=True, slots=True)
class Head:
    """Where the new head is, and the widths of its hidden layers."""

    on: HeadPlace
    hidden: tuple[int, ...] = ()


@final
@dataclass(frozen=True, slots=True)
class Checked:
    """How an exported file compares with the run, both in float32.

    Attributes:
        difference: the largest, of any output for any picture.
        output: the largest of the run's, by its size.
        pictures: how many were predicted by both.
        same_class: on how many of them both had the same class first.
        which: where the pictures are from, for people.
    """

    difference: float
    output: float
    pictures: int
    same_class: int
    which: str

    def is_within(self, tolerance: float) -> bool:
        """Whether no output differs by more than `tolerance` of the largest, or of 1."""
        return self.difference <= tolerance * max(1.0, self.output)

    def __str__(self) -> str:
        how = f"differ by at most {self.difference:.1e}" if self.difference else "are equal"
        return (
            f"on {self.which}: outputs up to {self.output:.3g} {how}; the same class on "
            f"{self.same_class} of {self.pictures}"
        )


@final
@dataclass(frozen=True, slots=True)
class Notes:
    """See the file's docstring."""

    model: str
    head: Head
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    base: str
    levels: Levels | None = None
    folded: bool = False
    checked: Checked | None = None

    def texts(self) -> dict[str, str]:
        """As name -> text, in one order."""
        texts = {name: json.dumps(value) for name, value in asdict(self).items()}
        versions = {"frostline": __version__, "torch": torch.__version__}
        own = {"model": self.model, "base": self.base, **versions}
        return {"format": _FORMAT, "version": _VERSION, **texts, **own}

    @classmethod
    def read(cls, texts: Mapping[str, str], path: Path) -> Self:
        """Raises ConfigError where the file was not written by an export, or by a later one."""
        if texts.get("format") != _FORMAT:
            raise ConfigError(
                f"{path} does not say its classes: it is no file of an export. Give a run's "
                "folder, or a file that was exported."
            )
        if texts.get("version") != _VERSION:
            raise ConfigError(
                f"{path} is an export of version {texts.get('version')}, this Frostline "
                f"({__version__}) reads {_VERSION}. Use the Frostline that wrote it "
                f"({texts.get('frostline')}), or a newer one."
            )
        try:
            own = {"model": texts["model"], "base": texts["base"]}
            rest = [field.name for field in fields(cls)]
            values = {name: json.loads(texts[name]) for name in rest if name not in own}
            return TypeAdapter(cls).validate_python({**values, **own})
        except (KeyError, ValueError) as error:
            raise ConfigError(
                f"{path} is damaged: its notes cannot be read (written by Frostline "
                f"{texts.get('frostline')}, this is {__version__}). Export the run again."
            ) from error
