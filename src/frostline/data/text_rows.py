"""Texts or words to predict, a row each; and whether data look like words with tags."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from frostline.data.text_columns import FOUND, TEXTS, TextColumns, choose_columns
from frostline.data.text_tables import TEXT_SUFFIXES, decoded, read_table_of_texts
from frostline.data.texts import tables_in, text_of
from frostline.data.words import (
    CONLL_SUFFIXES,
    WORD_SUFFIXES,
    choose_words,
    holds_words,
    list_of,
    read_table_of_words,
)
from frostline.errors import DataError
from frostline.preprocessing import Text, Words

_WITH_LISTS = (TEXT_SUFFIXES & WORD_SUFFIXES) - {".tsv"}


@final
@dataclass(frozen=True, slots=True)
class TextRows:
    """All rows of a table, to write a column more beside them.

    Attributes:
        heads: names of its columns, or their numbers.
        rows: its cells.
        texts: of each row; None where it has no letter.
    """

    heads: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    texts: tuple[Text | None, ...]


def read_text_rows(path: Path, *, columns: TextColumns = FOUND) -> TextRows:
    """Every row of a table of texts, in its order, whatever else stands in it.

    Raises:
        DataError: it cannot be read, or which column is the text cannot be told.
    """
    table = read_table_of_texts(path)
    chosen = choose_columns(table, columns.in_table_of(table), labelled=False)
    texts: list[Text | None] = []
    for line, row in zip(chosen.lines, chosen.rows, strict=True):
        parts = [text_of(row[place], table, line) for place in chosen.texts]
        is_whole = all(part.strip() for part in parts)
        one: Text = parts[0] if len(parts) == 1 else (parts[0], parts[1])
        texts.append(one if is_whole else None)
    return TextRows(chosen.names, tuple(map(tuple, chosen.rows)), tuple(texts))


def looks_like_words(path: str | os.PathLike[str]) -> str:
    """Why the texts there are taken for words with tags; empty where they are not.

    By the ending of CoNLL files, by columns of lists, or by a `.txt` file whose lines are alike.
    """
    root = Path(path).expanduser()
    try:
        if root.is_dir():
            there = tables_in(root, CONLL_SUFFIXES | _WITH_LISTS | {".txt"})
            root = there.get("train") or next(iter(there.values()))
        is_plain = root.suffix.lower() == ".txt"
        in_columns = is_plain and len(read_table_of_words(root).columns) > 1
        if in_columns or root.suffix.lower() in CONLL_SUFFIXES:
            return f"{root.name} is a CoNLL file"
        if root.suffix.lower() in _WITH_LISTS and holds_words(read_table_of_texts(root)):
            return f"{root.name} has a column of lists of words, and one of their tags"
    except (DataError, OSError):
        pass  # whoever reads it says what is wrong
    return ""


def read_word_rows(path: Path, *, columns: TextColumns = FOUND) -> TextRows:
    """As `read_text_rows`, in words: of CoNLL lines, of lists, or of texts with blanks between.

    Raises:
        DataError: it cannot be read, or which column holds the words cannot be told.
    """
    if _is_in_lines(path, columns.text):
        table = read_table_of_words(path)
        place = choose_words(table, columns, labelled=False).texts[0]
        sentences = [[str(word) for word in row[place]] for row in table.rows]
        rows = tuple((" ".join(words),) for words in sentences)
        return TextRows(("text",), rows, tuple(map(_whole, sentences)))
    if path.suffix.lower() in _WITH_LISTS:
        table = read_table_of_texts(path)
        if holds_words(table, labelled=False):
            chosen = choose_words(table, columns, labelled=False)
            lists = zip(chosen.lines, (row[chosen.texts[0]] for row in chosen.rows), strict=True)
            sentences = [list_of(cell, f"{path}, line {line}", "words") for line, cell in lists]
            rows = tuple(map(tuple, chosen.rows))
            return TextRows(chosen.names, rows, tuple(map(_whole, sentences)))
    found = read_text_rows(path, columns=columns)
    return replace(found, texts=tuple(_whole(str(text or "").split()) for text in found.texts))


def _is_in_lines(path: Path, asked: str) -> bool:
    """Whether a file has a word a line; a `.tsv` file has texts where it is headed so."""
    suffix = path.suffix.lower()
    if suffix != ".tsv":
        return suffix in CONLL_SUFFIXES or suffix == ".txt"
    heads = decoded(path).partition("\n")[0].lower().strip("\r").split("\t")
    return {*TEXTS, asked.strip().lower()}.isdisjoint(heads)


def _whole(words: Sequence[str]) -> Words | None:
    """Those of a sentence; None where it has no letter."""
    return Words(words) if any(map(str.strip, words)) else None
