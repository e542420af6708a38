"""timm's models: names, weights, preprocessing, a missing package and a missing network."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from frostline.errors import ModelError, WeightsError
from frostline.models import build, load_model
from frostline.models.spec import ModelSpec
from frostline.models.transforms import from_timm
from frostline.preprocessing import Preprocessing

timm: Any = pytest.importorskip("timm")


def spec(name: str) -> ModelSpec:
    return ModelSpec.parse(f"timm:{name}")


def configurations() -> list[dict[str, Any]]:
    """Every distinct preprocessing among timm's models, apart from what has no like here."""
    distinct = {}
    for name in timm.list_models(include_tags=True):
        cfg = timm.models.get_pretrained_cfg(name)
        config = timm.data.resolve_data_config(pretrained_cfg=cfg.to_dict())
        _, height, width = config["input_size"]
        if config["crop_mode"] != "border" and height == width <= 448:
            distinct[str(config)] = config
    return list(distinct.values())


def test_preprocessing_equals_timm_s_bit_for_bit(photo: Image.Image) -> None:
    found = configurations()
    assert len(found) > 50
    for config in found:
        theirs = timm.data.create_transform(**config, is_training=False)
        assert torch.equal(from_timm(config)(photo), theirs(photo)), config


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"crop_mode": "border"}, "a square crop in mode 'border'"),
        ({"input_size": (3, 224, 320)}, "an oblong crop in mode 'center'"),
        ({"input_size": (4, 28, 28)}, r"input of size \(4, 28, 28\)"),
        ({"interpolation": "random"}, "interpolation 'random'"),
        ({"mean": (0.5,)}, r"mean \(0\.5,\), which is not three numbers"),
        ({"std": ("a", "b", "c")}, "'a' where a number belongs"),
    ],
)
def test_preprocessing_with_other_steps_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=rf"preprocessing wants {said}.*Write a function"):
        from_timm({"input_size": (3, 224, 224), **change})


def test_an_empty_configuration_takes_timm_s_defaults() -> None:
    assert from_timm({}) == Preprocessing(interpolation="bicubic")


def test_a_missing_package_is_told_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match=r'not installed: pip install "frostline\[timm\]"'):
        build(spec("resnet18"), weights="none")


def test_a_misspelt_name_is_told_with_the_nearest() -> None:
    with pytest.raises(ModelError, match=r"timm has no model 'resnte18'. Nearest: .*resnet18"):
        build(spec("resnte18"), weights="none")


def test_a_renamed_model_is_told_with_its_new_name() -> None:
    old, new = next((o, n) for o, n in timm.models.get_deprecated_models().items() if n)
    with pytest.raises(ModelError, match=f"timm has renamed '{old}': use timm:{new}"):
        build(spec(old), weights="none")


def test_a_tag_given_as_weights_is_pointed_to_the_name() -> None:
    with pytest.raises(WeightsError, match=r"Use timm:resnet18\.a1_in1k with weights='DEFAULT'"):
        build(spec("resnet18.a2_in1k"), weights="a1_in1k")


def test_a_model_without_published_weights_is_told_so() -> None:
    names = set(timm.list_models()) - {n.split(".")[0] for n in timm.list_pretrained()}
    with pytest.raises(WeightsError, match=r"timm publishes no weights for .*weights='none'"):
        build(spec(min(names)), weights="DEFAULT")


def test_random_values_depend_on_the_seed_alone() -> None:
    before = torch.get_rng_state()
    first, second = (build(spec("test_vit"), weights="none", seed=5).model for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(left, right) for left, right in pairs)


def test_a_failing_hub_is_asked_once_and_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def unreachable(url: str, **_: Any) -> None:
        calls.append(url)
        raise ConnectionError("Name or service\nnot known")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unreachable)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    started = time.monotonic()
    with pytest.raises(WeightsError) as caught:
        build(spec("resnet18.a1_in1k"), weights="DEFAULT")
    assert time.monotonic() - started < 20
    assert len(calls) == 1
    assert str(caught.value) == (
        "cannot get weights DEFAULT of timm:resnet18.a1_in1k from hub repository "
        "timm/resnet18.a1_in1k: ConnectionError: Name or service not known. Give weights you have "
        "with weights='FILE', or use weights='none' for a dry run."
    )


def test_weights_in_the_hub_s_cache_need_no_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    source = timm.create_model("test_resnet")
    path = tmp_path / "model.safetensors"
    save_file(source.state_dict(), path)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: str(path))
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unreachable)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    built = build(spec("test_resnet.r160_in1k"), weights="DEFAULT")
    found = built.model.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in source.state_dict().items())
    assert str(tmp_path) not in str(built.model.pretrained_cfg)
    assert built.classes is not None
    assert len(built.classes) == 1000
    assert str(built.weights).startswith("timm test_resnet.r160_in1k: ")


def test_the_second_file_name_is_tried_where_the_first_is_absent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub.errors import EntryNotFoundError

    def metadata(url: str, **_: Any) -> None:
        if url.endswith("model.safetensors"):
            raise EntryNotFoundError("404")

    def fetch(_: str, name: str, **__: Any) -> str:
        torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / name)
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", metadata)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    build(spec("test_resnet.r160_in1k"), weights="DEFAULT")
    assert (tmp_path / "pytorch_model.bin").is_file()


def test_a_download_that_breaks_off_is_not_taken_for_a_file_that_is_absent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def fetch(_: str, name: str, **__: Any) -> str:
        raise LocalEntryNotFoundError(f"no connection while {name} was fetched")

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda *_, **__: None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    with pytest.raises(WeightsError, match=r"no connection while model\.safetensors was"):
        build(spec("test_resnet.r160_in1k"), weights="DEFAULT")


def test_a_file_loads_into_a_timm_model_and_its_classifier_is_replaced(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_vit", num_classes=9).state_dict(), tmp_path / "w.pth")
    loaded = load_model("timm:test_vit", weights=str(tmp_path / "w.pth"), classes=4)
    assert loaded.head == "head"
    assert "not used of the file: head (it is replaced)" in str(loaded.weights)
    assert loaded.model(torch.zeros(1, 3, *loaded.preprocessing.crop)).shape == (1, 4)
