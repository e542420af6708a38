"""`frostline sweep`: what it writes is the run of `frostline train` with the winner's settings."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from frostline.config import RunSettings
from frostline.records import RunFolder
from frostline.reports.repeating import repeat_command
from small_world import call, write_net, write_pictures


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_net(tmp_path_factory.mktemp("net"))


def test_the_winner_is_the_run_of_train_with_its_settings(
    photos: Path, net: str, tmp_path: Path
) -> None:
    common = (photos, "--model", net, "--epochs", "4", "--batch-size", "6", "--freeze", "features")
    asked = ("--lr", "1e-3,1e-1", "--heads", "linear,6", "--dropout", "0.1,0.4")
    head = ("--freeze", "features | middle")  # the middle has a batch norm, which is not stacked
    answer = call("sweep", *common[:-2], *head, *asked, "--out", tmp_path / "run", "--json")
    assert answer.status == 0, answer.err
    first, *others = answer.json["members"]
    assert len(others) == 5  # a linear head on frozen layers has no dropout, so that counts once
    assert first["together"]
    settings = RunSettings.read(tmp_path / "run" / "run.toml")
    assert (settings.training.lr, list(settings.model.hidden)) == (first["lr"], first["head"])
    assert settings.model.dropout == first["dropout"]
    words = ["--lr", str(first["lr"])]
    words += ["--head", ",".join(map(str, first["head"]))] if first["head"] else []
    words += ["--dropout", str(first["dropout"])] if first["head"] else []
    trained = call("train", *common[:-2], *head, *words, "--out", tmp_path / "again")
    assert trained.status == 0, trained.err
    files = [tmp_path / name / "best" / "delta.safetensors" for name in ("run", "again")]
    one, other = map(load_file, files)
    assert one.keys() == other.keys()
    assert all(tensor.equal(other[name]) for name, tensor in one.items())
    assert call("verify", tmp_path / "run").status == 0
    assert f"--lr {first['lr']}" in repeat_command(settings, RunFolder(tmp_path / "run"))


def test_a_table_names_the_best_and_what_comes_next(photos: Path, net: str, tmp_path: Path) -> None:
    answer = call(
        *("sweep", photos, "--model", net, "--epochs", "2", "--lr", "1e-3,1e-2"),
        *("--train", "middle | head", "--out", tmp_path / "run", "--all"),
    )
    assert answer.status == 0, answer.err
    assert "Best      head linear, lr " in answer.out
    assert "Singly    2 of 2 members, one after the other: it holds batch_norm" in answer.out
    assert f"Next: frostline predict {tmp_path / 'run'} FILE..." in answer.out


def test_train_takes_a_dropout_and_says_where_there_is_none(
    photos: Path, net: str, tmp_path: Path
) -> None:
    common = ("train", photos, "--model", net, "--epochs", "1", "--dropout", "0.5")
    answer = call(*common, "--out", tmp_path / "run")
    assert answer.status == 1
    assert "has no dropout that is not frozen. Leave out --dropout" in answer.message
    assert call(*common, "--head", "8", "--out", tmp_path / "run").status == 0
    settings = RunSettings.read(tmp_path / "run" / "run.toml")
    assert "--dropout 0.5" in repeat_command(settings, RunFolder(tmp_path / "run"))
    assert call("predict", tmp_path / "run", photos / "val" / "dark" / "0.png").status == 0


@pytest.mark.parametrize(
    ("options", "status", "told"),
    [
        (("--lr", "1e-3,fast"), 2, "for --lr: 'fast' is no number"),
        (("--lr", "1e-3,-1"), 2, "lr=-1.0: input should be greater than 0"),
        (("--lr", ","), 2, "for --lr: no number stands in ','"),
        (("--heads", "wide"), 2, "'wide' is no list of widths"),
        (("--heads", "100-0"), 2, "hidden width is 0"),
        (("--heads", "8", "--on", "keep"), 2, "the classifier is kept"),
        (("--dropout", "1"), 2, "dropout=1: a probability from 0 to below 1"),
        (("--seeds", "0,x"), 2, "'x' is no whole number"),
        (("--plan", "plan.toml"), 2, "a sweep trains in one phase"),
        (("--features", "off"), 2, "a sweep trains on stored features"),
        (("--seeds", "0,1"), 1, "the frozen part is drawn by the seed"),
    ],
)
def test_a_mistake_is_told_before_anything_is_written(
    options: tuple[str, ...], status: int, told: str, photos: Path, net: str, tmp_path: Path
) -> None:
    answer = call("sweep", photos, "--model", net, *options, "--out", tmp_path / "run")
    assert answer.status == status
    assert told in " ".join(answer.err.replace("│", " ").split())
    assert not (tmp_path / "run").exists()
