"""Killed, broken, full, read-only, shared: complete rows stay, and no row is ever wrong."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from feature_world import Counted, both, cut_of, images, pictures_net, write_images
from torch import Tensor

import frostline as fl
from frostline.config import FeatureSettings, ModelSettings, RunSettings
from frostline.features import Computing, FeatureData
from frostline.recipe import Recipe


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 pictures."""
    return write_images(tmp_path_factory.mktemp("photos"), 50)


def extracted(photos: Path, store: Path, made: fl.Cut | None = None) -> FeatureData:
    data = images(photos)
    made = made or cut_of(pictures_net(), data)
    return fl.extract(made, data, fl.FeatureStore(store), precision="exact", batch_size=5)


def values(found: FeatureData) -> Tensor:
    return found.rows.gather(torch.arange(len(found)))[0]


def in_child(work: Callable[[], object]) -> int:
    """`work` in a forked process; gives its number."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def noting_passes(pipe: int, *, die_after: int = -1, slowly: bool = False) -> None:
    """In this process, write the number of rows of each pass; perhaps die in one."""
    plain, passes = Computing.rows, 0

    def rows(compute: Computing, samples: list[Tensor], collate: Any) -> tuple[Tensor, ...]:
        nonlocal passes
        if passes == die_after:
            os.kill(os.getpid(), signal.SIGKILL)
        passes += 1
        found = plain(compute, samples, collate)
        os.write(pipe, bytes([len(samples)]))
        if slowly:
            os.sched_yield()
        return found

    Computing.rows = rows  # type: ignore[method-assign]  # in a child only


def test_an_extraction_killed_ten_times_ends_as_one_that_was_not(
    photos: Path, tmp_path: Path
) -> None:
    made = cut_of(pictures_net(), images(photos))
    expected = values(extracted(photos, tmp_path / "calm", made))
    chance, complete, deaths = random.Random(0), 0, 0
    for _ in range(10):
        ear, mouth = os.pipe()

        def work(mouth: int = mouth, passes: int = chance.randrange(3)) -> None:
            noting_passes(mouth, die_after=passes)
            extracted(photos, tmp_path / "killed", made)

        child = in_child(work)
        os.close(mouth)
        os.close(ear)
        deaths += ended(child) == -signal.SIGKILL
        (kept, *_) = [e.rows for e in fl.FeatureStore(tmp_path / "killed").ls()] or [0]
        assert kept >= complete
        complete = kept
    assert deaths == 10
    assert 0 < complete < 100  # else the kills came too late
    found = extracted(photos, tmp_path / "killed", made)
    assert found.computed == 100 - complete
    assert torch.equal(values(found), expected)
    assert fl.FeatureStore(tmp_path / "killed").verify() == ()


def test_an_extraction_killed_from_outside_ends_as_one_that_was_not(
    photos: Path, tmp_path: Path
) -> None:
    made = cut_of(pictures_net(), images(photos))
    expected = values(extracted(photos, tmp_path / "calm", made))
    for passes in (1, 4, 9):
        ear, mouth = os.pipe()

        def work(mouth: int = mouth) -> None:
            noting_passes(mouth)
            extracted(photos, tmp_path / "killed", made)

        child = in_child(work)
        os.close(mouth)
        for _ in range(passes):
            os.read(ear, 1)
        os.kill(child, signal.SIGKILL)
        ended(child)
        os.close(ear)
    found = extracted(photos, tmp_path / "killed", made)
    assert torch.equal(values(found), expected)


def test_two_processes_compute_each_row_once_and_both_have_all(
    photos: Path, tmp_path: Path
) -> None:
    made = cut_of(pictures_net(), images(photos))
    expected = values(extracted(photos, tmp_path / "calm", made))
    ear, mouth = os.pipe()

    def work() -> None:
        noting_passes(mouth, slowly=True)
        found = extracted(photos, tmp_path / "shared", made)
        assert torch.equal(values(found), expected)

    children = [in_child(work) for _ in range(2)]
    os.close(mouth)
    assert [ended(child) for child in children] == [0, 0]
    with os.fdopen(ear, "rb") as told:
        assert sum(told.read()) == 100


def test_a_broken_picture_midway_is_named_and_complete_rows_are_kept(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    own = Path(shutil.copytree(photos, tmp_path / "photos"))
    broken = own / "light" / "27.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    counted = Counted(monkeypatch)
    with pytest.raises(fl.ImageError, match=r"27\.png"):
        extracted(own, tmp_path / "store")
    done = counted.taken()
    assert 50 <= done < 100
    broken.write_bytes(whole)
    assert extracted(own, tmp_path / "store").computed == counted.taken() == 100 - done


def test_a_missing_picture_is_named(photos: Path, tmp_path: Path) -> None:
    data = images(photos)
    made = cut_of(pictures_net(), data)
    gone = tmp_path / "gone.png"
    samples = tuple(
        type(s)(gone if s.path.name == "7.png" else s.path, s.label) for s in data.images.samples
    )
    missing = type(data)(type(data.images)(data.classes, samples), data.preprocessing)
    with pytest.raises(fl.FrostlineError, match=r"gone\.png"):
        fl.extract(made, missing, fl.FeatureStore(tmp_path), precision="exact")


def test_a_budget_that_does_not_suffice_stops_a_run_whose_store_was_named(
    photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(fl.StoreError, match=r"budget"):
        fit_within(1000, photos, str(tmp_path))


def test_a_budget_that_does_not_suffice_lets_a_run_go_on_plainly(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("frostline.session.pipelines.default_store", lambda: tmp_path)
    monkeypatch.setattr("frostline.session.pipelines.WORTH_OPERATIONS", {"cpu": 0.0})
    run = fit_within(1000, photos, "auto")
    assert len(run.says) == 1
    assert run.says[0].startswith("Features  none are stored: ")
    assert "budget" in run.says[0]
    plain = fit_within(None, photos, "off")
    assert fl.fingerprint(run.model) == fl.fingerprint(plain.model)


def fit_within(budget: int | None, photos: Path, store: str) -> fl.Run:
    recipe = Recipe(epochs=1, precision="exact")
    settings = RunSettings(
        model=ModelSettings.from_python("Pictures"),
        training=recipe,
        features=FeatureSettings(store=store, budget_bytes=budget),
    )
    data = images(photos)
    return fl.fit(pictures_net(), data, data, recipe=recipe, settings=settings, device="cpu")


def test_a_store_that_cannot_be_written_lets_a_run_go_on_plainly_unless_it_was_named(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(
        "frostline.session.pipelines.default_store", lambda: tmp_path / "file" / "in"
    )
    monkeypatch.setattr("frostline.session.pipelines.WORTH_OPERATIONS", {"cpu": 0.0})
    run = fit_within(None, photos, "auto")
    assert run.says[0].startswith("Features  none are stored: ")
    with pytest.raises(fl.OutputError):
        fit_within(None, photos, str(tmp_path / "file" / "in"))


def test_a_complete_store_that_cannot_be_written_is_read(photos: Path, tmp_path: Path) -> None:
    first = both(pictures_net, images(photos), images(photos), tmp_path, epochs=1)
    for path in [tmp_path, *tmp_path.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        again = both(pictures_net, images(photos), images(photos), tmp_path, epochs=1)
    finally:
        for path in [tmp_path, *tmp_path.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
    again.assert_equal()
    assert (first.stored.computed, again.stored.computed) == (100, 0)


def test_a_flipped_bit_is_computed_again_and_the_features_are_right(
    photos: Path, tmp_path: Path
) -> None:
    before = values(extracted(photos, tmp_path))
    (file,) = tmp_path.glob("*/segment-*/*.npy")
    content = bytearray(file.read_bytes())
    content[-40] ^= 4
    file.write_bytes(content)
    found = extracted(photos, tmp_path)
    assert found.computed == 1
    assert torch.equal(values(found), before)


def test_the_data_files_that_vanished_are_computed_again(photos: Path, tmp_path: Path) -> None:
    before = values(extracted(photos, tmp_path))
    for file in tmp_path.glob("*/segment-*/*.npy"):
        file.unlink()
    found = extracted(photos, tmp_path)
    assert found.computed == 100
    assert torch.equal(values(found), before)
