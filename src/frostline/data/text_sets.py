"""Texts with labels, in sets, in splits; and as samples for a model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import final

from frostline.data.text_columns import FOUND, TextColumns
from frostline.data.text_samples import TextSamples
from frostline.errors import DataError, nearest
from frostline.preprocessing import Text, TextPreprocessing
from frostline.units import some_of


@final
@dataclass(frozen=True, slots=True)
class TextSet:
    """Texts in the order of their table.

    Attributes:
        source: file of the table.
        texts: single ones, or pairs.
        labels: as written, one for each text; empty texts where there are none.
        lines: where each stands in the table.
        unit: what `lines` counts, `line` or `row`.
        empty: names of texts without a letter, which are left out.
    """

    source: str
    texts: tuple[Text, ...]
    labels: tuple[str, ...]
    lines: tuple[int, ...]
    unit: str = "line"
    empty: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)

    def name(self, place: int) -> str:
        """`train.tsv line 17`."""
        return f"{self.source} {self.unit} {self.lines[place]}"

    def counts(self, classes: Sequence[str]) -> dict[str, int]:
        """Texts of each class; 0 for a class without any."""
        found = Counter(self.labels)
        return {name: found[name] for name in classes}

    def at(self, places: Iterable[int]) -> TextSet:
        """Those at `places`, with nothing said of empty ones."""
        chosen = list(places)
        return replace(
            self,
            texts=tuple(self.texts[place] for place in chosen),
            labels=tuple(self.labels[place] for place in chosen),
            lines=tuple(self.lines[place] for place in chosen),
            empty=(),
        )


@final
@dataclass(frozen=True, slots=True)
class TextSplits:
    """Texts, divided.

    Attributes:
        test: kept apart where the data have both a validation and a test split.
        classes: labels of the training texts in order; empty where labels are no classes.
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
        classes: that the labels count through; without any, labels are numbers.
        labelled: whether there are labels; texts to predict have none.

    Raises:
        DataError: a label is none of the classes, or no number.
    """
    targets: list[int] | list[float] | None = None
    if labelled:
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
            close = nearest(name, classes, count=2)
            near = f" (nearest: {', '.join(close)})" if close else ""
            raise DataError(
                f"{texts.name(number)} has the label {name!r}{near}, which is none of "
                f"{some_of(classes, most=10)}. Correct or remove it."
            )
    return [place[name] for name in texts.labels]


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
