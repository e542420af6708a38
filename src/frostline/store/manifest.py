"""The manifest: what a key's folder holds, rebuilt from the key; and why a key has none."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

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

# What comes of reading, or of making values of, another JSON than `Manifest.write` writes.
_NOT_AS_WRITTEN: Final = (
    *(StoreError, RecursionError),
    *(ValueError, KeyError, TypeError, AttributeError, OverflowError),
)
_DTYPES: Final = {dtype_name(dtype): dtype for dtype in NUMPY_TYPES}


@final
@dataclass(frozen=True, slots=True)
class Manifest:
    """What a key's folder holds.

    Attributes:
        note: for people; nothing depends on it.

    Raises:
        StoreError: there are no values, or one name is there twice.
    """

    key: FeatureKey
    values: tuple[ValueSpec, ...]
    note: Mapping[str, str]

    def __post_init__(self) -> None:
        names = [value.name for value in self.values]
        if not names or len(set(names)) < len(names):
            raise StoreError(
                f"a row needs values with distinct names, and {names} were given. "
                "Give one ValueSpec for each value."
            )

    @property
    def content(self) -> dict[str, object]:
        """All that is written of it, but for the checksum."""
        values = [value.describe() for value in self.values]
        parts, note = dict(self.key.parts), dict(self.note)
        return {
            "format": FORMAT,
            "version": VERSION,
            "parts": parts,
            "values": values,
            "note": note,
        }

    @property
    def identity(self) -> int:
        """64 bits that are mixed into every record, so that no record passes for another key's."""
        of_rows = {name: part for name, part in self.content.items() if name != "note"}
        return xxhash.xxh3_64_intdigest(canonical_json(of_rows))

    def write(self, folder: Path) -> None:
        """Write it into `folder`, whole or not at all.

        Raises:
            OutputError: as `frostline._files.write_text`.
            StoreError: the key, the values and the note are longer than a reader takes.
        """
        write_text(folder / MANIFEST, self.text(folder))

    def text(self, where: Path | str) -> str:
        """As it is written.

        Raises:
            StoreError: as `write`.
        """
        sealed = {"checksum": _checksum(self.content), **self.content}
        text = json.dumps(sealed, indent=2, ensure_ascii=False) + "\n"
        if len(text.encode()) > MOST_BYTES:
            raise StoreError(
                f"the key, the values and the note of {where} take more than "
                f"{format_bytes(MOST_BYTES)}. Put hashes into the key, and a shorter note."
            )
        return text


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest in `folder`; `None` when there is none.

    Raises:
        CorruptFeatures: it is not what was written.
        StoreError: it is of a format version this Frostline does not know.
    """
    try:
        with open_own(folder / MANIFEST) as file:
            raw = file.read(MOST_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _not_as_written(folder) from error
    return parse_manifest(raw, folder.name, folder)


def parse_manifest(raw: bytes, digest: str, where: Path | str) -> Manifest:
    """The manifest of a key from the content of its file.

    Raises:
        CorruptFeatures, StoreError: as `read_manifest`.
    """
    try:
        if len(raw) > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES} bytes")
        content = json.loads(raw)
        checksum, version = content.pop("checksum"), content["version"]
        intact = content["format"] == FORMAT and checksum == _checksum(content)
        if not intact or type(version) is not int:
            raise ValueError("not what was written")
        if version == VERSION:
            return _read(content, digest)
    except _NOT_AS_WRITTEN as error:
        raise _not_as_written(where) from error
    raise StoreError(
        f"{where} is of format version {version}; this Frostline reads version {VERSION}. "
        "Use the Frostline that wrote it, or delete the folder: its features are then "
        "computed anew."
    )


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
    return None if found is None else agreed(found, wanted, folder)


def agreed(found: Manifest, wanted: Manifest, where: Path | str) -> Manifest:
    """What was found, made sure to be `wanted`.

    Raises:
        StoreError: the same key was written with other values.
    """
    if found.identity != wanted.identity:
        raise StoreError(
            f"{where} holds {_listed(found.values)} and was opened for {_listed(wanted.values)} "
            "under the same key. Name in the key whatever makes the values differ, "
            "or delete the folder."
        )
    return found


def _not_as_written(where: Path | str) -> CorruptFeatures:
    return CorruptFeatures(
        f"{where}/{MANIFEST} is not what was written. Opening the store for writing with the "
        "same key repairs it; or delete the folder."
    )


def _read(content: Any, digest: str) -> Manifest:
    """What was read, once it is seen to be just what would be written of it."""
    parts, note = (
        {name: str(text) for name, text in content[of].items()} for of in ("parts", "note")
    )
    values = tuple(
        ValueSpec(
            str(value["name"]),
            tuple(size if size is None else int(size) for size in value["shape"]),
            _DTYPES[value["dtype"]],
            "same" if value["stored"] == value["dtype"] else value["stored"],
        )
        for value in content["values"]
    )
    found = Manifest(FeatureKey(parts), values, note)
    if found.key.digest != digest or canonical_json(found.content) != canonical_json(content):
        raise ValueError("another key's, or nothing that a writer writes")
    return found


def _listed(values: Sequence[ValueSpec]) -> str:
    return ", ".join(
        f"'{v.name}' {list(v.shape)} {dtype_name(v.dtype)} as {dtype_name(v.stored)}"
        for v in values
    )


def _checksum(content: Mapping[str, object]) -> str:
    return xxhash.xxh3_128_hexdigest(canonical_json(content))


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
        was, now = old.get(name), new.get(name)
        if was != now:
            same = len(os.path.commonprefix([was or "", now or ""]))  # noqa: RUF071 - of letters
            yield f"{name}: {_short(was, same)} -> {_short(now, same)}"


def _short(text: str | None, same: int) -> str:
    """One line with what follows the first `same` characters in sight."""
    if text is None:
        return "none"
    start = max(0, same - _CONTEXT) if len(text) > SHOWN_CHARACTERS else 0
    shown = text[start : start + SHOWN_CHARACTERS].replace("\n", " ")
    before = "…" if start else ""
    after = "…" if start + SHOWN_CHARACTERS < len(text) else ""
    return f"{before}{shown}{after}" or "(empty)"
