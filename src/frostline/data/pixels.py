"""Pixels of any of Pillow's modes -> upright 8-bit RGB, however a file stores them."""

from __future__ import annotations

import re
import struct
from typing import Any

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

_PLAIN = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"})


def to_rgb(image: Image.Image) -> Image.Image:
    """The loaded `image` in mode RGB, 8 bits a channel.

    Grey of 16 or more bits is scaled: 0..65535 to 0..255 where the values fit that range, else
    their own range to 0..255. Floats take the smallest of 0..1, 0..255 and 0..65535 that holds
    them, else their own range; NaN becomes black.

    Raises:
        ValueError: a mode that has no agreed way to RGB, such as LAB.
    """
    if image.mode.startswith("I") or image.mode == "F":
        return _grey(image).convert("RGB")
    if image.has_transparency_data:
        return _on_white(image)
    if image.mode not in _PLAIN:
        raise ValueError(f"its pixels are stored as {image.mode}; save it as RGB")
    return image.convert("RGB")


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


def _grey(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if values.dtype.kind == "f":
        return Image.fromarray(_scaled(values, *_float_range(values)))
    if values.size and (values.min() < 0 or values.max() > 65535):
        return Image.fromarray(_scaled(values, int(values.min()), int(values.max())))
    levels = np.round(np.arange(65536) / 257).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int) and 0 <= transparent < 65536:
        levels[transparent] = 255  # the one level that a 16-bit PNG calls transparent, on white
    return Image.fromarray(levels[values])


def _float_range(values: np.ndarray[Any, np.dtype[Any]]) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    for usual in (1.0, 255.0, 65535.0):
        if low >= 0 and high <= usual:
            return 0.0, usual
    return low, high


def _scaled(
    values: np.ndarray[Any, np.dtype[Any]], low: float, high: float
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    known = np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low)
    levels: np.ndarray[Any, np.dtype[Any]] = (known - low) * (255 / ((high - low) or 1.0))
    return np.round(levels).astype(np.uint8)


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


def upright(image: Image.Image, *, by: Image.Image) -> Image.Image:
    """`image` turned and mirrored as the metadata of the loaded `by` ask for.

    Never fails: a damaged or missing tag means the picture is upright as stored.
    """
    if by.format == "TIFF":
        return image  # Pillow turns a TIFF itself when it loads it
    value = _from_exif(_exif_block(by))
    if value is None:
        value = _from_xmp(by)
    return image.transpose(_TURNS[value]) if value in _TURNS else image


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
