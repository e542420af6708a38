"""torchvision's models: names, weights, preprocessing, seeds and failing downloads."""

from __future__ import annotations

import io
import socket
import time
import urllib.error
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import models

from frostline.errors import ModelError, WeightsError
from frostline.models import build, load_model, load_weights
from frostline.models.spec import ModelSpec
from frostline.models.transforms import from_torchvision

NoMemory = Callable[[], AbstractContextManager[Any]]
NAMES: list[str] = models.list_models(module=models)
ENTRIES = [entry for name in NAMES for entry in models.get_model_weights(name)]


def bare(name: str, seed: int | None = 0) -> nn.Module:
    return build(ModelSpec.parse(name), weights="none", seed=seed).model


def test_preprocessing_equals_torchvision_s_bit_for_bit_for_all_weights(
    photo: Image.Image,
) -> None:
    distinct = {str(entry.transforms()): entry for entry in ENTRIES}
    assert len(ENTRIES) > 100
    for entry in distinct.values():
        theirs = entry.transforms()
        assert torch.equal(from_torchvision(theirs)(photo), theirs(photo)), entry


def test_preprocessing_is_that_of_the_default_weights_when_none_are_loaded(
    photo: Image.Image,
) -> None:
    built = build(ModelSpec.parse("squeezenet1_1"), weights="none")
    theirs = models.SqueezeNet1_1_Weights.DEFAULT.transforms()
    assert torch.equal(built.preprocessing(photo), theirs(photo))


def test_preprocessing_of_another_task_is_refused() -> None:
    from torchvision.transforms._presets import ObjectDetection

    with pytest.raises(ModelError, match="ObjectDetection, which is not torchvision's preset for"):
        from_torchvision(ObjectDetection())


def test_a_misspelt_name_is_told_with_the_nearest() -> None:
    with pytest.raises(ModelError, match=r"no model 'alexnte'. Nearest: alexnet"):
        bare("alexnte")


def test_a_detector_is_refused() -> None:
    with pytest.raises(
        ModelError, match="'fasterrcnn_resnet50_fpn' neither classifies nor segments"
    ):
        bare("fasterrcnn_resnet50_fpn")


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18.a1_in1k"])
def test_a_bare_name_that_only_timm_knows_is_pointed_there(name: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(ModelError, match=f"but timm has: use timm:{name}"):
        bare(name)


def test_an_unknown_entry_is_told_with_the_known_ones() -> None:
    with pytest.raises(
        WeightsError,
        match=r"no weights 'IMAGENET1K_V7'. It has DEFAULT, IMAGENET1K_V1, IMAGENET1K_V2; or give",
    ):
        build(ModelSpec.parse("resnet50"), weights="IMAGENET1K_V7")


def test_random_values_depend_on_the_seed_alone_and_leave_the_generator() -> None:
    before = torch.get_rng_state()
    first, second, other = (bare("squeezenet1_1", seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    key = "features.0.weight"
    assert torch.equal(first.get_parameter(key), second.get_parameter(key))
    assert not torch.equal(first.get_parameter(key), other.get_parameter(key))


@pytest.mark.parametrize(("name", "size"), [("googlenet", 64), ("inception_v3", 96)])
def test_networks_with_auxiliary_heads_give_plain_logits_in_training(name: str, size: int) -> None:
    model = bare(name).train()
    with torch.no_grad():
        assert model(torch.zeros(2, 3, size, size)).shape == (2, 1000)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_published_weights_and_the_same_as_a_file_give_one_function(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with torch.random.fork_rng():
        full = models.get_model(name, aux_logits=True, init_weights=False)
    torch.save(full.state_dict(), tmp_path / "w.pth")
    entries = models.get_model_weights(name)
    monkeypatch.setattr(entries, "get_state_dict", lambda *_, **__: full.state_dict())
    published = build(ModelSpec.parse(name), weights="DEFAULT")
    from_file = build(ModelSpec.parse(name), weights=str(tmp_path / "w.pth"))
    images = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(published.model.eval()(images), from_file.model.eval()(images))
        assert published.model.train()(images).shape == (2, 1000)
    assert published.classes is not None
    assert published.classes[0] == "tench"
    assert from_file.classes is None
    assert "not used of the file: " in str(from_file.weights)
    assert "IMAGENET1K_V1: " in str(published.weights)


def test_published_weights_with_nan_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    state = bare("squeezenet1_1").state_dict()
    state["classifier.1.bias"] = torch.full((1000,), float("nan"))
    entries = models.SqueezeNet1_1_Weights
    monkeypatch.setattr(entries, "get_state_dict", lambda *_, **__: state)
    with pytest.raises(WeightsError, match=r"hold NaN in classifier\.1\.bias. They are made for"):
        build(ModelSpec.parse("squeezenet1_1"), weights="DEFAULT")


def refused(*_: Any, **__: Any) -> None:
    raise urllib.error.URLError(socket.gaierror(-2, "Name or service not known"))


def forbidden(request: Any, *_: Any, **__: Any) -> None:
    raise urllib.error.HTTPError(request.full_url, 403, "Forbidden", {}, None)  # type: ignore[arg-type]


def stalled(*_: Any, **__: Any) -> None:
    raise TimeoutError("timed out")


class Page(io.BytesIO):
    """A captive portal's answer: 200, and not the file."""

    def info(self) -> Any:
        return self

    def getheaders(self, _: str) -> list[str]:
        return ["5"]


@pytest.mark.parametrize(
    ("opens", "reason"),
    [
        (refused, "Name or service not known"),
        (forbidden, "HTTP Error 403: Forbidden"),
        (stalled, "timed out"),
        (lambda *_, **__: Page(b"hello"), "invalid hash value"),
    ],
)
def test_a_failed_download_is_one_clear_line_and_leaves_no_file(
    opens: Any,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", opens)
    started = time.monotonic()
    with pytest.raises(WeightsError) as caught:
        load_model("squeezenet1_1", weights="DEFAULT", classes=2)
    assert time.monotonic() - started < 20
    message = str(caught.value)
    assert message.startswith("cannot get weights IMAGENET1K_V1 of squeezenet1_1 from https://")
    assert reason in message
    assert "weights='FILE'" in message
    assert "weights='none'" in message
    assert "\n" not in message
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert capsys.readouterr().out == ""
    assert socket.getdefaulttimeout() is None


def test_a_stalled_connection_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limits = []

    def note(*_: Any, **__: Any) -> None:
        limits.append(socket.getdefaulttimeout())
        raise TimeoutError("timed out")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", note)
    with pytest.raises(WeightsError, match="timed out"):
        build(ModelSpec.parse("squeezenet1_1"), weights="DEFAULT")
    assert limits == [10.0]


def test_a_cache_that_cannot_be_written_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "file"))
    with pytest.raises(WeightsError, match=r"^cannot get weights [^\n]*file[^\n]*weights='FILE'"):
        build(ModelSpec.parse("squeezenet1_1"), weights="DEFAULT")


def test_a_damaged_copy_in_the_cache_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    name = Path(models.SqueezeNet1_1_Weights.DEFAULT.url).name
    copy = tmp_path / "hub" / "checkpoints" / name
    copy.parent.mkdir(parents=True)
    copy.write_bytes(b"\x80\x02 half a file")
    with pytest.raises(WeightsError, match=rf"copy at .*{name} seems damaged: delete it\."):
        build(ModelSpec.parse("squeezenet1_1"), weights="DEFAULT")


def test_a_file_for_a_network_with_auxiliary_heads_may_lack_them(tmp_path: Path) -> None:
    built = build(ModelSpec.parse("googlenet"), weights="none", seed=0)
    torch.save(built.model.state_dict(), tmp_path / "w.pth")
    report = load_weights(built.model, tmp_path / "w.pth", removed=built.removed)
    assert report.ignored == ()
