"""The report of SqueezeNet taught ants and bees from real photos."""

from __future__ import annotations

from pathlib import Path

import pytest

from frostline.records import read_judged
from report_world import page_of
from small_world import call


@pytest.fixture(scope="module")
def run(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    photos, weights = data_dir / "hymenoptera", data_dir / "weights" / "squeezenet1_1.pth"
    if not (photos.is_dir() and weights.is_file()):
        pytest.skip(f"no photos of ants and bees, or no weights of SqueezeNet, in {data_dir}")
    folder = tmp_path_factory.mktemp("runs") / "squeezenet"
    answer = call(
        *("train", photos, "--model", "squeezenet1_1", "--weights", weights),
        *("--epochs", 2, "--out", folder),
        *("--features", folder.parent / "features"),  # of its own, or others' rows would be read
    )
    assert answer.status == 0, answer.err
    return folder


def test_real_photos_are_shown_with_what_they_were_taken_for(run: Path) -> None:
    page = page_of(run / "report.html")
    judged = read_judged(run / "best" / "predictions.safetensors")
    wrong = len(judged) - int(judged.hits.sum())
    pictures = [a for t, a in page.elements if t == "img"]
    assert len(pictures) == min(12, wrong) + 12
    assert (run / "report.html").stat().st_size < 500_000


def test_stored_features_are_told_apart_from_steps(run: Path) -> None:
    answer = call("report", run, "--json")
    assert answer.status == 0
    seconds = answer.json["seconds"]
    assert seconds["prefix"] > 0
    assert seconds["suffix"] > 0
    assert answer.json["plain_seconds"] > 0
    assert "A plain loop, estimated" in page_of(run / "report.html").text
