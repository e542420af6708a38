"""How much of a picture is decoded for what a network sees of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from PIL import Image

from frostline.choices import DecodingName
from frostline.data.framing import frame, times_wanted
from frostline.data.images import Decoded, Header, Scaling, decode_scaled, header_of
from frostline.data.levels import Levels
from frostline.errors import ImageError
from frostline.preprocessing import Preprocessing

# What is left of a JPEG that is scaled while it is decoded, in times of the size that is wanted.
LEAST: Final[Mapping[DecodingName, int]] = {"jpeg-2x": 2, "jpeg-4x": 4}
LIKELY: Final[DecodingName] = "jpeg-4x"
"""What will probably do for pictures that need not be decoded in full."""
_WORTH = 4  # times the wanted size, from which on less than a full decoding is worth a try
_LOOKED_AT = 16


def seen_of(
    path: Path,
    preprocessing: Preprocessing,
    *,
    levels: Levels | None = None,
    decoding: DecodingName = "full",
) -> Image.Image:
    """The part of a picture that is seen, in mode RGB and `crop` large.

    Args:
        levels: as for `open_image`.
        decoding: `full`, to the bits of `preprocessing(open_image(path))`, as all but a JPEG are;
            `jpeg-crop`, where no more is resized than is seen; `jpeg-4x` and `jpeg-2x`, where
            besides it is scaled by its own cosine transform while it is decoded, to at least so
            many times the wanted size.
    Raises:
        ImageError: as `open_image`.
    """
    found = decode_scaled(path, levels, scaling_of(preprocessing, decoding))
    return seen_in(found, preprocessing, decoding)


def seen_in(found: Decoded, preprocessing: Preprocessing, decoding: DecodingName) -> Image.Image:
    """As `seen_of`, of a picture that was decoded by `scaling_of` the same."""
    is_less = decoding != "full" and found.is_jpeg
    if not is_less or times_wanted(preprocessing, found.size) < 1:
        return preprocessing.frame(found.image)
    return frame(found.image, preprocessing, found.size, scale=found.scale)


def scaling_of(preprocessing: Preprocessing, decoding: DecodingName) -> Scaling:
    """By what the sides of a JPEG are divided."""
    return partial(scale_of, preprocessing, decoding)


def scale_of(preprocessing: Preprocessing, decoding: DecodingName, size: tuple[int, int]) -> int:
    """By what the sides of a JPEG of `size` (width, height) are divided: 1, 2, 4 or 8."""
    if decoding not in LEAST:
        return 1
    room = times_wanted(preprocessing, size) / LEAST[decoding]
    return max(scale for scale in (1, 2, 4, 8) if scale <= max(1.0, room))


def worth_less(paths: Sequence[Path], preprocessing: Preprocessing, most: int) -> list[int]:
    """Places of a few JPEGs, evenly, that need not be decoded in full for what is seen of them.

    None where these are less than half of all pixels, by the headers of a few pictures: then
    there is little to be gained, and nothing to be tried.
    """
    count = min(_LOOKED_AT, len(paths))
    places = [number * len(paths) // count for number in range(count)]
    headers = {place: _header(paths[place]) for place in places}
    large = [
        place
        for place, (size, is_jpeg) in headers.items()
        if is_jpeg and times_wanted(preprocessing, size) >= _WORTH
    ]
    pixels = {place: header.size[0] * header.size[1] for place, header in headers.items()}
    if 2 * sum(pixels[place] for place in large) <= sum(pixels.values()):
        return []
    few = min(most, len(large))
    return [large[number * len(large) // few] for number in range(few)]


def decodings_of(paths: Iterable[Path], preprocessing: Preprocessing) -> tuple[DecodingName, ...]:
    """What there is to try on these JPEGs beside a full decoding, the quickest first."""
    sizes = [header_of(path).size for path in paths]
    scales = {name: [scale_of(preprocessing, name, size) for size in sizes] for name in LEAST}
    twice = ("jpeg-2x",) if scales["jpeg-2x"] != scales["jpeg-4x"] else ()
    four_times = ("jpeg-4x",) if any(scale > 1 for scale in scales["jpeg-4x"]) else ()
    return (*twice, *four_times, "jpeg-crop")


def _header(path: Path) -> Header:
    try:
        return header_of(path)
    except ImageError:  # whoever reads it says what is wrong
        return Header((1, 1), is_jpeg=False)
