"""A CSV, TSV, JSONL or Parquet file -> its rows, with the names of their columns if it has any."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from frostline.data.table import another_width
from frostline.errors import DataError, one_line

TEXT_SUFFIXES = frozenset({".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet"})

_MOST_CHARACTERS = 2**30  # of a field
_BYTE_ORDER_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}


@final
@dataclass(frozen=True, slots=True)
class TextTable:
    """What a file holds.

    Attributes:
        source: the file, or what else they come from, for messages.
        name: of the file alone.
        first: the first row of a CSV or TSV, which may be a header or be data; empty for others.
        columns: names of the columns where the file is sure to have them: JSONL and Parquet.
        rows: the rows behind the first, each with as many cells as there are columns.
        lines: where each row ends in the file, counted from 1; for Parquet the number of the row.
    """

    source: str
    name: str
    first: tuple[str, ...]
    columns: tuple[str, ...]
    rows: Sequence[Sequence[Any]]
    lines: Sequence[int]


def read_table_of_texts(path: Path) -> TextTable:
    """The rows of a file, by its ending; text is UTF-8 or, by its byte-order mark, UTF-16.

    Raises:
        DataError: it cannot be read, is empty, is of another encoding, or breaks its format.
    """
    if path.suffix.lower() == ".parquet":
        return _parquet(path)
    text = decoded(path)
    if not text.strip():
        raise DataError(f"{path} is empty. Give a table with a line for each text.")
    is_json = path.suffix.lower() not in (".csv", ".tsv")
    return _json_lines(path, text) if is_json else _separated(path, text)


def decoded(path: Path) -> str:
    """The text of a file, UTF-8 or, by its byte-order mark, UTF-16.

    Raises:
        DataError: it cannot be read, or is of another encoding.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror or error}. Check the path and its permissions."
        ) from error
    marks = (encoding for mark, encoding in _BYTE_ORDER_MARKS.items() if content.startswith(mark))
    encoding = next(marks, "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: byte 0x{content[error.start]:02x} is not {encoding.upper()}; "
            "spreadsheets of Windows may write Windows-1252. Save the file as UTF-8."
        ) from error


def _separated(path: Path, text: str) -> TextTable:
    # Spreadsheets write a semicolon in half of Europe.
    head = text.split("\n", 1)[0]
    is_tabbed = path.suffix.lower() == ".tsv"
    delimiter = "\t" if is_tabbed else max(",;\t", key=head.count)
    found = _plain(text) if is_tabbed else None
    lines, rows = found or _quoted(path, text, delimiter)
    for line, row in zip(lines, rows, strict=True):
        if len(row) != len(rows[0]):
            raise another_width(path, line, row, rows[0])
    return TextTable(str(path), path.name, tuple(rows[0]), (), rows[1:], lines[1:])


def _numbered(text: str) -> Iterator[tuple[int, str]]:
    """Lines from 1; `str.splitlines` would break at U+2028 and others too, which texts hold."""
    return enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), 1)


_Lines = tuple[list[int], list[list[str]]]


def _plain(text: str) -> _Lines | None:
    """Tab-separated lines in which quotes are characters; None where they quote.

    Most such files know no quoting (GLUE's and SST-2's), some do (pandas): where each field that
    begins with a quote is well-formed as a quoted one, and there is one, they quote.
    """
    numbered = [(n, line) for n, line in _numbered(text) if line.strip()]
    rows = [line.split("\t") for _, line in numbered]
    quoted = [field for row in rows for field in row if field.startswith('"')]
    if len({len(row) for row in rows}) > 1 or (quoted and all(map(_is_quoted, quoted))):
        return None
    return [number for number, _ in numbered], rows


def _is_quoted(field: str) -> bool:
    inner = field[1:-1]
    return len(field) > 1 and field.endswith('"') and inner.replace('""', "").count('"') == 0


def _quoted(path: Path, text: str, delimiter: str) -> _Lines:
    lines, rows = [], []
    with _long_fields():
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        try:
            for row in reader:
                if any(cell.strip() for cell in row):
                    lines.append(reader.line_num)
                    rows.append(row)
        except csv.Error as error:
            raise DataError(
                f"{path}, line {reader.line_num}: not readable as {path.suffix[1:].upper()} "
                f"({error}). Quote fields that contain the delimiter, and close every quote."
            ) from error
    return lines, rows


@contextmanager
def _long_fields() -> Iterator[None]:
    """The csv module takes 131,072 characters in a field; there is no other way to ask for more."""
    before = csv.field_size_limit(_MOST_CHARACTERS)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _json_lines(path: Path, text: str) -> TextTable:
    """An object a line; or one list of objects, as `.json` files hold."""
    records, lines = [], []
    for number, content in _json_documents(path, text):
        if not isinstance(content, dict):
            raise DataError(
                f"{path}, line {number}: not an object. Write one a line: "
                '{"text": "...", "label": "..."}.'
            )
        records.append(content)
        lines.append(number)
    columns = tuple(dict.fromkeys(key for record in records for key in record))
    rows = [[record.get(column) for column in columns] for record in records]
    return TextTable(str(path), path.name, (), columns, rows, lines)


def _json_documents(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    number = 1
    try:
        if text.lstrip().startswith("["):
            yield from enumerate(json.loads(text), 1)
            return
        for number, line in _numbered(text):
            if line.strip():
                yield number, json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}, line {number}: not readable as JSON ({one_line(error, named=False)}). Write "
            "one object a line."
        ) from error


def _parquet(path: Path) -> TextTable:
    if importlib.util.find_spec("pyarrow") is None:
        raise DataError(
            f"{path} needs the package pyarrow, which is not installed: "
            'pip install "frostline[text]".'
        )
    from pyarrow import parquet

    try:
        table: Any = parquet.read_table(path)
    except Exception as error:  # of any kind, by what the file holds
        raise DataError(f"cannot read {path}: {one_line(error, first=True)}.") from error
    kinds = _kinds_of_datasets(table.schema.metadata or {})
    cells = [
        with_class_names(column.to_pylist(), kinds.get(name))
        for name, column in zip(table.column_names, table.columns, strict=True)
    ]
    rows = list(zip(*cells, strict=True))
    return TextTable(
        str(path), path.name, (), tuple(table.column_names), rows, range(1, len(rows) + 1)
    )


def _kinds_of_datasets(notes: Mapping[bytes, bytes]) -> Mapping[str, Any]:
    """What the package datasets noted of a file's columns when it wrote it, by their names."""
    try:
        found = json.loads(notes[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def with_class_names(values: list[Any], kind: Any) -> list[Any]:
    """Class names for numbers, where `kind` is of classes or of lists of them; -1 is none.

    Args:
        kind: a feature of datasets, or what it wrote of one.
    """
    for _ in range(2):
        names = _part(kind, "names")
        if names:
            return [_named(value, names) for value in values]
        kind = _part(kind, "feature")
    return values


def _part(kind: Any, name: str) -> Any:
    return kind.get(name) if isinstance(kind, Mapping) else getattr(kind, name, None)


def _named(value: Any, names: Sequence[str]) -> Any:
    if isinstance(value, list):
        return [_named(one, names) for one in value]
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else None
