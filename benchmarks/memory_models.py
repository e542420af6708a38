"""The models of `memory.py`, one batch for each, and what is trained of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import final

import torch
from torch import Tensor, nn

import frostline as fl
from frostline.selectors import inventory
from frostline.selectors.stages import stage_paths

BATCH, PIXELS, TOKENS, WORDS, CLASSES = 16, 224, 128, 5000, 100
SELECTIONS = ("full", "head", "stem", "norms", "second", "input")


@final
@dataclass(frozen=True, slots=True)
class Subject:
    """A model with one batch.

    Attributes:
        inputs: pictures or word ids; for the gradient of the input also `embedded` words.
        targets: a class for each sample, or for each pixel of it.
    """

    model: nn.Module
    inputs: Tensor
    targets: Tensor

    def loss(self, model: nn.Module) -> Tensor:
        """Of `model`, which may be a compiled or another form of `self.model`."""
        return nn.functional.cross_entropy(model(self.inputs), self.targets)


class Block(nn.Sequential):
    """Two convolutions, as a U-Net has on every level."""

    def __init__(self, inside: int, outside: int) -> None:
        layers: list[nn.Module] = []
        for channels in (inside, outside):
            layers += [nn.Conv2d(channels, outside, 3, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(outside), nn.ReLU(inplace=True)]
        super().__init__(*layers)


class UNet(nn.Module):
    """Four levels with skip connections, 1.9 million parameters, a class for each pixel."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64, 128, 256), classes: int = 2) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.stem = Block(3, widths[0])
        self.down = nn.ModuleList([Block(above, below) for above, below in pairs])
        self.pool = nn.MaxPool2d(2)
        back = pairs[::-1]
        self.up = nn.ModuleList([nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in back])
        self.merge = nn.ModuleList([Block(2 * above, above) for above, _ in back])
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        skips = [self.stem(pictures)]
        for block in self.down:
            skips.append(block(self.pool(skips[-1])))
        value = skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            value = merge(torch.cat([skips.pop(), up(value)], dim=1))
        return self.head(value)


class WordLSTM(nn.Module):
    """Word ids, or words embedded already, to classes."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 128)
        self.lstm = nn.LSTM(128, 256, batch_first=True)
        self.head = nn.Linear(256, CLASSES)

    def forward(self, words: Tensor) -> Tensor:
        embedded = words if words.is_floating_point() else self.embedding(words)
        return self.head(self.lstm(embedded)[0].mean(dim=1))


class SmallBert(nn.Module):
    """Four layers of transformers' BERT, 256 wide."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig, BertForSequenceClassification

        self.net = BertForSequenceClassification(
            BertConfig(
                vocab_size=WORDS,
                hidden_size=256,
                num_hidden_layers=4,
                num_attention_heads=4,
                intermediate_size=1024,
                num_labels=CLASSES,
            )
        )

    def forward(self, words: Tensor) -> Tensor:
        if words.is_floating_point():
            return self.net(inputs_embeds=words).logits
        return self.net(words).logits


def _torchvision(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from torchvision import models

        return models.get_model(name, weights=None, num_classes=CLASSES)

    return build


def _vit() -> nn.Module:
    import timm

    return timm.create_model("vit_small_patch16_224", pretrained=False, num_classes=CLASSES)


BUILDERS: Mapping[str, Callable[[], nn.Module]] = {
    "alexnet": _torchvision("alexnet"),
    "resnet18": _torchvision("resnet18"),
    "resnet50": _torchvision("resnet50"),
    "mobilenet_v2": _torchvision("mobilenet_v2"),
    "efficientnet_b0": _torchvision("efficientnet_b0"),
    "convnext_tiny": _torchvision("convnext_tiny"),
    "vit_small": _vit,
    "unet": UNet,
    "lstm": WordLSTM,
    "bert": SmallBert,
    "vgg11_bn": _torchvision("vgg11_bn"),
}
# The first layer with weights; the norm behind it stays frozen.
STEMS: Mapping[str, str] = {
    "alexnet": "features.0",
    "resnet18": "conv1",
    "resnet50": "conv1",
    "mobilenet_v2": "features.0.0",
    "efficientnet_b0": "features.0.0",
    "convnext_tiny": "features.0.0",
    "vit_small": "patch_embed",
    "unet": "stem.0",
    "lstm": "embedding",
    "bert": "net.bert.embeddings.word_embeddings",
    "vgg11_bn": "features.0",
}
_WITHOUT_NORMS = ("alexnet", "lstm")
_TEXTS = {"lstm": 128, "bert": 256}


def subject(
    name: str,
    selection: str,
    *,
    device: str = "cpu",
    batch: int = BATCH,
    pixels: int = PIXELS,
) -> Subject:
    """The model with that part of it trainable, in train mode, and a batch; same ones each time."""
    torch.manual_seed(0)
    model = BUILDERS[name]().to(device)
    inputs = _inputs(name, selection, batch, pixels).to(device)
    classes = 2 if name == "unet" else CLASSES
    shape = (batch, pixels, pixels) if name == "unet" else (batch,)
    targets = torch.randint(classes, shape).to(device)
    _select(model, name, selection)
    model.train()
    return Subject(model, inputs.requires_grad_(selection == "input"), targets)


def _inputs(name: str, selection: str, batch: int, pixels: int) -> Tensor:
    if name not in _TEXTS:
        return torch.randn(batch, 3, pixels, pixels)
    if selection == "input":
        return torch.randn(batch, TOKENS, _TEXTS[name])
    return torch.randint(WORDS, (batch, TOKENS))


def _select(model: nn.Module, name: str, selection: str) -> None:
    if selection == "input":
        fl.freeze(model, "all", leaving="nothing")
    elif selection == "second":
        paths = [path for group in stage_paths(inventory(model).model)[::2] for path in group]
        fl.train_only(model, " | ".join(paths))
    elif selection != "full":
        norms = "kind:bias" if name in _WITHOUT_NORMS else "kind:norm | kind:bias"
        selectors = {
            "head": "stage:-1",
            "stem": STEMS[name],
            "norms": norms,
            "biases": "kind:bias",
        }
        fl.train_only(model, selectors[selection])
