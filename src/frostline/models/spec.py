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

INDEX_SUFFIX = ".index.json"  # of weights in several files
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar", INDEX_SUFFIX)

_FILE_AND_FUNCTION = re.compile(r"(?P<path>.+\.py)(?::(?P<function>.*))?")
_PREFIXES: dict[str, SourceName] = {name: name for name in get_args(SourceName) if name != "file"}


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
        found = cls("torchvision", stripped)
        form = "alexnet"
        if colon and prefix in _PREFIXES:
            found, form = cls(_PREFIXES[prefix], rest.strip()), f"{prefix}:NAME"
        elif parts := _FILE_AND_FUNCTION.fullmatch(stripped):
            found = cls("file", (parts["function"] or "").strip(), parts["path"])
            form = f"{found.path}:function"
        elif colon:
            raise ModelError(
                f"{text!r}: there is no source {prefix!r}. "
                "Use torchvision:NAME, timm:NAME, hf:NAME or path/to/file.py:function."
            )
        if not found.name:
            raise ModelError(
                f"{text!r} names no model. Write {form}; the sources are "
                "torchvision:NAME, timm:NAME, hf:NAME and path/to/file.py:function."
            )
        return found

    def __str__(self) -> str:
        return f"{self.path if self.source == 'file' else self.source}:{self.name}"


@dataclass(frozen=True, slots=True)
class WeightsChoice:
    """Which weights.

    Attributes:
        kind: weights that the source publishes, none at all, or a file.
        name: as it was given: `DEFAULT`, an entry such as `IMAGENET1K_V1`, `none`, or the path,
            perhaps with a place in it.
    """

    kind: WeightsKind
    name: str

    @classmethod
    def parse(cls, text: str) -> WeightsChoice:
        """Read `DEFAULT`, `none`, a file's path, `FILE:PLACE` in it, or the name of an entry.

        A path has a folder or the ending of a weight file, or is a file that exists.
        """
        name = text.strip()
        if name.lower() in ("", "none"):
            return cls("none", "none")
        if name.lower() == "default":
            return cls("published", "DEFAULT")
        file, _ = file_and_place(name)
        has_folder = any(separator in name for separator in ("/", os.sep))
        is_path = has_folder or _is_weights(str(file)) or file.is_file()
        return cls("file" if is_path else "published", name)


def short_name(model: str) -> str:
    """What folders of runs are called after: `vit` of `timm:vit`, `net` of `own/file.py:net`."""
    return model.rpartition(":")[2].rpartition("/")[2]


def file_and_place(weights: str) -> tuple[Path, str]:
    """`dino.pth:teacher` -> the file and the place in it; `dino.pth` -> the file and nothing."""
    file, _, place = weights.rpartition(":")
    if _is_weights(file) and not Path(weights).is_file():
        return Path(file).expanduser(), place
    return Path(weights).expanduser(), ""


def _is_weights(name: str) -> bool:
    return name.lower().endswith(WEIGHT_SUFFIXES)
