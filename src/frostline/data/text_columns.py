"""Which columns of a table hold the text, its label and its split: as asked, by name, by look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final

from frostline.data.table import SPLIT_COLUMNS
from frostline.data.text_tables import TextTable
from frostline.errors import DataError, nearest
from frostline.units import some_of
from frostline.wording import option

PAIRS = (
    *(("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2")),
    *(("question", "sentence"), ("question", "answer"), ("question", "passage")),
    *(("question", "context"), ("query", "document"), ("query", "passage")),
    *(("text1", "text2"), ("text_a", "text_b")),
)
TEXTS = (
    *("text", "sentence", "review", "content", "comment", "tweet", "message", "utterance"),
    *("comment_text", "review_text", "body", "description", "headline", "document", "title"),
    *("question", "query", "prompt", "texts"),
)
LABELS = (
    *("label", "labels", "class", "category", "target", "sentiment", "intent", "topic", "y"),
    *("rating", "stars", "score", "polarity", "emotion", "tag", "coarse_label", "gold_label"),
)
_MOST_CLASSES = 50  # that a column may have to be taken for labels by its look


@final
@dataclass(frozen=True, slots=True)
class TextColumns:
    """Which columns to read, by name; by number from 0 where a table has no names.

    Attributes:
        text: one, or the two of a pair as `premise+hypothesis`; empty to find it.
        label: empty to find it.
        split: empty for `split` or `is_valid`, if there is such a column.
    """

    text: str = ""
    label: str = ""
    split: str = ""

    def in_table_of(self, table: TextTable) -> TextColumns:
        """These, without a label that the table has not: texts to predict have none."""
        words = [name.strip().lower() for name in table.columns or table.first]
        there = self.label.lower() in words or self.label in map(str, range(len(words)))
        return self if there else replace(self, label="")


FOUND = TextColumns()
"""All columns are found by their names or their look."""


@final
@dataclass(frozen=True, slots=True)
class ChosenColumns:
    """Where the parts of a row are.

    Attributes:
        names: of the table's columns; their numbers where it has no header.
        texts: places of the text, or of the two of a pair.
        label: None in a table without labels.
        split: None without such a column.
        rows, lines: as in the table, with the first row where that is data.
        notes: what was taken for something.
    """

    names: tuple[str, ...]
    texts: tuple[int, ...]
    label: int | None
    split: int | None
    rows: Sequence[Sequence[Any]]
    lines: Sequence[int]
    notes: tuple[str, ...] = ()


def choose_columns(
    table: TextTable, asked: TextColumns = FOUND, *, labelled: bool = True
) -> ChosenColumns:
    """Find the columns in a table.

    A first line that holds none of the names that are asked for or known is data, where one
    column looks like labels: few values, of which the first line has one that is found again.

    Args:
        labelled: whether a label is needed.

    Raises:
        DataError: a column is not there or cannot be told; names those that there are.
    """
    words = [name.strip().lower() for name in table.columns or table.first]
    has_names = bool(table.columns) or _is_header(words, asked)
    if not has_names:
        return _by_position(table, asked, labelled=labelled)
    texts = _texts(table, words, asked.text)
    label = _label(table, words, asked.label, taken=texts, needed=labelled)
    split = asked.split or next((word for word in SPLIT_COLUMNS if word in words), "")
    names = tuple(table.columns or table.first)
    notes = () if asked.label else _unused(table, words, {*texts, label})
    where = _place(table, words, split, "split") if split else None
    return ChosenColumns(names, texts, label, where, table.rows, table.lines, notes)


def _is_header(words: Sequence[str], asked: TextColumns) -> bool:
    wanted = {*_parts(asked.text), *_parts(asked.label), *_parts(asked.split)}
    known = {*TEXTS, *LABELS, *(word for pair in PAIRS for word in pair)}
    named = {word for word in wanted if not word.isdigit()}
    return bool(named) or not known.isdisjoint(words)


def _parts(text: str) -> list[str]:
    return [part.strip().lower() for part in text.split("+") if part.strip()]


def _texts(table: TextTable, words: Sequence[str], asked: str) -> tuple[int, ...]:
    if asked:
        return tuple(_place(table, words, part, "text") for part in _parts(asked))
    for pair in PAIRS:
        if all(part in words for part in pair):
            return tuple(map(words.index, pair))
    found = next((word for word in TEXTS if word in words), None)
    if found is None:
        raise DataError(
            f"{table.source} has no column that is called like a text; it has {_shown(words)}. Say "
            f"which it is: {option('text', 'NAME')}, or of a pair {option('text', 'ONE+OTHER')}."
        )
    return (words.index(found),)


def _label(
    table: TextTable, words: Sequence[str], asked: str, *, taken: Sequence[int], needed: bool
) -> int | None:
    if asked:
        return _place(table, words, asked.strip().lower(), "label")
    free = [word for place, word in enumerate(words) if place not in taken]
    found = next((word for word in LABELS if word in free), None)
    if found is None and needed:
        raise DataError(
            f"{table.source} has no column that is called like a label; it has {_shown(words)}. "
            f"Say which it is: {option('label', 'NAME')}."
        )
    return None if found is None else words.index(found)


def _place(table: TextTable, words: Sequence[str], name: str, kind: str) -> int:
    name = name.strip().lower()
    if name not in words and name.isdigit() and int(name) < len(words):
        return int(name)
    if words.count(name) == 1:
        return words.index(name)
    meant = nearest(name, words, count=1)
    hint = f" (did you mean {meant[0]}?)" if meant else ""
    found = "no column" if name not in words else f"{words.count(name)} columns"
    raise DataError(
        f"{table.source} has {found} {name}; it has {_shown(words)}{hint}. Say which to use: "
        f"{option(kind, 'NAME')}."
    )


def _by_position(table: TextTable, asked: TextColumns, *, labelled: bool) -> ChosenColumns:
    """In a table without a header; its columns are called by their numbers."""
    rows = [table.first, *table.rows]
    lines = [1, *table.lines]
    words = [str(place) for place in range(len(table.first))]
    label = _place(table, words, asked.label, "label") if asked.label else None
    if label is None and labelled:
        label = _like_labels(table, rows)
    if asked.text:
        texts = _texts(table, words, asked.text)
    else:
        others = [place for place in range(len(words)) if place != label]
        texts = (max(others, key=lambda place: sum(len(row[place]) for row in rows)),)
    taken = f"column {'+'.join(map(str, texts))} is taken for the text"
    if label is not None:
        taken += f", column {label} for the label"
    note = f"{table.name} has no header line: {taken}, counted from 0."
    return ChosenColumns(tuple(words), texts, label, None, rows, lines, (note,))


def _like_labels(table: TextTable, rows: Sequence[Sequence[str]]) -> int:
    found = []
    for place, first in enumerate(table.first):
        values = [row[place].strip() for row in rows[1:]]
        few = len(set(values)) <= min(_MOST_CLASSES, len(values) // 2)
        if few and first.strip() in values:
            found.append(place)
    if len(found) != 1 or len(table.first) < 2:
        shown = some_of([repr(cell[:30]) for cell in table.first], most=6)
        raise DataError(
            f"{table.source}: its first line ({shown}) is none of names that are known, and which "
            "columns hold text and label cannot be told. Say which they are, by name or by number "
            f"from 0: {option('text', '0')}, {option('label', '1')}."
        )
    return found[0]


def _unused(table: TextTable, words: Sequence[str], used: set[int | None]) -> tuple[str, ...]:
    """Names further columns that may have been meant for the label."""
    odd = [word for place, word in enumerate(words) if word in LABELS and place not in used]
    if not odd:
        return ()
    verb = "is" if len(odd) == 1 else "are"
    names = (words[place] for place in used if place is not None)
    label = next((name for name in names if name in LABELS), "")
    return (
        f"{table.name}: {', '.join(odd)} {verb} not used, as {label or 'another'} is the "
        f"label. To use one: {option('label', odd[0])}.",
    )


def _shown(words: Sequence[str]) -> str:
    return some_of([word[:40] for word in words], most=20)
