"""The architectures of the zoo tests, as small as their classes allow."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

SIZE = 64
HEAD, UPPER = "stage:-1", "stage:-2..-1"


@dataclass(frozen=True)
class Known:
    """A model of the zoo.

    Attributes:
        make: builds it with random weights.
        inputs: builds a batch of so many samples.
        selections: what to train: the head alone, and an upper part.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[int], Any]
    selections: tuple[str, str] = (HEAD, UPPER)


def images(size: int, rows: int) -> torch.Tensor:
    return torch.randn(rows, 3, size, size)


def vision(name: str, *, size: int = SIZE, **options: Any) -> Known:
    def make() -> nn.Module:
        from torchvision.models import get_model

        return get_model(name, weights=None, num_classes=10, **options)

    return Known(make, partial(images, size))


def timm(name: str, *, size: int = SIZE, **options: Any) -> Known:
    def make() -> nn.Module:
        import timm

        return timm.create_model(name, num_classes=10, **options)

    return Known(make, partial(images, size))


def _vgg() -> nn.Module:
    from torchvision.models import vgg11_bn

    model = vgg11_bn()
    model.classifier = nn.Sequential(
        nn.Linear(512 * 49, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, 10)
    )
    return model


# MobileNetV2's blocks: without expansion, with a stride, with a shortcut.
_INVERTED = [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 2]]


def _resnet() -> nn.Module:
    from torchvision.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10)


def _efficientnet() -> nn.Module:
    from torchvision.models.efficientnet import EfficientNet, MBConvConfig

    blocks = [(1, 3, 1, 16, 16, 1), (6, 3, 2, 16, 24, 2), (6, 5, 2, 24, 40, 2)]
    return EfficientNet([MBConvConfig(*block) for block in blocks], 0.2, num_classes=10)


def _resnext() -> nn.Module:
    from torchvision.models.resnet import Bottleneck, ResNet

    return ResNet(Bottleneck, [1, 1, 1, 1], num_classes=10, groups=8, width_per_group=4)


def _densenet() -> nn.Module:
    from torchvision.models import DenseNet

    return DenseNet(8, (2, 3, 2), 16, num_classes=10, drop_rate=0.1)


def _convnext() -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    sizes = [(16, 32, 1), (32, 48, 1), (48, None, 2)]
    return ConvNeXt([CNBlockConfig(*size) for size in sizes], 0.1, num_classes=10)


def _swin() -> nn.Module:
    from torchvision.models import SwinTransformer

    return SwinTransformer([4, 4], 16, [2, 2, 2], [2, 2, 4], [4, 4], num_classes=10)


def _swin_v2() -> nn.Module:
    from torchvision.models.swin_transformer import (
        PatchMergingV2,
        SwinTransformer,
        SwinTransformerBlockV2,
    )

    return SwinTransformer(
        *([4, 4], 16, [2, 2], [2, 2], [4, 4]),
        num_classes=10,
        block=SwinTransformerBlockV2,
        downsample_layer=PatchMergingV2,
    )


def _vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(32, 8, 3, 2, 32, 64, dropout=0.1, num_classes=10)


def _maxvit() -> nn.Module:
    from torchvision.models import MaxVit

    return MaxVit((64, 64), 16, 2, [16, 32], [1, 1], 8, 0.1, num_classes=10)


def _mixer() -> nn.Module:
    from timm.models.mlp_mixer import MlpMixer

    return MlpMixer(num_classes=10, img_size=32, patch_size=8, num_blocks=3, embed_dim=48)


TORCHVISION = {
    "alexnet": vision("alexnet"),
    "vgg11_bn": Known(_vgg, partial(images, 32)),
    "resnet18": Known(_resnet, partial(images, SIZE)),
    "resnext": Known(_resnext, partial(images, SIZE)),
    "densenet": Known(_densenet, partial(images, 32)),
    "mobilenet_v2": vision("mobilenet_v2", inverted_residual_setting=_INVERTED),
    "mobilenet_v3_small": vision("mobilenet_v3_small"),
    "efficientnet_b0": Known(_efficientnet, partial(images, SIZE)),
    "squeezenet1_1": vision("squeezenet1_1"),
    "shufflenet_v2_x0_5": vision("shufflenet_v2_x0_5"),
    "mnasnet0_5": vision("mnasnet0_5"),
    "regnet_x_400mf": vision("regnet_x_400mf"),
    "googlenet": vision("googlenet", init_weights=False),
    "convnext": Known(_convnext, partial(images, 32)),
    "swin": Known(_swin, partial(images, 32)),
    "swin_v2": Known(_swin_v2, partial(images, 32)),
    "vit": Known(_vit, partial(images, 32)),
    "maxvit": Known(_maxvit, partial(images, 64)),
}
TIMM = {
    "levit_128s": timm("levit_128s", img_size=64, depth=(1, 1, 1)),
    "convnextv2_atto": timm("convnextv2_atto", size=32, depths=(1, 1, 2, 1)),
    "mixer": Known(_mixer, partial(images, 32)),
    "deit_tiny": timm("deit_tiny_patch16_224", img_size=64, depth=3),
    "mobilevit_xxs": timm("mobilevit_xxs"),
    "xcit_nano": timm("xcit_nano_12_p16_224", img_size=64, depth=2),
    "poolformer_s12": timm("poolformer_s12", size=32),
    "repvgg_a0": timm("repvgg_a0", size=32),
}


def _tokens(rows: int, length: int = 7) -> dict[str, torch.Tensor]:
    mask = torch.ones(rows, length, dtype=torch.long)
    mask[1::2, -2:] = 0
    return {"input_ids": torch.randint(5, 50, (rows, length)), "attention_mask": mask}


def _text_model(kind: str, **options: Any) -> nn.Module:
    import transformers

    config = getattr(transformers, f"{kind}Config")(vocab_size=50, num_labels=3, **options)
    model: nn.Module = getattr(transformers, f"{kind}ForSequenceClassification")(config)
    return model


_BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 20,
}


def _bert() -> nn.Module:
    return _text_model("Bert", **_BERT)


def _distilbert() -> nn.Module:
    return _text_model(
        "DistilBert", dim=32, n_layers=2, n_heads=2, hidden_dim=48, max_position_embeddings=20
    )


def _gpt2() -> nn.Module:
    return _text_model("GPT2", n_embd=32, n_layer=2, n_head=2, n_positions=20, pad_token_id=1)


def _hf_vit() -> nn.Module:
    import transformers

    small = {k: v for k, v in _BERT.items() if k != "max_position_embeddings"}
    config = transformers.ViTConfig(image_size=32, patch_size=8, num_labels=3, **small)
    return transformers.ViTForImageClassification(config)


TRANSFORMERS = {
    "bert": Known(_bert, _tokens, ("classifier", "bert.encoder.layer.1 | classifier")),
    "distilbert": Known(
        _distilbert,
        _tokens,
        ("pre_classifier | classifier", "distilbert.transformer.layer.1 | *classifier"),
    ),
    "gpt2": Known(
        _gpt2,
        lambda rows: _tokens(rows) | {"use_cache": False},
        ("score", "transformer.h.1 | score"),
    ),
    "hf vit": Known(
        _hf_vit,
        lambda rows: {"pixel_values": images(32, rows)},
        ("classifier", "vit.layers.1 | classifier"),
    ),
}
_PACKAGES = {"torchvision": TORCHVISION, "timm": TIMM, "transformers": TRANSFORMERS}
ZOO = {name: known for models in _PACKAGES.values() for name, known in models.items()}


def package_of(name: str) -> str:
    return next(package for package, models in _PACKAGES.items() if name in models)


def is_installed(name: str) -> bool:
    return importlib.util.find_spec(package_of(name)) is not None
