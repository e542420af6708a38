"""What a data set is once it is read: samples with labels, in sets, in splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias


@dataclass(frozen=True, slots=True)
class MaskFile:
    """A picture's mask: a file with the class of each pixel.

    Attributes:
        is_black_and_white: its values are 0 and 255, and 255 is class 1.
    """

    path: Path
    is_black_and_white: bool = False


Target: TypeAlias = tuple[float, ...] | MaskFile


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture and the index of its class.

    Attributes:
        target: what is learnt in place of a class, if anything; the label is 0 then.
    """

    path: Path
    label: int
    target: Target | None = None


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Samples and the class names that their labels count through.

    Attributes:
        classes: names in order; `classes[sample.label]` is a sample's class; none where samples
            have targets.
        samples: ordered by class and then by file name, with numbers in names counted as numbers.
        ignored: what lay there and is no picture by its name, or lies beside the class folders; for
            messages only.
        label_names: where samples have targets, what their numbers are of, or the classes of their
            masks.
    """

    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    ignored: tuple[Path, ...] = ()
    label_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.samples)

    def class_of(self, sample: Sample) -> str:
        """Its name; empty where samples have targets."""
        return self.classes[sample.label] if self.classes else ""

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
class Division:
    """How a part is held out: `fraction` of each class, or part `fold` of `folds`.

    Attributes:
        root: the folder below which a file's path is its name in the draw.
    """

    root: Path
    fraction: float
    folds: int | None
    fold: int
    seed: int


@dataclass(frozen=True, slots=True)
class Splits:
    """A data set, divided.

    Attributes:
        train: what is trained on; all class lists are its own.
        val: what a run is judged on while it trains.
        test: kept apart where the data have both a validation and a test split.
        how: one line for people, such as `20 % of each class held out (seed 0)`.
        unknown: classes of val or test that train lacks; their samples are in no set.
        division: how `val` was drawn, where it was drawn here.
        notes: what was found beside, or taken for something; `audit` reports each as a warning.
    """

    train: ImageSet
    val: ImageSet
    test: ImageSet | None
    how: str
    unknown: tuple[UnknownClass, ...] = ()
    division: Division | None = None
    notes: tuple[str, ...] = ()

    @property
    def sets(self) -> dict[str, ImageSet]:
        """Those that there are, by name."""
        test = {} if self.test is None else {"test": self.test}
        return {"train": self.train, "val": self.val, **test}

    def each(self, change: Callable[[ImageSet], ImageSet]) -> Splits:
        """The same splits, with every set changed."""
        test = None if self.test is None else change(self.test)
        return replace(self, train=change(self.train), val=change(self.val), test=test)


def class_order(names: Iterable[str]) -> tuple[str, ...]:
    """Class names as they are counted: numbers as numbers where all are, else as text."""
    known = set(names)
    if all(name.isascii() and name.isdigit() for name in known):
        return tuple(sorted(known, key=lambda name: (int(name), name)))
    return tuple(sorted(known))


def in_order(splits: Splits, classes: Sequence[str]) -> Splits:
    """The same samples, with labels that count through `classes`: the same names otherwise."""
    label = {name: number for number, name in enumerate(classes)}

    def counted(images: ImageSet) -> ImageSet:
        moved = (Sample(s.path, label[images.classes[s.label]]) for s in images.samples)
        ordered = tuple(sorted(moved, key=lambda sample: sample.label))
        return replace(images, classes=tuple(classes), samples=ordered)

    return splits.each(counted)
