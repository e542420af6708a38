"""Every image of a data set read once before training: what is broken, double, missing or odd."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import xxhash

from frostline._files import file_digest
from frostline.choices import BadImages
from frostline.data.findings import Finding, find_errors, find_oddities
from frostline.data.image_sets import ImageSet, Splits
from frostline.data.images import check_content, check_image, opened
from frostline.data.ordered import count_threads, ordered_map
from frostline.errors import DataError, ImageError

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
    findings: tuple[Finding, ...]
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


def _broken_finding(broken: Mapping[Path, ImageError], bad_images: BadImages) -> list[Finding]:
    if not broken:
        return []
    lines = "".join(f"\n  {error}" for error in list(broken.values())[:_NAMED])
    more = f"\n  and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
    what = "1 image cannot be read" if len(broken) == 1 else f"{len(broken)} images cannot be read"
    if bad_images == "error":
        message = f"{what}. Mend or remove them, or have bad images skipped:{lines}{more}"
        return [Finding("error", "broken-image", message)]
    message = f"{what} and will be left out:{lines}{more}"
    return [Finding("warning", "broken-image", message)]


def _one_message(errors: list[str]) -> str:
    if len(errors) == 1:
        return errors[0]
    lines = "".join(f"\n- {message}" for message in errors)
    return f"the data set cannot be trained on, for {len(errors)} reasons:{lines}"
