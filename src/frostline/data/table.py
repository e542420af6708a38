"""A CSV with the columns file,label and perhaps split -> labelled files by split."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path

from frostline.data.listing import Found, Listing, Role, normal, role_of, sort_found
from frostline.errors import DataError, nearest

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
    _refuse_missing(path, [item for _, item in rows])
    by_role: dict[Role, list[Found]] = {}
    for role, item in rows:
        by_role.setdefault(role, []).append(item)
    return {
        role: Listing(tuple(sorted({item.name for item in found})), sort_found(found))
        for role, found in by_role.items()
    }


def _rows(path: Path) -> Iterator[tuple[Role, Found]]:
    text = _text(path)
    delimiter = _delimiter(text)
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


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text. Save it as CSV in UTF-8.") from error
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror or error}. Check its permissions."
        ) from error


def _delimiter(text: str) -> str:
    """The separator of the first line; spreadsheets write a semicolon in half of Europe."""
    first = text.split("\n", 1)[0]
    return max(",;\t", key=first.count)


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


def _refuse_missing(path: Path, found: list[Found]) -> None:
    missing = [item.key for item in found if not item.path.exists()]
    if missing:
        named = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise DataError(
            f"{path} names {len(missing)} of {len(found)} files that are not there: {named}. "
            f"Paths count from {path.parent}; correct them or delete the lines."
        )
