"""One picture file -> one upright 8-bit RGB image, or an ImageError with file and reason."""

from __future__ import annotations

import hashlib
import math
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import IO, NamedTuple, final

import xxhash
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile

from frostline.data.arrays import (
    TiffLayout,
    array_reader,
    check_size,
    has_more_pages,
    library,
    read_png,
    read_tiff,
)
from frostline.data.levels import FULL, Levels, Seen, outside_text
from frostline.data.pixels import (
    RefusedError,
    Values,
    deep_grey,
    high_bytes,
    looks_like_a_band,
    orientation_of,
    rgb_of,
    to_rgb,
    turned,
    upright,
    upright_size,
)
from frostline.errors import ImageError

IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".bmp", ".dib", ".tif"),
        *(".tiff", ".webp", ".avif", ".heic", ".heif", ".jp2", ".j2k", ".jpx", ".jxl", ".ico"),
        *(".pbm", ".pgm", ".ppm", ".pnm", ".pcx", ".qoi", ".sgi", ".dcm", ".dicom"),
    }
)
"""Lower-case endings of the files that count as pictures; HEIF and DICOM need an extra, JXL a
Pillow plugin. A `.npy` may hold anything, so it counts only where it is named."""


def open_image(path: Path, levels: Levels | None = None) -> Image.Image:
    """Decode a picture: mode RGB, 8 bits, turned as its EXIF orientation says.

    Transparency is put on white, and of an animation or a stack the first picture is taken. Safe to
    call from several threads; no setting of Pillow is changed.

    Args:
        levels: the values that become black and white where there are more than 8 bits, the same
            for all pictures that are compared. By default the ends of the type: 0..65535 for
            integers, 0..1 for floats. NaN becomes black.
    Raises:
        ImageError: the file is missing, a folder, empty, no picture, truncated or broken, has more
            than `MAX_PIXELS` pixels, needs an extra that is not installed, or has values beyond the
            default where no levels are given.
    """
    with opened(path) as file:
        image = _decode(file, levels).image
    return image.copy() if isinstance(image, ImageFile) else image


@final
@dataclass(frozen=True, slots=True)
class Decoded:
    """A picture as it was decoded.

    Attributes:
        image: mode RGB, upright; not to be written into or saved.
        size: width and height of the whole picture, upright.
        scale: by how much `image` is smaller in width and in height; a part of a pixel that is left
            over is its last column or row.
        is_jpeg: whether it is a JPEG.
    """

    image: Image.Image
    size: tuple[int, int]
    scale: int = 1
    is_jpeg: bool = False


Scaling = Callable[[tuple[int, int]], int]
"""Width and height of a picture -> by what they may be divided: 1, 2, 4 or 8."""


def decode_scaled(path: Path, levels: Levels | None, scaling: Scaling) -> Decoded:
    """As `open_image`, but a JPEG may come smaller: its blocks are computed in so many pixels less.

    A JPEG that is turned comes smaller only where its sides are multiples, so that what is left
    over of a pixel lies at the end.

    Raises:
        ImageError: as `open_image`.
    """
    with opened(path) as file:
        return _decode(file, levels, scaling)


class Header(NamedTuple):
    """What the beginning of a file says of its picture; width and height are those upright."""

    size: tuple[int, int]
    is_jpeg: bool


def header_of(path: Path) -> Header:
    """The header of a picture; of values in an array, which have none, they are read.

    Raises:
        ImageError: it is none that Pillow reads, as far as the header says.
    """
    with opened(path) as file:
        image = _identify(file)
        if isinstance(image, Values):
            height, width = image.pixels.shape[:2]
            return Header(upright_size((width, height), image.orientation), is_jpeg=False)
        size = upright_size(image.size, orientation_of(image))
        return Header(size, isinstance(image, _Jpeg))


def check_image(path: Path, levels: Levels | None = None) -> None:
    """Raise what `open_image` would raise, at a fraction of its cost for JPEG.

    Raises:
        ImageError: as `open_image`.
    """
    with opened(path) as file:
        check(file, levels)


@contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """A regular file with content, opened; why it is none, or no picture, becomes an ImageError."""
    try:
        try:
            found = path.stat()
            if stat.S_ISDIR(found.st_mode):
                raise _BadImageError("it is a folder")
            if not stat.S_ISREG(found.st_mode):
                raise _BadImageError("it is no regular file")  # reading a pipe would wait for ever
            if found.st_size == 0:
                raise _BadImageError("it has zero bytes")
            file = path.open("rb")
        except FileNotFoundError as error:
            raise _BadImageError("there is no such file") from error
        except OSError as error:
            raise _BadImageError(error.strerror or str(error)) from error
        with file:
            yield file
    except _BadImageError as refusal:
        raise ImageError(
            f"cannot read the image {path}: {refusal}. Replace or remove the file."
        ) from refusal.__cause__


class _BadImageError(Exception):
    """Why a picture is refused; becomes an ImageError where the path is known."""


class _Jpeg(JpegImageFile):
    """A JPEG read as a single picture and without its resolution.

    Pillow's own factory looks into the EXIF block for the dots per inch and into the MPO index for
    further pictures, and warns about damage in either; neither matters to the pixels.
    """

    def getexif(self) -> Image.Exif:
        """No EXIF, so that nothing looks into it; `orientation` reads what is needed."""
        return Image.Exif()


_Factory = Callable[[IO[bytes], str], ImageFile]

# Tried in this order. Not EPS (starts Ghostscript) and nothing without a signature in its first
# bytes, which would be guessed into any file. HEIF and JXL exist only if a plugin is installed.
_FORMATS = (
    *("PNG", "GIF", "BMP", "DIB", "PPM", "TIFF", "WEBP", "AVIF", "JPEG2000"),
    *("ICO", "PCX", "QOI", "SGI", "HEIF", "JXL"),
)
_HEIF = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _decode(file: IO[bytes], levels: Levels | None, scaling: Scaling | None = None) -> Decoded:
    image = _identify(file, levels)
    if scaling is not None and isinstance(image, _Jpeg):
        with suppress(_BadImageError):  # the full decode has the last word, and gives the reason
            if scaled := _scaled(image, scaling):
                return scaled
        image = _identify(file, levels)
    with _refusals():
        if isinstance(image, Values):
            found = turned(rgb_of(image, levels), image.orientation)
        else:
            image.load()
            found = upright(to_rgb(image, levels), by=image)
    return Decoded(found, found.size, is_jpeg=isinstance(image, _Jpeg))


def _scaled(image: _Jpeg, scaling: Scaling) -> Decoded | None:
    """A JPEG in fewer pixels; None where it is to have all."""
    stored, orientation = image.size, orientation_of(image)
    size = upright_size(stored, orientation)
    scale = scaling(size)
    if orientation not in (None, 1):
        scale = math.gcd(scale, *stored)
    if scale == 1:
        return None
    with _refusals():
        if image.draft(None, (stored[0] // scale, stored[1] // scale)) is None:
            return None
        image.load()
        return Decoded(upright(to_rgb(image), by=image), size, scale, is_jpeg=True)


def check(file: IO[bytes], levels: Levels | None) -> Seen:
    """As `check_image`, within `opened`; what was seen of the values."""
    seen = look(file)
    if seen.is_coarse and levels not in (None, FULL):
        _decode(file, levels)  # by another reader than Pillow
    elif levels is None and not seen.within(seen.usual):
        raise _BadImageError(outside_text(seen))
    return seen


def digest_of(file: BufferedReader) -> str:
    """Of its content, within `opened`: XXH3, 128 bits, in hexadecimal digits."""
    with _refusals():
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


Take = Callable[[Decoded], object]
"""Takes a picture that was decoded on the way."""


def look(file: IO[bytes], take: Take | None = None, scaling: Scaling | None = None) -> Seen:
    """Read a picture, within `opened`, to its last byte; whatever levels it will be given.

    Args:
        take: called with the picture where it has 8 bits, so that levels say nothing of it.
        scaling: by what a JPEG is divided that is taken; without one it is not taken, and read as
            cheaply as it can be.
    """
    image = _identify(file)
    if isinstance(image, _Jpeg):
        with suppress(_BadImageError):  # the full decode has the last word, and gives the reason
            if take is None or scaling is None:
                return _read_through(image)
            if scaled := _scaled(image, scaling):
                take(scaled)
                return Seen()
        image = _identify(file)
    layout = _tiff_layout(file)
    with _refusals():
        if isinstance(image, Values):
            seen = image.seen()
        else:
            seen = _seen_by_pillow(image, file, layout, take)
    return replace(seen, more_pages=True) if layout and has_more_pages(file, layout) else seen


def _read_through(image: _Jpeg) -> Seen:
    """At an eighth of its size a JPEG is still read to its last byte, but hardly computed."""
    image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
    with _refusals():
        image.load()
    return Seen()


def _seen_by_pillow(
    image: ImageFile, file: IO[bytes], layout: TiffLayout | None, take: Take | None
) -> Seen:
    image.load()
    if (grey := deep_grey(image)) is not None:
        return grey.seen()
    found, is_deep = to_rgb(image), _is_deep_colour(file, layout)
    seen = high_bytes(image) if is_deep else Seen()
    if take is not None and not is_deep:
        whole = upright(found, by=image)
        take(Decoded(whole, whole.size, is_jpeg=isinstance(image, _Jpeg)))
    return replace(seen, odd_alpha=layout is not None and looks_like_a_band(image))


def _tiff_layout(file: IO[bytes]) -> TiffLayout | None:
    """Of a TIFF; None where Pillow has the say, as it has on damage."""
    file.seek(0)
    if file.read(4) not in _TIFF:
        return None
    try:
        return TiffLayout.of(file)
    except Exception:  # Pillow's readers raise anything on a broken file
        return None


def _is_deep_colour(file: IO[bytes], layout: TiffLayout | None) -> bool:
    """Whether it has colours of 16 bits, of which Pillow gives the high bytes."""
    if layout is not None:
        return layout.is_deep_colour
    file.seek(0)
    start = file.read(26)
    return start.startswith(b"\x89PNG") and start[24] == 16 and start[25] in (2, 4, 6)


def reading_of(path: Path) -> str:
    """What of a file's reading its content does not tell: whether features of before are wrong.

    Raises:
        OSError: there is no such file.
    """
    if path.suffix.lower() not in (".tif", ".tiff"):
        return ""
    with path.open("rb") as file:
        layout = _tiff_layout(file)
    return "" if layout is None or layout.is_read_as_before else " by its values"


def _identify(file: IO[bytes], levels: Levels | None = None) -> ImageFile | Values:
    """The picture: Pillow's, with only its header read, or the values where it is not Pillow's.

    The same search as `Image.open`, without its warning above half of `MAX_PIXELS`: a warning can
    only be silenced for all threads at once.
    """
    file.seek(0)
    prefix = file.read(132).ljust(16, b"\0")  # readers unpack it without asking for its length
    file.seek(0)
    with _refusals():
        if reader := array_reader(prefix):
            return reader(file)
        layout = _tiff_layout(file)
        fine = levels not in (None, FULL) and _is_deep_colour(file, layout)
        if layout and (fine or not layout.is_right_in_pillow):
            return read_tiff(file, layout)
        reason = _no_picture(prefix)
        for name, factory in _candidates(prefix):
            if isinstance(factory, str):
                reason = factory
                continue
            file.seek(0)
            try:
                image = factory(file, "")
            except (SyntaxError, IndexError, TypeError, struct.error) as error:
                if layout:
                    return read_tiff(file, layout)
                reason = f"its {name} header is broken ({error})"
                continue
            check_size(image.width, image.height)
            return read_png(file) if fine else image
    raise _BadImageError(reason)


def _candidates(prefix: bytes) -> Iterator[tuple[str, _Factory | str]]:
    """Format name and what makes an image of it, or the text why this Pillow cannot."""
    if prefix.startswith(b"\xff\xd8\xff"):
        yield "JPEG", _Jpeg
        return
    Image.preinit()
    Image.init()
    for name in _FORMATS:
        if name not in Image.OPEN:
            continue
        factory, accept = Image.OPEN[name]
        verdict = accept is not None and accept(prefix)
        if verdict:
            yield name, verdict if isinstance(verdict, str) else factory
    if _is_heif(prefix) and "HEIF" not in Image.OPEN:
        yield "HEIF", library("pillow_heif", "a HEIF photo", "heif").HeifImageFile


def _is_heif(prefix: bytes) -> bool:
    return prefix[4:8] == b"ftyp" and prefix[8:12] in _HEIF


@contextmanager
def _refusals() -> Iterator[None]:
    """Whatever readers raise becomes the reason why the picture is refused."""
    try:
        yield
    except (MemoryError, _BadImageError):
        raise
    except RefusedError as refusal:
        raise _BadImageError(str(refusal)) from refusal
    except Exception as error:  # readers raise anything on a broken file
        raise _BadImageError(_broken(error)) from error


def _broken(error: Exception) -> str:
    text = str(error) or type(error).__name__
    if "truncated" in text.lower():
        return f"it is truncated ({text})"
    return f"its data are broken ({text})"


def _no_picture(prefix: bytes) -> str:
    if prefix.startswith(b"version https://"):
        return "it is a Git LFS pointer, not the picture; run 'git lfs pull'"
    if prefix.lstrip().startswith(b"<"):
        return "it is not an image but HTML, XML or SVG text"
    if prefix[4:8] == b"ftyp":
        if prefix[8:12] in (b"avif", b"avis"):
            return "it is an AVIF picture, which Pillow reads from 11.3: pip install -U Pillow"
        return "it is a video; extract the pictures to be used"
    return "it is not an image in a format that Pillow can read"
