"""Tiny models of transformers, data for them, and short runs of its Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

_SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "num_labels": 3,
}
_DRAW = torch.Generator().manual_seed(0)
PICTURES = [
    {"pixel_values": torch.randn(3, 16, 16, generator=_DRAW), "labels": i % 3} for i in range(22)
]
TEXTS = [
    {"input_ids": [3 + (i * 7 + j) % 50 for j in range(4 + i % 5)], "label": i % 3, "text": f"{i}"}
    for i in range(22)
]


def pictures_net() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.ViTConfig(image_size=16, patch_size=8, **_SMALL)
    return transformers.ViTForImageClassification(config)


def texts_net() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=60, max_position_embeddings=32, **_SMALL)
    return transformers.BertForSequenceClassification(config)


def arguments(folder: Path, **changes: Any) -> transformers.TrainingArguments:
    given: dict[str, Any] = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 11,
        "learning_rate": 1e-2,
        "eval_strategy": "epoch",
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "seed": 0,
        "disable_tqdm": True,
    }
    return transformers.TrainingArguments(output_dir=str(folder / "run"), **given | changes)


def padding(items: list[dict[str, Any]]) -> dict[str, Tensor]:
    """As DataCollatorWithPadding does."""
    rows = [item["input_ids"] for item in items]
    most = max(map(len, rows))
    return {
        "input_ids": torch.tensor([row + [0] * (most - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(r) + [0] * (most - len(r)) for r in rows]),
        "labels": torch.tensor([item["label"] for item in items]),
    }
