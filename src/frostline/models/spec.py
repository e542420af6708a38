"""What was asked for, as values: a model (`timm:NAME`) and its weights (`DEFAULT`, a file)."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from frostline.errors import ModelError

SourceName = Literal["torchvision", "timm", "hf", "file"]
WeightsKind = Literal["published", "none", "file"]

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")

_FILE_AND_FUNCTION = re.compile(r"(?P<path>.+\.py)(?::(?P<function>.*))?")
_PREFIXES = tuple(name for name in get_args(SourceName) if name != "file")


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Which model. `ModelSpec.parse(str(spec)) == spec`.

    Attributes:
        source: where it comes from.
        name: its name there; the function's name for `file`; a hub name or folder for `hf`.
        path: the Python file as it was given, for `file` only.
    """

    source: SourceName
    name: str
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> ModelSpec:
        """Read `alexnet`, `torchvision:alexnet`, `timm:NAME`, `hf:NAME_OR_DIR` or `net.py:build`.

        Only the form is checked; whether such a model exists is for `build` to find out.

        Raises:
            ModelError: the source is unknown, or a name is empty.
        """
        stripped = text.strip()
        prefix, colon, rest = stripped.partition(":")
        for source in _PREFIXES:
            if colon and prefix == source:
                return cls(source, _named(rest, asked=text, form=f"{source}:NAME"))
        if found := _FILE_AND_FUNCTION.fullmatch(stripped):
            form = f"{found['path']}:function"
            return cls(
                "file", _named(found["function"] or "", asked=text, form=form), found["path"]
            )
        if colon:
            raise _unknown_source(text, prefix)
        return cls("torchvision", _named(stripped, asked=text, form="alexnet"))

    def __str__(self) -> str:
        return f"{self.path if self.source == 'file' else self.source}:{self.name}"


@dataclass(frozen=True, slots=True)
class WeightsChoice:
    """Which weights.

    Attributes:
        kind: weights that the source publishes, none at all, or a file.
        name: as it was given: `DEFAULT`, an entry such as `IMAGENET1K_V1`, `none`, or the path.
    """

    kind: WeightsKind
    name: str

    @classmethod
    def parse(cls, text: str) -> WeightsChoice:
        """Read `DEFAULT`, `none`, a file's path or the name of an entry.

        A path has a folder or the ending of a weight file, or is a file that exists.
        """
        stripped = text.strip()
        if stripped.lower() in ("", "none"):
            return cls("none", "none")
        if stripped.lower() == "default":
            return cls("published", "DEFAULT")
        return cls("file" if _looks_like_a_path(stripped) else "published", stripped)

    @property
    def path(self) -> Path:
        """The file's path, for `kind == "file"`."""
        return Path(self.name).expanduser()

    def __str__(self) -> str:
        return self.name


def _named(name: str, *, asked: str, form: str) -> str:
    if not name.strip():
        raise ModelError(
            f"{asked!r} names no model. Write {form}; the sources are "
            "torchvision:NAME, timm:NAME, hf:NAME and path/to/file.py:function."
        )
    return name.strip()


def _unknown_source(text: str, prefix: str) -> ModelError:
    return ModelError(
        f"{text!r}: there is no source {prefix!r}. "
        "Use torchvision:NAME, timm:NAME, hf:NAME or path/to/file.py:function."
    )


def _looks_like_a_path(text: str) -> bool:
    separators = {"/", os.sep}
    return (
        any(separator in text for separator in separators)
        or Path(text).suffix.lower() in WEIGHT_SUFFIXES
        or Path(text).is_file()
    )
