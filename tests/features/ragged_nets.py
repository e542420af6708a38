"""Networks from small configs that take samples of different lengths, and such samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import frostline as fl

_SMALL: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "num_labels": 3,
}
_DEBERTA = {
    "relative_attention": True,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "pad_token_id": 1,
}
_DISTILBERT = {
    "vocab_size": 60,
    "dim": 32,
    "n_layers": 2,
    "n_heads": 2,
    "hidden_dim": 48,
    "max_position_embeddings": 40,
    "num_labels": 3,
}
WORDS = {
    "Bert": (_SMALL, "bert.encoder.layer.1 | bert.pooler | classifier"),
    "Roberta": ({**_SMALL, "pad_token_id": 1}, "roberta.encoder.layer.1 | classifier"),
    "DebertaV2": ({**_SMALL, **_DEBERTA}, "deberta.encoder.layer.1 | pooler | classifier"),
    "DistilBert": (_DISTILBERT, "distilbert.transformer.layer.1 | pre_classifier | classifier"),
    "MPNet": ({**_SMALL, "pad_token_id": 1}, "mpnet.encoder.layer.1 | classifier"),
    "Electra": ({**_SMALL, "embedding_size": 16}, "electra.encoder.layer.1 | classifier"),
}


def words_net(kind: str, train: str) -> nn.Module:
    """A classifier of texts; `train` is `head` or `upper`."""
    import transformers

    torch.manual_seed(0)
    options, upper = WORDS[kind]
    config = getattr(transformers, f"{kind}Config")(**options)
    model: nn.Module = getattr(transformers, f"{kind}ForSequenceClassification")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0 if parameter.dim() > 1 else 1.0)  # so that tokens differ
    fl.train_only(model, upper if train == "upper" else "*classifier")
    return Logits(model)


def recordings_net(train: str = "head", *, norm: str = "layer") -> nn.Module:
    import transformers

    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        conv_dim=(16,),
        conv_stride=(5,),
        conv_kernel=(10,),
        num_feat_extract_layers=1,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm=norm,
        classifier_proj_size=16,
        num_labels=3,
        apply_spec_augment=False,
        layerdrop=0.0,
        hidden_dropout=0.0,
    )
    model = transformers.Wav2Vec2ForSequenceClassification(config)
    upper = "wav2vec2.encoder.layers.1 | projector | classifier"
    fl.train_only(model, upper if train == "upper" else "projector | classifier")
    return Logits(model)


class Logits(nn.Module):
    """A model of transformers as one that gives a tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> Tensor:
        found: Tensor = self.model(**inputs).logits
        return found


class Padded(fl.Samples):
    """Samples of different lengths, padded to the longest of a batch."""

    def __init__(
        self, loaded: Sequence[dict[str, Tensor]], *, pad: Callable[[str], int], at_start: bool
    ) -> None:
        self._loaded, self._pad, self._at_start = loaded, pad, at_start
        self.targets = torch.tensor([int(next(iter(s.values())).sum()) % 3 for s in loaded])
        self.lengths: list[int] | None = [len(next(iter(sample.values()))) for sample in loaded]

    def __len__(self) -> int:
        return len(self._loaded)

    def load(self, row: int) -> dict[str, Tensor]:
        return self._loaded[row]

    def collate(self, loaded: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        side = "left" if self._at_start else "right"
        return {
            name: nn.utils.rnn.pad_sequence(
                [sample[name] for sample in loaded],
                batch_first=True,
                padding_value=self._pad(name),
                padding_side=side,
            )
            for name in loaded[0]
        }


def words(
    count: int, *, seed: int = 0, pad: int = 0, at_start: bool = False, most: int = 20
) -> Padded:
    """Token ids of 4 to `most` positions with their mask."""
    draw = torch.Generator().manual_seed(seed)
    sizes = torch.randint(4, most + 1, (count,), generator=draw).tolist()
    loaded = [
        {
            "input_ids": torch.randint(3, 60, (size,), generator=draw),
            "attention_mask": torch.ones(size, dtype=torch.int64),
        }
        for size in sizes
    ]
    return Padded(loaded, pad=lambda name: pad if name == "input_ids" else 0, at_start=at_start)


def recordings(count: int, *, seed: int = 0) -> Padded:
    """Numbers of 40 to 100 positions with their mask."""
    draw = torch.Generator().manual_seed(seed)
    sizes = torch.randint(40, 101, (count,), generator=draw).tolist()
    loaded = [
        {
            "input_values": torch.randn(size, generator=draw),
            "attention_mask": torch.ones(size, dtype=torch.int64),
        }
        for size in sizes
    ]
    return Padded(loaded, pad=lambda _: 0, at_start=False)


class Pictures(fl.Samples):
    """Pictures of one size, as the model of transformers names them."""

    lengths = None

    def __init__(self, count: int) -> None:
        draw = torch.Generator().manual_seed(0)
        self._pictures = torch.randn(count, 3, 16, 16, generator=draw)
        self.targets = torch.arange(count) % 3

    def __len__(self) -> int:
        return len(self._pictures)

    def load(self, row: int) -> dict[str, Tensor]:
        return {"pixel_values": self._pictures[row]}


def pictures(count: int) -> Pictures:
    return Pictures(count)


def pictures_net(train: str) -> nn.Module:
    import transformers

    torch.manual_seed(0)
    small = {k: v for k, v in _SMALL.items() if k not in ("vocab_size", "max_position_embeddings")}
    config = transformers.ViTConfig(image_size=16, patch_size=8, **small)
    model = transformers.ViTForImageClassification(config)
    upper = "vit.layers.1 | classifier"
    fl.train_only(model, upper if train == "upper" else "classifier")
    return Logits(model)


class Reader(nn.Module):
    """Two layers of attention by hand, whose mask is True at padded places."""

    WIDTH = 16

    def __init__(self, below: str, above: str) -> None:
        super().__init__()
        self.below, self.above = below, above
        self.words, self.places = nn.Embedding(60, self.WIDTH), nn.Embedding(40, self.WIDTH)
        self.lower, self.upper = Attention(self.WIDTH), Attention(self.WIDTH)
        self.norm, self.head = nn.BatchNorm1d(self.WIDTH), nn.Linear(self.WIDTH, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        padded = attention_mask == 0
        hidden = self.words(input_ids)
        if self.below != "no positions":
            hidden = hidden + self.places(torch.arange(input_ids.shape[1]))
        hidden = self.lower(hidden, padded & (self.below != "no mask"))
        hidden = self.upper(hidden, padded)
        if self.above == "positions":
            found: Tensor = self.head(hidden)
            return found
        if self.above == "norm":
            hidden = self.norm(hidden.transpose(1, 2)).transpose(1, 2)
        weights = torch.ones_like(hidden[..., :1])
        if self.above != "mean":
            weights = weights.masked_fill(padded[..., None], 0.0)
        mean: Tensor = self.head((hidden * weights).sum(dim=1) / weights.sum(dim=1))
        return mean


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.parts, self.back = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, hidden: Tensor, padded: Tensor) -> Tensor:
        query, key, value = self.parts(hidden).chunk(3, dim=-1)
        scores = (query @ key.transpose(1, 2)).masked_fill(padded[:, None], -1e9)
        found: Tensor = hidden + self.back(scores.softmax(dim=-1) @ value)
        return found


def reader(*, below: str = "mask", above: str = "own mean") -> nn.Module:
    torch.manual_seed(0)
    model = Reader(below, above)
    fl.train_only(model, "upper | norm | head")
    return model


class Means(nn.Module):
    """The means of two texts over all their positions, padding and all."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.head = nn.Embedding(60, 16), nn.Linear(16, 3)
        fl.train_only(self, "head")

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        found: Tensor = self.head(self.words(a).mean(1) + self.words(b).mean(1))
        return found


class Vectors(fl.Samples):
    """Vectors at some positions, padded to the longest of a batch, which says no length."""

    def __init__(self, loaded: Sequence[Tensor]) -> None:
        self._loaded, self.targets = loaded, torch.arange(len(loaded)) % 3

    def __len__(self) -> int:
        return len(self._loaded)

    def load(self, row: int) -> Tensor:
        return self._loaded[row]

    def collate(self, loaded: Sequence[Tensor]) -> Tensor:
        return nn.utils.rnn.pad_sequence(list(loaded), batch_first=True)


class VectorMean(nn.Module):
    """A mean over positions whose number the graph of one example holds as a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.lower, self.head = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.lower(x).relu().sum(1) / x.shape[1])
        return found


def vectors_net() -> nn.Module:
    torch.manual_seed(0)
    model = VectorMean()
    fl.train_only(model, "head")
    return model
