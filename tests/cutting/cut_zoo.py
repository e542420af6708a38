"""The architectures of the zoo tests: each kind of block once or twice, narrow where that is free.

To follow an operation costs more than to compute it, and a block that repeats tells nothing new.
"""

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


def _alexnet() -> nn.Module:
    from torchvision.models import alexnet

    model = alexnet()
    model.classifier = nn.Sequential(
        *(nn.Dropout(), nn.Linear(256 * 36, 32), nn.ReLU(True)),
        *(nn.Dropout(), nn.Linear(32, 32), nn.ReLU(True), nn.Linear(32, 10)),
    )
    return model


def _vgg() -> nn.Module:
    from torchvision.models.vgg import VGG, make_layers

    model = VGG(make_layers([16, "M", 32, "M", 48, 48, "M", 48, "M"], batch_norm=True))
    model.classifier = nn.Sequential(
        nn.Linear(48 * 49, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, 10)
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


def _mobilenet_v3() -> nn.Module:
    from torchvision.models import MobileNetV3
    from torchvision.models.mobilenetv3 import InvertedResidualConfig

    # With and without squeeze-and-excitation, either activation, a stride, a shortcut.
    blocks = [
        *((16, 3, 16, 16, True, "RE", 2), (16, 3, 72, 24, False, "RE", 2)),
        *((24, 5, 96, 40, True, "HS", 2), (40, 5, 120, 40, True, "HS", 1)),
    ]
    settings = [InvertedResidualConfig(*block, 1, 1.0) for block in blocks]
    return MobileNetV3(settings, 64, num_classes=10)


def _shufflenet() -> nn.Module:
    from torchvision.models import ShuffleNetV2

    return ShuffleNetV2([1, 2, 2], [8, 16, 32, 64, 96], num_classes=10)


def _mnasnet() -> nn.Module:
    from torchvision.models import MNASNet

    model = MNASNet(0.5, num_classes=10)
    for place, stack in enumerate(model.layers):
        if isinstance(stack, nn.Sequential):
            model.layers[place] = stack[: 2 if place == 8 else 1]
    return model


def _regnet() -> nn.Module:
    from torchvision.models import RegNet
    from torchvision.models.regnet import BlockParams

    sizes = {"depths": [1, 1, 2], "widths": [16, 32, 48], "group_widths": [16, 16, 16]}
    blocks = BlockParams(**sizes, bottleneck_multipliers=[1.0] * 3, strides=[2] * 3)
    return RegNet(blocks, num_classes=10, stem_width=16)


def _googlenet() -> nn.Module:
    from torchvision.models import GoogLeNet
    from torchvision.models.googlenet import Inception, InceptionAux

    model = GoogLeNet(num_classes=10, init_weights=False)
    for name in ("3a", "4b", "4c", "4d", "5a"):
        model.add_module(f"inception{name}", nn.Identity())
    model.inception3b = Inception(192, 128, 128, 192, 32, 96, 64)
    model.inception4e = Inception(512, 256, 160, 320, 32, 128, 128)
    model.aux2 = InceptionAux(512, 10)
    return model


def _densenet() -> nn.Module:
    from torchvision.models import DenseNet

    return DenseNet(8, (2, 3, 2), 16, num_classes=10, drop_rate=0.1)


def _convnext() -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    sizes = [(16, 32, 1), (32, 48, 1), (48, None, 2)]
    return ConvNeXt([CNBlockConfig(*size) for size in sizes], 0.1, num_classes=10)


def _swin() -> nn.Module:
    from torchvision.models import SwinTransformer

    return SwinTransformer([4, 4], 16, [2, 1], [2, 2], [4, 4], num_classes=10)


def _swin_v2() -> nn.Module:
    from torchvision.models.swin_transformer import (
        PatchMergingV2,
        SwinTransformer,
        SwinTransformerBlockV2,
    )

    return SwinTransformer(
        *([4, 4], 16, [2, 1], [2, 2], [4, 4]),
        num_classes=10,
        block=SwinTransformerBlockV2,
        downsample_layer=PatchMergingV2,
    )


def _vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(32, 8, 3, 2, 32, 64, dropout=0.1, num_classes=10)


def _maxvit() -> nn.Module:
    from torchvision.models import MaxVit

    return MaxVit((32, 32), 16, 2, [16], [1], 8, 0.1, num_classes=10)


def _mobilevit() -> nn.Module:
    from timm.models.byobnet import ByobNet, ByoModelCfg
    from timm.models.mobilevit import _inverted_residual_block, _mobilevit_block

    options = {"transformer_depth": 1, "patch_size": 2, "br": 2.0}
    blocks = (
        _inverted_residual_block(d=2, c=16, s=2, br=2.0),
        _mobilevit_block(d=1, c=24, s=2, transformer_dim=32, **options),
    )
    whole = {"stem_chs": 16, "stem_type": "3x3", "stem_pool": "", "downsample": ""}
    return ByobNet(ByoModelCfg(blocks, **whole, act_layer="silu", num_features=48), num_classes=10)


def _poolformer() -> nn.Module:
    from timm.models.metaformer import GroupNorm1, MetaFormer

    return MetaFormer(
        depths=(1, 2),
        dims=(16, 32),
        downsample_norm=None,
        mlp_act=nn.GELU,
        mlp_bias=True,
        norm_layers=GroupNorm1,
        layer_scale_init_values=1e-5,
        res_scale_init_values=None,
        use_mlp_head=False,
        num_classes=10,
    )


def _repvgg() -> nn.Module:
    from timm.models.byobnet import ByobNet, ByoModelCfg, _rep_vgg_bcfg

    blocks = _rep_vgg_bcfg(d=(1, 1, 2, 1), wf=(0.25, 0.25, 0.25, 0.25))
    return ByobNet(ByoModelCfg(blocks, stem_type="rep", stem_chs=16), num_classes=10)


def _mixer() -> nn.Module:
    from timm.models.mlp_mixer import MlpMixer

    return MlpMixer(num_classes=10, img_size=32, patch_size=8, num_blocks=3, embed_dim=48)


TORCHVISION = {
    "alexnet": Known(_alexnet, partial(images, SIZE)),
    "vgg_bn": Known(_vgg, partial(images, 32)),
    "resnet18": Known(_resnet, partial(images, SIZE)),
    "resnext": Known(_resnext, partial(images, SIZE)),
    "densenet": Known(_densenet, partial(images, 32)),
    "mobilenet_v2": vision("mobilenet_v2", inverted_residual_setting=_INVERTED),
    "mobilenet_v3": Known(_mobilenet_v3, partial(images, SIZE)),
    "efficientnet_b0": Known(_efficientnet, partial(images, SIZE)),
    "squeezenet1_1": vision("squeezenet1_1"),
    "shufflenet_v2": Known(_shufflenet, partial(images, SIZE)),
    "mnasnet": Known(_mnasnet, partial(images, SIZE)),
    "regnet": Known(_regnet, partial(images, SIZE)),
    "googlenet": Known(_googlenet, partial(images, SIZE)),
    "convnext": Known(_convnext, partial(images, 32)),
    "swin": Known(_swin, partial(images, 32)),
    "swin_v2": Known(_swin_v2, partial(images, 32)),
    "vit": Known(_vit, partial(images, 32)),
    "maxvit": Known(_maxvit, partial(images, 32)),
}
TIMM = {
    "levit_128s": timm(
        "levit_128s", img_size=64, embed_dim=(64, 96), num_heads=(2, 3), depth=(1, 1)
    ),
    "convnextv2_atto": timm("convnextv2_atto", size=32, depths=(1, 1, 2, 1)),
    "mixer": Known(_mixer, partial(images, 32)),
    "deit_tiny": timm("deit_tiny_patch16_224", img_size=64, depth=2),
    "mobilevit": Known(_mobilevit, partial(images, SIZE)),
    "xcit_nano": timm("xcit_nano_12_p16_224", img_size=64, depth=1, cls_attn_layers=1),
    "poolformer": Known(_poolformer, partial(images, 32)),
    "repvgg": Known(_repvgg, partial(images, 32)),
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
