"""A run that was tampered with is told by `verify` and on top of its report, by name; exit 3."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from frostline.deltas import save_delta
from frostline.fingerprints import digest
from frostline.runs import open_run
from report_world import World, page_of
from small_world import call, without_sum

BUFFER = "features.1.running_mean"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = World(tmp_path_factory.mktemp("world"))
    made.run("run")
    return made


@pytest.fixture
def copied(world: World, tmp_path: Path) -> Path:
    """A copy of the run, on a copy of the weights."""
    run = Path(shutil.copytree(world.root / "run", tmp_path / "run"))
    weights = Path(shutil.copy(world.weights, tmp_path / "weights.safetensors"))
    settings = run / "run.toml"
    text = without_sum(settings.read_text())
    settings.write_text(text.replace(str(world.weights), str(weights)))
    return run


def check_told(run: Path, name: str) -> None:
    """Both commands name the tensor and leave with 3; the page says it before all else."""
    verified = call("verify", run)
    assert verified.status == 3
    assert name in verified.message
    reported = call("report", run, "--json")
    assert reported.status == 3
    assert name in reported.message
    assert reported.json["promise"]["state"] == "broken"
    page = page_of(run / "report.html")
    classes = [a.get("class") for t, a in page.elements if t == "section"]
    assert classes[0] == "promise broken"
    assert "Broken promise" in page.text
    assert name in page.text[: page.text.index("What was frozen")]
    assert "What was to stay frozen did" not in page.text


def test_an_untouched_copy_is_proven(copied: Path) -> None:
    assert call("verify", copied).status == 0
    assert call("report", copied).status == 0


def test_one_bit_of_a_buffer_in_the_weights_is_named(copied: Path) -> None:
    weights = copied.parent / "weights.safetensors"
    tensors = load_file(weights)
    bits = tensors[BUFFER].view(torch.int32)
    bits[0] ^= 1
    save_file(tensors, weights)
    check_told(copied, BUFFER)


def test_one_digit_of_a_frozen_digest_is_named(copied: Path) -> None:
    frozen = json.loads((copied / "frozen.json").read_text())
    known = frozen["tensors"][BUFFER]
    frozen["tensors"][BUFFER] = ("1" if known[0] != "1" else "2") + known[1:]
    (copied / "frozen.json").write_text(json.dumps({"tensors": frozen["tensors"]}))
    check_told(copied, BUFFER)


@pytest.mark.parametrize("which", ["best", "last"])
def test_a_delta_with_a_frozen_tensor_is_named(copied: Path, which: str) -> None:
    run = open_run(copied)
    file = copied / which / "delta.safetensors"
    with safe_open(file, framework="pt") as content:
        about = json.loads(content.metadata()["about"])
    loaded = run.loaded
    tensors = {**load_file(file), BUFFER: dict(loaded.model.named_buffers())[BUFFER] + 1}
    save_delta(loaded.model, file, about=about, content=tensors)
    check_told(copied, BUFFER)


def test_one_bit_of_a_trained_tensor_is_named(copied: Path) -> None:
    file = copied / "best" / "delta.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1  # of the tensor that lies last
    file.write_bytes(content)
    with safe_open(file, framework="pt") as read:
        before = json.loads(read.metadata()["digests"])
    name = next(n for n, t in load_file(file).items() if digest(t) != before[n])
    check_told(copied, name)


def test_weights_that_are_gone_leave_it_unproven_not_broken(copied: Path) -> None:
    (copied.parent / "weights.safetensors").unlink()
    answer = call("report", copied)
    assert answer.status == 0
    assert "not proven" in answer.err
    assert "Not proven" in page_of(copied / "report.html").text
