"""The networks of `networks.py`: how each is built, what goes in, and what its last stage is."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
from decoding import lite0
from shared import DATA
from torch import Tensor, nn

import frostline as fl
from frostline.data import ImageDataset, read_splits
from frostline.models import Pooled, find_classifier, load_model, put_head

CLASSES = 10
LAST = "stage:-2..-1"
VOCABULARY = 30522
_CLS, _SEP, _FIRST_WORD = 101, 102, 1000

Inputs = Tensor | dict[str, Tensor]


@final
@dataclass(frozen=True, slots=True)
class Network:
    """A network with its head, and what it takes.

    Attributes:
        head: selector of what makes the logits.
        preprocessing: of pictures; None of a network that reads texts.
        tokens: makes a batch of sentences; None of a network that sees pictures.
        keyword: by which a network that sees pictures takes them; None where it takes a tensor.
    """

    model: nn.Module
    head: str
    preprocessing: fl.Preprocessing | None = None
    tokens: Callable[[Sequence[str]], dict[str, Tensor]] | None = None
    keyword: str | None = None

    def inputs(self, count: int) -> Inputs:
        """So many photos of ants and bees, or sentences about films; the same ones each time."""
        if self.tokens is not None:
            return self.tokens(sentences(count))
        assert self.preprocessing is not None
        return self.of_pictures(photos(self.preprocessing, count))

    def of_pictures(self, pictures: Tensor) -> Inputs:
        return pictures if self.keyword is None else {self.keyword: pictures}


@final
@dataclass(frozen=True, slots=True)
class Listed:
    """A line of the tables.

    Attributes:
        package: where the network comes from.
        build: makes it; given the folder of MiniLM, which one of them needs.
        weights: `random`, or what they were trained on.
        last: selector of the last stage and all behind it.
    """

    package: str
    build: Callable[[Path], Network]
    weights: str = "random"
    last: str = LAST


def photos(prepare: fl.Preprocessing, count: int) -> Tensor:
    """Photos of hymenoptera's `val/`, evenly spaced: `(count, channels, height, width)`."""
    val = ImageDataset(read_splits(DATA / "hymenoptera").val, prepare)
    places = [number * len(val) // count for number in range(count)]
    return torch.stack([val[place][0] for place in places])


def sentences(count: int) -> list[str]:
    """The first ones of SST-2's `dev.tsv`."""
    lines = (DATA / "sst2" / "dev.tsv").read_text(encoding="utf-8").splitlines()[:count]
    return [line.rsplit("\t", 1)[0] for line in lines]


def words_as_numbers(texts: Sequence[str]) -> dict[str, Tensor]:
    """A number for each word, as good as any tokenizer's for weights that know no word."""
    rows = []
    for text in texts:
        words = (zlib.crc32(word.encode()) for word in text.split())
        ids = [_FIRST_WORD + word % (VOCABULARY - _FIRST_WORD) for word in words]
        rows.append(torch.tensor([_CLS, *ids, _SEP]))
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def _loaded(name: str, weights: Path | None, _: Path) -> Network:
    """By the name that `frostline train --model` takes."""
    loaded = load_model(name, weights=str(weights or "none"), classes=CLASSES)
    return Network(loaded.model, loaded.head, loaded.of_pictures)


def _levit(_: Path) -> Network:
    """Its logits are the mean of two classifiers', so that a head would replace neither."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model("levit_128s", num_classes=CLASSES)
    return Network(model, "head | head_dist", fl.Preprocessing(interpolation="bicubic"))


def _lite0(_: Path) -> Network:
    model, head, prepare, _real = lite0()
    return Network(model, head, prepare)


def _minilm(folder: Path) -> Network:
    from transformers import AutoTokenizer

    loaded = load_model(f"hf:{folder}", weights="DEFAULT", classes=CLASSES)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def tokens(texts: Sequence[str]) -> dict[str, Tensor]:
        made = tokenizer(list(texts), padding=True, return_tensors="pt")
        return {name: made[name] for name in loaded.of_texts.inputs}

    return Network(loaded.model, loaded.head, tokens=tokens)


def _classifier(kind: str, settings: Mapping[str, Any], _: Path) -> Network:
    """A classifier of texts, random, as its class makes it."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=VOCABULARY, num_labels=CLASSES, pad_token_id=0, **settings
    )
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config)
    return Network(model, find_classifier(model)[0], tokens=words_as_numbers)


def _t5(_: Path) -> Network:
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    config = T5Config(vocab_size=VOCABULARY, num_layers=4)
    headed = put_head(Pooled(T5EncoderModel(config), width=512), classes=CLASSES, seed=0)
    return Network(headed.model, headed.head, tokens=words_as_numbers)


def _pictures(kind: str, settings: Mapping[str, Any], _: Path) -> Network:
    """A classifier of pictures of transformers, random."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(num_labels=CLASSES, **settings)
    model = getattr(transformers, f"{kind}ForImageClassification")(config)
    head = find_classifier(model)[0]
    return Network(model, head, fl.Preprocessing(), keyword="pixel_values")


_FEATURES = DATA / "weights" / "mobilenet_v2.features.safetensors"
_WEIGHTS = {"squeezenet1_1": DATA / "weights" / "squeezenet1_1.pth", "mobilenet_v2": _FEATURES}
_TORCHVISION = (
    *("alexnet", "vgg11_bn", "resnet18", "resnet50", "densenet121", "googlenet", "inception_v3"),
    *("squeezenet1_1", "mobilenet_v2", "mobilenet_v3_large", "shufflenet_v2_x1_0"),
    *("efficientnet_b0", "regnet_y_400mf", "convnext_tiny", "vit_b_16", "swin_t", "swin_v2_t"),
    "maxvit_t",
)
_TIMM = (
    *("resnetv2_50", "rexnet_100", "mixer_s16_224", "deit_tiny_patch16_224"),
    *("cait_xxs24_224", "xcit_nano_12_p16_224", "coatnet_nano_rw_224", "mobilevit_s"),
    *("fastvit_t8", "hrnet_w18_small"),
)
_FOUR = {"num_hidden_layers": 4}
_TEXTS: dict[str, tuple[str, dict[str, Any]]] = {
    "distilbert": ("DistilBert", {"n_layers": 4}),
    "roberta": ("Roberta", _FOUR),
    "electra": ("Electra", _FOUR),
    "albert": ("Albert", {**_FOUR, "hidden_size": 768, "num_attention_heads": 12}),
    "deberta_v2": (
        "DebertaV2",
        {
            **_FOUR,
            "hidden_size": 768,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
        },
    ),
    "gpt2": ("GPT2", {"n_layer": 4, "use_cache": False}),
}
# A pooler or second classifier alone is no stage; ALBERT's blocks are one with shared weights.
_FROM_THIRD = "stage:-3..-1"
_LAST = {
    "distilbert": _FROM_THIRD,
    "deberta_v2": _FROM_THIRD,
    "albert": "albert.encoder.albert_layer_groups | albert.pooler | classifier",
}


def _of_torchvision(name: str) -> Listed:
    file = _WEIGHTS.get(name)
    weights = "ImageNet" if file else "random"
    return Listed("torchvision", partial(_loaded, name, file), weights)


LISTED: Mapping[str, Listed] = {
    **{name: _of_torchvision(name) for name in _TORCHVISION},
    "efficientnet_lite0": Listed("efficientnet_lite_pytorch", _lite0, "ImageNet"),
    **{name: Listed("timm", partial(_loaded, f"timm:{name}", None)) for name in _TIMM},
    "levit_128s": Listed("timm", _levit, last=_FROM_THIRD),
    "minilm": Listed("transformers", _minilm, "1 billion pairs of sentences"),
    **{
        name: Listed("transformers", partial(_classifier, *made), last=_LAST.get(name, LAST))
        for name, made in _TEXTS.items()
    },
    "t5 (encoder)": Listed("transformers", _t5),
    "vit": Listed("transformers", partial(_pictures, "ViT", _FOUR)),
    "dinov2": Listed("transformers", partial(_pictures, "Dinov2", {**_FOUR, "image_size": 224})),
}
"""Forty networks, by the name they have in the tables."""
