"""A table, a folder of tables, a `datasets.Dataset` or lists -> texts with labels, divided."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from frostline.data.division import hold_out, hold_out_fold
from frostline.data.folder import alike, existing
from frostline.data.image_sets import class_order
from frostline.data.layouts import divided_by
from frostline.data.listing import Found, entries, few, normal, subfolders
from frostline.data.split_names import Role, by_role
from frostline.data.table import role_in
from frostline.data.text_columns import FOUND, ChosenColumns, TextColumns, choose_columns
from frostline.data.text_sets import TextSet, TextSplits
from frostline.data.text_tables import (
    TEXT_SUFFIXES,
    TextTable,
    read_table_of_texts,
    with_class_names,
)
from frostline.data.words import WORD_SUFFIXES, choose_words, read_table_of_words, word_set
from frostline.errors import ConfigError, DataError, a_type
from frostline.preprocessing import Text

_DEEPEST = 2  # folders that are entered in search of tables
_LISTS = "the lists"


def read_texts(
    data: object,
    *,
    text: str = "",
    label: str = "",
    split: str = "",
    val_fraction: float = 0.2,
    folds: int | None = None,
    fold: int = 0,
    seed: int = 0,
    classes: Sequence[str] = (),
    classify: bool = True,
    words: bool = False,
) -> TextSplits:
    """Read texts and labels for training.

    Args:
        data: a CSV, TSV, JSONL or Parquet file; a folder with such files for train and dev (or
            val, or test); a `datasets.Dataset` or `DatasetDict`; or `(texts, labels)`. Of words
            CoNLL files, or columns of lists.
        text: column of the text, or `premise+hypothesis` of a pair; by default one that is called
            like a text. Columns of a table without a header are numbers from 0.
        label: column of the label; by default one that is called like a label.
        split: column of train, val or test; by default `split` or `is_valid`, if there is one.
        val_fraction, folds, fold, seed: of the division, as for `read_splits`.
        classes: the order in which classes count, where these are the names that are found.
        classify: whether labels are classes: each is then held out from by its share.
        words: whether texts are lists of words with a tag for each.

    Raises:
        DataError: the data cannot be read, or which columns to read cannot be told.
        ConfigError: `val_fraction`, `folds` or `fold` is out of range.
    """
    if folds is None and fold != 0:
        raise ConfigError(
            f"asked for fold {fold} without folds. Say into how many folds to divide."
        )
    found = _Reading(TextColumns(text, label, split), words=words).read(data)
    by_class = classify and not words
    if set(found.sets) == {"all"} or set(found.sets) == {"train"}:
        (whole,) = found.sets.values()
        places = _held_out(whole, by_class, val_fraction, folds, fold, seed)
        train = whole.at(place for place in range(len(whole)) if place not in places)
        parts = {"train": replace(train, empty=whole.empty), "val": whole.at(sorted(places))}
        share = f"{val_fraction * 100:g} % of {'each class' if by_class else 'the texts'} held out"
        folded = f"fold {fold} of {folds} held out, from 0"
        how = f"{share if folds is None else folded} (seed {seed})"
    else:
        parts, how = _given(found, folds), found.how
    names = class_order(parts["train"].every_label) if classify else ()
    known = len(classes) == len(names) and set(classes) == set(names)
    return TextSplits(
        parts["train"],
        parts["val"],
        parts.get("test"),
        tuple(classes) if known else names,
        how,
        (*found.notes, *alike(names)),
        found.columns,
    )


def read_text_set(
    data: object, *, columns: TextColumns = FOUND, labelled: bool = True, words: bool = False
) -> TextSet:
    """Read texts to evaluate or to predict: the test part, else the validation part, else all.

    Args:
        columns: as the run read them: `TextSplits.columns`.
        labelled: whether labels are needed.
        words: as for `read_texts`.

    Raises:
        DataError: as `read_texts`; or there are training texts alone.
    """
    found = _Reading(columns, labelled=labelled, words=words).read(data)
    for role in ("test", "val", "all"):
        if role in found.sets:
            return found.sets[role]
    raise DataError("there are training texts only. Give the file of others.")


@final
@dataclass(frozen=True, slots=True)
class _Read:
    """What was found: texts by split, under "all" where they are not divided."""

    sets: dict[Role, TextSet]
    how: str
    notes: tuple[str, ...]
    columns: TextColumns


class _Reading:
    """One reading of data, with the columns that were asked for."""

    def __init__(self, asked: TextColumns, *, labelled: bool = True, words: bool = False) -> None:
        self._asked, self._labelled, self._words = asked, labelled, words
        self._columns = asked
        self._has_begun = False
        self._notes: list[str] = []
        self._made_of = word_set if words else _text_set

    def read(self, data: object) -> _Read:
        if isinstance(data, str | os.PathLike):
            suffixes = WORD_SUFFIXES if self._words else TEXT_SUFFIXES
            opened = read_table_of_words if self._words else read_table_of_texts
            root = existing(data, suffixes, "with train and dev tables")
            if not root.is_dir():
                return self._one(opened(root))
            tables = tables_in(root, suffixes)
            names = {role: path.name for role, path in tables.items()}
            if "all" not in tables and (left := _left_out(tables, suffixes)):
                self._notes.append(f"{few(left)}: not used, as no name says train, val or test.")
            return self._several({r: opened(p) for r, p in tables.items()}, names)
        if isinstance(data, tuple) and len(data) == 2 and not isinstance(data[0], str):
            return self._one(_of_lists(*data, words=self._words))
        if isinstance(data, Mapping):
            by_name = {name: role for name in data if (role := _role_of(str(name)))}
            named = {role: str(name) for name, role in by_name.items()}
            tables_ = {role: _of_dataset(data[name]) for name, role in by_name.items()}
            return self._several(tables_, named)
        return self._one(_of_dataset(data))

    def _one(self, table: TextTable) -> _Read:
        chosen = self._chosen(table, labelled=self._labelled)
        if chosen.split is None:
            return self._made({"all": self._made_of(table, chosen)}, "")
        places: defaultdict[Role, list[int]] = defaultdict(list)
        column = chosen.names[chosen.split]
        for number, row in enumerate(chosen.rows):
            cell = str(row[chosen.split])
            role = role_in(column.strip().lower(), cell)
            if role is None:
                raise DataError(
                    f"{table.source}, line {chosen.lines[number]}: unknown {column} {cell!r}. Use "
                    "train, val or test."
                )
            places[role].append(number)
        sets = {
            role: self._made_of(
                table,
                replace(
                    chosen,
                    rows=[chosen.rows[i] for i in numbers],
                    lines=[chosen.lines[i] for i in numbers],
                ),
            )
            for role, numbers in places.items()
        }
        return self._made(sets, f"the {column} column of {table.name}")

    def _several(self, tables: Mapping[Role, TextTable], names: dict[Role, str]) -> _Read:
        """One table a split; one without labels, as competitions give for the test, is left out."""
        sets: dict[Role, TextSet] = {}
        for role in sorted(tables, key=lambda role: role != "train"):
            table = tables[role]
            chosen = self._chosen(table, labelled=self._labelled and role == "train")
            if role != "train" and self._labelled and not _has_labels(chosen):
                self._notes.append(f"{table.name} has no labels: not used.")
                del names[role]
                continue
            sets[role] = self._made_of(table, chosen)
        return self._made(sets, divided_by(names) if len(sets) > 1 else "")

    def _chosen(self, table: TextTable, *, labelled: bool) -> ChosenColumns:
        """The columns of a table; those of the first one are asked for in the others."""
        is_first, self._has_begun = not self._has_begun, True
        if self._words:  # found anew in each table: CoNLL files and others may stand together
            chosen = choose_words(table, self._asked, labelled=labelled)
            self._notes += chosen.notes if is_first else ()
            return chosen
        asked = self._columns if labelled or is_first else self._columns.in_table_of(table)
        chosen = choose_columns(table, asked, labelled=labelled)
        if is_first:
            self._notes += chosen.notes
            label = "" if chosen.label is None else chosen.names[chosen.label]
            texts = "+".join(chosen.names[place] for place in chosen.texts)
            self._columns = replace(self._asked, text=texts, label=label)
        return chosen

    def _made(self, sets: dict[Role, TextSet], how: str) -> _Read:
        return _Read(sets, how, tuple(self._notes), self._columns)


def _has_labels(chosen: ChosenColumns) -> bool:
    return chosen.label is not None and any(
        _label(row[chosen.label]).strip("|") for row in chosen.rows
    )


def _given(found: _Read, folds: int | None) -> dict[str, TextSet]:
    sets = found.sets
    if "train" not in sets or len(sets) == 1:
        missing = "train" if "train" not in sets else "val or test"
        raise DataError(
            f"the texts are divided ({found.how or ', '.join(sets)}), but none are {missing}. Add "
            "such, or give one table to have a part held out."
        )
    if folds is not None:
        raise DataError(
            f"asked for {folds} folds, but the texts are divided already ({found.how}). Leave "
            "folds out, or give one table."
        )
    parts = {"train": sets["train"], "val": sets.get("val") or sets["test"]}
    return parts | ({"test": sets["test"]} if "val" in sets and "test" in sets else {})


def _held_out(
    whole: TextSet,
    classify: bool,
    fraction: float,
    folds: int | None,
    fold: int,
    seed: int,
) -> frozenset[int]:
    """Drawn by content, so the same texts are held out wherever their lines stand."""
    contents = ("\0".join([t] if isinstance(t, str) else t) for t in whole.texts)
    found = [
        Found(Path(whole.source), name if classify else "", content)
        for content, name in zip(contents, whole.labels, strict=True)
    ]
    if folds is not None:
        dealt = hold_out_fold(found, folds=folds, fold=fold, seed=seed, what="texts")
        return _with_tags_in_training(whole, dealt)
    places = _with_tags_in_training(whole, hold_out(found, fraction=fraction, seed=seed))
    if not places:
        few = "texts that share their tags" if whole.tags else "class with 2 or more texts"
        raise DataError(
            f"{whole.source} has no {few}, so none can be held out to judge by. Add texts, or a "
            "table of others to validate on."
        )
    return places


def _with_tags_in_training(whole: TextSet, held: frozenset[int]) -> frozenset[int]:
    """Those held out, but for texts with a tag that no other has: training needs it."""
    known = {tag for place, own in enumerate(whole.tags) if place not in held for tag in own}
    kept = set[int]()
    for place in sorted(held) if whole.tags else held:
        own = set(whole.tags[place]) if whole.tags else known
        if own <= known:
            kept.add(place)
        known |= own
    return frozenset(kept)


def tables_in(root: Path, suffixes: Collection[str]) -> dict[Role, Path]:
    """The tables of a folder by split, among files with these endings.

    Raises:
        DataError: there are none, or which are meant cannot be told.
    """
    here = root
    for _ in range(_DEEPEST):
        files = [path for path, is_folder in entries(here) if not is_folder]
        tables = [path for path in files if path.suffix.lower() in suffixes]
        if found := by_role(here, tables, endings=suffixes):
            return found
        if len(tables) == 1:
            return {"all": tables[0]}
        inside = subfolders(here)
        if tables or len(inside) != 1:
            break
        (here,) = inside
    found_there = few([path for path, _ in entries(here)]) or "nothing"
    raise DataError(
        f"{root} holds no train and dev table of texts ({', '.join(sorted(suffixes))}); it "
        f"has {found_there}. Name the files train and dev, or give one of them."
    )


def _left_out(tables: Mapping[Role, Path], suffixes: Collection[str]) -> list[Path]:
    """Further tables beside these."""
    here, taken = next(iter(tables.values())).parent, set(tables.values())
    return [p for p, _ in entries(here) if p.suffix.lower() in suffixes and p not in taken]


def _role_of(name: str) -> Role | None:
    found = by_role(Path(), [Path(name)])
    return next(iter(found), None)


def _of_lists(texts: Any, labels: Any, *, words: bool) -> TextTable:
    found, given = list(texts), list(labels)
    if len(found) != len(given):
        raise DataError(f"got {len(found):,} texts and {len(given):,} labels. Give one for each.")
    if found and isinstance(found[0], tuple | list) and not words:
        rows: list[Any] = [(*pair, label) for pair, label in zip(found, given, strict=True)]
        columns = ("sentence1", "sentence2", "label")
    else:
        rows, columns = list(zip(found, given, strict=True)), ("text", "label")  # type: ignore[assignment]  # two columns
    return TextTable(_LISTS, _LISTS, (), columns, rows, range(len(rows)))


def _of_dataset(data: Any) -> TextTable:
    """A `datasets.Dataset`, whose class labels have names."""
    if not hasattr(data, "column_names") or not hasattr(data, "features"):
        raise DataError(
            f"{a_type(data)} is no table of texts. Give a file, a folder of tables, a "
            "datasets.Dataset, or (texts, labels)."
        )
    columns = tuple(data.column_names)
    cells = [with_class_names(list(data[column]), data.features[column]) for column in columns]
    rows = list(zip(*cells, strict=True))
    what = f"the {type(data).__name__}"
    return TextTable(what, what, (), columns, rows, range(len(rows)))


def _text_set(table: TextTable, chosen: ChosenColumns) -> TextSet:
    """The texts of the chosen columns; without those that are empty, which are named."""
    is_row = bool(table.columns) and not isinstance(chosen.lines, list)
    made = TextSet(table.name, (), (), (), "row" if is_row else "line")
    texts: list[Text] = []
    labels: list[str] = []
    lines: list[int] = []
    empty: list[str] = []
    kinds: dict[type, int] = {}
    for line, row in zip(chosen.lines, chosen.rows, strict=True):
        parts = [text_of(row[place], table, line) for place in chosen.texts]
        name = f"{made.source} {made.unit} {line}"
        if not all(part.strip() for part in parts):
            empty.append(name)
            continue
        label = None if chosen.label is None else row[chosen.label]
        kinds.setdefault(str if isinstance(label, str) else float, line)
        texts.append(parts[0] if len(parts) == 1 else (parts[0], parts[1]))
        labels.append(_label(label))
        lines.append(line)
    if any(labels) and not all(labels):
        line = lines[labels.index("")]
        raise DataError(
            f"{made.source} {made.unit} {line} has no label. Fill it in or delete the line."
        )
    if len(kinds) > 1:
        text_line, number_line = kinds[str], kinds[float]
        raise DataError(
            f"{table.source} has labels of two kinds: {made.unit} {text_line} has text, "
            f"{made.unit} {number_line} a number or none. Write all alike."
        )
    if not texts:
        raise DataError(f"{table.source} holds no texts. Give a table with a line for each.")
    return replace(
        made, texts=tuple(texts), labels=tuple(labels), lines=tuple(lines), empty=tuple(empty)
    )


def text_of(cell: object, table: TextTable, line: int) -> str:
    """The text in a cell; empty where there is none.

    Raises:
        DataError: it holds something else.
    """
    if isinstance(cell, str):
        return cell
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, int | float):
        return str(cell)
    raise DataError(
        f"{table.source}, line {line}: the text is {a_type(cell)}. Write a text, or name another "
        "column."
    )


def _label(cell: object) -> str:
    """As text: whole numbers without a point, several with a bar between; empty for none."""
    if cell is None:
        return ""
    if isinstance(cell, float) and (math.isnan(cell) or cell.is_integer()):
        return "" if math.isnan(cell) else str(int(cell))
    if isinstance(cell, list | tuple):
        return "|".join(map(_label, cell))
    return normal(str(cell).strip())


def read_text_parts(
    data: str | os.PathLike[str], *, columns: TextColumns = FOUND
) -> tuple[TextSet, ...]:
    """All texts of a file or a folder, part by part.

    Raises:
        DataError: as `read_texts`.
    """
    return tuple(_Reading(columns, labelled=False).read(data).sets.values())
