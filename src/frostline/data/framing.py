"""What a network sees of a picture, resized from no more pixels than it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from PIL import Image

from frostline.preprocessing import Preprocessing


@final
@dataclass(frozen=True, slots=True)
class Side:
    """Width or height of a picture on its way to what is seen of it.

    Attributes:
        size: pixels of the picture.
        resized: pixels after the resize.
        seen: pixels of the centre crop.
    """

    size: int
    resized: int
    seen: int

    @property
    def ends(self) -> tuple[float, float]:
        """Where what is seen begins and ends, in pixels of the picture."""
        start = round((self.resized - self.seen) / 2.0)
        step = self.size / self.resized
        return start * step, (start + self.seen) * step


def sides(preprocessing: Preprocessing, size: tuple[int, int]) -> tuple[Side, Side]:
    """Width and height of a picture of `size` (width, height).

    Source: the sizes are those of torchvision's Resize and CenterCrop.
    """
    width, height = size
    asked, (seen_height, seen_width) = preprocessing.resize, preprocessing.crop
    if isinstance(asked, int):
        longer = int(asked * max(size) / min(size))
        resized = (asked, longer) if width <= height else (longer, asked)
    else:
        resized = (asked[1], asked[0])
    return Side(width, resized[0], seen_width), Side(height, resized[1], seen_height)


def times_wanted(preprocessing: Preprocessing, size: tuple[int, int]) -> float:
    """How many times larger a picture is than it will be resized to, on its narrower side.

    0 where it is not shrunk to a mean of its pixels, or is padded to what is seen.
    """
    both = sides(preprocessing, size)
    if preprocessing.interpolation == "nearest" or any(s.seen > s.resized for s in both):
        return 0.0
    least = min(side.size / side.resized for side in both)
    return least if least >= 1 else 0.0


def frame(
    image: Image.Image, preprocessing: Preprocessing, size: tuple[int, int], *, scale: int = 1
) -> Image.Image:
    """What is seen of an RGB image, resized by itself: `preprocessing.frame`, but for rounding.

    Pillow weighs the same pixels by the same distances, as they were before they were scaled. With
    `scale` 1 few pixels differ by one level, as it takes the ends of the part as float32.

    Args:
        size: width and height of the picture, of which `times_wanted` is 1 or more.
        scale: by how much `image` is smaller. What is left over of a pixel lies at its end.
    """
    (left, right), (top, bottom) = (side.ends for side in sides(preprocessing, size))
    height, width = preprocessing.crop
    ends = min(right / scale, image.width), min(bottom / scale, image.height)
    resample = Image.Resampling[preprocessing.interpolation.upper()]
    return image.resize((width, height), resample, box=(left / scale, top / scale, *ends))
