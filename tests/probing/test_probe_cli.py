"""`frostline probe`: the table, JSON, and a command that runs as it stands."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from small_world import call, write_net, write_pictures


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Pictures, and what to say for `--model`."""
    root = tmp_path_factory.mktemp("probe")
    return write_pictures(root / "photos", train=8, val=4), write_net(root)


def test_the_command_that_it_ends_with_trains_what_is_above(
    world: tuple[Path, str], tmp_path: Path
) -> None:
    photos, net = world
    answer = call("probe", photos, "--model", net, "--features", tmp_path / "store")
    assert answer.status == 0
    assert "Net by stage: 16 samples to train on, 8 to validate" in answer.out
    command = shlex.split(answer.out.rpartition("Next: ")[2])
    assert command[:5] == ["frostline", "train", str(photos), "--model", net]
    assert command[5:7] == ["--features", str(tmp_path / "store")]
    assert command[7] == "--train"
    trained = call(*command[1:], "--out", tmp_path / "run", "--epochs", 1, "--json")
    assert trained.status == 0, trained.err


def test_json_holds_every_stage_and_nothing_else_is_said(
    world: tuple[Path, str], tmp_path: Path
) -> None:
    photos, net = world
    options = ("--model", net, "--features", tmp_path / "store", "--json")
    first, again = call("probe", photos, *options).json, call("probe", photos, *options).json
    assert (first["computed"], again["computed"]) == (24, 0)
    assert [stage["stage"] for stage in first["stages"]] == [0, 1]
    assert {"score", "low", "high", "feature_bytes", "epoch_seconds", "memory_bytes"} <= set(
        first["stages"][0]
    )
    assert first["train"] == f"stage:{first['cut_after'] + 1}..-1"
    assert "--json" not in first["command"]


def test_mistakes_end_in_one_message(world: tuple[Path, str], tmp_path: Path) -> None:
    photos, net = world
    assert call("probe", photos).status == 2
    assert call("probe", photos, "--model", net, "--precision", "fast").status == 2
    (tmp_path / "one.py").write_text(
        "from torch import nn\nfrom frostline.preprocessing import Preprocessing\n"
        "def net():\n    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 5))\n"
        "    return model, Preprocessing(resize=16, crop=(16, 16))\n"
    )
    answer = call("probe", photos, "--model", f"{tmp_path / 'one.py'}:net")
    assert answer.status == 1
    assert "Sequential has one stage" in answer.message
