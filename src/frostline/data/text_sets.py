"""Texts with labels, in sets, in splits; and as samples for a model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import final

from frostline.data.text_columns import FOUND, TextColumns
from frostline.data.text_samples import TextSamples
from frostline.errors import DataError, nearest
from frostline.preprocessing import Text, TextPreprocessing, Words
from frostline.units import some_of


@final
@dataclass(frozen=True, slots=True)
class TextSet:
    """Texts in the order of their table.

    Attributes:
        source: file of the table.
        texts: single ones, pairs, or words.
        labels: as written, one for each text; empty texts where there are none.
        lines: where each stands in the table.
        unit: what `lines` counts, `line` or `row`.
        empty: names of texts without a letter, which are left out.
        tags: of texts in words, those of each; else none.
    """

    source: str
    texts: tuple[Text, ...]
    labels: tuple[str, ...]
    lines: tuple[int, ...]
    unit: str = "line"
    empty: tuple[str, ...] = ()
    tags: tuple[tuple[str, ...], ...] = ()

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def has_words(self) -> bool:
        """Whether the texts are in words."""
        return any(isinstance(text, Words) for text in self.texts[:1])

    @property
    def every_label(self) -> Iterable[str]:
        """The label of each text, or the tag of each word."""
        return chain.from_iterable(self.tags) if self.has_words else self.labels

    @property
    def said(self) -> Sequence[object]:
        """What each text is labelled with: its label, or its tags."""
        return self.tags or self.labels

    def name(self, place: int) -> str:
        """`train.tsv line 17`."""
        return f"{self.source} {self.unit} {self.lines[place]}"

    def counts(self, classes: Sequence[str]) -> dict[str, int]:
        """Texts of each class, or words of each tag; 0 for one without any."""
        found = Counter(self.every_label)
        return {name: found[name] for name in classes}

    def at(self, places: Iterable[int]) -> TextSet:
        """Those at `places`, with nothing said of empty ones."""
        chosen = list(places)
        return replace(
            self,
            texts=tuple(self.texts[place] for place in chosen),
            labels=tuple(self.labels[place] for place in chosen),
            lines=tuple(self.lines[place] for place in chosen),
            tags=tuple(self.tags[place] for place in chosen) if self.tags else (),
            empty=(),
        )


@final
@dataclass(frozen=True, slots=True)
class TextSplits:
    """Texts, divided.

    Attributes:
        test: kept apart where the data have both a validation and a test split.
        classes: labels or tags of the training texts in order; empty where labels are no classes.
        how: one line for people on what divides them.
        notes: what was taken for something, or not used.
        columns: what was read, as names for `TextColumns`.
    """

    train: TextSet
    val: TextSet
    test: TextSet | None
    classes: tuple[str, ...]
    how: str
    notes: tuple[str, ...] = ()
    columns: TextColumns = FOUND

    @property
    def names(self) -> tuple[str, ...]:
        """The classes, or what the labels are called."""
        return self.classes or (self.columns.label or "label",)

    @property
    def counts(self) -> tuple[dict[str, int], dict[str, int]]:
        """Of each class to train on and to validate; of "all" where there are no classes."""
        train, val = (
            part.counts(self.classes) or {"all": len(part)} for part in (self.train, self.val)
        )
        return train, val

    @property
    def sets(self) -> dict[str, TextSet]:
        """Those that there are, by name."""
        test = {} if self.test is None else {"test": self.test}
        return {"train": self.train, "val": self.val, **test}


def text_samples(
    texts: TextSet,
    preprocessing: TextPreprocessing,
    classes: Sequence[str] = (),
    *,
    labelled: bool = True,
) -> TextSamples:
    """Texts as samples for the model that `preprocessing` belongs to.

    Args:
        preprocessing: `loaded.of_texts`.
        classes: that labels or tags count through; without any, labels are numbers.
        labelled: whether there are labels; texts to predict have none.

    Raises:
        DataError: a label is none of the classes, or no number.
    """
    targets: list[int] | list[float] | list[list[int]] | None = None
    if labelled and texts.has_words:
        targets = tag_places(texts, classes)
    elif labelled:
        targets = class_places(texts, classes) if classes else label_numbers(texts)
    return TextSamples(
        texts.texts,
        targets,
        preprocessing,
        classes=classes,
        names=texts.name,
        what=f"the texts of {texts.source}",
    )


def class_places(texts: TextSet, classes: Sequence[str]) -> list[int]:
    """The place of each text's label in `classes`.

    Raises:
        DataError: a label is none of them; names the nearest.
    """
    place = {name: number for number, name in enumerate(classes)}
    for number, name in enumerate(texts.labels):
        if name not in place:
            raise DataError(
                f"{texts.name(number)} has the label {name!r}{_near(name, classes)}, which is none "
                f"of {some_of(classes, most=10)}. Correct or remove it."
            )
    return [place[name] for name in texts.labels]


def tag_places(texts: TextSet, tags: Sequence[str]) -> list[list[int]]:
    """The place of each word's tag in `tags`.

    Raises:
        DataError: a word has none, or none of these; names the nearest.
    """
    place = {name: number for number, name in enumerate(tags)}
    for number, (words, own) in enumerate(zip(texts.texts, texts.tags, strict=True)):
        for word, name in zip(words, own, strict=True):
            if name not in place:
                raise DataError(
                    f"{texts.name(number)}: the word {word!r} has the tag {name!r}"
                    f"{_near(name, tags)}, which is none of {some_of(tags, most=10)}. Correct it."
                )
    return [[place[name] for name in own] for own in texts.tags]


def _near(name: str, known: Sequence[str]) -> str:
    close = nearest(name, known, count=2)
    return f" (nearest: {', '.join(close)})" if close else ""


def label_numbers(texts: TextSet) -> list[float]:
    """The labels as numbers, for regression.

    Raises:
        DataError: one is no finite number; names its line.
    """
    found = []
    for number, name in enumerate(texts.labels):
        try:
            value = float(name)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise DataError(
                f"{texts.name(number)} has the label {name!r}, which is no number. Correct or "
                "remove it, or take the labels for classes."
            )
        found.append(value)
    return found
