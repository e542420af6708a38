"""Models for tests of `fully_shard`: small ones, sharded block by block."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torchvision.models import VisionTransformer, mobilenet_v2


def vit(*, dropout: float = 0.1) -> Any:
    """Three blocks; its class token has one row, so that only the first process has some of it."""
    torch.manual_seed(0)
    return VisionTransformer(
        image_size=16,
        patch_size=8,
        num_layers=3,
        num_heads=2,
        hidden_dim=24,
        mlp_dim=37,
        dropout=dropout,
        num_classes=3,
    )


def sharded(model: nn.Module, *parts: str, **options: Any) -> Any:
    """The model with these parts sharded as units of their own, and the rest as one."""
    for part in parts:
        fully_shard(model.get_submodule(part), **options)
    return fully_shard(model, **options)


BLOCKS = tuple(f"encoder.layers.encoder_layer_{i}" for i in range(3))
BELOW = "conv_proj | class_token | encoder.pos_embedding | " + " | ".join(BLOCKS[:2])


def both() -> tuple[Any, Any]:
    """The same model twice, plain and sharded."""
    plain = vit()
    return plain, sharded(copy.deepcopy(plain), *BLOCKS)


STAGES = ([1, 8, 1, 1], [2, 12, 1, 2], [2, 16, 1, 2])
SMALL_PARTS = tuple(f"features.{number}" for number in range(5))


def small_mobilenet() -> Any:
    """Five blocks with batch norms, and a dropout before the classifier."""
    torch.manual_seed(0)
    return mobilenet_v2(num_classes=3, width_mult=0.5, inverted_residual_setting=STAGES)


def pictures(count: int = 4, *, seed: int = 1) -> tuple[Tensor, Tensor]:
    """With their classes."""
    draw = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, 16, 16, generator=draw)
    return images, torch.randint(3, (count,), generator=draw)


def whole(tensor: Any) -> Tensor:
    """All of a sharded tensor, which all processes ask for."""
    found: Tensor = tensor.detach().full_tensor()
    return found


def same(one: nn.Module, other: nn.Module) -> list[str]:
    """Names of parameters and buffers whose bits differ between a sharded model and a plain one."""
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return [
        name
        for (name, mine), (_, its) in pairs
        if not torch.equal(whole(mine) if hasattr(mine, "full_tensor") else mine, its)
    ]
