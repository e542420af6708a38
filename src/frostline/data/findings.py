"""What is odd about a data set whose images have been read, worst first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from frostline.data.image_sets import ImageSet, Splits
from frostline.units import some_of

FEW_IMAGES = 5
"""A class with fewer training images than this is reported."""
IMBALANCE = 10
"""A largest class of more than this many times the smallest is reported."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to know before training.

    Attributes:
        level: an error stops training, a warning does not.
        code: stable name of the kind of finding, for machines.
        message: what was found and what to do, for people.
    """

    level: Literal["warning", "error"]
    code: str
    message: str


def find_errors(splits: Splits) -> Iterator[Finding]:
    """What makes training pointless: one class, a class or a split without images, a new class."""
    for unknown in splits.unknown:
        yield Finding(
            "error",
            "unknown-class",
            f"the {unknown.split} split has the class {unknown.name!r} ({_count(unknown.paths)}), "
            f"which the train split lacks (it has {_listed(splits.train.classes)}). "
            "Rename or remove it, or add training images of it.",
        )
    if len(splits.train.classes) < 2:
        names = _listed(splits.train.classes) or "none"
        yield Finding(
            "error",
            "one-class",
            f"there is nothing to tell apart: found {len(splits.train.classes)} class ({names}). "
            "Add a folder for each further class.",
        )
    empty = [name for name, count in splits.train.counts.items() if not count]
    if empty:
        yield Finding(
            "error",
            "empty-class",
            f"no usable training images of {_listed(empty)}. Add images, or remove the class.",
        )
    if not splits.val.samples:
        yield Finding(
            "error",
            "empty-val",
            f"no usable image is left to validate on ({splits.how}). Add validation images.",
        )


def find_oddities(splits: Splits, digests: Mapping[Path, str]) -> Iterator[Finding]:
    """What trains, but perhaps not what was meant; worst first.

    Args:
        digests: content digest of each file, as in `Audit.digests`.
    """
    yield from _conflicting_labels(splits.train, digests)
    yield from _leaks(splits, digests)
    yield from _missing_in_val(splits)
    yield from _few_images(splits.train)
    yield from _imbalance(splits.train)
    yield from _ignored(splits)


def _conflicting_labels(train: ImageSet, digests: Mapping[Path, str]) -> Iterator[Finding]:
    groups = [
        group
        for group in _by_content(train, digests).values()
        if len({label for _, label in group}) > 1
    ]
    if groups:
        pairs = [" = ".join(str(path) for path, _ in group[:2]) for group in groups]
        yield Finding(
            "warning",
            "label-conflict",
            f"{_plural(len(groups), 'image is', 'images are')} in the train split under different "
            f"labels: {some_of(pairs, most=5)}. Remove the wrong one of each.",
        )


def _leaks(splits: Splits, digests: Mapping[Path, str]) -> Iterator[Finding]:
    train = _by_content(splits.train, digests)
    for name, held_out in (("val", splits.val), ("test", splits.test)):
        samples = held_out.samples if held_out else ()
        pairs = [
            f"{train[digests[sample.path]][0][0]} = {sample.path}"
            for sample in samples
            if digests.get(sample.path) in train
        ]
        if pairs:
            yield Finding(
                "warning",
                f"train-{name}-overlap",
                f"{_plural(len(pairs), 'image of', 'images of')} the {name} split "
                f"{_plural(len(pairs), 'is', 'are', numbered=False)} in the train split as well: "
                f"{some_of(pairs, most=5)}. The metrics will be too good; remove one of each.",
            )


def _by_content(images: ImageSet, digests: Mapping[Path, str]) -> dict[str, list[tuple[Path, int]]]:
    groups: defaultdict[str, list[tuple[Path, int]]] = defaultdict(list)
    for sample in images.samples:
        if sample.path in digests:
            groups[digests[sample.path]].append((sample.path, sample.label))
    return dict(groups)


def _missing_in_val(splits: Splits) -> Iterator[Finding]:
    train, val = splits.train.counts, splits.val.counts
    missing = [name for name, count in train.items() if count and not val[name]]
    if missing and splits.val.samples:
        yield Finding(
            "warning",
            "class-not-in-val",
            f"no validation images of {_listed(missing)}: "
            "the metrics will say nothing about it. Add some, or hold out a larger part.",
        )


def _few_images(train: ImageSet) -> Iterator[Finding]:
    few = [f"{name} ({count})" for name, count in train.counts.items() if 0 < count < FEW_IMAGES]
    if few:
        yield Finding(
            "warning",
            "few-images",
            f"fewer than {FEW_IMAGES} training images of {some_of(few, most=10)}. Add more if you "
            "can.",
        )


def _imbalance(train: ImageSet) -> Iterator[Finding]:
    counts = {name: count for name, count in train.counts.items() if count}
    if not counts:
        return
    most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    if counts[most] > IMBALANCE * counts[least]:
        yield Finding(
            "warning",
            "imbalance",
            f"the classes are far from balanced: {most} has {counts[most]:,} training images, "
            f"{least} {counts[least]:,}. Read the metrics per class rather than the accuracy.",
        )


def _ignored(splits: Splits) -> Iterator[Finding]:
    sets = (splits.train, splits.val, *([splits.test] if splits.test else []))
    ignored = [path for images in sets for path in images.ignored]
    if ignored:
        yield Finding(
            "warning",
            "not-images",
            f"left out {_plural(len(ignored), 'entry that is', 'entries that are')} no image by "
            f"name: {some_of(ignored, most=5)}. Convert them if they are pictures.",
        )


def _listed(names: Sequence[str]) -> str:
    return some_of(names, most=10)


def _count(paths: Sequence[Path]) -> str:
    return _plural(len(paths), "image", "images")


def _plural(count: int, one: str, many: str, *, numbered: bool = True) -> str:
    word = one if count == 1 else many
    return f"{count:,} {word}" if numbered else word
