"""Small pictures inside a page: JPEG as data URIs, about 4 KB each."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from frostline._files import file_digest
from frostline.data.images import open_image
from frostline.errors import ImageError

SIDE = 128
_QUALITY = 78


def thumbnail(path: Path, digest: str) -> tuple[str, str]:
    """A data URI of the picture at `path`, or why there is none; one of the two is empty.

    Args:
        digest: of the content that the run saw; another content is not shown.
    """
    try:
        if file_digest(path) != digest:
            return "", "the file is not the one that the run saw"
        image = open_image(path)
        image.thumbnail((SIDE, SIDE))
        content = io.BytesIO()
        image.save(content, "JPEG", quality=_QUALITY, optimize=True)
    except FileNotFoundError:
        return "", "the file is not there any more"
    except (OSError, ValueError, ImageError):
        return "", "the file cannot be read"
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}", ""
