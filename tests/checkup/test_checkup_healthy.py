"""The doctor says nothing of set-ups in which nothing is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision.models as tv
import transformers as tf
from torch import nn
from torch.utils.data import TensorDataset
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.models.vgg import VGG, make_layers

import frostline as fl

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "num_labels": 3,
}
TEXT = {**SMALL, "vocab_size": 60, "max_position_embeddings": 32}
DISTIL = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "vocab_size": 60}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 60, "n_positions": 32}

# MobileNetV2's, one for each of its kinds.
BLOCKS = [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 1, 2]]


def _vgg() -> nn.Module:
    """VGG with batch norm, whose classifier is not of its 120 million numbers."""
    model = VGG(make_layers([16, "M", 32, "M", 48, 48, "M"], batch_norm=True))
    layers = (nn.Linear(48 * 49, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, 3))
    model.classifier = nn.Sequential(*layers)
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: ResNet(BasicBlock, [1, 1, 1, 1], num_classes=3),
    "mobilenet_v2": lambda: tv.MobileNetV2(num_classes=3, inverted_residual_setting=BLOCKS),
    "squeezenet1_1": lambda: tv.squeezenet1_1(num_classes=3),
    "vgg_bn": _vgg,
    "shufflenet": lambda: tv.shufflenet_v2_x0_5(num_classes=3),
    "vision_transformer": lambda: tv.VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=3),
    "timm resnet10t": lambda: timm.create_model("resnet10t", num_classes=3),
    "timm test_vit": lambda: timm.create_model("test_vit", num_classes=3, img_size=32),
    "timm test_convnext": lambda: timm.create_model("test_convnext", num_classes=3),
    "timm test_efficientnet": lambda: timm.create_model("test_efficientnet", num_classes=3),
    "bert": lambda: tf.BertForSequenceClassification(tf.BertConfig(**TEXT)),
    "albert": lambda: tf.AlbertForSequenceClassification(
        tf.AlbertConfig(embedding_size=16, **TEXT)
    ),
    "distilbert": lambda: tf.DistilBertForSequenceClassification(
        tf.DistilBertConfig(num_labels=3, **DISTIL)
    ),
    "gpt2": lambda: tf.GPT2ForSequenceClassification(
        tf.GPT2Config(num_labels=3, pad_token_id=0, **GPT)
    ),
    "vit": lambda: tf.ViTForImageClassification(tf.ViTConfig(image_size=32, patch_size=8, **SMALL)),
    "hf resnet": lambda: tf.ResNetForImageClassification(
        tf.ResNetConfig(
            embedding_size=8,
            hidden_sizes=[8, 16],
            depths=[1, 1],
            layer_type="basic",
            num_labels=3,
        )
    ),
}
OF_TEXT = {"bert", "albert", "distilbert", "gpt2"}


def example_for(name: str) -> Any:
    if name in OF_TEXT:
        return {"input_ids": torch.randint(1, 60, (4, 12))}
    return torch.randn(4, 3, 32, 32)


def sound(name: str, model: nn.Module) -> fl.Checkup:
    """The checkup of a set-up with all that belongs to it."""
    optimizer = torch.optim.AdamW(fl.param_groups(model, lr=1e-3))
    return fl.doctor(
        model,
        example_for(name),
        targets=torch.arange(4) % 3,
        optimizer=optimizer,
        schedulers=[torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)],
        classes=3,
        train_data=TensorDataset(torch.randn(8, 3)),
        val_data=TensorDataset(torch.randn(4, 3)),
        preprocessing=fl.Preprocessing(),
        weights_preprocessing=fl.Preprocessing() if name in OF_TEXT else None,
    )


def test_there_are_enough_of_them() -> None:
    assert len(MODELS) >= 15


@pytest.mark.parametrize("name", MODELS)
def test_a_head_on_a_frozen_network_is_healthy(name: str) -> None:
    model = MODELS[name]()
    fl.train_only(model, "stage:-1")
    assert str(sound(name, model)) == "Nothing found."


@pytest.mark.parametrize("name", ["resnet18", "timm test_vit", "timm resnet10t", "bert", "gpt2"])
def test_two_trainable_stages_are_healthy(name: str) -> None:
    model = MODELS[name]()
    fl.train_only(model, "stage:-2..-1")
    assert sound(name, model).codes == ()


def test_a_plan_that_fits_is_healthy() -> None:
    model = MODELS["resnet18"]()
    plan = fl.Plan.lp_ft(model)
    assert fl.doctor(model, example_for("resnet18"), plan=plan).codes == ()


class LowRank(nn.Module):
    """A frozen layer with a trained low-rank addition that begins at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.down = nn.Linear(16, 16), nn.Linear(16, 2, bias=False)
        self.up = nn.Linear(2, 16, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x) + self.up(self.down(x))
        return out


def test_a_low_rank_pair_that_begins_at_zero_is_healthy() -> None:
    model = nn.Sequential(LowRank(), nn.ReLU(), nn.Linear(16, 3))
    fl.freeze(model, "0.layer")
    assert fl.doctor(model, torch.randn(6, 16)).codes == ()


class Skipping(nn.Module):
    """A layer that one pass in a few leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.layer = nn.Linear(4, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.frozen(x).relu()
        if not self.training or torch.rand(()) < 0.9 - 0.6 * (torch.initial_seed() == 0):
            hidden = hidden + self.layer(hidden).tanh()
        out: torch.Tensor = self.head(hidden)
        return out


def test_a_layer_that_is_dropped_at_random_is_healthy() -> None:
    model = Skipping()
    fl.freeze(model, "frozen")
    torch.manual_seed(0)
    assert torch.rand(()) > 0.3, "the first pass is to leave it out"
    assert fl.doctor(model, torch.randn(6, 4)).codes == ()


def test_a_hidden_head_on_frozen_logits_is_no_linear_map_whatever_follows_it() -> None:
    hidden = (nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 3), nn.LogSoftmax(dim=1))
    model = nn.Sequential(nn.Linear(4, 20), *hidden)
    fl.freeze(model, "0")
    found = fl.doctor(model, torch.randn(4, 4), targets=torch.tensor([0, 1, 2, 0]))
    assert "stacked-linear" not in [finding.code for finding in found]
