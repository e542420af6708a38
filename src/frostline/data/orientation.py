"""Which way up a photo is: the orientation tag of its EXIF or XMP block, read without warnings.

Pillow's own reader parses the whole block and warns about damage anywhere in it, which is common in
photos that went through several programs; a warning from a decoding thread cannot be silenced for
that thread alone. One tag is needed.
"""

from __future__ import annotations

import re
import struct

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

_ORIENTATION = 0x0112
_SHORT, _LONG = 3, 4
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


def upright(image: Image.Image, *, as_told_by: Image.Image) -> Image.Image:
    """`image` turned and mirrored as the metadata of the loaded `as_told_by` ask for.

    Never fails: a damaged or missing tag means the picture is upright as stored.
    """
    turn = _TURNS.get(orientation(as_told_by))
    return image if turn is None else image.transpose(turn)


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1, upright, where it is missing or makes no sense."""
    if image.format == "TIFF":
        return 1  # Pillow turns a TIFF itself when it loads it
    value = _from_exif(_exif_block(image))
    if value is None:
        value = _from_xmp(image)
    return value if value in _TURNS else 1


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
            if tag == _ORIENTATION and kind in (_SHORT, _LONG):
                form = "H" if kind == _SHORT else "I"
                return int(struct.unpack_from(f"{order}{form}", block, entry + 8)[0])
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
