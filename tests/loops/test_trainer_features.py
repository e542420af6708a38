"""transformers' Trainer on stored features: the same numbers as without, and what it asks for."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import DataLoader
from trainer_world import PICTURES, TEXTS, arguments, padding, pictures_net, texts_net

import frostline as fl


def losses(trainer: Any) -> list[float]:
    return [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]


@pytest.fixture(scope="module")
def on_pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[fl.Cut, Any]:
    model = pictures_net()
    fl.train_only(model, "vit.layers.1 | classifier")
    example = {
        "pixel_values": torch.stack([item["pixel_values"] for item in PICTURES[:4]]),
        "labels": torch.tensor([item["labels"] for item in PICTURES[:4]]),
    }
    cut = fl.cut(model, example)
    store = tmp_path_factory.mktemp("store")
    return cut, fl.extract(cut, PICTURES, store, precision="exact", batch_size=4)


def plain_run(model: nn.Module, folder: Path, **given: Any) -> tuple[dict[str, Tensor], Any]:
    """The Trainer without features, on a copy; with the same frozen parts held."""
    own = copy.deepcopy(model)
    trainer = transformers.Trainer(own, arguments(folder), **given)
    trainer.train()
    return own.state_dict(), trainer


def test_a_trainer_on_stored_features_trains_to_the_bits_of_one_without(
    on_pictures: tuple[fl.Cut, Any], tmp_path: Path
) -> None:
    cut, features = on_pictures
    plain, one = plain_run(
        cut.suffix.model, tmp_path, train_dataset=PICTURES, eval_dataset=PICTURES
    )
    suffix = copy.deepcopy(cut.suffix)
    two = transformers.Trainer(
        suffix, arguments(tmp_path), train_dataset=features, eval_dataset=features
    )
    two.train()
    assert fl.fingerprint(suffix.model) != fl.fingerprint(cut.suffix.model)
    found = suffix.state_dict()
    assert list(found) == list(plain)
    assert all(torch.equal(found[name], plain[name]) for name in plain)
    assert losses(one) == losses(two) != []


def test_a_trainer_on_padded_features_of_texts_trains_as_one_without(tmp_path: Path) -> None:
    model = texts_net()
    fl.train_only(model, "bert.encoder.layer.1 | bert.pooler | classifier")
    cut = fl.cut(model, padding(TEXTS[:4]))
    features = fl.extract(cut, TEXTS, tmp_path / "store", precision="exact", collate=padding)
    given = {"train_dataset": TEXTS, "eval_dataset": TEXTS, "data_collator": padding}
    plain, one = plain_run(model, tmp_path, **given)
    trainer = transformers.Trainer(
        cut.suffix, arguments(tmp_path), train_dataset=features, eval_dataset=features
    )
    trainer.train()
    assert all(torch.allclose(t, plain[n], atol=1e-5) for n, t in model.state_dict().items())
    assert losses(trainer) == pytest.approx(losses(one), rel=1e-5)


class WithLoader(transformers.Trainer):
    """Three lines for the order of the features' own loader."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        loader = self.train_dataset.loader(self._train_batch_size, seed=self.args.seed)
        return self.accelerator.prepare(loader)


def test_a_trainer_takes_the_loader_and_tells_it_the_epoch(
    on_pictures: tuple[fl.Cut, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut, features = on_pictures
    seen: list[int] = []
    plain = type(features.loader().sampler).set_epoch
    monkeypatch.setattr(
        type(features.loader().sampler),
        "set_epoch",
        lambda self, epoch: (seen.append(epoch), plain(self, epoch))[1],
    )
    trainer = WithLoader(
        copy.deepcopy(cut.suffix),
        arguments(tmp_path, eval_strategy="no"),
        train_dataset=features,
    )
    trainer.train()
    assert trainer.state.global_step == 12
    assert {0, 1} <= set(seen)


def test_a_saved_suffix_is_a_checkpoint_of_the_model(
    on_pictures: tuple[fl.Cut, Any], tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    cut, features = on_pictures
    trainer = transformers.Trainer(
        cut.suffix, arguments(tmp_path, eval_strategy="no"), train_dataset=features
    )
    trainer.save_model(str(tmp_path / "saved"))
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert list(saved) == sorted(cut.suffix.model.state_dict())
    copy.deepcopy(cut.suffix.model).load_state_dict(saved)


def test_predictions_on_features_are_those_of_the_model(
    on_pictures: tuple[fl.Cut, Any], tmp_path: Path
) -> None:
    cut, features = on_pictures
    trainer = transformers.Trainer(cut.suffix, arguments(tmp_path, eval_strategy="no"))
    found = trainer.predict(features)
    pixels = torch.stack([item["pixel_values"] for item in PICTURES])
    with torch.no_grad():
        plain = cut.suffix.model.eval()(pixels).logits
    torch.testing.assert_close(torch.from_numpy(found.predictions), plain)
    assert found.label_ids.tolist() == [item["labels"] for item in PICTURES]
