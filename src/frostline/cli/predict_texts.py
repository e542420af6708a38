"""What `frostline predict` takes and prints where a run learnt from texts."""

from __future__ import annotations

import csv
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, final

import typer

from frostline.cli._answers import cells_of, document_of, in_words_of
from frostline.tables import Table, columns

if TYPE_CHECKING:
    from frostline.data import TextRows
    from frostline.preprocessing import Text
    from frostline.runs import FinishedRun, Prediction

_EMPTY = "no text"
_SHOWN = 300  # characters of a text in a table


@final
@dataclass(frozen=True, slots=True)
class Texts:
    """Texts, each with the cells that stand beside it in its table.

    Attributes:
        heads: of the cells; `text` alone for texts that come from no table.
        texts: None for one without a letter.
    """

    heads: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    texts: tuple[Text | None, ...]

    @classmethod
    def read(cls, given: Sequence[str], run: FinishedRun, text_column: str) -> Self:
        """From tables, lines of standard input, or the texts themselves.

        Raises:
            DataError: a table cannot be read, or is not like the first.
        """
        from frostline.data import TEXT_SUFFIXES, WORD_SUFFIXES, read_text_rows, read_word_rows
        from frostline.errors import DataError
        from frostline.runs.texts import columns_of, is_of_words

        heads: tuple[str, ...] = ()
        rows: list[tuple[Any, ...]] = []
        texts: list[Text | None] = []
        columns = columns_of(run.settings.data, text_column=text_column)
        in_words = is_of_words(run.settings)
        suffixes = TEXT_SUFFIXES | (WORD_SUFFIXES if in_words else set())
        read_rows = read_word_rows if in_words else read_text_rows
        for one in given:
            is_table = one != "-" and Path(one).suffix.lower() in suffixes
            if not is_table:
                _check_typed(one, run.settings.data.text_column, suffixes)
            read = read_rows(Path(one), columns=columns) if is_table else _typed(one)
            if heads and read.heads != heads:
                raise DataError(
                    f"{one} has the columns {', '.join(read.heads)}, and what stands before it "
                    f"{', '.join(heads)}. Give tables that are alike, or one at a time."
                )
            heads = read.heads
            rows += read.rows
            texts += read.texts
        if not any(texts):
            raise typer.BadParameter("there is no text to predict.", param_hint="TEXT")
        return cls(heads, tuple(rows), tuple(texts))

    @property
    def whole(self) -> list[Text]:
        """Those that have a letter."""
        return [text for text in self.texts if text is not None]

    def show(self, answers: Sequence[Prediction], *, top: int, as_json: bool, as_csv: bool) -> None:
        """Print what a run says of `whole`."""
        from frostline.cli._terminal import output, print_json, warn

        if empty := self.texts.count(None):
            warn(f"{empty} of {len(self.texts)} texts are empty, and get no answer")
        rest = iter(answers)
        found = [None if text is None else next(rest) for text in self.texts]
        if untagged := sum(tags.count(None) for tags in map(_tags_of, answers)):
            counted = "1 word has" if untagged == 1 else f"{untagged:,} words have"
            warn(f"{counted} no tag: the model takes no tokens of it, or no more of its text")
        if as_json:
            print_json([self._document(n, one, top) for n, one in enumerate(found)])
        elif as_csv:
            self._print_csv(found, top)
        else:
            rows = tuple(
                (_shortened(text), in_words_of(one))
                for text, one in zip(self.texts, found, strict=True)
                if one is not None
            )
            about = "class and probability" if answers[0].classes else "answer"
            about = "word/tag" if "words" in answers[0].answer else about
            output().print(Table(columns("text", about, left=2), rows))

    def _document(self, number: int, found: Prediction | None, top: int) -> dict[str, object]:
        cells = dict(zip(self.heads, self.rows[number], strict=True))
        if found is None:
            return {**cells, "error": _EMPTY}
        told = document_of(found, top)
        del told["file"]
        return {**cells, **{_apart(name, self.heads): value for name, value in told.items()}}

    def _print_csv(self, found: Sequence[Prediction | None], top: int) -> None:
        told = [{} if one is None else cells_of(one, top) for one in found]
        heads = list(dict.fromkeys(head for row in told for head in row))
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow([*self.heads, *(_apart(head, self.heads) for head in heads), "error"])
        for cells, row in zip(self.rows, told, strict=True):
            mine = (row.get(head, "") for head in heads)
            writer.writerow([*map(_cell, cells), *mine, "" if row else _EMPTY])


def _check_typed(given: str, text_column: str, suffixes: Collection[str]) -> None:
    """Refuse what is no text of the run's kind, or rather a file."""
    from frostline.errors import DataError

    if "+" in text_column:
        raise DataError(
            "the run learnt from pairs of texts, which cannot be typed. Give a table with the "
            f"columns {text_column}."
        )
    if given != "-" and Path(given).is_dir():
        raise DataError(f"{given} is a folder. Give the tables in it, or texts themselves.")
    if Path(given).suffix[1:].isalnum() and " " not in given:
        raise DataError(
            f"{given} looks like a file, and tables of texts end in {', '.join(sorted(suffixes))}. "
            "A text of one word comes on standard input, with -."
        )


def _typed(given: str) -> TextRows:
    """A text itself, or with `-` a line each of standard input."""
    from frostline.data import TextRows

    lines = [line.rstrip("\r\n") for line in sys.stdin] if given == "-" else [given]
    texts = tuple(line if line.strip() else None for line in lines)
    return TextRows(("text",), tuple((line,) for line in lines), texts)


def _apart(name: str, taken: Sequence[str]) -> str:
    """A column's name that the table has not yet."""
    return f"predicted_{name}" if name in taken else name


def _tags_of(answer: Prediction) -> list[str | None]:
    """Of a run of words."""
    tags = answer.answer.get("tags", [])
    return tags if isinstance(tags, list) else []


def _cell(value: object) -> object:
    """Lists as answers have them."""
    return "|".join(map(str, value)) if isinstance(value, list | tuple) else value


def _shortened(text: Text | None) -> str:
    from frostline.preprocessing import Words

    is_whole = isinstance(text, str | Words)
    whole = str(text) if is_whole else " | ".join(text or ())
    return whole if len(whole) <= _SHOWN else f"{whole[:_SHOWN]}..."
