"""A tiny BERT and a tiny ViT with LoRA in their upper layers, and data for both."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset
from transformers import BertConfig, BertForSequenceClassification

import frostline as fl

# peft 0.21 asks transformers 5.23 for a name that this one wants to be rid of.
ASKS_BY_AN_OLD_NAME = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)
LAYER = "base_model.model.bert.encoder.layer"
QUERY = f"{LAYER}.1.attention.self.query"
BELOW = "**.embeddings | **.layer.0"
_SIZES = {"vocab_size": 60, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}


def bert() -> nn.Module:
    """Two layers, 16 wide; the same weights each time."""
    torch.manual_seed(0)
    sizes = {**_SIZES, "num_hidden_layers": 2, "max_position_embeddings": 16, "num_labels": 3}
    made: nn.Module = BertForSequenceClassification(BertConfig(**sizes))
    return made


def lora(**options: Any) -> LoraConfig:
    """Factors in the last layer, which change the model from the beginning."""
    chosen: dict[str, Any] = {"task_type": "SEQ_CLS", "r": 4, "target_modules": ["query", "value"]}
    chosen |= {"layers_to_transform": [1], "lora_dropout": 0.1, "init_lora_weights": False}
    return LoraConfig(**{**chosen, **options})


def adapted(model: nn.Module | None = None, **options: Any) -> PeftModel:
    """`get_peft_model` of it, as PEFT leaves it."""
    torch.manual_seed(1)
    made = get_peft_model(bert() if model is None else model, lora(**options))
    assert isinstance(made, PeftModel)
    return made


def off(model: nn.Module) -> list[Tensor]:
    """What wants no gradient, as a selector."""
    return [parameter for parameter in model.parameters() if not parameter.requires_grad]


def frozen_around(model: nn.Module) -> fl.Frozen:
    """Freeze what PEFT switched off, with its modes."""
    return fl.freeze(model, off(model))


def tokens(count: int = 6, seed: int = 3) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 60, (count, 9), generator=draw)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


class Texts(Dataset[Any]):
    """Tokens and the class that the first of them says."""

    def __init__(self, count: int, seed: int) -> None:
        self.tokens = tokens(count, seed)

    def __len__(self) -> int:
        return len(self.tokens["input_ids"])

    def __getitem__(self, row: int) -> tuple[dict[str, Tensor], int]:
        one = {name: rows[row] for name, rows in self.tokens.items()}
        return one, int(one["input_ids"][0] % 3)


def pictures(count: int, seed: int) -> TensorDataset:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, 32, 32, generator=draw)
    return TensorDataset(x, (x.mean((1, 2, 3)) > 0).long())


def vit() -> nn.Module:
    """timm's tiny ViT with LoRA in its last block and a head that trains."""
    import timm

    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=2, **sizes)
    torch.manual_seed(1)
    config = LoraConfig(
        r=2, target_modules=r"blocks\.1\.attn\.qkv", modules_to_save=["head"], lora_dropout=0.1
    )
    made: nn.Module = get_peft_model(model, config)
    return made
