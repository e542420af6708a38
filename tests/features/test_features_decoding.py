"""Large pictures are decoded no further than their features need, within the same tolerance."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import frostline as fl
from frostline.choices import DecodingName
from frostline.data import Augment, ImageDataset, ImageSet, Sample, open_image
from frostline.features import Computing, FeatureData
from frostline.preprocessing import Preprocessing
from small_world import call

# Photos of 500 x 375 are more than ten times as large as these see them.
SMALL = Preprocessing(resize=34, crop=(32, 32))
NET = """
from torch import nn

from frostline.preprocessing import Preprocessing


def net():
    features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten())
    network = nn.Sequential(features, nn.Linear(128, 2))
    return network, Preprocessing(resize=34, crop=(32, 32))
"""


class Edges(nn.Module):
    """Sees nothing but differences between neighbours, where rounding is large."""

    def forward(self, x: Tensor) -> Tensor:
        return (x[..., 1:] - x[..., :-1]).flatten(1)


def network(*, edges: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    body = Edges() if edges else nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(4))
    made = nn.Sequential(body, nn.Flatten(), nn.LazyLinear(2))
    made(torch.zeros(2, 3, 32, 32))
    fl.train_only(made, "2")
    return made


@pytest.fixture(scope="module")
def files(data_dir: Path) -> list[Path]:
    found = sorted((data_dir / "hymenoptera/train").glob("*/*.jp*g"))
    if not found:
        pytest.skip(f"no photos of ants and bees in {data_dir}")
    return found[::3]


def photo_set(files: list[Path], preprocessing: Preprocessing = SMALL) -> ImageDataset:
    samples = tuple(Sample(file, number % 2) for number, file in enumerate(files))
    return ImageDataset(ImageSet(("a", "b"), samples), preprocessing)


def extracted(
    data: ImageDataset, store: Path, precision: float | str = "auto", *, edges: bool = False
) -> FeatureData:
    model = network(edges=edges)
    cut = fl.cut(model, torch.stack([data[place][0] for place in (0, 1)]))
    return fl.extract(cut, data, store, precision=precision)  # type: ignore[arg-type] # its words


def forms(store: Path) -> dict[str, object]:
    file = store / "forms.json"
    kept = json.loads(file.read_text()) if file.exists() else {}
    return {name: one for name, one in kept.items() if name.startswith("decoding ")}


@pytest.fixture(scope="module")
def found(files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FeatureData]:
    store = tmp_path_factory.mktemp("features")
    return store, extracted(photo_set(files[:70]), store)


def test_large_photos_are_scaled_while_they_are_decoded_and_it_is_said(
    found: tuple[Path, FeatureData],
) -> None:
    store, features = found
    ((_, decided),) = forms(store).items()
    assert isinstance(decided, dict)
    assert decided["form"].split()[-1] in ("jpeg-2x", "jpeg-4x")
    assert f"pictures decoded {decided['form'].split()[-1]} " in features.form
    assert "times as fast, relative error" in features.form
    assert ", of the worst picture tried " in features.form
    assert decided["error"] == decided["decodings"][-1]["worst"] <= 0.02
    (key,) = fl.FeatureStore(store).ls()
    assert key.parts["form"] == decided["form"]
    assert decided["form"].split()[-1] in key.parts["transform"]


def test_each_row_holds_the_tolerance_that_was_asked_for(
    files: list[Path], found: tuple[Path, FeatureData], tmp_path: Path
) -> None:
    own = found[1].values(torch.arange(70))[0]
    exact = extracted(photo_set(files[:70]), tmp_path, "exact").values(torch.arange(70))[0]
    errors = (own - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
    assert 0 < errors.max() < 0.02


def test_exactly_is_as_the_plain_loop_decodes(files: list[Path], tmp_path: Path) -> None:
    data, model = photo_set(files[:70]), network()
    features = extracted(data, tmp_path, "exact")
    assert forms(tmp_path) == {}
    with torch.no_grad():
        plain = model[:2](torch.stack([SMALL(open_image(file)) for file in files[:32]]))
    assert torch.equal(features.values(torch.arange(32))[0].flatten(1), plain)


def test_ten_more_photos_cost_ten_rows(files: list[Path], tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert extracted(photo_set(files[:70]), store).computed == 70
    assert extracted(photo_set(files[:70]), store).computed == 0
    more = extracted(photo_set(files[:80]), store)
    assert more.computed == 10
    assert len(forms(store)) == 2  # tried again, on other pictures


def test_what_misses_the_tolerance_in_one_picture_is_not_taken(
    files: list[Path], tmp_path: Path
) -> None:
    extracted(photo_set(files[:70]), tmp_path, 0.01, edges=True)
    ((_, decided),) = forms(tmp_path).items()
    assert isinstance(decided, dict)
    *refused, last = decided["decodings"]
    assert [one["decoding"] for one in refused] == ["jpeg-2x", "jpeg-4x"]
    assert all(one["worst"] > 0.01 for one in refused)
    assert last["decoding"] == "jpeg-crop"
    assert decided["form"].endswith("jpeg-crop") == (last["worst"] <= 0.01 and last["speedup"] > 1)


def test_precision_and_decoding_hold_the_tolerance_together(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A form that uses up the tolerance leaves none for a decoding."""
    whole = Computing.__call__
    monkeypatch.setattr(
        Computing,
        "__call__",
        lambda self, inputs: tuple(
            value * (1 if self.tuned.batch_size == 1 else 1.0199) for value in whole(self, inputs)
        ),
    )
    extracted(photo_set(files[:70]), tmp_path)
    ((_, decided),) = forms(tmp_path).items()
    assert isinstance(decided, dict)
    assert decided["decodings"][0]["worst"] > 0.02
    assert not decided["form"].endswith(("jpeg-2x", "jpeg-4x"))


@pytest.mark.parametrize("case", ["small", "few", "views"])
def test_nothing_is_tried_where_nothing_is_gained(
    files: list[Path], tmp_path: Path, case: str
) -> None:
    data = {
        "small": lambda: photo_set(files[:70], Preprocessing(resize=128, crop=(32, 32))),
        "few": lambda: photo_set(files[:40]),
        "views": lambda: ImageDataset(
            photo_set(files[:40]).images, SMALL, augment=Augment("views", 2)
        ),
    }[case]()
    features = extracted(data, tmp_path)
    assert forms(tmp_path) == {}
    assert "decoded" not in features.form


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> set[DecodingName]:
    """By which pictures were decoded."""
    from frostline.data import views

    seen, plain = set[DecodingName](), views.seen_of

    def noted(*arguments: object, decoding: DecodingName, **options: object) -> object:
        seen.add(decoding)
        return plain(*arguments, decoding=decoding, **options)  # type: ignore[arg-type] # as given

    monkeypatch.setattr(views, "seen_of", noted)
    return seen


def test_a_run_is_judged_and_goes_on_in_the_decoding_that_it_was_trained_in(
    files: list[Path], tmp_path: Path, decodings: set[DecodingName]
) -> None:
    for number, file in enumerate(files[:80]):
        part = "val" if number % 4 == 0 else "train"
        link = tmp_path / "photos" / part / file.parent.name / file.name
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, link)
    (tmp_path / "own.py").write_text(NET)
    run = tmp_path / "run"
    trained = call(
        *("train", tmp_path / "photos", "--model", f"{tmp_path / 'own.py'}:net"),
        *("--weights", "none", "--epochs", 1, "--out", run, "--json"),
        *("--features", tmp_path / "store"),
    )
    assert trained.status == 0, trained.err
    (form,) = tomllib.loads((run / "run.toml").read_text())["features"]["forms"]
    decoding = form.split()[-1]
    assert decoding in ("jpeg-2x", "jpeg-4x")
    decodings.clear()
    judged = call("evaluate", run, tmp_path / "photos", "--json")
    assert judged.status == 0, judged.err
    assert decodings == {decoding}
    assert judged.json["loss"] == pytest.approx(trained.json["loss"], rel=1e-3)
    decodings.clear()
    call("predict", run, files[100 - 20], "--json")
    assert decodings == {decoding}
    longer = call("train", "--resume", run, "--epochs", 2)
    assert longer.status == 0, longer.err
    assert "no forward pass" in longer.out
    assert f"{form}, as chosen before" in longer.out
