"""How a picture becomes the tensor that the weights were trained on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, cast

from frostline.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import Tensor

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Resize, centre crop, scale to [0, 1], normalise.

    Attributes:
        resize: pixels of the shorter side, or (height, width) which may change the aspect ratio.
        crop: (height, width) of the centre crop, the size that the network sees, in pixels.
        mean: per channel, subtracted after scaling to [0, 1]; three numbers for RGB, or one for
            a network that takes a single grey channel.
        std: per channel, divided by afterwards.
        interpolation: of the resize.

    Raises:
        ConfigError: `mean` and `std` are not three numbers each, or one each.

    Source: the same steps as `torchvision.transforms._presets.ImageClassification`, bit for bit.

    Example:
        >>> from PIL import Image
        >>> preprocess = fl.Preprocessing(resize=32, crop=(28, 28))
        >>> preprocess(Image.new("RGB", (80, 60))).shape
        torch.Size([3, 28, 28])
    """

    resize: int | tuple[int, int] = 256
    crop: tuple[int, int] = (224, 224)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        if len(self.mean) not in (1, 3) or len(self.std) != len(self.mean):
            raise ConfigError(
                f"mean {self.mean} and std {self.std} are for {len(self.mean)} and "
                f"{len(self.std)} channels. Give three numbers each for RGB, or one each for grey."
            )

    @property
    def channels(self) -> int:
        """3 for RGB, 1 for grey."""
        return len(self.mean)

    def __call__(self, image: Image) -> Tensor:
        """An RGB image -> float32 `(channels, height, width)`, height and width as in `crop`."""
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms import functional as F

        size = [self.resize] if isinstance(self.resize, int) else list(self.resize)
        resized = F.resize(image, size, interpolation=InterpolationMode(self.interpolation))
        return self.to_tensor(F.center_crop(resized, list(self.crop)))

    def to_tensor(self, image: Image) -> Tensor:
        """An RGB image already of size `crop` -> normalised float32 `(channels, height, width)`."""
        import numpy as np
        import torch

        table = _levels(self.mean, self.std)
        # Grey that was stored as RGB comes out as it was; colours are weighed as Pillow does.
        pixels = np.atleast_3d(np.asarray(image.convert("L") if self.channels == 1 else image))
        channels = np.empty((self.channels, *pixels.shape[:2]), np.float32)
        for channel, levels in enumerate(table):
            np.take(levels, pixels[..., channel], out=channels[channel], mode="clip")
        return torch.from_numpy(channels)


@lru_cache(maxsize=16)
def _levels(mean: tuple[float, ...], std: tuple[float, ...]) -> NDArray[np.float32]:
    """The normalised value of each of the 256 levels, `(channels, 256)`.

    Looked up rather than computed for each pixel: the same bits in a fraction of the time, and
    no torch operation, each of which would start a team of threads inside a decoding thread.
    """
    import torch
    from torchvision.transforms import functional as F

    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 256).expand(len(mean), 1, 256)
    scaled = F.convert_image_dtype(levels, torch.float)
    table = F.normalize(scaled, mean=list(mean), std=list(std)).view(-1, 256)
    return cast("NDArray[np.float32]", table.numpy())
