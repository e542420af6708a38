"""Tensors into files, whole or not at all: safetensors with a checksum, and torch's own format.

Both libraries report a full disk by errors of their own; here it is one, like that of any file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from frostline._files import add_sum, json_sum, replacing

HEADER_SUM = "header"


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path, *, header: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file; where it has a header, the checksum of that goes along.

    Raises:
        OutputError: as `replacing`.
        KeyError: safetensors has no such dtype (0.8).
    """
    notes = {**header, HEADER_SUM: json_sum(dict(header))} if header is not None else None
    with replacing(path) as temporary, _disk_errors():
        save_file(dict(tensors), temporary, metadata=notes)


def check_header(header: Mapping[str, str]) -> None:
    """Make sure a header is the one that was written, where it carries its checksum.

    Raises:
        ValueError: it is not.
    """
    rest = {name: text for name, text in header.items() if name != HEADER_SUM}
    if HEADER_SUM in header and header[HEADER_SUM] != json_sum(rest):
        raise ValueError("the checksum of its header is not that of what the header says")


def save_torch(content: object, path: Path, *, own_sum: bool = False) -> None:
    """Write by `torch.save`; with `own_sum`, the checksum stands behind it, where torch reads on.

    Raises:
        OutputError: as `replacing`.
    """
    with replacing(path) as temporary:
        # By a file of ours: torch's own writer does not say what the system refused.
        with temporary.open("wb") as file, _disk_errors():
            torch.save(content, file)
        if own_sum:
            add_sum(temporary)


@contextmanager
def _disk_errors() -> Iterator[None]:
    """What the system refused, as the `OSError` that it is."""
    try:
        yield
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1]))) from error
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise
