"""Small pictures that stand in a page itself."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from frostline.data import Levels, open_image
from frostline.errors import ImageError

_SIDE, _QUALITY = 128, 78  # pixels and JPEG quality of a picture: about 4 KB


def thumbnail(path: Path, levels: Levels | None = None) -> tuple[str, str]:
    """A data URI of the picture at `path`, or why there is none; one of the two is empty."""
    try:
        image = open_image(path, levels)
        image.thumbnail((_SIDE, _SIDE))
        content = io.BytesIO()
        image.save(content, "JPEG", quality=_QUALITY, optimize=True)
    except (OSError, ValueError, ImageError):
        return "", "the file cannot be read"
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}", ""
