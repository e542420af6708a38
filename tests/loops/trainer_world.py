"""Tiny models of transformers, data for them, and short runs of its Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import frostline as fl
from phased_net import net, rows

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


class Labelled(nn.Module):
    """A network of one's own, as the Trainer calls it; by hand, parts stay in eval."""

    def __init__(self) -> None:
        super().__init__()
        self.model = net()
        self.held: tuple[str, ...] = ()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.model(x)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    def train(self, mode: bool = True) -> Labelled:
        super().train(mode)
        for name in self.held:
            self.model.get_submodule(name).eval()
        return self


ROWS = [{"x": x, "labels": int(label)} for x, label in rows()]


class KilledError(Exception):
    """The process is gone."""


class KillAt(transformers.TrainerCallback):
    """Raises within that step of the optimizer."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step + 1 == self.step:
            raise KilledError


def trainer(
    model: nn.Module, folder: Path, *callbacks: Any, data: Any = ROWS, **changes: Any
) -> transformers.Trainer:
    given = {"num_train_epochs": 6, "per_device_train_batch_size": 8, "weight_decay": 0.1}
    return transformers.Trainer(
        model,
        arguments(folder, **given | changes),
        train_dataset=data,
        eval_dataset=data,
        callbacks=[*callbacks],
    )


def bits(model: nn.Module) -> dict[str, str]:
    return dict(fl.fingerprint(model).tensors)
