"""Pixels of any of Pillow's modes -> 8-bit RGB, without clipping and with transparency on white."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

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
