"""Masks of pictures: the class of each pixel, and cut as the picture is."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from PIL import Image, ImageChops, ImageFile, UnidentifiedImageError
from torch import Tensor

from frostline.data.image_sets import MaskFile, Sample
from frostline.data.images import open_image
from frostline.data.ordered import ordered_map
from frostline.errors import DataError, ImageError
from frostline.preprocessing import Preprocessing

IGNORED = 255  # in a mask: no class
_EXIF_ORIENTATION = 0x0112
_TURNED = range(5, 9)  # orientations in which width and height change places
_LOSSY = {"JPEG", "WEBP", "MPO"}


def open_mask(path: Path) -> Image.Image:
    """The class of each pixel as an 8-bit grey image; of a palette the indices, not the colours.

    Raises:
        DataError: it is no picture, in colours, lossy, or has values above 255.
    """
    try:
        with Image.open(path) as image:
            if image.format in _LOSSY:
                raise _refused(path, f"{image.format} changes values", "Save masks as PNG")
            step = _grey_step(image)
            image.load()
            if image.mode in ("L", "P"):
                grey = Image.frombytes("L", image.size, image.tobytes())
                return grey.point([round(value / step) for value in range(256)])
            if image.mode == "1":
                return image.convert("L").point(lambda value: value // 255)
            if image.mode.startswith("I"):
                values = np.rint(np.asarray(image) / step)
                if values.min() >= 0 and values.max() <= IGNORED:
                    return Image.fromarray(values.astype(np.uint8))
                raise _refused(path, f"its values go up to {values.max():g}", "Use 0 to 254")
            raise _refused(
                path,
                f"it is in colours ({image.mode})",
                "Save the class of each pixel as a grey or palette PNG",
            )
    except FileNotFoundError as error:
        raise _refused(path, "there is no such file", "Restore it") from error
    except UnidentifiedImageError as error:
        raise _refused(path, "it is no picture", "Replace it") from error
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise _refused(path, f"its data are broken ({error})", "Replace it") from error


def _grey_step(image: ImageFile.ImageFile) -> float:
    """By how much Pillow multiplies stored values: grey of 2 or 4 bits, or a PGM's up to 255.

    The image must not be loaded yet, which forgets how it was stored.
    """
    tile = image.tile[0] if image.tile else None
    if tile is None or image.mode not in ("L", "I"):
        return 1
    raw, *more = tile.args if isinstance(tile.args, tuple) else (tile.args,)
    if tile.codec_name in ("ppm", "ppm_plain") and more:
        return (255 if image.mode == "L" else 65535) / int(more[0])
    return {"L;2": 85, "L;4": 17}.get(str(raw)[:3], 1)


def _refused(path: Path, why: str, do: str) -> DataError:
    return DataError(f"cannot read the mask {path}: {why}. {do}.")


def cut_mask(mask: Image.Image, preprocessing: Preprocessing) -> Tensor:
    """Resized and cropped as `preprocessing` does with the picture, each pixel its nearest one's.

    Returns:
        uint8 `(height, width)`; 255 where the crop goes beyond the picture.
    """
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as F

    resize = preprocessing.resize
    size = [resize] if isinstance(resize, int) else list(resize)
    resized = F.resize(mask, size, interpolation=InterpolationMode.NEAREST)
    # Torchvision fills with 0; upside down that is 255, which counts nowhere.
    cut = ImageChops.invert(F.center_crop(ImageChops.invert(resized), list(preprocessing.crop)))
    return torch.from_numpy(np.array(cut))


@final
class Masks(Sequence[Any]):
    """The masks of samples, each read when it is asked for."""

    def __init__(self, samples: Sequence[Sample], preprocessing: Preprocessing) -> None:
        self._files = [s.target for s in samples if isinstance(s.target, MaskFile)]
        self._preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: Any) -> Any:
        file = self._files[index]
        mask = cut_mask(open_mask(file.path), self._preprocessing)
        if file.is_black_and_white:
            mask = (mask == IGNORED).to(torch.uint8)
        return mask


def check_masks(pairs: Sequence[tuple[Path, Path]]) -> dict[Path, frozenset[int]]:
    """The values in each mask, once it is known to be of its picture's size.

    Args:
        pairs: picture and mask.
    Raises:
        DataError: a mask cannot be read, or is of another size; names both.
    """
    with closing(ordered_map(_values, pairs, ahead=64)) as found:
        return {mask: values for (_, mask), values in zip(pairs, found, strict=True)}


def _values(pair: tuple[Path, Path]) -> frozenset[int]:
    picture, file = pair
    mask, size = open_mask(file), _size(picture)
    if size is not None and mask.size != size:
        raise DataError(
            f"the mask {file} is {mask.width} x {mask.height} pixels, but its picture {picture} is "
            f"{size[0]} x {size[1]}. Give a mask of the picture's own size, upright as it is shown."
        )
    return frozenset(value for value, count in enumerate(mask.histogram()) if count)


def _size(picture: Path) -> tuple[int, int] | None:
    """Width and height of a picture as it is shown; None where it cannot be read: `audit` says."""
    try:
        with Image.open(picture) as image:
            wide, tall = image.size
            turned = image.getexif().get(_EXIF_ORIENTATION) in _TURNED
            return (tall, wide) if turned and image.format != "TIFF" else (wide, tall)
    except (OSError, SyntaxError, ValueError):
        try:
            return open_image(picture).size
        except ImageError:
            return None
