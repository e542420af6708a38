"""A CSV or TSV of pictures and labels -> a list of labelled files by split."""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, final

from frostline.data.listing import (
    Found,
    Listing,
    files_below,
    is_picture,
    key_below,
    normal,
    sort_found,
)
from frostline.data.split_names import Role, role_of
from frostline.errors import DataError, nearest
from frostline.units import some_of
from frostline.wording import either, option


@final
@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of a table to read; capitals do not count.

    Attributes:
        label: several with commas between, if there is no column of that very name; their cells
            then come in one text with `CELL_GAP` between.
        split: empty for `split` or `is_valid`, if there is such a column.
        empty_labels: whether a cell without a label is refused, or stands for none of a list.
    """

    file: str = "file"
    label: str = "label"
    split: str = ""
    empty_labels: Literal["refused", "none"] = "refused"

    def labels(self, header: Sequence[str]) -> tuple[str, ...]:
        """The label columns, in small letters."""
        whole = self.label.strip().lower()
        each = tuple(part.strip() for part in whole.split(",") if part.strip())
        return (whole,) if whole in header else each

    def names(self, header: Sequence[str]) -> tuple[str, ...]:
        """All that are read."""
        return tuple(filter(None, (self.file, *self.labels(header), self.split)))


@final
@dataclass(frozen=True, slots=True)
class TableContent:
    """What a table lists.

    Attributes:
        by_role: the files by split; everything under "all" if there is no split column.
        split: the column that divides; empty without one.
        notes: what in it was not used, or taken for something.
    """

    by_role: dict[Role, Listing]
    split: str
    notes: tuple[str, ...]


CELL_GAP = "\x1f"  # a control character that separates units of text


def read_table(path: Path, columns: Columns = Columns()) -> TableContent:
    """Read a table.

    Paths count from its own folder. Commas, semicolons or tabs; UTF-8 with or without a
    byte-order mark; any line ends. Where none of the files is there, names are looked for two
    folders deep, with and without an ending.

    Raises:
        DataError: unreadable, not UTF-8, empty, without the columns, an incomplete row, an unknown
            split, or files that are not there.
    """
    header, rows = _cells(path)
    used = _used_columns(path, header, columns, rows)
    if not rows:
        raise DataError(f"{path} lists no images. {_EXPECTED}, followed by a line per image.")
    listed = [_row(path, line, dict(zip(header, row, strict=False)), used) for line, row in rows]
    files, note = _existing_files(path, [name for _, name, _ in listed])
    by_role: defaultdict[Role, list[Found]] = defaultdict(list)
    for (role, _, label), file in zip(listed, files, strict=True):
        by_role[role].append(Found(file, normal(label), key_below(path.parent, file)))
    listings = {
        role: Listing(path.parent, tuple(sorted({i.name for i in found})), sort_found(found))
        for role, found in by_role.items()
    }
    notes = [*note, *_unused(path, header, used)]
    return TableContent(listings, used.split, tuple(notes))


def has_column(path: Path, column: str) -> bool:
    """Whether the table has a column of that name.

    Raises:
        DataError: as `read_table`, where it cannot be read.
    """
    return column.strip().lower() in _cells(path)[0]


_EXPECTED = "The first line must be file,label or file,label,split"

_Rows = list[tuple[int, list[str]]]  # each with the number of its last line


def _cells(path: Path) -> tuple[list[str], _Rows]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text. Save it as CSV in UTF-8.") from error
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror or error}. Check the path and its permissions."
        ) from error
    # Spreadsheets write a semicolon in half of Europe.
    first = text.split("\n", 1)[0]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = [column.strip().lower() for column in next(reader, [])]
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num}: not readable as CSV ({error}). "
            "Quote fields that contain the delimiter, and close every quote."
        ) from error
    for line, row in rows:
        if any(row[len(header) :]):
            raise another_width(path, line, row, header)
    return header, [(line, row) for line, row in rows if any(row)]


def another_width(path: Path, line: int, row: Sequence[str], header: Sequence[str]) -> DataError:
    """The error for a line that has another number of cells than the first one."""
    return DataError(
        f"{path}, line {line}: {len(row)} fields, where the first line has {len(header)}. Quote "
        "fields that contain the delimiter, and close every quote."
    )


def _used_columns(path: Path, header: list[str], columns: Columns, rows: _Rows) -> Columns:
    """The columns as the header spells them, once it is known that each is there once."""
    if not header:
        raise DataError(f"{path} is empty. {_EXPECTED}.")
    split = columns.split or next((word for word in SPLIT_COLUMNS if word in header), "")
    asked = [
        ("file", columns.file.strip().lower()),
        *(("label", name) for name in columns.labels(header)),
        *([("split", split.strip().lower())] if split else []),
    ]
    if missing := [(kind, name) for kind, name in asked if name not in header]:
        raise DataError(_no_column(path, header, missing, rows))
    for kind, name in asked:
        if header.count(name) > 1:
            raise DataError(
                f"{path} has {header.count(name)} columns {name}. Give them different names, and "
                f"say which to use with {option(f'{kind}_column')}."
            )
    file, label, split = asked[0][1], columns.label.strip().lower(), split.strip().lower()
    return replace(columns, file=file, label=label, split=split)


def _no_column(
    path: Path, header: list[str], missing: Sequence[tuple[str, str]], rows: _Rows
) -> str:
    kinds = [kind for kind, _ in missing]
    column = _column_of_files(path, header, rows) if "file" in kinds else ""
    named = dict.fromkeys(kinds, "NAME") | ({"file": column} if column else {})
    unknown = [name for kind, name in missing if named[kind] == "NAME"]
    meant = [word for name in unknown for word in nearest(name, header, count=1)]
    hint = f" (did you mean {', '.join(meant)}?)" if meant else ""
    options = either(", ", " ").join(option(f"{kind}_column", n) for kind, n in named.items())
    return (
        f"{path} has no column {' and no column '.join(name for _, name in missing)}; "
        f"it has {some_of(header, most=20)}{hint}. {_EXPECTED}; or say which they are: {options}."
    )


def _column_of_files(path: Path, header: list[str], rows: _Rows) -> str:
    """The first column whose cells are names of pictures, each another; empty without one."""
    known = _pictures_by_name(path.parent)
    by_column = zip(*(row for _, row in rows[:_LOOKED_AT]), strict=False)
    for column, cells in zip(header, by_column, strict=False):
        there = (_plain(path.parent, c).is_file() or Path(c).name in known for c in cells if c)
        if len(set(cells)) == len(cells) and all(there):
            return column
    return ""


def _unused(path: Path, header: list[str], used: Columns) -> Iterable[str]:
    """Names the columns that may have been meant: further labels, another division."""
    others = [name for name in header if name not in used.names(header)]
    if odd := [name for name in others if _TELLING.search(name)]:
        verb, them = ("is", "it") if len(odd) == 1 else ("are", "one")
        yield (
            f"{path.name}: the {'column' if len(odd) == 1 else 'columns'} {', '.join(odd)} {verb} "
            f"not used. To use {them}: {option('label_column')} or {option('split_column')}."
        )


def _row(path: Path, line: int, cells: dict[str, str], used: Columns) -> tuple[Role, str, str]:
    """Its split, its file's name and its label."""
    labels = used.labels(list(cells))
    may_lack = labels if used.empty_labels == "none" else ()
    for column in used.names(list(cells)):
        if not cells.get(column) and column not in may_lack:
            raise DataError(f"{path}, line {line}: no {column}. Fill it in or delete the line.")
    role = role_in(used.split, cells[used.split]) if used.split else "all"
    if role is None:
        allowed = "true or false" if _of_truth(used.split) else "train, val or test"
        raise DataError(
            f"{path}, line {line}: unknown {used.split} {cells[used.split]!r}. Use {allowed}."
        )
    return role, cells[used.file], CELL_GAP.join(cells.get(label, "") for label in labels)


def role_in(column: str, cell: str) -> Role | None:
    """The split that a cell of a column such as `split` or `is_valid` names; None if it is none."""
    named = _of_truth(column)
    if named is None:
        return role_of(cell)
    if cell.lower() in _YES:
        return named
    return ("val" if named == "train" else "train") if cell.lower() in _NO else None


def _of_truth(column: str) -> Role | None:
    """`is_valid` -> `val`: what a yes in such a column means."""
    return role_of(column.removeprefix("is_")) if column.startswith("is_") else None


def _existing_files(path: Path, names: list[str]) -> tuple[list[Path], tuple[str, ...]]:
    """The file of each name, and what to say of how they were found.

    Raises:
        DataError: one is not there, or a name fits several.
    """
    files = [_plain(path.parent, name) for name in names]
    lost = [name for name, file in zip(names, files, strict=True) if not file.exists()]
    if not lost:
        return files, ()
    found: list[list[Path]] = []
    if len(lost) == len(names):
        known = _pictures_by_name(path.parent)
        found = [_fitting(path, name, known.get(Path(name).name, [])) for name in names]
        lost = [name for name, fitting in zip(names, found, strict=True) if not fitting]
    if lost:
        raise DataError(
            f"{path} names {len(lost)} of {len(names)} files that are not there: "
            f"{some_of(lost, most=5)}. Paths count from {path.parent}; correct them or delete "
            "the lines."
        )
    for name, fitting in zip(names, found, strict=True):
        if len(fitting) > 1:
            raise DataError(
                f"{path} names {name}, which may be {fitting[0]} or {fitting[1]}. Write the "
                f"path as it counts from {path.parent}, with its ending."
            )
    first = key_below(path.parent, found[0][0])
    note = f"{path.name}: its names were looked for below {path.parent}: {names[0]} is {first}."
    return [fitting[0] for fitting in found], (note,)


def _plain(folder: Path, name: str) -> Path:
    path = folder / name
    if "\\" in name and not path.exists():
        return folder / name.replace("\\", "/")  # a table written on Windows
    return path


def _pictures_by_name(folder: Path) -> dict[str, list[Path]]:
    """Pictures up to two folders below, by their names with and without the ending."""
    known: defaultdict[str, list[Path]] = defaultdict(list)
    for file in filter(is_picture, files_below(folder, depth=2)):
        for name in (file.name, file.stem):
            known[name].append(file)
    return known


def _fitting(path: Path, name: str, files: list[Path]) -> list[Path]:
    """Those that `name` may mean; if some are in a folder of the table's own name, these alone."""
    keys = {file: f"/{key_below(path.parent, file)}" for file in files}
    end = f"/{normal(name)}"
    fits = [
        f
        for f, key in keys.items()
        if end in (key[-len(end) :], key[: -len(f.suffix)][-len(end) :])
    ]
    return [file for file in fits if keys[file].startswith(f"/{path.stem}/")] or fits


SPLIT_COLUMNS = ("split", "is_valid")  # read as the division where there is one
_LOOKED_AT = 20  # rows in which names of pictures are searched
_YES = {"true", "yes", "1"}
_NO = {"false", "no", "0"}
_TELLING = re.compile(r"label|class|categor|target|fold|split|valid|train|test|subset")
