"""The networks of benchmarks/memory.py, leaned, by what is trained of them: end to end."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from lean_world import same
from torch import Tensor, nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.efficientnet import EfficientNet, MBConvConfig
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

import frostline as fl
from frostline.backward import saved_bytes
from frostline.estimates.steps import Setup
from frostline.tasks import Classification, step_loss

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import memory_models
from memory_models import BUILDERS, SELECTIONS, SmallBert, Subject, UNet, subject

NAMES = [name for name in BUILDERS if name != "vgg11_bn"]
CELLS = [(name, what) for name in NAMES for what in SELECTIONS]
CELLS += [("resnet50", "biases"), ("vgg11_bn", "stem")]
# Each network where some layers are trained and others only passed through, and where only the
# smallest tensors are; the rest, whose gradients begin or end elsewhere, on one of each kind.
ESTIMATED = [
    cell for cell in CELLS if cell[1] in ("second", "norms") or cell[0] in ("resnet18", "bert")
]
ESTIMATED += [("vgg11_bn", "stem"), ("unet", "input"), ("resnet50", "biases")]
OPTIONAL = {"vit_small": "timm", "bert": "transformers"}


def _narrow(name: str) -> Callable[[], nn.Module]:
    """A network with a narrow classifier: its wide layers are most of the weights."""

    def build() -> nn.Module:
        with torch.device("meta"):
            model = models.get_model(name, weights=None, num_classes=100)
            width = next(m for m in model.classifier if isinstance(m, nn.Linear)).in_features
            for place, layer in enumerate(model.classifier):
                if isinstance(layer, nn.Linear):
                    outside = min(layer.out_features, 100)
                    model.classifier[place] = nn.Linear(width, outside)
                    width = outside
        model.to_empty(device="cpu")
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.BatchNorm2d):
                module.reset_parameters()
        return model

    return build


def _vit() -> nn.Module:
    import timm

    return timm.create_model(
        "vit_small_patch16_224", img_size=64, depth=3, embed_dim=96, num_classes=100
    )


def _mobilenet() -> nn.Module:
    blocks = [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 1, 2], [6, 48, 1, 2]]
    return models.MobileNetV2(num_classes=100, inverted_residual_setting=blocks)


def _efficientnet() -> nn.Module:
    blocks = [(1, 3, 1, 32, 16, 1), (6, 3, 2, 16, 24, 2), (6, 5, 2, 24, 40, 1)]
    return EfficientNet([MBConvConfig(*block) for block in blocks], 0.2, num_classes=100)


def _bert() -> nn.Module:
    model = SmallBert()
    model.net.bert.encoder.layer = model.net.bert.encoder.layer[:2]
    return model


# Fewer layers of the same kinds than in the benchmark.
SMALLER: dict[str, Callable[[], nn.Module]] = {
    "alexnet": _narrow("alexnet"),
    "vgg11_bn": _narrow("vgg11_bn"),
    "resnet18": lambda: ResNet(BasicBlock, [1, 1, 1, 1], num_classes=100),
    "resnet50": lambda: ResNet(Bottleneck, [2, 1, 1, 1], num_classes=100, width_per_group=16),
    "mobilenet_v2": _mobilenet,
    "efficientnet_b0": _efficientnet,
    "convnext_tiny": lambda: ConvNeXt(
        [CNBlockConfig(48, 96, 2), CNBlockConfig(96, None, 2)], 0.1, num_classes=100
    ),
    "vit_small": _vit,
    "unet": lambda: UNet((8, 16, 32)),
    "bert": _bert,
}


def small(name: str, what: str, *, batch: int = 2) -> Subject:
    """A small form of the network, in front of pictures of 64 pixels or texts of 16 words."""
    if name in OPTIONAL:
        pytest.importorskip(OPTIONAL[name])
    shorter = mock.patch.multiple(memory_models, TOKENS=16, WORDS=100)
    with shorter, mock.patch.dict(BUILDERS, SMALLER):
        return subject(name, what, batch=batch, pixels=64)


def train(one: Subject, model: nn.Module, steps: int) -> Iterator[list[Tensor]]:
    """After each step: the loss, gradients, weights, buffers and the input, which moves as well.

    The tensors are the training's own, so that two of them can be held side by side, step by step.
    """
    inputs = one.inputs.detach().clone().requires_grad_(one.inputs.requires_grad)
    moving = [t for t in (*model.parameters(), inputs) if t.requires_grad]
    optimizer = torch.optim.SGD(moving, lr=0.01, momentum=0.9)
    for number in range(steps):
        torch.manual_seed(number)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), one.targets)
        loss.backward()
        gradients = [t.grad for t in moving if t.grad is not None]
        optimizer.step()
        left = [*gradients, *(t.detach() for t in (*moving, *model.buffers()))]
        yield [loss.detach(), torch.get_rng_state(), *left]


@pytest.mark.parametrize(("name", "what"), CELLS)
def test_three_steps_end_at_the_same_bits(name: str, what: str) -> None:
    one = small(name, what)
    leaned = copy.deepcopy(one.model)
    with fl.lean(leaned, at_least_bytes=0):
        for plain, lean in zip(train(one, one.model, 3), train(one, leaned, 3), strict=True):
            assert len(plain) > 2
            assert same(plain, lean)


@pytest.mark.parametrize(("name", "what"), ESTIMATED)
def test_an_estimate_knows_what_is_kept_plain_and_leaned(name: str, what: str) -> None:
    one = small(name, what, batch=4)
    given = [*one.model.parameters(), *one.model.buffers(), one.inputs]
    rows, task = len(one.inputs), Classification()

    def kept() -> int:
        found = saved_bytes(lambda: step_loss(task, one.model(one.inputs)), besides=given)
        estimated = Setup(one.model, one.inputs, batch_size=rows).trace().saved_bytes
        assert estimated == pytest.approx(found, rel=0.05)
        return found

    plain = kept()
    with fl.lean(one.model, at_least_bytes=1 << 17):
        one.model(one.inputs)  # the next one knows what it costs to compute again
        assert kept() <= plain
