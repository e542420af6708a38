"""What was seen of pictures that were decoded to be checked, so that none is read again."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from frostline.preprocessing import Preprocessing

_MOST_BYTES: Final = 256 << 20  # beyond it pictures are read twice

Stamp = tuple[int, int, int, int]
"""What a file is like while nobody writes it."""


def stamp_of(found: os.stat_result) -> Stamp:
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


@final
class KeptFrames:
    """Frames of pictures by path, each given once, and only while its file is as it was.

    May be written and read by several threads.

    Args:
        preprocessing: what makes the frames.
        most_bytes: pictures beyond these are not kept.
    """

    def __init__(self, preprocessing: Preprocessing, *, most_bytes: int = _MOST_BYTES) -> None:
        self.preprocessing = preprocessing
        height, width = preprocessing.crop
        self._most = most_bytes // (3 * height * width)
        self._frames: dict[Path, tuple[Stamp, NDArray[Any]]] = {}

    def __len__(self) -> int:
        return len(self._frames)

    def keep(self, path: Path, stamp: Stamp, image: Image.Image) -> None:
        """Take what is seen of an upright RGB image of 8 bits, decoded in full."""
        if len(self) < self._most:
            self._frames[path] = stamp, np.asarray(self.preprocessing.frame(image))

    def take(self, path: Path) -> Image.Image | None:
        """What was seen of a picture, which is forgotten here; None where it is to be read."""
        stamp, pixels = self._frames.pop(path, (None, None))
        if pixels is None:
            return None
        try:
            is_same = stamp_of(path.stat()) == stamp
        except OSError:
            is_same = False  # whoever reads it says what is wrong
        return Image.fromarray(pixels) if is_same else None

    def forget(self, paths: Iterable[Path]) -> None:
        """Free what was not asked for."""
        for path in paths:
            self._frames.pop(path, None)
