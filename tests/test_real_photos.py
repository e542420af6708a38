"""The issue itself, on real photos and real weights: freeze, train a head, prove, predict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from frostline.records import read_judged
from report_world import page_of
from small_world import Answer, call


@pytest.fixture(scope="module")
def photos(data_dir: Path) -> Path:
    if not (data_dir / "hymenoptera").is_dir():
        pytest.skip(f"no photos of ants and bees in {data_dir}")
    return data_dir / "hymenoptera"


@pytest.fixture(scope="module")
def weights(data_dir: Path) -> Path:
    if not (data_dir / "weights").is_dir():
        pytest.skip(f"no weights in {data_dir}")
    return data_dir / "weights"


@pytest.fixture(scope="module")
def mobilenet(photos: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MobileNetV2, its features frozen, taught ants and bees."""
    run = tmp_path_factory.mktemp("runs") / "mobilenet"
    answer = call(
        *("train", photos, "--model", "mobilenet_v2", "--out", run),
        *("--weights", weights / "mobilenet_v2.features.safetensors"),
        *("--freeze", "features", "--epochs", 2, "--lr", 3e-3, "--batch-size", 8),
    )
    assert answer.status == 0, answer.err
    return run


def result(run: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((run / "result.json").read_text())
    return found


def test_a_new_head_on_frozen_features_tells_ants_from_bees(mobilenet: Path) -> None:
    assert float(str(result(mobilenet)["accuracy"])) >= 0.94


def test_every_frozen_bit_is_as_it_was(mobilenet: Path) -> None:
    answer = call("verify", mobilenet, "--json")
    assert answer.status == 0, answer.err
    assert answer.json["verified"] is True
    assert answer.json["tensors"] == 312


def test_evaluating_gives_the_figures_of_training(mobilenet: Path, photos: Path) -> None:
    """All that is counted is the same; the loss but for the number of threads of a pass."""
    answer = call("evaluate", mobilenet, photos, "--json")
    assert answer.status == 0, answer.err
    trained = result(mobilenet)
    found = answer.json
    assert found.pop("loss") == pytest.approx(trained["loss"], rel=1e-3)
    assert found == {key: trained[key] for key in found}
    assert found["samples"] == 153


def test_unseen_photos_are_named_right(mobilenet: Path, photos: Path) -> None:
    shown = [
        file for name in ("ants", "bees") for file in sorted((photos / "val" / name).iterdir())[:8]
    ]
    found = call("predict", mobilenet, *shown, "--json").json
    right = sum(entry["class"] == Path(entry["file"]).parent.name for entry in found)
    assert right >= 14
    assert {entry["class"] for entry in found} == {"ants", "bees"}


def test_what_is_saved_is_a_hundredth_of_the_network(mobilenet: Path, weights: Path) -> None:
    whole = (weights / "mobilenet_v2.features.safetensors").stat().st_size
    assert (mobilenet / "best" / "delta.safetensors").stat().st_size < 0.01 * whole


def taught(photos: Path, out: Path, weights: object) -> Answer:
    """SqueezeNet1_1, taught alike whatever its weights are."""
    return call(
        *("train", photos, "--model", "squeezenet1_1", "--weights", weights, "--out", out),
        *("--freeze", "features", "--epochs", 3, "--lr", 2e-3, "--batch-size", 8),
        *("--features", out.parent / "features"),  # of its own, or others' rows would be read
    )


@pytest.fixture(scope="module")
def squeezenet(photos: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "squeezenet"
    answer = taught(photos, run, weights / "squeezenet1_1.pth")
    assert answer.status == 0, answer.err
    return run


def test_squeezenet_with_its_weights_tells_ants_from_bees(squeezenet: Path) -> None:
    assert float(str(result(squeezenet)["accuracy"])) >= 0.89
    assert call("verify", squeezenet).status == 0


def test_random_weights_do_not_tell_ants_from_bees(photos: Path, tmp_path: Path) -> None:
    answer = taught(photos, tmp_path / "run", "none")
    assert answer.status == 0, answer.err
    assert float(str(result(tmp_path / "run")["accuracy"])) < 0.8


def test_a_report_shows_photos_with_what_they_were_taken_for(squeezenet: Path) -> None:
    page = page_of(squeezenet / "report.html")
    judged = read_judged(squeezenet / "best" / "predictions.safetensors")
    wrong = len(judged) - int(judged.hits.sum())
    pictures = [a for t, a in page.elements if t == "img"]
    assert len(pictures) == min(12, wrong) + 12
    assert (squeezenet / "report.html").stat().st_size < 500_000


def test_a_report_tells_stored_features_apart_from_steps(squeezenet: Path) -> None:
    answer = call("report", squeezenet, "--json")
    assert answer.status == 0
    seconds = answer.json["seconds"]
    assert seconds["prefix"] > 0
    assert seconds["suffix"] > 0
    assert answer.json["plain_seconds"] > 0
    assert "A plain loop, estimated" in page_of(squeezenet / "report.html").text
