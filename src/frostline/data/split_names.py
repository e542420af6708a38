"""Words and folder names -> the part of a data set that they stand for."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Literal

from frostline.errors import DataError

Role = Literal["all", "train", "val", "test"]

TABLE_SUFFIXES = frozenset({".csv", ".tsv"})


def role_of(word: str) -> Role | None:
    """`valid` -> `val`; None if the word names no split."""
    return _ROLES.get(word.strip().lower())


def split_name(name: str) -> tuple[Role, frozenset[str]] | None:
    """`seg_test` -> test and the further words, here `seg`; None if the name names no split.

    Words that any folder of pictures may bear do not count: `training_set`, `test images`.
    """
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)  # trainA, TestImages
    words = re.findall(r"[^\W_]+", apart.lower())
    found = [match for word in words if (match := _SPLIT.fullmatch(word))]
    if len(found) != 1:
        return None
    return _ROLES[found[0][1]], frozenset(words) - {found[0][0]} - _ANY_FOLDER


def by_role(
    root: Path, paths: Iterable[Path], *, endings: Collection[str] = TABLE_SUFFIXES
) -> dict[Role, Path]:
    """Those of `paths` that are the parts of one data set, by their names without these endings.

    Names with further words count where these are the same in a training and another part, so
    `seg_train` and `seg_test` are parts, and `train station` and `test tube` are classes.

    Raises:
        DataError: two for one role, or several divisions.
    """
    groups: defaultdict[frozenset[str], dict[Role, list[Path]]] = defaultdict(dict)
    for path in paths:
        if named := split_name(path.stem if path.suffix.lower() in endings else path.name):
            role, further = named
            groups[further].setdefault(role, []).append(path)
    whole = [further for further, roles in groups.items() if "train" in roles and len(roles) > 1]
    if len(whole) > 1 and _PLAIN not in whole:
        names = ", ".join(p.name for key in whole for found in groups[key].values() for p in found)
        raise DataError(f"{root} is divided in several ways: {names}. Keep one of them in it.")
    chosen = groups.get(_PLAIN if _PLAIN in whole or not whole else whole[0], {})
    for role, found in chosen.items():
        if whole and len(found) > 1:
            raise DataError(
                f"{root} has both {found[0].name}/ and {found[1].name}/ for the {role} split. "
                "Keep one of them."
            )
    return {role: found[0] for role, found in chosen.items()}


_ROLES: dict[str, Role] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_SPLIT = re.compile(rf"({'|'.join(_ROLES)})(?:set|data|images?|imgs)?[0-9]*")
_ANY_FOLDER = frozenset(
    {"set", "data", "dataset", "images", "image", "imgs", "img", "pictures", "photos", "split"}
)
_PLAIN = frozenset[str]()
