"""What a data set is once it is read: samples with labels, in sets, in splits."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture and the index of its class."""

    path: Path
    label: int


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Samples and the class names that their labels count through.

    Attributes:
        classes: sorted names; `classes[sample.label]` is a sample's class.
        samples: ordered by class and then by file name, with numbers in names counted as numbers.
        ignored: what lay there and is no picture by its name, for messages only.
    """

    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    ignored: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def counts(self) -> dict[str, int]:
        """Samples of each class, in the order of `classes`; 0 for a class without any."""
        found = Counter(sample.label for sample in self.samples)
        return {name: found[label] for label, name in enumerate(self.classes)}


@dataclass(frozen=True, slots=True)
class UnknownClass:
    """A class that a held-out split has and training has not; `audit` reports it as an error."""

    split: Literal["val", "test"]
    name: str
    paths: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Splits:
    """A data set, divided.

    Attributes:
        train: what is trained on; all class lists are its own.
        val: what a run is judged on while it trains.
        test: kept apart where the data have both a validation and a test split.
        how: one line for people, such as `20 % of each class held out (seed 0)`.
        unknown: classes of val or test that train lacks; their samples are in no set.
    """

    train: ImageSet
    val: ImageSet
    test: ImageSet | None
    how: str
    unknown: tuple[UnknownClass, ...] = ()
