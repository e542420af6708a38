"""Every image of a data set read once before training: what is broken, double, missing or odd."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Literal, NamedTuple

from frostline.choices import BadImages
from frostline.data.division import without
from frostline.data.image_sets import ImageSet, Sample, Splits
from frostline.data.images import check, check_image, digest_of, look, opened
from frostline.data.kept import KeptFrames, stamp_of
from frostline.data.levels import FULL, Levels, Seen, common_levels, set_text
from frostline.data.listing import is_picture
from frostline.data.ordered import count_threads, ordered_map
from frostline.data.sound import SoundPictures
from frostline.errors import DataError, ImageError
from frostline.units import some_of

FEW_IMAGES = 5
"""A class with fewer training images than this is reported."""
IMBALANCE = 10
"""A largest class of more than this many times the smallest is reported."""
_NAMED = 10  # broken images and classes listed by name
_PAIRS = 5  # images listed by name


@dataclass(frozen=True, slots=True)
class DataFinding:
    """One thing to know before training.

    Attributes:
        level: how grave it is; a note says what is done, and what stops training is raised.
        code: stable name of the kind of finding, for machines.
        message: what was found and what to do, for people.
    """

    level: Literal["warning", "note"]
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Audit:
    """A data set that can be trained on.

    Attributes:
        splits: as given, without the images that cannot be read.
        findings: what to know before training, worst first; empty if nothing is odd.
        digests: content digest (XXH3, 128 bits, hexadecimal) of every file in `splits`.
        levels: what becomes black and white in pictures of more than 8 bits, by those of the train
            split; None where it has none such.
        kept: what was seen of those that were decoded, if it was to be kept.
    """

    splits: Splits
    findings: tuple[DataFinding, ...]
    digests: Mapping[Path, str]
    levels: Levels | None = None
    kept: KeptFrames | None = None

    def contents(self, images: ImageSet) -> tuple[str, ...]:
        """The content digest of each of these samples."""
        return tuple(self.digests[sample.path] for sample in images.samples)


def audit(
    splits: Splits,
    *,
    bad_images: BadImages,
    levels: Levels | None = None,
    prefer_default: bool = False,
    kept: KeptFrames | None = None,
    sound: SoundPictures | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Audit:
    """Read every image once: hash its content, and check that it decodes.

    Args:
        bad_images: what to do about images that cannot be read: leave them out with a warning, or
            refuse the data set.
        levels: as a run has them already, where they are not to be found.
        prefer_default: leave the levels at the default of each type where that holds all values,
            as runs did before they kept levels.
        kept: takes what is seen of pictures, which are decoded for it on the way.
        sound: pictures that were found sound before, of which no more than the content is hashed;
            takes those that are now.
        threads: decoding threads; by default one for each core.
        progress: called in this thread with (images done, images in all) after each image.
    Raises:
        DataError: images cannot be read and `bad_images` is "error"; fewer than two classes; a
            class without a training image that can be read; no validation image; a validation or
            test class that training lacks. One message holds all that was found.
    """
    paths = [sample.path for images in splits.sets.values() for sample in images.samples]
    digests, broken, seen = _read_all(
        paths, partial(_look_and_keep, kept), sound=sound, threads=threads, progress=progress
    )
    if sound is not None:
        sound.write()
    clean = without(splits, broken)
    left_out = [_broken_images(broken, bad_images)] if broken else []
    _refuse_for(
        *(left_out if bad_images == "error" else ()),
        *_errors(splits, clean, {} if bad_images == "error" else broken),
    )
    # What trains, but perhaps not what was meant; worst first.
    alphas = _odd_alphas(seen)
    odd = [
        *_doubles(clean, digests),
        *class_findings(clean.train.counts, clean.val.counts),
        *alphas,
        *_ignored(clean),
    ]
    first = [("broken-image", message) for message in left_out]
    first += [("layout", note) for note in clean.notes]
    findings = [DataFinding("warning", *each) for each in [*first, *odd]]
    if prefer_default and all(one.within(one.usual) for one in seen.values()):
        levels = None
    else:
        trained = (seen[sample.path] for sample in clean.train.samples)
        levels = levels or common_levels(trained) or common_levels(seen.values())
    findings += [DataFinding("note", *each) for each in _values(seen, levels)]
    return Audit(clean, tuple(findings), digests, levels, kept)


def at_a_glance(splits: Splits) -> tuple[str, ...]:
    """What `audit` would warn of, as far as it is seen without reading a picture.

    Raises:
        DataError: as `audit`, likewise.
    """
    _refuse_for(*_errors(splits, splits, {}))
    odd = [*class_findings(splits.train.counts, splits.val.counts), *_ignored(splits)]
    return (*splits.notes, *(message for _, message in odd))


def levels_of(files: Iterable[Path]) -> Levels | None:
    """The levels that `audit` would find if these were the training images."""
    return common_levels(_read_all(files, partial(_look_and_keep, None)).seen.values())


class FilesRead(NamedTuple):
    """Images that were read to their last byte, by path, in the order in which they were given.

    Attributes:
        digests: content digests of those that decode.
        broken: the errors of the others.
        seen: the values of those that decode.
    """

    digests: dict[Path, str]
    broken: dict[Path, ImageError]
    seen: dict[Path, Seen]


def read_files(
    files: Iterable[Path],
    *,
    levels: Levels | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FilesRead:
    """Whether images can be opened by `levels`, which are as for `open_image`.

    Args:
        threads, progress: as for `audit`.
    """

    def read(path: Path, file: BufferedReader) -> Seen:  # noqa: ARG001 - as the other reader
        return check(file, levels)

    return _read_all(files, read, threads=threads, progress=progress)


_Read = Callable[[Path, BufferedReader], Seen]


def _look_and_keep(kept: KeptFrames | None, path: Path, file: BufferedReader) -> Seen:
    if kept is None or kept.is_full:
        return look(file)
    stamp = stamp_of(os.fstat(file.fileno()))
    return look(file, partial(kept.keep, path, stamp), kept.scaling)


def _read_all(
    files: Iterable[Path],
    read: _Read,
    *,
    sound: SoundPictures | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FilesRead:
    paths = list(dict.fromkeys(files))
    found = FilesRead({}, {}, {})
    workers, verdict = count_threads(threads), partial(_verdict, read, sound)
    with closing(ordered_map(verdict, paths, threads=workers, ahead=4 * workers)) as verdicts:
        for done, (path, one) in enumerate(zip(paths, verdicts, strict=True), start=1):
            if isinstance(one, ImageError):
                found.broken[path] = one
            else:
                found.digests[path], found.seen[path] = one
            if progress is not None:
                progress(done, len(paths))
    return found


def _verdict(read: _Read, sound: SoundPictures | None, path: Path) -> tuple[str, Seen] | ImageError:
    try:
        with opened(path) as file:
            digest = digest_of(file)
            if sound is not None and digest in sound:
                return digest, Seen()
            seen = read(path, file)
            if sound is not None and seen == Seen():
                file.seek(0)
                sound.add(digest, file.read(8))
            return digest, seen
    except ImageError as error:
        return error


def _refuse_for(*reasons: str) -> None:
    """Refuse the data set in one message, if there is a reason."""
    if len(reasons) > 1:
        lines = "".join(f"\n- {message}" for message in reasons)
        raise DataError(f"the data set cannot be trained on, for {len(reasons)} reasons:{lines}")
    if reasons:
        raise DataError(reasons[0])


def _broken_images(broken: Mapping[Path, ImageError], bad_images: BadImages) -> str:
    lines = "".join(f"\n  {error}" for error in list(broken.values())[:_NAMED])
    more = f"\n  and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
    do = (
        ". Repair or remove them, or have bad images skipped"
        if bad_images == "error"
        else " and will be left out"
    )
    return f"{_plural(len(broken), 'image', 'images')} cannot be read{do}:{lines}{more}"


def _errors(given: Splits, splits: Splits, broken: Mapping[Path, ImageError]) -> Iterator[str]:
    """What makes training pointless: one class, a class or a split without images, a new class.

    Args:
        given: with the images that cannot be read, for the reasons in `broken`.
    """
    classes = splits.train.classes
    names = some_of(classes, most=_NAMED)
    for unknown in splits.unknown:
        count = _plural(len(unknown.paths), "image", "images")
        yield (
            f"the {unknown.split} split has the class {unknown.name!r} ({count}), which the train "
            f"split lacks (it has {names}). Rename or remove it, or add training images of it."
        )
    if len(classes) < 2 and not splits.train.label_names:
        yield (
            f"there is nothing to tell apart: found {len(classes)} class ({names or 'none'}). "
            "Add a folder for each further class."
        )
    if empty := [name for name, count in splits.train.counts.items() if not count]:
        lost = [s.path for s in given.train.samples if given.train.classes[s.label] in empty]
        why = "".join(f"\n  {broken[path]}" for path in lost[:_NAMED] if path in broken)
        yield (
            f"no usable training images of {some_of(empty, most=_NAMED)}. Add images, or remove "
            f"the class.{why}"
        )
    if not splits.val.samples:
        yield f"no usable image is left to validate on ({splits.how}). Add validation images."


def _doubles(splits: Splits, digests: Mapping[Path, str]) -> Iterator[tuple[str, str]]:
    """The same picture under two labels, or in training and beside it."""
    groups: defaultdict[str, list[tuple[Path, object]]] = defaultdict(list)
    for sample in splits.train.samples:
        if sample.path in digests:
            groups[digests[sample.path]].append((sample.path, _told(sample)))
    twice = [found for found in groups.values() if len({label for _, label in found}) > 1]
    if twice:
        pairs = [" = ".join(str(path) for path, _ in found[:2]) for found in twice]
        yield (
            "label-conflict",
            f"{_plural(len(twice), 'image is', 'images are')} in the train split under different "
            f"labels: {some_of(pairs, most=_PAIRS)}. Remove the wrong one of each.",
        )
    for name, held_out in splits.sets.items():
        shared = [s.path for s in held_out.samples if digests.get(s.path) in groups]
        if shared and name != "train":
            pairs = [f"{groups[digests[path]][0][0]} = {path}" for path in shared]
            verb = "is" if len(pairs) == 1 else "are"
            yield (
                f"train-{name}-overlap",
                f"{_plural(len(pairs), 'image of', 'images of')} the {name} split {verb} in the "
                f"train split as well: {some_of(pairs, most=_PAIRS)}. The metrics will be too "
                "good; remove one of each.",
            )


def _told(sample: Sample) -> object:
    """What a sample is said to be; of masks nothing that could be compared by their files."""
    return sample.target if isinstance(sample.target, tuple) else sample.label


def class_findings(
    train: Mapping[str, int], val: Mapping[str, int], what: str = "images"
) -> Iterator[tuple[str, str]]:
    """Classes that are missing in validation, small, or far larger than others; by their counts."""
    counts = {name: count for name, count in train.items() if count}
    if not counts:
        return  # samples have targets
    missing = [name for name in counts if not val[name]]
    if missing and any(val.values()):
        yield (
            "class-not-in-val",
            f"no validation {what} of {some_of(missing, most=_NAMED)}: "
            "the metrics will say nothing about it. Add some, or hold out a larger part.",
        )
    if few := [f"{name} ({count})" for name, count in counts.items() if count < FEW_IMAGES]:
        yield (
            f"few-{what}",
            f"fewer than {FEW_IMAGES} training {what} of {some_of(few, most=_NAMED)}. Add more if "
            "you can.",
        )
    most = max(counts, key=counts.__getitem__)
    least = min(counts, key=counts.__getitem__)
    if counts[most] > IMBALANCE * counts[least]:
        yield (
            "imbalance",
            f"the classes are far from balanced: {most} has {counts[most]:,} training {what}, "
            f"{least} {counts[least]:,}. Read the metrics per class rather than the accuracy.",
        )


def _ignored(splits: Splits) -> Iterator[tuple[str, str]]:
    every = [path for images in splits.sets.values() for path in images.ignored]
    if loose := [path for path in every if is_picture(path)]:
        yield (
            "no-class",
            f"left out {_plural(len(loose), 'picture', 'pictures')} beside the class folders: "
            f"{some_of(loose, most=_PAIRS)}. Move them into one of them.",
        )
    if ignored := [path for path in every if not is_picture(path)]:
        yield (
            "not-images",
            f"left out {_plural(len(ignored), 'entry that is', 'entries that are')} no image by "
            f"name: {some_of(ignored, most=_PAIRS)}. Convert them if they are pictures.",
        )


def _odd_alphas(seen: Mapping[Path, Seen]) -> Iterator[tuple[str, str]]:
    if odd := [str(path) for path, one in seen.items() if one.odd_alpha]:
        yield (
            "odd-transparency",
            "the band after the colours is said to be transparency in "
            f"{_plural(len(odd), 'image', 'images')}, so it is put on white, but it looks like a "
            f"picture: {some_of(odd, most=_PAIRS)}. Write files without it if it is near infrared.",
        )


def _values(seen: Mapping[Path, Seen], levels: Levels | None) -> Iterator[tuple[str, str]]:
    """What is done about values of more than 8 bits, and about further pages.

    Raises:
        ImageError: what reads colours of 16 bits by these levels is not installed.
    """
    if levels is not None:
        yield "value-range", set_text(seen.values(), levels)
    if levels not in (None, FULL):
        for path in [path for path, one in seen.items() if one.is_coarse][:1]:
            check_image(path, levels)
    if more := [str(path) for path, one in seen.items() if one.more_pages]:
        files = _plural(len(more), "file has", "files have")
        yield (
            "more-pages",
            f"{files} more than one page, of which the first is used: "
            f"{some_of(more, most=_PAIRS)}.",
        )


def _plural(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"
