"""Stages in forward order, for the families of models that people fine-tune."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torchvision import models

import frostline as fl
from frostline.selectors import inventory, stages
from frostline.selectors.stages import stage_paths

VIT = models.VisionTransformer


def tiny_vit() -> nn.Module:
    return VIT(image_size=32, patch_size=16, num_layers=3, num_heads=2, hidden_dim=8, mlp_dim=16)


# name -> (maker, number of stages, paths of the first stage, paths of the last)
FAMILIES: dict[str, tuple[Callable[[], nn.Module], int, tuple[str, ...], tuple[str, ...]]] = {
    "alexnet": (models.alexnet, 8, ("features.0",), ("classifier.6",)),
    "vgg11": (models.vgg11, 11, ("features.0",), ("classifier.6",)),
    "vgg11_bn": (models.vgg11_bn, 11, ("features.0", "features.1"), ("classifier.6",)),
    "resnet18": (models.resnet18, 6, ("conv1", "bn1"), ("fc",)),
    "resnet50": (models.resnet50, 6, ("conv1", "bn1"), ("fc",)),
    "vit": (tiny_vit, 5, ("conv_proj",), ("heads",)),
}


def build(name: str) -> nn.Module:
    if name in FAMILIES:
        return FAMILIES[name][0]()
    return models.get_model(
        name, weights=None, **({"init_weights": False} if "inc" in name else {})
    )


@pytest.fixture(autouse=True)
def _no_memory() -> object:
    with torch.device("meta"):
        yield


@pytest.mark.parametrize("name", FAMILIES)
def test_the_stages_of_a_family_run_from_stem_to_head(name: str) -> None:
    make, count, first, last = FAMILIES[name]
    found = stage_paths(make())
    assert (len(found), found[0], found[-1]) == (count, first, last)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("densenet121", 0),
        ("mobilenet_v2", 0),
        ("mobilenet_v3_small", 0),
        ("squeezenet1_0", 0),
        ("swin_t", 0),
        ("convnext_tiny", 0),
        ("inception_v3", 0),
        ("googlenet", 0),
        ("efficientnet_b0", 0),
        ("regnet_y_400mf", 0),
        ("shufflenet_v2_x0_5", 0),
        ("mnasnet0_5", 0),
        ("maxvit_t", 0),
    ],
)
def test_show(name: str, count: int) -> None:
    found = stage_paths(build(name))
    print(name, len(found), found)
    assert count
