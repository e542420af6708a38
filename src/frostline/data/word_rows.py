"""Words to predict, from any file that has such; and whether data look like words with tags."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from frostline.data.text_columns import FOUND, TEXTS, TextColumns
from frostline.data.text_tables import TEXT_SUFFIXES, decoded, read_table_of_texts
from frostline.data.texts import TextRows, read_text_rows, tables_in
from frostline.data.words import (
    CONLL_SUFFIXES,
    WORD_SUFFIXES,
    choose_words,
    holds_words,
    list_of,
    read_table_of_words,
)
from frostline.errors import DataError
from frostline.preprocessing import Words

_WITH_LISTS = (TEXT_SUFFIXES & WORD_SUFFIXES) - {".tsv"}


def looks_like_words(path: str | os.PathLike[str]) -> str:
    """Why the texts there are taken for words with tags; empty where they are not.

    By the ending of CoNLL files, or by columns of lists.
    """
    root = Path(path).expanduser()
    try:
        if root.is_dir():
            there = tables_in(root, CONLL_SUFFIXES | _WITH_LISTS)
            root = there.get("train") or next(iter(there.values()))
        if root.suffix.lower() in CONLL_SUFFIXES:
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
