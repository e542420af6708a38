"""Models for tests of `fully_shard`: small ones, sharded block by block."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torchvision.models import VisionTransformer


def vit() -> Any:
    """Three blocks; its class token has one row, so that only the first process has some of it."""
    torch.manual_seed(0)
    return VisionTransformer(
        image_size=16,
        patch_size=8,
        num_layers=3,
        num_heads=2,
        hidden_dim=24,
        mlp_dim=37,
        dropout=0.1,
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


def pictures(count: int = 4, *, seed: int = 1) -> tuple[Tensor, Tensor]:
    """With their classes."""
    draw = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, 16, 16, generator=draw)
    return images, torch.randint(3, (count,), generator=draw)


def is_unit(module: nn.Module) -> bool:
    """Whether `fully_shard` was applied to it."""
    return isinstance(module, FSDPModule)


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
