"""Pictures that Pillow cannot read, or not right: TIFF by tifffile, DICOM, arrays of NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from frostline.data.pixels import RefusedError, Values

MAX_PIXELS = 178_956_970
"""Width times height above which a picture is refused; where Pillow itself stops by default."""


def check_size(width: int, height: int) -> None:
    """Refuse what would fill the memory, by its header.

    Raises:
        RefusedError: it has more than `MAX_PIXELS` pixels.
    """
    if width * height > MAX_PIXELS:
        raise RefusedError(
            f"it has {width} x {height} pixels, more than {MAX_PIXELS:,} "
            "(a decompression bomb, or a scan to be cut into tiles)"
        )


def library(name: str, what: str, extra: str) -> Any:
    """A package that an extra brings, imported when it is first needed.

    Raises:
        RefusedError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise RefusedError(
            f"it is {what}, which needs {name.partition('.')[0]}: pip install 'frostline[{extra}]'"
        ) from error


def array_reader(prefix: bytes) -> Callable[[IO[bytes]], Values] | None:
    """What reads a file that begins so and is no picture to Pillow."""
    if prefix.startswith(b"\x93NUMPY"):
        return _read_numpy
    return _read_dicom if prefix[128:132] == b"DICM" else None


def _read_numpy(file: IO[bytes]) -> Values:
    try:
        array = np.load(file, allow_pickle=False)
    except ValueError as error:
        raise RefusedError(
            f"it is a NumPy file that holds no array of numbers ({error})"
        ) from error
    if array.dtype == np.bool_:
        array = array * np.uint8(255)
    if array.dtype.kind not in "iuf" or array.ndim not in (2, 3) or not array.size:
        shape = " x ".join(map(str, array.shape))
        raise RefusedError(
            f"it is a NumPy array of {array.dtype}, {shape}, and a picture is (height, width) or "
            "(height, width, 3)"
        )
    return _coloured(array.reshape(*array.shape[:2], -1))


def _read_dicom(file: IO[bytes]) -> Values:
    pixels = library("pydicom.pixels", "a DICOM image", "dicom")
    image = library("pydicom", "a DICOM image", "dicom").dcmread(file)
    if "PixelData" not in image:
        raise RefusedError("it is DICOM without a picture")
    check_size(image.Columns, image.Rows)
    try:
        array = pixels.pixel_array(image, index=0)
    except (RuntimeError, NotImplementedError) as error:
        kind = image.file_meta.TransferSyntaxUID.name
        raise RefusedError(f"pydicom cannot decode its {kind} here; decompress it first") from error
    if image.PhotometricInterpretation == "PALETTE COLOR":
        array = pixels.apply_color_lut(array, image)
    elif image.SamplesPerPixel == 1:
        array = pixels.apply_modality_lut(array, image)
    return Values(
        array,
        is_negative=image.PhotometricInterpretation == "MONOCHROME1",
        more_pages=int(image.get("NumberOfFrames") or 1) > 1,
    )


def _coloured(bands: NDArray[Any], alpha: NDArray[Any] | None = None, **about: Any) -> Values:
    """Values `(height, width, bands)` as grey, or as the colours that the first three are.

    Args:
        alpha: transparency, as it is stored.
        about: what else `Values` hold.
    Raises:
        RefusedError: there are 2 bands, or more than 4.
    """
    _check_bands(bands.shape[2])
    pixels = bands[..., 0] if bands.shape[2] == 1 else bands[..., :3]
    if alpha is not None:
        opaque = np.iinfo(alpha.dtype).max if alpha.dtype.kind in "iu" else 1
        alpha = alpha.astype(np.float32) / opaque
    return Values(pixels, alpha=alpha, **about)


def _check_bands(count: int, beside: str = "") -> None:
    if count not in (1, 3, 4):
        raise RefusedError(
            f"it has {count} bands{beside}, and frostline takes 1, 3 or 4: write the three to use "
            "to a new file"
        )


_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _ORIENTATION = 256, 257, 258, 259, 262, 274
_SAMPLES, _PLANAR, _EXTRAS, _FORMAT, _SUBFILE = 277, 284, 338, 339, 254
_GREY, _RGB = (0, 1), 2  # photometric: white is zero, black is zero
_OTHER_COLOURS = {
    3: "a palette",
    5: "CMYK",
    6: "YCbCr",
    **dict.fromkeys((8, 9, 10), "LAB"),
    32803: "the mosaic of a raw camera",
}


@dataclass(frozen=True, slots=True)
class TiffLayout:
    """How the first picture of a TIFF is stored.

    Attributes:
        size: width and height.
        bits: most bits of a sample.
        kind: `u`, `i`, `f` or `c`, as NumPy has it for types.
        samples: of a pixel.
        photometric: as the tag has it.
        planar: whether each band lies for itself.
        extras: what the samples after the colours are: 1 and 2 are transparency.
        orientation: as EXIF numbers it.
        swapped: whether it is compressed and big-endian.
        next: where the next page begins; 0 if there is none.
    """

    size: tuple[int, int]
    bits: int
    kind: str
    samples: int
    photometric: int
    planar: bool
    extras: tuple[int, ...]
    orientation: int
    swapped: bool
    next: int

    @classmethod
    def of(cls, file: IO[bytes]) -> Self:
        """Read the tags of the first page.

        Raises:
            Exception: of any kind, as Pillow raises them on damaged tags.
        """
        tags = _tags(file)
        samples, bits = int(tags.get(_SAMPLES, 1)), tags.get(_BITS, (1,))
        return cls(
            size=(int(tags[_WIDTH]), int(tags[_HEIGHT])),
            bits=max(bits),
            kind={1: "u", 2: "i", 3: "f", 4: "u"}.get(max(tags.get(_FORMAT, (1,))), "c"),
            samples=samples,
            photometric=int(tags.get(_PHOTOMETRIC, 0)),
            planar=tags.get(_PLANAR, 1) == 2,
            extras=tuple(tags.get(_EXTRAS, ())),
            orientation=int(tags.get(_ORIENTATION, 1)),
            swapped=tags.prefix == b"MM" and tags.get(_COMPRESSION, 1) != 1,
            next=tags.next,
        )

    @property
    def is_right_in_pillow(self) -> bool:
        """Whether Pillow, if it takes the file, gives the values that are stored.

        Measured with Pillow 13.0 against tifffile on all types, photometrics and band counts.
        """
        if self.kind != "u" or self.bits > 16:
            return self.samples == 1 and self.bits in (16, 32) and not (self.swapped or self.planar)
        if self.photometric == _RGB:
            # A band of which nothing is said would be taken for transparency.
            is_said = len(self.extras) == self.samples - 3 <= 3
            return is_said and not (self.planar and (self.extras or self.bits > 8))
        if self.samples > 1 and self.photometric in _GREY:
            # Of other bands than transparency Pillow takes the first without a word.
            return self.extras in ((1,), (2,)) and not self.planar
        return self.bits <= 8 or not self.planar

    @property
    def is_read_as_before(self) -> bool:
        """Whether the first releases, which left all TIFF to Pillow, gave what is given now."""
        return self.is_right_in_pillow and not (self.bits > 8 and self.photometric == 0)

    @property
    def is_deep_colour(self) -> bool:
        """Whether Pillow, if it is right, gives no more than the high bytes."""
        return self.photometric == _RGB and self.bits == 16

    @property
    def alpha_at(self) -> int | None:
        """Which sample is transparency; None where none is."""
        before = 3 if self.photometric == _RGB else 1
        return next((before + i for i, kind in enumerate(self.extras) if kind in (1, 2)), None)

    def check_readable(self) -> None:
        """Refuse what no reader makes a picture of, by its true reason.

        Raises:
            RefusedError: colours or numbers that have no agreed way to RGB, or a wrong number of
                bands.
        """
        if self.kind == "c":
            raise RefusedError("its values are neither integers nor floats")
        if self.photometric not in (*_GREY, _RGB):
            found = _OTHER_COLOURS.get(self.photometric, f"photometric {self.photometric}")
            raise RefusedError(
                f"its colours are stored as {found} in {self.bits} bits; save it as RGB"
            )
        if self.photometric != _RGB:  # which says what the first three are, whatever follows
            clear = self.alpha_at is not None
            _check_bands(self.samples - clear, " beside transparency" * clear)


def _tags(file: IO[bytes], at: int | None = None) -> ImageFileDirectory_v2:
    file.seek(0)
    header = file.read(8)
    tags = ImageFileDirectory_v2(header + file.read(8) if header[2] == 43 else header)
    file.seek(tags.next if at is None else at)
    tags.load(file)
    return tags


def has_more_pages(file: IO[bytes], layout: TiffLayout) -> bool:
    """Whether pages follow the first one; smaller copies and masks of it are none."""
    place, seen = layout.next, set[int]()
    try:
        while place and place not in seen:
            seen.add(place)
            tags = _tags(file, place)
            if not int(tags.get(_SUBFILE, 0)) & 5:  # 1: reduced, 4: a mask
                return True
            place = tags.next
    except Exception:  # the page that is read is sound, whatever is behind it
        return False
    return False


def read_tiff(file: IO[bytes], layout: TiffLayout) -> Values:
    """The first page of a TIFF, by tifffile.

    Raises:
        RefusedError: tifffile is not installed, or it is no picture of grey or RGB.
        Exception: of any kind, on damaged files.
    """
    layout.check_readable()
    check_size(*layout.size)
    numbers = {"u": "", "i": "signed ", "f": "float "}[layout.kind]
    what = f"a TIFF of {layout.samples} x {layout.bits} {numbers}bits" + ", in planes" * (
        layout.planar and layout.samples > 1
    )
    tifffile = library("tifffile", what, "tiff")
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        page = tiff.pages.first
        if page.imagedepth > 1:
            raise RefusedError(
                f"it is a volume of {page.imagedepth} layers; write one to a new file"
            )
        array = page.asarray(maxworkers=1)  # pictures are read beside each other
    if array.ndim == 3 and layout.planar:
        array = np.moveaxis(array, 0, -1)
    array, alpha = array.reshape(*array.shape[:2], -1), None
    if layout.alpha_at is not None:
        alpha, array = array[..., layout.alpha_at], np.delete(array, layout.alpha_at, axis=2)
    return _coloured(
        array[..., :3] if layout.photometric == _RGB else array,
        alpha,
        premultiplied=1 in layout.extras,
        is_negative=layout.photometric == 0,
        orientation=layout.orientation,
    )


def read_png(file: IO[bytes]) -> Values:
    """A PNG of 16 bits a channel, of which Pillow gives the high bytes, by imagecodecs.

    Raises:
        RefusedError: imagecodecs is not installed.
        Exception: of any kind, on damaged files.
    """
    what = "a colour PNG of 16 bits whose range is narrower"
    decode = library("imagecodecs", what, "tiff").png_decode
    file.seek(0)
    array = decode(file.read())
    if array.shape[2] == 3:
        return _coloured(array)
    return _coloured(array[..., :-1], array[..., -1])  # the last is transparency
