"""Other libraries' descriptions of their preprocessing, read into Frostline's own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import cast, get_args

from frostline.errors import ModelError
from frostline.preprocessing import Interpolation, Preprocessing


def from_torchvision(transforms: object) -> Preprocessing:
    """`weights.transforms()` of a classifier, giving the same numbers bit for bit.

    Of a model for segmentation, whose pictures keep their shape there, the middle square.

    Raises:
        ModelError: `transforms` is not torchvision's preset for classification or segmentation.
    """
    from torchvision.transforms._presets import ImageClassification, SemanticSegmentation

    if isinstance(transforms, SemanticSegmentation):
        side = int(transforms.resize_size[0])
        return Preprocessing(
            resize=side,
            crop=(side, side),
            mean=_numbers(transforms.mean, "mean", 3),
            std=_numbers(transforms.std, "std", 3),
            interpolation=_interpolation(transforms.interpolation.value),
        )
    if not isinstance(transforms, ImageClassification):
        raise ModelError(
            f"the preprocessing of these weights is {type(transforms).__name__}, which is not "
            "torchvision's preset for classification or segmentation. Write a function that "
            "returns (model, Preprocessing) and name it file.py:function."
        )
    sizes = [int(size) for size in transforms.resize_size]
    crop = [int(size) for size in transforms.crop_size]
    return Preprocessing(
        resize=sizes[0] if len(sizes) == 1 else (sizes[0], sizes[1]),
        crop=(crop[0], crop[-1]),
        mean=_numbers(transforms.mean, "mean", 3),
        std=_numbers(transforms.std, "std", 3),
        interpolation=_interpolation(transforms.interpolation.value),
    )


def from_timm(config: Mapping[str, object]) -> Preprocessing:
    """timm's data configuration, or the `pretrained_cfg` of a model that follows timm's example.

    Gives the numbers of timm's own evaluation transform bit for bit. A key that is absent takes
    timm's default.

    Raises:
        ModelError: images are padded to a border, neither RGB nor grey, or cropped to other
            than a square; `Preprocessing` has no such step.
    """
    size = config.get("input_size", (3, 224, 224))
    sides = [int(side) for side in size] if isinstance(size, list | tuple) else []
    if len(sides) != 3 or sides[0] not in (1, 3):
        raise _inexpressible(f"input of size {size}, which is not (3 or 1, height, width)")
    # timm's own default and `floor`; rounding to nearest is off by one pixel at times.
    crop_fraction = _number(config.get("crop_pct") or 0.875)
    height, width = (math.floor(side / crop_fraction) for side in sides[1:])
    mode = config.get("crop_mode") or "center"
    if mode != "squash" and (mode != "center" or height != width):
        shape = "a square" if height == width else "an oblong"
        raise _inexpressible(f"{shape} crop in mode {mode!r}")
    return Preprocessing(
        resize=(height, width) if mode == "squash" else height,
        crop=(sides[1], sides[2]),
        mean=_numbers(config.get("mean") or (0.485, 0.456, 0.406), "mean", sides[0]),
        std=_numbers(config.get("std") or (0.229, 0.224, 0.225), "std", sides[0]),
        interpolation=_interpolation(config.get("interpolation") or "bicubic"),
    )


def from_hf(config: Mapping[str, object]) -> Preprocessing:
    """The `preprocessor_config.json` of an image classifier of transformers.

    Raises:
        ModelError: it pads, crops without resizing, or scales by another factor.
    """
    resize, crop = _hf_size(config.get("size", 224)), None
    if config.get("crop_size") is not None and config.get("do_center_crop", True):
        crop = _hf_size(config["crop_size"])
    if fraction := config.get("crop_pct"):  # ConvNeXt's: of what is resized
        side = resize if isinstance(resize, int) else resize[0]
        if side < _LARGE:
            resize, crop = int(side / _number(fraction)), (side, side)
    if not config.get("do_resize", True) or config.get("do_pad"):
        raise _inexpressible("pictures that are padded or not resized")
    factor = config.get("rescale_factor", 1 / 255)
    if abs(_number(factor) - 1 / 255) > 1e-6:
        raise _inexpressible(f"pixels scaled by {factor}")
    size = (resize, resize) if isinstance(resize, int) else resize
    crop = (crop, crop) if isinstance(crop, int) else crop
    plain = not config.get("do_normalize", True)
    resample = config.get("resample", 2)
    return Preprocessing(
        resize=resize,
        crop=crop or size,
        mean=(0.0,) * 3 if plain else _numbers(config.get("image_mean", (0.5,) * 3), "mean", 3),
        std=(1.0,) * 3 if plain else _numbers(config.get("image_std", (0.5,) * 3), "std", 3),
        interpolation=_interpolation(_PILLOW.get(resample)),
    )


# Pillow's numbers of its filters, by which transformers names them.
_PILLOW: dict[object, Interpolation] = {
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
}
_LARGE = 384  # from here on ConvNeXt is given the whole picture


def _hf_size(size: object) -> int | tuple[int, int]:
    """Pixels of the shorter side, or (height, width), as transformers' ways of writing have it."""
    if isinstance(size, int):
        return size, size
    found = dict(size) if isinstance(size, Mapping) else {}
    if isinstance(short := found.get("shortest_edge"), int):
        return short
    if isinstance(high := found.get("height"), int) and isinstance(wide := found.get("width"), int):
        return high, wide
    raise _inexpressible(f"size {size}")


def in_grey(preprocessing: Preprocessing) -> Preprocessing:
    """The same for one grey channel: by the mean of the means and that of the deviations."""
    mean, std = (sum(of) / len(of) for of in (preprocessing.mean, preprocessing.std))
    return replace(preprocessing, mean=(round(mean, 6),), std=(round(std, 6),))


def _numbers(values: object, what: str, count: int) -> tuple[float, ...]:
    numbers = tuple(_number(value) for value in values) if isinstance(values, Iterable) else ()
    if len(numbers) != count:
        wanted = "three numbers" if count == 3 else "one number"
        raise _inexpressible(f"{what} {values}, which is not {wanted}")
    return numbers


def _number(value: object) -> float:
    if isinstance(value, int | float):
        return float(value)
    raise _inexpressible(f"{value!r} where a number belongs")


def _interpolation(name: object) -> Interpolation:
    if name not in get_args(Interpolation):
        raise _inexpressible(f"interpolation {name!r}")
    return cast("Interpolation", name)


def _inexpressible(what: str) -> ModelError:
    return ModelError(
        f"this model's preprocessing wants {what}; Frostline resizes, crops the centre and "
        "normalises RGB. Write a function that returns (model, Preprocessing) and name it "
        "file.py:function."
    )
