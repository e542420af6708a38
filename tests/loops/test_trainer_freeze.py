"""`Freeze` under transformers' Trainer: phases as by hand, modes held, proofs, checkpoints."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import datasets
import pytest
import sentence_transformers
import torch
import transformers
from safetensors.torch import load_file
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from trainer_world import PICTURES, ROWS, Labelled, bits, pictures_net, trainer

import frostline as fl
from frostline.transformers import Freeze
from text_world import write_bert

TWO = fl.Plan(
    [
        fl.Phase(name="head", train="head", epochs=2),
        fl.Phase(name="neck", train="neck | head", epochs=2),
    ]
)


class ByHand(transformers.TrainerCallback):
    """The two phases as one writes them oneself, and what is held in them."""

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        model = given["model"]
        model.held = ("body", "neck") if state.epoch < 2 else ("body",)
        for name, parameter in model.model.named_parameters():
            parameter.requires_grad_(not name.startswith(model.held))
        if state.epoch >= 4:
            control.should_training_stop = True


class Watching(transformers.TrainerCallback):
    """Which parts are in train mode in each step."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, ...]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        parts = ("body", "neck", "head")
        model = given["model"].model
        self.seen.append(tuple(n for n in parts if model.get_submodule(n).training))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The bits of the Trainer's own run of the first four of six epochs, frozen by hand."""
    model = Labelled()
    made = trainer(model, tmp_path_factory.mktemp("plain"), ByHand())
    made.add_callback(StopAfter(4))
    made.train()
    return bits(model.model)


class StopAfter(transformers.TrainerCallback):
    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.epoch >= self.epochs:
            control.should_training_stop = True


def test_a_plan_under_the_trainer_ends_at_the_bits_of_the_freeze_done_by_hand(
    plain: dict[str, str], tmp_path: Path
) -> None:
    model, freeze, watching = Labelled(), Freeze(TWO, module="model"), Watching()
    made = trainer(model, tmp_path, freeze, watching)
    made.train()
    assert bits(model.model) == plain
    assert made.state.global_step == 16
    assert [(end.name, end.reason, end.steps) for end in freeze.ends] == [
        ("head", "2 epochs", 8),
        ("neck", "2 epochs", 8),
    ]
    assert watching.seen == [("head",)] * 8 + [("neck", "head")] * 8
    assert fl.fingerprint(model, "model.body") == fl.fingerprint(Labelled(), "model.body")


def test_what_comes_back_has_the_decay_that_the_trainer_gave_it(tmp_path: Path) -> None:
    """It decays weights of batch norms, which other rules of groups do not."""
    model = Labelled()
    made = trainer(model, tmp_path, Freeze(TWO, module="model"))
    made.train()
    decayed = {
        name
        for group in made.optimizer.param_groups
        for name, p in model.model.named_parameters()
        if group["weight_decay"] and any(p is held for held in group["params"])
    }
    assert decayed == {"neck.0.weight", "neck.1.weight", "head.weight"}


def test_a_selector_stays_frozen_as_long_as_the_trainer_trains(tmp_path: Path) -> None:
    model, freeze = Labelled(), Freeze("model.body")
    trainer(model, tmp_path, freeze, num_train_epochs=2).train()
    (end,) = freeze.ends
    assert (end.reason, end.steps) == ("training ended", 8)
    assert fl.fingerprint(model, "model.body") == fl.fingerprint(Labelled(), "model.body")
    assert fl.fingerprint(model, "model.neck") != fl.fingerprint(Labelled(), "model.neck")


def test_phases_by_steps_and_by_a_plateau_of_what_the_trainer_evaluates(tmp_path: Path) -> None:
    until = fl.Until(patience=1, min_change=10.0)
    plan = fl.Plan(
        [fl.Phase(train="head", steps=3), fl.Phase(train="neck | head", epochs=9, until=until)]
    )
    freeze = Freeze(plan, module="model", monitor="eval_loss")
    made = trainer(Labelled(), tmp_path, freeze)
    made.train()
    assert [end.reason for end in freeze.ends] == ["3 steps", "no better eval_loss for 1 epoch"]
    assert made.state.global_step == 8


class Moves(transformers.TrainerCallback):
    """Writes into a frozen part."""

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if state.global_step == 3:
            with torch.no_grad():
                given["model"].model.body[0].bias[0] += 1e-6


def test_a_frozen_part_that_moves_is_found_at_the_end_of_its_phase(tmp_path: Path) -> None:
    with pytest.raises(fl.DriftError, match=r"body\.0\.bias"):
        trainer(Labelled(), tmp_path, Freeze(TWO, module="model"), Moves()).train()


def test_a_delta_beside_each_checkpoint_makes_the_base_what_was_trained(tmp_path: Path) -> None:
    model = Labelled()
    made = trainer(model, tmp_path, Freeze(TWO, module="model"), save_strategy="epoch")
    made.train()
    folders = sorted((tmp_path / "run").glob("checkpoint-*"))
    assert [folder.name for folder in folders] == [f"checkpoint-{n}" for n in (12, 16, 4, 8)]
    delta = tmp_path / "run" / "checkpoint-16" / "delta.safetensors"
    again = Labelled().model
    fl.load_delta(again, delta)
    assert bits(again) == bits(model.model)
    assert not any(name.startswith("body") for name in load_file(delta))


def test_the_best_weights_come_back_after_the_proofs(tmp_path: Path) -> None:
    """Of a model that is saved under other names the Trainer alone would leave the last."""
    model = pictures_net()
    plan = fl.Plan(
        [
            fl.Phase(train="classifier", epochs=1),
            fl.Phase(train="vit.layers.1 | classifier", epochs=1, lr=1.0),  # which spoils it
        ]
    )
    freeze = Freeze(plan)
    made = trainer(
        model,
        tmp_path,
        freeze,
        data=PICTURES,
        save_strategy="epoch",
        load_best_model_at_end=True,
        learning_rate=1e-3,
    )
    made.train()
    assert len(freeze.ends) == 2
    best = Path(str(made.state.best_model_checkpoint))
    assert best.name == "checkpoint-3"
    read = type(model).from_pretrained(best)
    assert bits(read) == bits(model)
    assert not [n for n, p in read.named_parameters() if not p.requires_grad]


def test_gradient_checkpointing_changes_no_bit(tmp_path: Path) -> None:
    found = []
    plan = fl.Plan([fl.Phase(train="vit.layers.1 | classifier", epochs=1)])
    for name in ("without", "with"):
        model = pictures_net()
        changes = {"activation_checkpointing": True} if name == "with" else {}
        trainer(model, tmp_path / name, Freeze(plan), data=PICTURES, **changes).train()
        found.append(bits(model))
    assert found[0] == found[1]
    assert found[0] != bits(pictures_net())


def test_a_suffix_on_features_trains_frozen_and_proven_to_the_bits_of_its_model(
    tmp_path: Path,
) -> None:
    model = Labelled()
    example = {
        "x": torch.stack([row["x"] for row in ROWS[:4]]),
        "labels": torch.tensor([row["labels"] for row in ROWS[:4]]),
    }
    plain = copy.deepcopy(model)
    fl.freeze(model, "model.body")
    cut = fl.cut(model, example)
    features = fl.extract(cut, ROWS, tmp_path / "store", precision="exact", batch_size=8)
    short = {"eval_strategy": "no", "num_train_epochs": 2, "dataloader_drop_last": True}
    freeze = Freeze("model.body")
    trainer(cut.suffix, tmp_path / "one", freeze, data=features, **short).train()
    trainer(plain, tmp_path / "two", Freeze("model.body"), **short).train()
    assert len(freeze.ends) == 1
    assert bits(model) == bits(plain) != bits(Labelled())


def test_a_plan_longer_than_the_run_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    transformers.utils.logging.enable_propagation()
    with caplog.at_level(logging.WARNING):
        trainer(Labelled(), tmp_path, Freeze(TWO, module="model"), num_train_epochs=1).train()
    transformers.utils.logging.disable_propagation()
    assert "training ended in phase 1 of 2, by num_train_epochs or max_steps" in caplog.text


def test_training_again_in_the_same_trainer_begins_the_plan_again(tmp_path: Path) -> None:
    freeze = Freeze(TWO, module="model")
    made = trainer(Labelled(), tmp_path, freeze)
    made.train()
    made.train()
    assert [end.name for end in freeze.ends] == ["head", "neck"]
    assert made.state.global_step == 16


def test_the_trainer_of_sentence_transformers_takes_a_plan(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = Transformer(str(write_bert(tmp_path / "encoder")))
    model = sentence_transformers.SentenceTransformer(
        modules=[encoder, Pooling(encoder.get_embedding_dimension())], device="cpu"
    )
    frozen = "**.encoder.layer.0 | **.embeddings"
    before, whole = fl.fingerprint(model, frozen), fl.fingerprint(model)
    freeze = Freeze(fl.Plan([fl.Phase(train="**.encoder.layer.1", epochs=1)]))
    data = datasets.Dataset.from_dict(
        {
            "one": ["good film", "dull plot"] * 4,
            "two": ["fine film", "the film"] * 4,
            "score": [1.0, 0.0] * 4,
        }
    )
    args = sentence_transformers.SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path / "run"),
        num_train_epochs=2,
        per_device_train_batch_size=4,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
    )
    sentence_transformers.SentenceTransformerTrainer(
        model, args, train_dataset=data, loss=CosineSimilarityLoss(model), callbacks=[freeze]
    ).train()
    assert [end.reason for end in freeze.ends] == ["1 epoch"]
    assert fl.fingerprint(model, frozen) == before
    assert fl.fingerprint(model) != whole
