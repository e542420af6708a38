"""Class folders or a CSV on disk -> a list of labelled files by split."""

from __future__ import annotations

import csv
import io
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from frostline.data.images import IMAGE_SUFFIXES
from frostline.errors import DataError, nearest
from frostline.units import some_of

Role = Literal["all", "train", "val", "test"]

LAYOUT = "expected one folder per class: ants/1.jpg, bees/2.jpg"


@dataclass(frozen=True, slots=True)
class Found:
    """A labelled file.

    Attributes:
        key: its path below the data set's folder, with `/`; the same wherever that folder lies.
    """

    path: Path
    name: str
    key: str


@dataclass(frozen=True, slots=True)
class Listing:
    """What one folder or table holds; `classes` may name classes without any file."""

    classes: tuple[str, ...]
    found: tuple[Found, ...]
    ignored: tuple[Path, ...] = ()


def list_class_folders(root: Path) -> Listing:
    """The pictures below each folder of `root`, labelled with that folder's name.

    Nested folders count towards their class; links are followed, and a loop of links ends.

    Raises:
        DataError: no class folders, no pictures in them, or a folder that may not be read.
    """
    folders = subfolders(root)
    ignored = [path for path, is_folder in entries(root) if not is_folder]
    if not folders:
        raise DataError(_no_class_folders(root, ignored))
    found: list[Found] = []
    for folder in folders:
        name = normal(folder.name)
        for path, inner in _files(folder, name, set()):
            if path.suffix.lower() in IMAGE_SUFFIXES:
                found.append(Found(path, name, inner))
            else:
                ignored.append(path)
    if not found:
        raise DataError(
            f"no images in {root}: its {len(folders)} folders ({_few(folders)}) hold none. "
            f"Check the path; {LAYOUT}."
        )
    classes = tuple(sorted({normal(folder.name) for folder in folders}))
    return Listing(classes, sort_found(found), tuple(ignored))


def split_folders(root: Path) -> dict[Role, Path]:
    """The train, val and test folders of `root` by role; empty if its folders are classes.

    A single train folder counts as all there is.

    Raises:
        DataError: a validation or test folder without a training folder, two folders for one
            role, or classes both beside and inside such a folder.
    """
    folders = subfolders(root)
    roles = _roles(root, folders)
    if "train" in roles and len(roles) > 1:
        return roles
    nested = {role: subfolders(folder) for role, folder in roles.items()}
    if len(roles) == len(folders) and any(nested.values()):
        if "train" in roles:
            return {"all": roles["train"]}
        raise DataError(
            f"{root} has {folders[0].name}/ but no train/. "
            "Add train/ with one folder per class, or point at a folder of class folders."
        )
    names = {normal(folder.name) for folder in folders}
    for role, inner in nested.items():
        if twice := sorted(names & {normal(folder.name) for folder in inner}):
            raise DataError(
                f"{root} has {twice[0]}/ both beside and inside {roles[role].name}/. "
                "Put all classes to train on into train/, or move that folder elsewhere."
            )
    return {}


def held_out_folder(root: Path) -> Path | None:
    """The folder of `root` to evaluate on: test, else val; None if it has neither."""
    roles = _roles(root, subfolders(root))
    return roles.get("test") or roles.get("val")


def subfolders(folder: Path) -> list[Path]:
    """The folders of `entries`."""
    return [path for path, is_folder in entries(folder) if is_folder]


def entries(folder: Path) -> list[tuple[Path, bool]]:
    """What lies in `folder` in natural order, and whether it is a folder itself.

    Hidden entries and systems' leftovers are left out.
    """
    try:
        with os.scandir(folder) as scan:  # knows folders from files without asking for each
            seen = [e for e in scan if e.name[0] != "." and e.name.lower() not in _LEFTOVERS]
            found = [(entry.name, _is_folder(entry)) for entry in seen]
    except OSError as error:
        raise DataError(
            f"cannot read the folder {folder}: {error.strerror or error}. Check its permissions."
        ) from error
    found.sort(key=lambda pair: natural(pair[0]))
    return [(folder / name, is_folder) for name, is_folder in found]


def role_of(word: str) -> Role | None:
    """`valid` -> `val`; None if the word names no split."""
    return _ROLES.get(word.strip().lower())


def sort_found(found: list[Found]) -> tuple[Found, ...]:
    """By class, then by name with numbers counted as numbers."""
    return tuple(sorted(found, key=lambda item: (item.name, natural(item.key))))


def natural(text: str) -> tuple[list[str | int], str]:
    """Sort key that puts `img2` before `img10`."""
    parts = re.split(r"([0-9]+)", text)
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], text


def normal(name: str) -> str:
    """One spelling for names that look the same; file systems differ in how they write accents."""
    return unicodedata.normalize("NFC", name)


_ROLES: dict[str, Role] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}

_LEFTOVERS = {"thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "lost+found"}


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link that points at itself


def _roles(root: Path, folders: list[Path]) -> dict[Role, Path]:
    roles: dict[Role, Path] = {}
    for folder in folders:
        role = role_of(folder.name)
        if role is None:
            continue
        if role in roles:
            raise DataError(
                f"{root} has both {roles[role].name}/ and {folder.name}/ for the {role} split. "
                "Keep one of them."
            )
        roles[role] = folder
    return roles


def _files(folder: Path, key: str, seen: set[str]) -> Iterator[tuple[Path, str]]:
    """Every file below `folder` with its key; each real folder once, so that loops end."""
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    for path, is_folder in entries(folder):
        inner = f"{key}/{normal(path.name)}"
        if is_folder:
            yield from _files(path, inner, seen)
        else:
            yield path, inner


def _no_class_folders(root: Path, loose: list[Path]) -> str:
    images = [path for path in loose if path.suffix.lower() in IMAGE_SUFFIXES]
    if images:
        return (
            f"the {len(images)} images in {root} lie flat, so their classes are unknown; {LAYOUT}. "
            "Sort them into folders, or list them in a CSV with the columns file,label."
        )
    if loose:
        return f"no class folders in {root}, only {_few(loose)}. Check the path; {LAYOUT}."
    return f"the folder {root} is empty. Check the path; {LAYOUT}."


def _few(paths: list[Path]) -> str:
    return some_of([path.name for path in paths], most=3)


_EXPECTED = "The first line must be file,label or file,label,split"


def read_table(path: Path) -> dict[Role, Listing]:
    """The listed files by split; everything under "all" if there is no split column.

    Paths count from the CSV's own folder. Commas, semicolons or tabs; UTF-8 with or without a
    byte-order mark; any line ends.

    Raises:
        DataError: unreadable, not UTF-8, empty, without the columns, an incomplete row, an unknown
            split, or files that are not there.
    """
    rows = list(_rows(path))
    if not rows:
        raise DataError(f"{path} lists no images. {_EXPECTED}, followed by a line per image.")
    missing = [item.key for _, item in rows if not item.path.exists()]
    if missing:
        raise DataError(
            f"{path} names {len(missing)} of {len(rows)} files that are not there: "
            f"{some_of(missing, most=5)}. Paths count from {path.parent}; correct them or delete "
            "the lines."
        )
    by_role: dict[Role, list[Found]] = {}
    for role, item in rows:
        by_role.setdefault(role, []).append(item)
    return {
        role: Listing(tuple(sorted({item.name for item in found})), sort_found(found))
        for role, found in by_role.items()
    }


def _rows(path: Path) -> Iterator[tuple[Role, Found]]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text. Save it as CSV in UTF-8.") from error
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror or error}. Check its permissions."
        ) from error
    # Spreadsheets write a semicolon in half of Europe.
    delimiter = max(",;\t", key=text.split("\n", 1)[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = [column.strip().lower() for column in next(reader, [])]
        _check_header(path, header)
        for row in reader:
            if any(cell.strip() for cell in row):
                cells = dict(zip(header, (cell.strip() for cell in row), strict=False))
                yield _row(path, reader.line_num, cells, "split" in header)
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num}: not readable as CSV ({error}). "
            "Quote fields that contain the delimiter, and close every quote."
        ) from error


def _row(path: Path, line: int, cells: dict[str, str], has_split: bool) -> tuple[Role, Found]:
    for column in ("file", "label", *(["split"] if has_split else [])):
        if not cells.get(column):
            raise DataError(f"{path}, line {line}: no {column}. Fill it in or delete the line.")
    role: Role | None = role_of(cells["split"]) if has_split else "all"
    if role is None:
        raise DataError(
            f"{path}, line {line}: unknown split {cells['split']!r}. Use train, val or test."
        )
    return role, _found(path.parent, cells["file"], normal(cells["label"]))


def _found(folder: Path, name: str, label: str) -> Found:
    path = folder / name
    if "\\" in name and not path.exists():
        name = name.replace("\\", "/")  # a table written on Windows
        path = folder / name
    inner = os.path.relpath(path, folder) if Path(name).is_absolute() else os.path.normpath(name)
    return Found(path, label, normal(Path(inner).as_posix()))


def _check_header(path: Path, header: list[str]) -> None:
    if not header:
        raise DataError(f"{path} is empty. {_EXPECTED}.")
    missing = [column for column in ("file", "label") if column not in header]
    if missing:
        meant = [word for column in missing for word in nearest(column, header, count=1)]
        hint = f" (did you mean {', '.join(meant)}?)" if meant else ""
        raise DataError(
            f"{path} has no column {' and no column '.join(missing)}; "
            f"it has {', '.join(header)}{hint}. {_EXPECTED}."
        )
