"""Pixels of any of Pillow's modes, or values of any type -> upright 8-bit RGB."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from frostline.data.levels import FULL, Kind, Levels, Seen, outside_text


class RefusedError(ValueError):
    """Why a sound picture is refused."""


_PLAIN = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"})


@dataclass(frozen=True, slots=True)
class Values:
    """A picture as a file stores it.

    Attributes:
        pixels: grey `(height, width)` or colours `(height, width, 3)`, of any type of numbers.
        is_negative: whether the least value is white.
        alpha: `(height, width)`, 0 where the picture is transparent to 1; None where it nowhere is.
        premultiplied: whether the colours are multiplied by `alpha` already.
        orientation: as EXIF numbers it.
        more_pages: whether the file has pages after this one.
    """

    pixels: NDArray[Any]
    is_negative: bool = False
    alpha: NDArray[np.floating] | None = None
    premultiplied: bool = False
    orientation: int = 1
    more_pages: bool = False

    def seen(self) -> Seen:
        """What levels depend on."""
        odd = self.alpha is not None and _is_mostly_partial(self.alpha, 1)
        if self.pixels.dtype == np.uint8:
            return Seen(more_pages=self.more_pages, odd_alpha=odd)
        kind: Kind = "float" if self.pixels.dtype.kind == "f" else "integer"
        known = self.pixels[np.isfinite(self.pixels)] if kind == "float" else self.pixels
        low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
        return Seen(kind, low, high, more_pages=self.more_pages, odd_alpha=odd)


def to_rgb(image: Image.Image, levels: Levels | None = None) -> Image.Image:
    """The loaded `image` in mode RGB, 8 bits a channel; itself where it is so already.

    Args:
        levels: as for `rgb_of`, which takes grey of 16 or more bits; other modes have 8.
    Raises:
        RefusedError: a mode that has no agreed way to RGB, such as LAB; or as `rgb_of`.
    """
    if (values := deep_grey(image)) is not None:
        return rgb_of(values, levels)
    if image.has_transparency_data:
        return _on_white(image)
    if image.mode not in _PLAIN:
        raise RefusedError(f"its pixels are stored as {image.mode}; save it as RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    transparent = image.info.get("transparency")
    if isinstance(transparent, tuple) and max(transparent) > 255:
        # A PNG of 16 bits a channel: Pillow keeps the high bytes of the pixels, not of this colour.
        image.info["transparency"] = tuple(level >> 8 for level in transparent)
    if image.mode == "La":
        image = image.convert("LA")
    clear = image.convert("RGBA")
    paper = Image.new("RGB", clear.size, "white")
    paper.paste(clear, mask=clear.getchannel("A"))
    return paper


_PHOTOMETRIC, _SAMPLE_FORMAT = 262, 339  # tags of a TIFF


def deep_grey(image: Image.Image) -> Values | None:
    """The values of a loaded image of grey in 16 or more bits; None of any other."""
    if not (image.mode.startswith("I") or image.mode == "F"):
        return None
    values, is_negative = np.asarray(image), False
    if isinstance(image, TiffImageFile):
        is_negative = image.tag_v2.get(_PHOTOMETRIC) == 0
        if image.mode == "I" and image.tag_v2.get(_SAMPLE_FORMAT, (1,)) == (1,):
            values = values.view(np.uint32)  # which Pillow has no mode for
    transparent = image.info.get("transparency")  # the one level that a PNG calls so
    alpha = (values != transparent).astype(np.float32) if isinstance(transparent, int) else None
    return Values(values, is_negative, alpha)


def high_bytes(image: Image.Image) -> Seen:
    """What levels depend on, by colours of 16 bits of which Pillow gave the high bytes."""
    found = np.asarray(image.convert("RGB"))
    low, high = int(found.min()), int(found.max())
    return Seen("integer", 256 * low, 256 * high + 255, is_coarse=True)


def looks_like_a_band(image: Image.Image) -> bool:
    """Whether the transparency of a picture is partial in most of it, as another band would be."""
    return image.mode == "RGBA" and _is_mostly_partial(np.asarray(image.getchannel("A")), 255)


def _is_mostly_partial(alpha: NDArray[Any], opaque: int) -> bool:
    return bool(np.mean((alpha > 0) & (alpha < opaque)) > 0.5)


def rgb_of(values: Values, levels: Levels | None = None) -> Image.Image:
    """The picture in mode RGB, transparency put on white; not turned.

    Args:
        levels: what becomes black and what white where the values have more than 8 bits; by default
            0..65535 for integers and 0..1 for floats. NaN becomes black.
    Raises:
        RefusedError: values lie beyond the default.
    """
    pixels = values.pixels
    if pixels.dtype != np.uint8:
        if levels is None:
            levels = (seen := values.seen()).usual
            if not seen.within(levels):
                raise RefusedError(outside_text(seen))
        pixels = _scaled(pixels, levels)
    if values.is_negative:
        pixels = 255 - pixels
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    if values.alpha is not None:
        shown = values.alpha[..., None].astype(np.float64)
        colours = pixels if values.premultiplied else pixels * shown
        pixels = np.round(np.minimum(colours + 255 * (1 - shown), 255)).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels))


def _scaled(pixels: NDArray[Any], levels: Levels) -> NDArray[np.uint8]:
    if pixels.dtype.newbyteorder("=") == np.uint16:
        if pixels.ndim == 3 and levels == FULL:
            return np.asarray(pixels >> 8, np.uint8)  # as Pillow reads colours of 16 bits
        return np.asarray(_table(*levels)[pixels])
    return _in_bytes(pixels, *levels)


@lru_cache(maxsize=4)
def _table(low: float, high: float) -> NDArray[np.uint8]:
    """What each of 65536 levels becomes: looked up in a fraction of the time of computing it."""
    return _in_bytes(np.arange(65536), low, high)


def _in_bytes(pixels: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    known = np.nan_to_num(pixels.astype(np.float64), nan=low, posinf=high, neginf=low)
    parts = (known - low) * (255 / (high - low))
    return np.round(np.clip(parts, 0, 255)).astype(np.uint8)


_ORIENTATION = 0x0112
_FORMS = {3: "H", 4: "I"}  # a short or a long number
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = (5, 6, 7, 8)


def upright(image: Image.Image, *, by: Image.Image) -> Image.Image:
    """`image` turned and mirrored as the metadata of `by` ask for."""
    return turned(image, orientation_of(by))


def orientation_of(image: Image.Image) -> int | None:
    """How a picture is to be turned, as EXIF numbers it, by its metadata; its pixels may be unread.

    Never fails: a damaged or missing tag means the picture is upright as stored.
    """
    if image.format == "TIFF":
        return None  # Pillow turns a TIFF itself when it loads it
    value = _from_exif(_exif_block(image))
    return _from_xmp(image) if value is None else value


def upright_size(size: tuple[int, int], orientation: int | None) -> tuple[int, int]:
    """Width and height of a picture of `size` once it is turned."""
    return (size[1], size[0]) if orientation in _ON_ITS_SIDE else size


def turned(image: Image.Image, orientation: int | None) -> Image.Image:
    """`image` turned and mirrored by a value of the EXIF orientation; as it is by any other."""
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _exif_block(image: Image.Image) -> bytes:
    block = image.info.get("exif")
    if isinstance(block, bytes):
        return block
    text = image.info.get("Raw profile type exif")  # as ImageMagick writes it into a PNG
    if not isinstance(text, str):
        return b""
    try:
        return bytes.fromhex("".join(text.split("\n")[3:]))
    except ValueError:
        return b""


def _from_exif(block: bytes) -> int | None:
    """The tag's value in the first directory of a TIFF-structured block."""
    block = block.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(f"{order}I", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", block, entry)
            if tag == _ORIENTATION and kind in _FORMS:
                return int(struct.unpack_from(order + _FORMS[kind], block, entry + 8)[0])
    except struct.error:
        return None  # cut off or pointing outside itself
    return None


def _from_xmp(image: Image.Image) -> int | None:
    xmp = image.info.get("XML:com.adobe.xmp") or image.info.get("xmp")
    if xmp is None and isinstance(image, JpegImageFile):  # needed below Pillow 11
        xmp = b"".join(content for _, content in image.applist if content.startswith(_XMP))
    if isinstance(xmp, str):
        xmp = xmp.encode(errors="replace")
    if not isinstance(xmp, bytes):
        return None
    match = re.search(rb'tiff:Orientation(?:="|>)([0-9])', xmp)
    return int(match[1]) if match else None
