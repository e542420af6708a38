"""How a picture becomes the tensor that the weights were trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Resize, centre crop, scale to [0, 1], normalise.

    Attributes:
        resize: pixels of the shorter side, or (height, width) which may change the aspect ratio.
        crop: (height, width) of the centre crop, the size that the network sees, in pixels.
        mean: per channel, subtracted after scaling to [0, 1].
        std: per channel, divided by afterwards.
        interpolation: of the resize.

    Source: the same steps as `torchvision.transforms._presets.ImageClassification`, bit for bit.
    """

    resize: int | tuple[int, int] = 256
    crop: tuple[int, int] = (224, 224)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: Interpolation = "bilinear"

    def __call__(self, image: Image) -> Tensor:
        """An RGB image -> float32 `(3, height, width)`, height and width as in `crop`."""
        from torchvision.transforms import functional as F

        size = [self.resize] if isinstance(self.resize, int) else list(self.resize)
        resized = F.resize(image, size, interpolation=self.interpolation_mode)
        return self.to_tensor(F.center_crop(resized, list(self.crop)))

    def to_tensor(self, image: Image) -> Tensor:
        """An RGB image already of size `crop` -> normalised float32 `(3, height, width)`."""
        import torch
        from torchvision.transforms import functional as F

        pixels = F.convert_image_dtype(F.pil_to_tensor(image), torch.float)
        pixels = F.normalize(pixels, mean=list(self.mean), std=list(self.std), inplace=True)
        return cast("Tensor", pixels)

    @property
    def interpolation_mode(self) -> object:
        """torchvision's name for `interpolation`."""
        from torchvision.transforms import InterpolationMode

        return InterpolationMode(self.interpolation)
