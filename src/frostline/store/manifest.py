"""The manifest: what a key's folder holds, rebuilt from the key; and why a key has none."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import xxhash

from frostline._files import write_text
from frostline.errors import CorruptFeatures, StoreError
from frostline.store.keys import NUMPY_TYPES, FeatureKey, ValueSpec, canonical_json, dtype_name
from frostline.store.layout import MANIFEST, key_folders, open_own
from frostline.units import format_bytes

FORMAT: Final = "frostline features"
VERSION: Final = 1
MOST_BYTES: Final = 4 << 20
SHOWN_CHARACTERS: Final = 32  # of a part that differs
_CONTEXT: Final = 8

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
        return xxhash.xxh3_64_intdigest(canonical_json(self._content))

    @property
    def _content(self) -> dict[str, object]:
        values = [value.describe() for value in self.values]
        return {
            "format": FORMAT,
            "version": VERSION,
            "parts": dict(self.key.parts),
            "values": values,
        }

    def write(self, folder: Path) -> None:
        """Write it into `folder`, whole or not at all.

        Raises:
            OutputError: as `frostline._files.write_text`.
            StoreError: the key, the values and the note are longer than a reader takes.
        """
        content = {**self._content, "note": dict(self.note)}
        sealed = {"checksum": _checksum(content), **content}
        text = json.dumps(sealed, indent=2, ensure_ascii=False) + "\n"
        if len(text.encode()) > MOST_BYTES:
            raise StoreError(
                f"the key, the values and the note of {folder} take more than "
                f"{format_bytes(MOST_BYTES)}. Put hashes into the key, and a shorter note."
            )
        write_text(folder / MANIFEST, text)


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest in `folder`; `None` when there is none.

    Raises:
        CorruptFeatures: it is not what was written.
        StoreError: it is of a format version this Frostline does not know.
    """
    try:
        with open_own(folder / MANIFEST) as file:
            raw = file.read(MOST_BYTES + 1)
        if len(raw) > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES} bytes")
        content = _object(json.loads(raw))
        checksum, version = content.pop("checksum"), content["version"]
        intact = content["format"] == FORMAT and checksum == _checksum(content)
        if not intact or type(version) is not int:
            raise ValueError("not what was written")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, RecursionError) as error:
        raise _damaged(folder) from error
    if version != VERSION:
        raise StoreError(
            f"{folder} is of format version {version}; this Frostline reads version {VERSION}. "
            "Use the Frostline that wrote it, or delete the folder: its features are then "
            "computed anew."
        )
    try:
        key = FeatureKey(_texts(content["parts"]))
        found = Manifest(key, _values(content["values"]), _texts(content["note"]))
        if key.digest != folder.name:
            raise ValueError("another key's")
    except (ValueError, KeyError, StoreError) as error:
        raise _damaged(folder) from error
    return found


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


def _object(found: object) -> dict[str, object]:
    if not isinstance(found, dict):
        raise ValueError("no object")
    return found


def _texts(found: object) -> dict[str, str]:
    texts = _object(found)
    if not all(isinstance(text, str) for text in texts.values()):
        raise ValueError("no object of strings")
    return texts  # type: ignore[return-value]  # looked at above


def _values(described: object) -> tuple[ValueSpec, ...]:
    if not isinstance(described, list):
        raise ValueError("no list of values")
    values = tuple(_value(_object(entry)) for entry in described)
    if not values or len({value.name for value in values}) < len(values):
        raise ValueError("no values with distinct names")
    return values


def _value(described: Mapping[str, object]) -> ValueSpec:
    """One value as `ValueSpec.describe` wrote it; nothing else passes."""
    name, shape, dtype, stored = (
        described[field] for field in ("name", "shape", "dtype", "stored")
    )
    if not isinstance(name, str) or not isinstance(dtype, str) or not isinstance(stored, str):
        raise ValueError("a value is not named by text")
    if not isinstance(shape, list) or not all(s is None or type(s) is int for s in shape):
        raise ValueError("a shape is no list of sizes")
    spec = ValueSpec(name, tuple(shape), _DTYPES[dtype], "same" if stored == dtype else stored)
    if spec.describe() != described:
        raise ValueError("a value contradicts itself")
    return spec


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
        "same key repairs it; or delete the folder."
    )


def miss_line(root: Path, key: FeatureKey) -> str:
    """What of `key` differs from the stored key that has most parts in common with it."""
    stored = []
    for folder in key_folders(root):
        with suppress(StoreError):
            if manifest := read_manifest(folder):
                stored.append(manifest.key.parts)
    if not stored:
        return "nothing stored yet"
    nearest = max(stored, key=lambda parts: len(parts.items() & key.parts.items()))
    return "; ".join(_differences(nearest, key.parts)) or "stored"


def _differences(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[str]:
    for name in dict.fromkeys([*old, *new]):
        if name not in new:
            yield f"{name}: {_short(old[name])} -> none"
        elif name not in old:
            yield f"{name}: none -> {_short(new[name])}"
        elif old[name] != new[name]:
            same = len(os.path.commonprefix([old[name], new[name]]))  # noqa: RUF071 - of letters
            yield f"{name}: {_short(old[name], same)} -> {_short(new[name], same)}"


def _short(text: str, same: int = 0) -> str:
    """One line with what follows the first `same` characters in sight."""
    start = max(0, same - _CONTEXT) if len(text) > SHOWN_CHARACTERS else 0
    shown = text[start : start + SHOWN_CHARACTERS].replace("\n", " ")
    before = "…" if start else ""
    after = "…" if start + SHOWN_CHARACTERS < len(text) else ""
    return f"{before}{shown}{after}" or "(empty)"
