"""What was seen of pictures that were decoded to be checked, so that none is decoded again."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from frostline.choices import DecodingName
from frostline.data.decoding import scaling_of, seen_in
from frostline.data.images import Decoded, Scaling
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
        decoding: how much of a JPEG is decoded for it; None keeps no JPEG.
        most_bytes: pictures beyond these are not kept.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        *,
        decoding: DecodingName | None = "full",
        most_bytes: int = _MOST_BYTES,
    ) -> None:
        self.preprocessing = preprocessing
        self.decoding = decoding
        self._room = most_bytes
        self._frames: dict[Path, tuple[Stamp, DecodingName | None, NDArray[Any]]] = {}

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def is_full(self) -> bool:
        """Whether no more is kept."""
        height, width = self.preprocessing.crop
        return self._room < 3 * height * width

    @property
    def scaling(self) -> Scaling | None:
        """By what the sides of a JPEG are to be divided; None where it is not kept."""
        return self.decoding and scaling_of(self.preprocessing, self.decoding)

    def keep(self, path: Path, stamp: Stamp, found: Decoded) -> None:
        """Take what is seen of a picture of 8 bits; of a JPEG that was decoded by `scaling`."""
        frame = np.asarray(seen_in(found, self.preprocessing, self.decoding or "full"))
        if frame.nbytes <= self._room:
            self._room -= frame.nbytes
            self._frames[path] = stamp, self.decoding if found.is_jpeg else None, frame

    def take(self, path: Path, decoding: DecodingName) -> Image.Image | None:
        """What was seen of a picture by a decoding, which is forgotten here.

        None where it is to be read: it was not kept, or not by this decoding, or it changed since.
        """
        stamp, kept, frame = self._frames.get(path, (None, None, None))
        if frame is None or kept not in (None, decoding):
            return None
        if self._frames.pop(path, None) is None:
            return None  # another thread has it
        try:
            is_same = stamp_of(path.stat()) == stamp
        except OSError:
            is_same = False  # whoever reads it says what is wrong
        return Image.fromarray(frame) if is_same else None

    def forget(self, paths: Iterable[Path]) -> None:
        """Free what was not asked for."""
        for path in paths:
            self._frames.pop(path, None)
