"""The text that names a model or weights, and what it is read as."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frostline.errors import ModelError
from frostline.models import ModelSpec
from frostline.models.spec import WeightsChoice, file_and_place


def test_a_bare_name_means_torchvision() -> None:
    assert ModelSpec.parse("alexnet") == ModelSpec.parse("torchvision:alexnet")
    assert ModelSpec.parse(" alexnet ").source == "torchvision"


def test_a_file_and_function_are_taken_apart_at_the_last_colon() -> None:
    spec = ModelSpec.parse("C:/nets/my net.py:build")
    assert (spec.source, spec.path, spec.name) == ("file", "C:/nets/my net.py", "build")


def test_a_hub_name_keeps_its_slash() -> None:
    assert ModelSpec.parse("hf:google/vit-base").name == "google/vit-base"


@pytest.mark.parametrize("text", ["alexnet", "timm:vit_tiny.a_b", "hf:./folder", "a/b.py:make"])
def test_a_printed_spec_reads_back_as_itself(text: str) -> None:
    spec = ModelSpec.parse(text)
    assert ModelSpec.parse(str(spec)) == spec


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused_and_never_anything_else(text: str) -> None:
    try:
        spec = ModelSpec.parse(text)
    except ModelError:
        return
    assert ModelSpec.parse(str(spec)) == spec


@pytest.mark.parametrize("text", ["", "  ", "timm:", "torchvision: "])
def test_an_empty_name_is_refused(text: str) -> None:
    with pytest.raises(ModelError, match=r"names no model\. Write"):
        ModelSpec.parse(text)


@pytest.mark.parametrize("text", ["net.py", "net.py:"])
def test_a_file_without_a_function_is_told_the_form(text: str) -> None:
    with pytest.raises(ModelError, match=r"Write net\.py:function"):
        ModelSpec.parse(text)


def test_an_unknown_source_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ModelError, match=r"there is no source 'keras'. Use torchvision:NAME, timm"):
        ModelSpec.parse("keras:resnet50")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("DEFAULT", "published"),
        ("IMAGENET1K_V2", "published"),
        ("none", "none"),
        ("net.safetensors", "file"),
        ("folder/net", "file"),
        ("net.pth.tar", "file"),
        ("net.pth:teacher", "file"),
        ("model.safetensors.index.json", "file"),
    ],
)
def test_weights_are_told_apart_by_their_form(text: str, kind: str) -> None:
    assert WeightsChoice.parse(text).kind == kind


def test_an_existing_file_is_a_file_whatever_its_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "IMAGENET").touch()
    monkeypatch.chdir(tmp_path)
    assert WeightsChoice.parse("IMAGENET").kind == "file"


def test_a_place_stands_behind_a_file_s_ending(tmp_path: Path) -> None:
    assert file_and_place("a/net.pth:teacher.net") == (Path("a/net.pth"), "teacher.net")
    assert file_and_place("net.PTH.tar") == (Path("net.PTH.tar"), "")
    assert file_and_place("C:/net.pth") == (Path("C:/net.pth"), "")
    odd = tmp_path / "net.pth:teacher"
    odd.touch()
    assert file_and_place(str(odd)) == (odd, "")
