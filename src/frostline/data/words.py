"""Sentences with a tag for each word: CoNLL files, and columns of lists in other tables."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from frostline.data.listing import normal
from frostline.data.table import SPLIT_COLUMNS
from frostline.data.text_columns import FOUND, LABELS, TEXTS, ChosenColumns, TextColumns
from frostline.data.text_sets import TextSet
from frostline.data.text_tables import TEXT_SUFFIXES, TextTable, decoded, read_table_of_texts
from frostline.errors import DataError, a_type, nearest
from frostline.preprocessing import Words
from frostline.units import some_of
from frostline.wording import option

CONLL_SUFFIXES = frozenset({".conll", ".iob", ".bio", ".iob2"})
"""Endings of files that hold a word and its tag a line, and nothing else."""

WORD_SUFFIXES = CONLL_SUFFIXES | (TEXT_SUFFIXES - {".csv"}) | {".txt"}
"""Endings of files that may hold words with tags."""

_WORDS = ("tokens", "words", "token", "word", *TEXTS)
_TAGS = ("ner_tags", "tags", "ner", "ner_labels", *LABELS, "pos_tags", "upos", "chunk_tags")
_LINES = CONLL_SUFFIXES | {".txt", ".tsv"}
_BLANKS = " \t\r"  # not all that Unicode has: some of it is a word

_Row = tuple[int, list[str]]


def read_table_of_words(path: Path) -> TextTable:
    """The sentences of a file, by its ending: of CoNLL lines, or with columns of lists.

    Of CoNLL lines the columns are called by their numbers from 0, and a row is a sentence with a
    list for each column; its line is that of its first word. Sentences end at an empty line or at
    `-DOCSTART-`. A line that begins with `#` is a comment where it has not as many columns as the
    others; and where it is a lone `#` before something that is no other word's tag.

    Raises:
        DataError: it cannot be read, or a word lacks columns that others have.
    """
    if path.suffix.lower() not in _LINES:
        return read_table_of_texts(path)
    sentences = _sentences(decoded(path))
    if not sentences:
        raise DataError(f"{path} holds no words. Give a word and its tag a line.")
    width, tags = _shape(sentences)
    rows, lines = [], []
    for sentence in sentences:
        kept = [row for row in sentence if not _is_comment(row[1], width, tags)]
        if kept:
            _check_columns(path, kept, width)
            rows.append([list(column) for column in zip(*(cells for _, cells in kept))])  # noqa: B905 - just checked
            lines.append(kept[0][0])
    columns = tuple(map(str, range(width)))
    return TextTable(str(path), path.name, (), columns, rows, lines)


def _sentences(text: str) -> list[list[_Row]]:
    """The cells of each line by sentence, with the lines' numbers."""
    found: list[list[_Row]] = [[]]
    lines = [line.strip("\r") for line in text.split("\n")]
    # Not by each line's own look: a comment may hold either.
    first = next((line for line in lines if line.strip(_BLANKS) and line[0] not in "#-"), "")
    is_tabbed = "\t" in first.strip(_BLANKS)
    for number, line in enumerate(lines, 1):
        if not line.strip(_BLANKS) or line.startswith("-DOCSTART-"):
            found.append([])
        else:
            parts = line.split("\t") if is_tabbed else line.replace("\t", " ").split(" ")
            cells = [part.strip(_BLANKS) for part in parts]
            found[-1].append((number, cells if is_tabbed else [*filter(None, cells)]))
    return [sentence for sentence in found if sentence]


def _shape(sentences: Sequence[Sequence[_Row]]) -> tuple[int, frozenset[str]]:
    """How many columns there are, and what stands in the last one."""
    rows = [cells for sentence in sentences for _, cells in sentence]
    plain = [cells for cells in rows if not cells[0].startswith("#")] or rows
    width = max(map(len, plain[:1000]))
    return width, frozenset(cells[-1] for cells in plain)


def _is_comment(cells: Sequence[str], width: int, tags: frozenset[str]) -> bool:
    if not cells[0].startswith("#"):
        return False
    is_alone = cells[0] == "#" and width > 1
    return len(cells) != width or (is_alone and cells[-1] not in tags)


def _check_columns(path: Path, rows: Sequence[_Row], width: int) -> None:
    for line, cells in rows:
        if len(cells) != width or not all((cells[0], cells[-1])):
            what = "no tag" if len(cells) == 1 or not cells[-1] else f"{len(cells)} columns"
            word = f"the word {cells[0]!r}" if cells[0] else "a word that is empty"
            raise DataError(
                f"{path}, line {line}: {word} has {what}, where others have {width} columns. "
                "Write a word and its tag a line, and an empty line between sentences."
            )


def choose_words(
    table: TextTable, asked: TextColumns = FOUND, *, labelled: bool = True
) -> ChosenColumns:
    """Where the words, their tags and perhaps the split of each sentence are.

    Args:
        asked: columns by name, or of CoNLL lines by number; else the first of CoNLL lines holds
            the words and the last their tags, and of other tables lists that are called so.
        labelled: whether tags are needed.

    Raises:
        DataError: they cannot be told; names the columns that there are.
    """
    names = [name.strip().lower() for name in table.columns or table.first]
    is_numbered = names == [str(place) for place in range(len(names))]
    places = _in_lines(table, asked) if is_numbered else _by_name(table, names, asked, labelled)
    words, tags = places
    if tags is None and labelled:
        raise DataError(
            f"{table.source} has a single column: words without tags. Write the tag of each word "
            "behind it, with a blank or a tab between."
        )
    split = asked.split.strip().lower() or next((n for n in SPLIT_COLUMNS if n in names), "")
    where = names.index(split) if split in names else None
    others = [names[at] for at in range(len(names)) if at not in places and names[at] in _TAGS]
    notes = tuple[str, ...]()
    if others and tags is not None:
        verb = "is" if len(others) == 1 else "are"
        note = f"{table.name}: {', '.join(others)} {verb} not used, as {names[tags]} has the tags. "
        notes = (f"{note}To use one: {option('label', others[0])}.",)
    return ChosenColumns(
        tuple(table.columns), (words,), tags, where, table.rows, table.lines, notes
    )


def word_set(table: TextTable, chosen: ChosenColumns) -> TextSet:
    """The sentences of the chosen columns; without those that are empty, which are named.

    Raises:
        DataError: a cell is no list, or a word has no tag.
    """
    (place,), tags_at = chosen.texts, chosen.label
    unit = "line" if isinstance(table.lines, list) else "row"
    kept: list[tuple[int, Words, tuple[str, ...]]] = []
    empty: list[str] = []
    for line, row in zip(chosen.lines, chosen.rows, strict=True):
        name = f"{table.name} {unit} {line}"
        words = list_of(row[place], name, "words")
        tags = () if tags_at is None else tuple(map(_tag, list_of(row[tags_at], name, "tags")))
        if tags_at is not None:
            _check_tags(words, tags, name)
        if any(word.strip() for word in words):
            kept.append((line, Words(words), tags))
        else:
            empty.append(name)
    if not kept:
        raise DataError(f"{table.source} holds no words. Give a sentence with words and tags.")
    lines, sentences, tagged = zip(*kept, strict=True)
    has_tags = tags_at is not None
    none = ("",) * len(kept)
    return TextSet(
        table.name, sentences, none, lines, unit, tuple(empty), tagged if has_tags else ()
    )


def _check_tags(words: Sequence[str], tags: Sequence[str], name: str) -> None:
    if len(tags) != len(words):
        raise DataError(
            f"{name} has {len(words)} words and {len(tags)} tags. Give a tag for each word."
        )
    if "" in tags:
        word = words[tags.index("")]
        raise DataError(f"{name}: the word {word!r} has no tag. Write O where it is of no kind.")


def _in_lines(table: TextTable, asked: TextColumns) -> tuple[int, int | None]:
    """In CoNLL lines; a name that is asked for is one of another table."""
    words = _numbered(table, asked.text, 0, "text")
    tags = _numbered(table, asked.label, len(table.columns) - 1, "label")
    return words, tags if tags != words else None


def _by_name(
    table: TextTable, names: Sequence[str], asked: TextColumns, labelled: bool
) -> tuple[int, int | None]:
    places = []
    for kind, name, known, needed in (
        ("text", asked.text, _WORDS, True),
        ("label", asked.label, _TAGS, labelled),
    ):
        place = _named(table, names, name, known, kind, needed=needed)
        if place is None and needed:
            what = "words" if kind == "text" else "tags"
            raise DataError(
                f"{table.source} has no column of lists that is called like {what}; it has "
                f"{_shown(names)}. Say which it is: {option(kind, 'NAME')}."
            )
        places.append(place)
    return places[0] or 0, places[1]


def _numbered(table: TextTable, asked: str, usual: int, kind: str) -> int:
    if not asked.isdigit():
        return usual
    if int(asked) >= len(table.columns):
        raise DataError(
            f"{table.source} has no column {asked}, counted from 0; it has {len(table.columns)}. "
            f"Leave out {option(kind)} for the {'first' if kind == 'text' else 'last'}."
        )
    return int(asked)


def _named(
    table: TextTable,
    names: Sequence[str],
    asked: str,
    known: Sequence[str],
    kind: str,
    *,
    needed: bool = True,
) -> int | None:
    """By the name that is asked for, else by the first known one that holds lists."""
    name = asked.strip().lower()
    if name and not name.isdigit():
        if name in names:
            return names.index(name)
        if not needed:
            return None
        close = nearest(name, names, count=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise DataError(
            f"{table.source} has no column {name}; it has {_shown(names)}{hint}. Say which to "
            f"use: {option(kind, 'NAME')}."
        )
    found = (names.index(word) for word in known if word in names)
    return next((place for place in found if _holds_lists(table, place)), None)


def _holds_lists(table: TextTable, place: int) -> bool:
    return any(isinstance(row[place], list | tuple) for row in table.rows[:20])


def holds_words(table: TextTable, *, labelled: bool = True) -> bool:
    """Whether a table has columns of lists for words and, with `labelled`, for their tags."""
    names = [name.strip().lower() for name in table.columns]
    places = [_named(table, names, "", known, "") for known in (_WORDS, _TAGS)]
    return places[0] is not None and (not labelled or places[1] not in (None, places[0]))


def list_of(cell: object, name: str, what: str) -> list[str]:
    """What is in a cell that holds a list.

    Raises:
        DataError: it holds something else; `name` says which cell.
    """
    if isinstance(cell, list | tuple):
        return ["" if one is None else str(one) for one in cell]
    if cell is None:
        return []
    raise DataError(
        f"{name}: the {what} are {a_type(cell)}, not a list. Write a list with one for each word, "
        "or name another column."
    )


@lru_cache(maxsize=4096)  # there are many words and few tags
def _tag(written: str) -> str:
    return normal(written.strip())


def _shown(names: Sequence[str]) -> str:
    return some_of([name[:40] for name in names], most=20)
