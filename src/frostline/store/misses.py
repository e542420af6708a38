"""Why a key is not stored, in one line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from frostline.errors import StoreError
from frostline.store.keys import FeatureKey
from frostline.store.layout import key_folders
from frostline.store.manifest import read_manifest

SHOWN_CHARACTERS: Final = 32
_CONTEXT: Final = 8


def miss_line(root: Path, key: FeatureKey) -> str:
    """What of `key` differs from the stored key that has most parts in common with it."""
    stored = list(_stored_parts(root))
    if not stored:
        return "nothing stored yet"
    nearest = max(stored, key=lambda parts: len(parts.items() & key.parts.items()))
    if nearest == key.parts:
        return "stored"
    return "; ".join(_differences(nearest, key.parts))


def _stored_parts(root: Path) -> Iterator[Mapping[str, str]]:
    for folder in key_folders(root):
        try:
            manifest = read_manifest(folder)
        except StoreError:
            continue
        if manifest is not None:
            yield manifest.key.parts


def _differences(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[str]:
    for name in dict.fromkeys([*old, *new]):
        if name not in new:
            yield f"{name}: {_short(old[name])} -> none"
        elif name not in old:
            yield f"{name}: none -> {_short(new[name])}"
        elif old[name] != new[name]:
            same = _common(old[name], new[name])
            yield f"{name}: {_short(old[name], same)} -> {_short(new[name], same)}"


def _common(old: str, new: str) -> int:
    """How many characters both begin with."""
    pairs = zip(old, new, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(old), len(new)))


def _short(text: str, same: int = 0) -> str:
    """One line with what follows the first `same` characters in sight."""
    start = max(0, same - _CONTEXT) if len(text) > SHOWN_CHARACTERS else 0
    shown = text[start : start + SHOWN_CHARACTERS].replace("\n", " ")
    before = "…" if start else ""
    after = "…" if start + SHOWN_CHARACTERS < len(text) else ""
    return f"{before}{shown}{after}" or "(empty)"
