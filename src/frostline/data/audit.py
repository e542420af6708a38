"""Every image of a data set read once before training: what is broken, double, missing or odd."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import xxhash

from frostline._files import file_digest
from frostline.choices import BadImages
from frostline.data.image_sets import ImageSet, Splits
from frostline.data.images import check_content, check_image, opened
from frostline.data.ordered import count_threads, ordered_map
from frostline.errors import DataError, ImageError
from frostline.units import some_of

FEW_IMAGES = 5
"""A class with fewer training images than this is reported."""
IMBALANCE = 10
"""A largest class of more than this many times the smallest is reported."""


@dataclass(frozen=True, slots=True)
class DataFinding:
    """One thing to know before training.

    Attributes:
        level: an error stops training, a warning does not.
        code: stable name of the kind of finding, for machines.
        message: what was found and what to do, for people.
    """

    level: Literal["warning", "error"]
    code: str
    message: str


def find_errors(splits: Splits) -> Iterator[DataFinding]:
    """What makes training pointless: one class, a class or a split without images, a new class."""
    for unknown in splits.unknown:
        yield DataFinding(
            "error",
            "unknown-class",
            f"the {unknown.split} split has the class {unknown.name!r} ({_count(unknown.paths)}), "
            f"which the train split lacks (it has {_listed(splits.train.classes)}). "
            "Rename or remove it, or add training images of it.",
        )
    if len(splits.train.classes) < 2:
        names = _listed(splits.train.classes) or "none"
        yield DataFinding(
            "error",
            "one-class",
            f"there is nothing to tell apart: found {len(splits.train.classes)} class ({names}). "
            "Add a folder for each further class.",
        )
    empty = [name for name, count in splits.train.counts.items() if not count]
    if empty:
        yield DataFinding(
            "error",
            "empty-class",
            f"no usable training images of {_listed(empty)}. Add images, or remove the class.",
        )
    if not splits.val.samples:
        yield DataFinding(
            "error",
            "empty-val",
            f"no usable image is left to validate on ({splits.how}). Add validation images.",
        )


def find_oddities(splits: Splits, digests: Mapping[Path, str]) -> Iterator[DataFinding]:
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


def _conflicting_labels(train: ImageSet, digests: Mapping[Path, str]) -> Iterator[DataFinding]:
    groups = [
        group
        for group in _by_content(train, digests).values()
        if len({label for _, label in group}) > 1
    ]
    if groups:
        pairs = [" = ".join(str(path) for path, _ in group[:2]) for group in groups]
        yield DataFinding(
            "warning",
            "label-conflict",
            f"{_plural(len(groups), 'image is', 'images are')} in the train split under different "
            f"labels: {some_of(pairs, most=5)}. Remove the wrong one of each.",
        )


def _leaks(splits: Splits, digests: Mapping[Path, str]) -> Iterator[DataFinding]:
    train = _by_content(splits.train, digests)
    for name, held_out in (("val", splits.val), ("test", splits.test)):
        samples = held_out.samples if held_out else ()
        pairs = [
            f"{train[digests[sample.path]][0][0]} = {sample.path}"
            for sample in samples
            if digests.get(sample.path) in train
        ]
        if pairs:
            yield DataFinding(
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


def _missing_in_val(splits: Splits) -> Iterator[DataFinding]:
    train, val = splits.train.counts, splits.val.counts
    missing = [name for name, count in train.items() if count and not val[name]]
    if missing and splits.val.samples:
        yield DataFinding(
            "warning",
            "class-not-in-val",
            f"no validation images of {_listed(missing)}: "
            "the metrics will say nothing about it. Add some, or hold out a larger part.",
        )


def _few_images(train: ImageSet) -> Iterator[DataFinding]:
    few = [f"{name} ({count})" for name, count in train.counts.items() if 0 < count < FEW_IMAGES]
    if few:
        yield DataFinding(
            "warning",
            "few-images",
            f"fewer than {FEW_IMAGES} training images of {some_of(few, most=10)}. Add more if you "
            "can.",
        )


def _imbalance(train: ImageSet) -> Iterator[DataFinding]:
    counts = {name: count for name, count in train.counts.items() if count}
    if not counts:
        return
    most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    if counts[most] > IMBALANCE * counts[least]:
        yield DataFinding(
            "warning",
            "imbalance",
            f"the classes are far from balanced: {most} has {counts[most]:,} training images, "
            f"{least} {counts[least]:,}. Read the metrics per class rather than the accuracy.",
        )


def _ignored(splits: Splits) -> Iterator[DataFinding]:
    sets = (splits.train, splits.val, *([splits.test] if splits.test else []))
    ignored = [path for images in sets for path in images.ignored]
    if ignored:
        yield DataFinding(
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


_ONE_READ_BYTES = 1 << 26  # 64 MiB; a larger file is read twice rather than held in memory
_NAMED = 10  # broken images listed by name


@dataclass(frozen=True, slots=True)
class Audit:
    """A data set that can be trained on.

    Attributes:
        splits: as given, without the images that cannot be read.
        findings: what to know before training, worst first; empty if nothing is odd.
        digests: content digest (XXH3, 128 bits, hexadecimal) of every file in `splits`.
    """

    splits: Splits
    findings: tuple[DataFinding, ...]
    digests: Mapping[Path, str]


def audit(
    splits: Splits,
    *,
    bad_images: BadImages,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Audit:
    """Read every image once: check that it decodes, and hash its content.

    Args:
        bad_images: what to do about images that cannot be read: leave them out with a warning, or
            refuse the data set.
        threads: decoding threads; by default one for each core.
        progress: called in this thread with (images done, images in all) after each image.
    Raises:
        DataError: images cannot be read and `bad_images` is "error"; fewer than two classes; a
            class without a training image that can be read; no validation image; a validation or
            test class that training lacks. One message holds all that was found.
    """
    sets = (splits.train, splits.val, *([splits.test] if splits.test else []))
    paths = [sample.path for images in sets for sample in images.samples]
    digests, broken = read_files(paths, threads=threads, progress=progress)
    clean = _without(splits, frozenset(broken))
    found = [*_broken_finding(broken, bad_images), *find_errors(clean)]
    errors = [finding.message for finding in found if finding.level == "error"]
    if errors:
        raise DataError(_one_message(errors))
    return Audit(clean, (*found, *find_oddities(clean, digests)), digests)


def read_files(
    files: Iterable[Path],
    *,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[Path, str], dict[Path, ImageError]]:
    """Content digests of the images that decode and the errors of the others, in their order.

    Args:
        threads, progress: as for `audit`.
    """
    paths = list(dict.fromkeys(files))
    digests: dict[Path, str] = {}
    broken: dict[Path, ImageError] = {}
    workers = count_threads(threads)
    with closing(ordered_map(_verdict, paths, threads=workers, ahead=4 * workers)) as verdicts:
        for done, (path, verdict) in enumerate(zip(paths, verdicts, strict=True), start=1):
            if isinstance(verdict, str):
                digests[path] = verdict
            else:
                broken[path] = verdict
            if progress is not None:
                progress(done, len(paths))
    return digests, broken


def _verdict(path: Path) -> str | ImageError:
    try:
        return _checked_digest(path)
    except ImageError as error:
        return error


def _checked_digest(path: Path) -> str:
    with opened(path) as file:
        content = file.read(_ONE_READ_BYTES + 1)
    if len(content) > _ONE_READ_BYTES:
        check_image(path)
        return file_digest(path, xxhash.xxh3_128)
    check_content(content, path)
    return xxhash.xxh3_128_hexdigest(content)


def _without(splits: Splits, broken: frozenset[Path]) -> Splits:
    def kept(images: ImageSet) -> ImageSet:
        samples = tuple(sample for sample in images.samples if sample.path not in broken)
        return replace(images, samples=samples)

    test = kept(splits.test) if splits.test else None
    return replace(splits, train=kept(splits.train), val=kept(splits.val), test=test)


def _broken_finding(broken: Mapping[Path, ImageError], bad_images: BadImages) -> list[DataFinding]:
    if not broken:
        return []
    lines = "".join(f"\n  {error}" for error in list(broken.values())[:_NAMED])
    more = f"\n  and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
    what = "1 image cannot be read" if len(broken) == 1 else f"{len(broken)} images cannot be read"
    if bad_images == "error":
        message = f"{what}. Mend or remove them, or have bad images skipped:{lines}{more}"
        return [DataFinding("error", "broken-image", message)]
    message = f"{what} and will be left out:{lines}{more}"
    return [DataFinding("warning", "broken-image", message)]


def _one_message(errors: list[str]) -> str:
    if len(errors) == 1:
        return errors[0]
    lines = "".join(f"\n- {message}" for message in errors)
    return f"the data set cannot be trained on, for {len(errors)} reasons:{lines}"
