"""One picture file -> one upright 8-bit RGB image, or an ImageError with file and reason."""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO

from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile

from frostline.data.pixels import to_rgb, upright
from frostline.errors import ImageError

IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".bmp", ".dib", ".tif"),
        *(".tiff", ".webp", ".avif", ".heic", ".heif", ".jp2", ".j2k", ".jpx", ".jxl", ".ico"),
        *(".pbm", ".pgm", ".ppm", ".pnm", ".pcx", ".qoi", ".sgi"),
    }
)
"""Lower-case endings of the files that count as pictures; HEIF and JXL need a Pillow plugin."""

MAX_PIXELS = 178_956_970
"""Width times height above which a picture is refused; where Pillow itself stops by default."""


def open_image(path: Path) -> Image.Image:
    """Decode a picture: mode RGB, 8 bits, turned as its EXIF orientation says.

    Transparency is put on white, 16-bit grey is scaled from 0..65535, and of an animation the
    first frame is taken. Safe to call from several threads; no setting of Pillow is changed.

    Raises:
        ImageError: the file is missing, a folder, empty, no picture, truncated or broken, or has
            more than `MAX_PIXELS` pixels.
    """
    with opened(path) as file:
        return _decode(file)


def check_image(path: Path) -> None:
    """Raise what `open_image` would raise, at a fraction of its cost for JPEG.

    Raises:
        ImageError: as `open_image`.
    """
    with opened(path) as file:
        check(file)


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


def _decode(file: IO[bytes]) -> Image.Image:
    image = _identify(file)
    _load(image)
    try:
        return upright(to_rgb(image), by=image)
    except ValueError as error:
        raise _BadImageError(str(error)) from error


def check(file: IO[bytes]) -> None:
    """As `check_image`; within `opened`, which names the file in the error."""
    image = _identify(file)
    if isinstance(image, _Jpeg):
        # At an eighth of its size a JPEG is still read to its last byte, but hardly computed.
        image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
        try:
            _load(image)
            return
        except _BadImageError:
            pass  # the full decode below has the last word, and gives the reason
    _decode(file)


def _identify(file: IO[bytes]) -> ImageFile:
    """The picture with only its header read.

    The same search as `Image.open`, without its warning above half of `MAX_PIXELS`: a warning can
    only be silenced for all threads at once.
    """
    file.seek(0)
    prefix = file.read(16).ljust(16, b"\0")  # readers unpack it without asking for its length
    reason = _no_picture(prefix)
    for name, factory in _candidates(prefix):
        if isinstance(factory, str):
            reason = factory
            continue
        file.seek(0)
        try:
            image = factory(file, "")
        except (SyntaxError, IndexError, TypeError, struct.error) as error:
            reason = f"its {name} header is broken ({error})"
            continue
        except Exception as error:
            raise _BadImageError(_broken(error)) from error
        if image.width * image.height > MAX_PIXELS:
            raise _BadImageError(
                f"it has {image.width} x {image.height} pixels, more than {MAX_PIXELS:,} "
                "(a decompression bomb, or a scan to be cut into tiles)"
            )
        return image
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


def _load(image: ImageFile) -> None:
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise anything on a broken file
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
        return "it is a HEIF photo or a video, which this Pillow cannot read; convert it to JPEG"
    return "it is not an image in a format that Pillow can read"
