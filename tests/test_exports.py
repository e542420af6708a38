"""Exported files: the same numbers as the run, checked before they are there; and kept bases."""

from __future__ import annotations

import importlib.util
import json
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from frostline.exports import open_export
from frostline.models import load_model
from frostline.runs import open_run
from small_world import Answer, call, write_net, write_pictures

FORMATS = ("safetensors", "pt2", "torchscript", "onnx")


class World:
    """A run of a small network with weights from a file, and its exports."""

    def __init__(self, root: Path) -> None:
        self.root, self.run = root, root / "runs" / "one"
        self.photos = write_pictures(root / "photos")
        self.model = write_net(root)
        self.weights = root / "weights.safetensors"
        loaded = load_model(self.model, weights="none", classes=5, on="keep", seed=3)
        save_file(loaded.model.state_dict(), self.weights)
        answer = self.train("--model", self.model, "--weights", self.weights, "--epochs", 2)
        assert answer.status == 0, answer.err

    def train(self, *options: object) -> Answer:
        return call("train", self.photos, *options, "--device", "cpu", "--out", self.run)

    @property
    def pictures(self) -> list[Path]:
        return sorted((self.photos / "val").rglob("*.png"))

    def logits(self) -> torch.Tensor:
        return open_run(self.run).loaded.model(self.images())

    def images(self) -> torch.Tensor:
        given = open_export(self.run / "model.safetensors").batches(
            open_run(self.run).held_out(self.photos).samples
        )
        return next(given.epoch(0)).inputs


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """With a file of each format; read it only."""
    made = World(tmp_path_factory.mktemp("exports"))
    for form in FORMATS:
        answer = call("export", made.run, "--to", form)
        assert answer.status == 0, answer.err
    return made


@pytest.fixture
def moved(world: World, tmp_path: Path) -> World:
    """A copy of the run whose weights are gone from where they were."""
    copy = object.__new__(World)
    copy.__dict__ |= world.__dict__
    copy.run = tmp_path / "runs" / "one"
    shutil.copytree(world.run, copy.run)
    text = (copy.run / "run.toml").read_text().partition("\n# checksum ")[0]
    (copy.run / "run.toml").write_text(text.replace(str(world.weights), str(tmp_path / "gone.pth")))
    return copy


def test_a_program_of_torch_has_the_runs_own_bits_for_any_number_of_pictures(world: World) -> None:
    model, images = torch.export.load(world.run / "model.pt2").module(), world.images()
    script = scripted(world.run / "model.torchscript")
    for count in (1, 3, 8):
        expected = open_run(world.run).loaded.model(images[:count])
        assert torch.equal(model(images[:count]), expected)
        assert torch.equal(script(images[:count]), expected)


def test_an_onnx_file_agrees_with_the_run_for_any_number_of_pictures(world: World) -> None:
    session = onnxruntime.InferenceSession(world.run / "model.onnx")
    images, expected = world.images(), world.logits().detach()
    for count in (1, 3, 8):
        (found,) = session.run(["logits"], {"images": images[:count].numpy()})
        torch.testing.assert_close(
            torch.from_numpy(found), expected[:count], atol=1e-5, rtol=0, check_stride=False
        )
    assert session.get_inputs()[0].shape == ["batch", 3, 16, 16]


def test_a_safetensors_file_is_the_whole_state_of_the_runs_model(world: World) -> None:
    found, expected = load_file(world.run / "model.safetensors"), open_run(world.run).loaded.model
    assert found.keys() == expected.state_dict().keys()
    assert all(torch.equal(found[name], value) for name, value in expected.state_dict().items())


def test_a_torchscript_file_can_be_mapped_and_says_no_date(world: World) -> None:
    content = (world.run / "model.torchscript").read_bytes()
    for entry in zipfile.ZipFile(world.run / "model.torchscript").infolist():
        at = entry.header_offset
        name, extra = struct.unpack("<HH", content[at + 26 : at + 30])
        assert (at + 30 + name + extra) % 64 == 0
        assert entry.date_time == (1980, 1, 1, 0, 0, 0)


def scripted(file: Path, extra: dict[str, str] | None = None) -> torch.jit.ScriptModule:
    with pytest.warns(FutureWarning, match="is deprecated"):
        return torch.jit.load(file, _extra_files=extra)


def notes_of(file: Path) -> dict[str, str]:
    if file.suffix == ".pt2":
        extra = {"frostline.json": ""}
        torch.export.load(file, extra_files=extra)
        return json.loads(extra["frostline.json"])
    if file.suffix == ".torchscript":
        scripted(file, extra := {"frostline.json": ""})
        return json.loads(extra["frostline.json"])
    if file.suffix == ".onnx":
        return onnxruntime.InferenceSession(file).get_modelmeta().custom_metadata_map
    with safe_open(file, framework="pt") as content:
        return content.metadata()


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_says_classes_preprocessing_and_what_was_measured(
    world: World, form: str
) -> None:
    notes = notes_of(world.run / f"model.{form}")
    assert json.loads(notes["classes"]) == ["dark", "light"]
    assert json.loads(notes["preprocessing"]) == {
        "resize": 16,
        "crop": [16, 16],
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "interpolation": "bilinear",
    }
    checked = json.loads(notes["checked"])
    assert checked["difference"] <= 1e-5
    assert (checked["pictures"], checked["same_class"]) == (8, 8)
    assert checked["which"] == "8 of 8 validation pictures"
    assert notes["base"].startswith("xxh3:")
    assert notes["torch"] == torch.__version__


@pytest.mark.parametrize("form", ["pt2", "torchscript", "onnx"])
def test_a_file_with_the_computation_tells_nothing_of_this_machine(world: World, form: str) -> None:
    file = world.run / f"model.{form}"
    content = file.read_bytes()
    if zipfile.is_zipfile(file):
        archive = zipfile.ZipFile(file)
        content = b"".join(map(archive.read, archive.namelist()))
    for private in (str(world.root), torch.__path__[0], "return self.head", "nn.Linear("):
        assert private.encode() not in content


@pytest.mark.parametrize("form", ["safetensors", "onnx"])
def test_predict_takes_an_exported_file_in_place_of_the_run(world: World, form: str) -> None:
    given = [*world.pictures, "--top", 2, "--json"]
    expected, found = (
        call("predict", f, *given).json for f in (world.run, world.run / f"model.{form}")
    )
    assert [p["file"] for p in found] == [p["file"] for p in expected]
    assert [p["class"] for p in found] == [p["class"] for p in expected]
    assert [p["probability"] for p in found] == pytest.approx(
        [p["probability"] for p in expected], abs=2e-3
    )


def test_what_is_no_export_is_refused_with_what_to_give(world: World) -> None:
    delta, picture = world.run / "best" / "delta.safetensors", world.pictures[0]
    for file, message in (
        (world.run / "model.pt2", "runs whatever program a .pt2 file brings"),
        (world.run / "model.torchscript", "torch.jit.load runs whatever program"),
        (delta, "does not say its classes: it is no file of an export"),
        (picture, "is neither a run's folder nor an exported file"),
        (world.root / "none.onnx", "there is no file"),
    ):
        answer = call("predict", file, picture)
        assert answer.status == 1
        assert message in answer.message
    for option in (("--device", "cuda"), ("--weights", delta)):
        assert call("predict", world.run / "model.onnx", picture, *option).status == 2


def test_a_damaged_file_is_no_traceback(world: World, tmp_path: Path) -> None:
    for form in ("safetensors", "onnx"):
        file = tmp_path / f"model.{form}"
        file.write_bytes((world.run / file.name).read_bytes()[:-700])
        answer = call("predict", file, world.pictures[0])
        assert answer.status == 1
        assert "cannot be read" in answer.message


ODD = """
import torch
from torch import nn

from frostline.preprocessing import Preprocessing


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(768, 8), nn.Linear(8, 5)


class Branching(Net):
    def forward(self, x):
        seen = self.body(x.flatten(1))
        return self.head(seen * 2 if float(seen.abs().sum()) > 1e9 else seen)


class Rare(Net):
    def forward(self, x):
        seen = self.body(x.flatten(1))
        return {"seen": seen, "logits": self.head(torch.special.bessel_j0(seen))}


def branching():
    return Branching(), Preprocessing(resize=16, crop=(16, 16))


def rare():
    return Rare(), Preprocessing(resize=16, crop=(16, 16))
"""


def test_a_model_that_a_format_cannot_hold_is_told_with_one_that_can(
    world: World, tmp_path: Path
) -> None:
    (tmp_path / "odd.py").write_text(ODD)
    for name, form, message, other in (
        ("branching", "pt2", "torch.export cannot follow Branching", "safetensors"),
        ("rare", "onnx", "torch.onnx cannot write Rare", "pt2"),
    ):
        run, own = tmp_path / name, ["--model", f"{tmp_path}/odd.py:{name}", "--weights", "none"]
        options = ["--train", "head", "--epochs", 1, "--device", "cpu", "--out", run]
        assert call("train", world.photos, *own, *options).status == 0
        answer = call("export", run, "--to", form)
        assert message in answer.message
        assert f"Use --to {other}" in answer.message
        assert call("export", run, "--to", other).status == 0
    answer = call("export", tmp_path / "branching", "--to", "torchscript")
    told = "Branching: what it does depends on numbers of the batch, or on drawn ones (odd.py, line"
    assert told in answer.message  # a trace has but one branch
    assert (tmp_path / "rare" / "model.pt2").stat().st_size < 100_000


def test_norms_are_folded_on_request(world: World, tmp_path: Path) -> None:
    file = tmp_path / "folded.pt2"
    found = call("export", world.run, "--to", "pt2", "--fold", "--out", file, "--json").json
    assert 0 < found["checked"]["difference"] < 1e-5
    count = {
        path: sum("batch_norm" in str(node.target) for node in torch.export.load(path).graph.nodes)
        for path in (file, world.run / "model.pt2")
    }
    assert list(count.values()) == [0, 2]
    assert json.loads(notes_of(file)["folded"])
    answer = call(
        "export", world.run, "--to", "safetensors", "--fold", "--out", tmp_path / "f.safetensors"
    )
    assert answer.status == 2
    assert "safetensors holds the model's own layers" in answer.message


def test_an_export_that_differs_is_not_written_and_says_by_how_much(
    world: World, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "m.pt2"
    answer = call("export", world.run, "--to", "pt2", "--fold", "--out", out, "--tolerance", 0)
    assert answer.status == 1
    assert "m.pt2 was not written: on 8 of 8 validation pictures" in answer.message
    assert "differ by at most" in answer.message
    assert list(out.parent.iterdir()) == []


def test_an_export_overwrites_nothing_and_ends_as_its_format(world: World, tmp_path: Path) -> None:
    answer = call("export", world.run, "--to", "onnx")
    assert "model.onnx is there already" in answer.message
    assert call("export", world.run, "--to", "onnx", "--out", tmp_path / "m.pt2").status == 2
    assert call("export", world.run).status == 2


def test_the_pictures_that_were_checked_on_are_said(world: World, tmp_path: Path) -> None:
    def which(*options: object) -> str:
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}.safetensors"
        answer = call("export", world.run, "--to", "safetensors", "--out", out, *options)
        return answer.out.partition("Checked on ")[2].partition(":")[0]

    assert which("--pictures", world.photos / "train" / "dark") == "the 8 pictures given"
    hidden = world.photos.rename(world.root / "hidden")
    try:
        assert which().startswith("noise, since the validation pictures are gone")
        (world.photos / "train").parent.mkdir()
        shutil.copytree(hidden / "train", world.photos / "train")
        shutil.copytree(hidden / "val", world.photos / "val")
        (world.photos / "val" / "dark" / "0.png").unlink()
        assert which() == "7 of 8 validation pictures"
    finally:
        shutil.rmtree(world.photos, ignore_errors=True)
        hidden.rename(world.photos)


def test_without_onnxruntime_the_line_to_install_it_is_told(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find: Callable[[str], object] = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name)
    )
    for arguments in (
        ("predict", world.run / "model.onnx", world.pictures[0]),
        ("export", world.run, "--to", "onnx", "--out", tmp_path / "m.onnx"),
    ):
        assert "pip install 'frostline[onnx]'" in call(*arguments).message


# The base kept, found and given


def test_a_run_with_its_base_needs_no_other_weights(world: World, moved: World) -> None:
    assert call("export", moved.run, "--with-base", "--weights", world.weights).status == 0
    picture = moved.pictures[0]
    for verb in (
        ("predict", moved.run, picture),
        ("evaluate", moved.run, moved.photos),
        ("verify", moved.run),
        ("merge", moved.run, "--out", moved.run / "whole.pth"),
        ("export", moved.run, "--to", "safetensors", "--out", moved.run / "m.safetensors"),
        ("train", "--resume", moved.run),
        ("export", moved.run, "--with-base"),
    ):
        answer = call(*verb)
        assert answer.status == 0, answer.err
    whole, expected = (
        torch.load(moved.run / "whole.pth"),
        load_file(world.run / "model.safetensors"),
    )
    assert all(torch.equal(whole[name], expected[name]) for name in expected)


def test_a_kept_base_that_was_changed_is_found_out(world: World, moved: World) -> None:
    assert call("export", moved.run, "--with-base", "--weights", world.weights).status == 0
    tensors = load_file(moved.run / "base.safetensors")
    tensors["features.0.weight"][0, 0, 0, 0] += 1
    save_file(tensors, moved.run / "base.safetensors")
    assert call("verify", moved.run).status == 3
    answer = call("predict", moved.run, moved.pictures[0])
    assert "was trained on another base" in answer.message


def test_moved_weights_are_given_to_every_verb_that_needs_them(world: World, moved: World) -> None:
    picture, out = moved.pictures[0], moved.run / "whole.pth"
    for verb in (
        ("predict", moved.run, picture),
        ("evaluate", moved.run, moved.photos),
        ("verify", moved.run),
        ("merge", moved.run, "--out", out),
        ("train", "--resume", moved.run),
    ):
        assert "no file in the run's folder or beside it" in call(*verb).message
        answer = call(*verb, "--weights", world.weights)
        assert answer.status == 0, answer.err


def test_a_base_of_random_weights_can_be_kept_under_a_head_on_its_logits(
    world: World, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    options = ["--model", world.model, "--weights", "none", "--on", "logits", "--epochs", 1]
    assert call("train", world.photos, *options, "--out", run).status == 0
    assert call("export", run, "--with-base").status == 0
    assert open_run(run).base_weights == str(run / "base.safetensors")
    assert call("verify", run).status == 0
