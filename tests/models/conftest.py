"""What the tests of models share: real weights where there are any, and networks without memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from torch.overrides import TorchFunctionMode


class _ParametersOnMeta(TorchFunctionMode):
    """`torch.empty`, with which layers make their parameters, allocates nothing.

    `torch.device("meta")` catches every factory, and then RegNet and timm cannot read the small
    tensors from which they compute their widths.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if func is torch.empty:
            named["device"] = "meta"
        return func(*args, **named)


@pytest.fixture
def without_memory() -> Callable[[], AbstractContextManager[Any]]:
    return _ParametersOnMeta


@pytest.fixture
def weights_folder() -> Path:
    given = os.environ.get("FROSTLINE_DATA")
    data = Path(given) if given else Path(__file__).parents[2] / ".." / "shared" / "data"
    if not (data / "weights").is_dir():
        pytest.skip("no real weights at ../shared/data/weights or $FROSTLINE_DATA/weights")
    return data / "weights"


@pytest.fixture(scope="session")
def photo() -> Image.Image:
    """Smooth shades with grain, 300x401: odd, oblong, and unlike flat colour under resizing."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.linspace(0, 180, 300)[:, None, None]
    columns = torch.linspace(0, 60, 401)[None, :, None]
    grain = torch.rand(300, 401, 3, generator=generator) * 15
    return Image.fromarray((rows + columns + grain).to(torch.uint8).numpy(), mode=None)


class TinyNet(nn.Module):
    """Convolution, norm, classifier `fc`: 3 classes."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(self.bn(self.conv(images)).mean(dim=(2, 3)))
        return logits


@pytest.fixture
def tiny_net() -> Callable[..., TinyNet]:
    return TinyNet
