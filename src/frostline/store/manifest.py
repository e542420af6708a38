"""The manifest: what a key's folder holds. It can be rebuilt from the key."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import torch
import xxhash

from frostline._files import write_text
from frostline.errors import CorruptFeatures, StoreError
from frostline.store.keys import NUMPY_TYPES, FeatureKey, ValueSpec, canonical_json, dtype_name
from frostline.store.layout import MANIFEST

FORMAT: Final = "frostline features"
VERSION: Final = 1

_DTYPES: Final = {dtype_name(dtype): dtype for dtype in NUMPY_TYPES}


@final
@dataclass(frozen=True, slots=True)
class Manifest:
    """What a key's folder holds.

    Attributes:
        note: for people; nothing depends on it.
    """

    key: FeatureKey
    values: tuple[ValueSpec, ...]
    note: Mapping[str, str]

    @property
    def identity(self) -> int:
        """64 bits that are mixed into every record, so that no record passes for another key's."""
        content = {"format": FORMAT, "version": VERSION, **_described(self.key, self.values)}
        return xxhash.xxh3_64_intdigest(canonical_json(content))

    def write(self, folder: Path) -> None:
        """Write it into `folder`, whole or not at all.

        Raises:
            OutputError: as `frostline._files.write_text`.
        """
        content = {
            "format": FORMAT,
            "version": VERSION,
            **_described(self.key, self.values),
            "note": dict(self.note),
        }
        sealed = {"checksum": _checksum(content), **content}
        write_text(folder / MANIFEST, json.dumps(sealed, indent=2, ensure_ascii=False) + "\n")


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest in `folder`; `None` when there is none.

    Raises:
        CorruptFeatures: it is not what was written.
        StoreError: it is of a format version this Frostline does not know.
    """
    try:
        content = json.loads((folder / MANIFEST).read_bytes())
        checksum = content.pop("checksum")
        intact = content["format"] == FORMAT and checksum == _checksum(content)
        version = content["version"]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder) from error
    if not intact:
        raise _damaged(folder)
    if version != VERSION:
        raise StoreError(
            f"{folder} is of format version {version}; this Frostline reads version {VERSION}. "
            "Use the Frostline that wrote it, or delete the folder: its features are then "
            "computed anew."
        )
    return Manifest(FeatureKey(content["parts"]), _values(content["values"]), content["note"])


def settle(folder: Path, wanted: Manifest) -> Manifest | None:
    """What stands in `folder`, made sure to be `wanted`; `None` when it must be (re)written.

    A damaged manifest counts as none: records prove themselves against `wanted`.

    Raises:
        StoreError: the same key was written with other values, or in another format version.
    """
    try:
        found = read_manifest(folder)
    except CorruptFeatures:
        return None
    if found is not None and found.identity != wanted.identity:
        raise StoreError(
            f"{folder} holds {_listed(found.values)} and was opened for {_listed(wanted.values)} "
            "under the same key. Name in the key whatever makes the values differ, "
            "or delete the folder."
        )
    return found


def _described(key: FeatureKey, values: Sequence[ValueSpec]) -> dict[str, object]:
    return {"parts": dict(key.parts), "values": [value.describe() for value in values]}


def _values(described: Sequence[Mapping[str, object]]) -> tuple[ValueSpec, ...]:
    return tuple(_value(**entry) for entry in described)  # type: ignore[arg-type]  # checksum held


def _value(name: str, shape: list[int | None], dtype: str, stored: str, numpy: str) -> ValueSpec:
    del numpy  # for other programs; follows from `stored`
    kept: torch.dtype = _DTYPES[dtype]
    return ValueSpec(name, tuple(shape), kept, "same" if stored == dtype else stored)


def _listed(values: Sequence[ValueSpec]) -> str:
    return ", ".join(
        f"'{v.name}' {list(v.shape)} {dtype_name(v.dtype)} as {dtype_name(v.stored)}"
        for v in values
    )


def _checksum(content: Mapping[str, object]) -> str:
    return xxhash.xxh3_128_hexdigest(canonical_json(content))


def _damaged(folder: Path) -> CorruptFeatures:
    return CorruptFeatures(
        f"{folder / MANIFEST} is not what was written. Opening the store for writing with the "
        "same key mends it; or delete the folder."
    )
