"""Reading weight files: what is accepted, what is refused and why, and that nothing runs."""

from __future__ import annotations

import argparse
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from frostline.errors import WeightsError
from frostline.models import read_state_dict

TENSORS = {"fc.weight": torch.arange(6.0).reshape(2, 3), "fc.bias": torch.ones(2)}


class Mischief:
    """Its unpickling makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return list(left) == list(right) and all(torch.equal(left[key], right[key]) for key in left)


def test_safetensors_come_back_bit_for_bit(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "w.safetensors")
    found = read_state_dict(tmp_path / "w.safetensors")
    assert equal(dict(sorted(found.items())), dict(sorted(TENSORS.items())))


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt", ".PTH"])
def test_torch_files_come_back_whatever_their_ending(tmp_path: Path, suffix: str) -> None:
    torch.save(TENSORS, tmp_path / f"w{suffix}")
    assert equal(read_state_dict(tmp_path / f"w{suffix}"), TENSORS)


def test_a_file_in_torch_s_old_format_is_read(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    assert equal(read_state_dict(tmp_path / "w.pth"), TENSORS)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
def test_a_training_checkpoint_gives_its_model(tmp_path: Path, key: str) -> None:
    content = {"epoch": 3, "optimizer": {"state": {0: torch.ones(1)}}, key: TENSORS}
    torch.save(content, tmp_path / "w.pth")
    assert equal(read_state_dict(tmp_path / "w.pth"), TENSORS)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_taken_off(tmp_path: Path, prefix: str) -> None:
    torch.save({prefix + name: value for name, value in TENSORS.items()}, tmp_path / "w.pth")
    assert equal(read_state_dict(tmp_path / "w.pth"), TENSORS)


def test_a_prefix_that_only_some_names_have_stays(tmp_path: Path) -> None:
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "w.pth")
    assert list(read_state_dict(tmp_path / "w.pth")) == ["module.a", "b"]


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_runs_nothing_and_is_refused(tmp_path: Path, zipped: bool) -> None:
    content = {"state_dict": TENSORS, "extra": Mischief(tmp_path / "ran")}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"wants to run \S*mkdir.*Convert it to safetensors"):
        read_state_dict(tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_plain_malicious_pickle_runs_nothing_and_is_refused(
    tmp_path: Path, protocol: int
) -> None:
    (tmp_path / "w.bin").write_bytes(pickle.dumps(Mischief(tmp_path / "ran"), protocol))
    with pytest.raises(WeightsError, match=r"^[^\n]*$"):
        read_state_dict(tmp_path / "w.bin")
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_with_other_objects_names_the_one_it_wants(tmp_path: Path) -> None:
    torch.save({"model": TENSORS, "args": argparse.Namespace(lr=1)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"wants to run argparse\.Namespace"):
        read_state_dict(tmp_path / "w.pth")


def test_a_missing_file_is_told_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "resnet.pth").touch()
    with pytest.raises(
        WeightsError, match=r"there is no file .*resnte\.pth\. Found.*: resnet\.pth"
    ):
        read_state_dict(tmp_path / "resnte.pth")
    with pytest.raises(WeightsError, match=r"there is no file .* Check the path"):
        read_state_dict(tmp_path / "nowhere" / "w.pth")


def test_a_folder_is_refused_with_the_files_in_it(tmp_path: Path) -> None:
    (tmp_path / "a.pt").touch()
    with pytest.raises(WeightsError, match=r"is a folder, not a file of weights. Found .*: a\.pt"):
        read_state_dict(tmp_path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.pth").touch()
    with pytest.raises(WeightsError, match=r"is empty \(0 bytes\)"):
        read_state_dict(tmp_path / "w.pth")


def test_an_unknown_ending_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "w.h5").write_bytes(b"\x89HDF")
    with pytest.raises(WeightsError, match=r"does not end like a file of weights \(\.safetensors"):
        read_state_dict(tmp_path / "w.h5")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("just some words\n", "is a text file, not weights"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        ("\n<!DOCTYPE html><html>404</html>", "is a web page"),
    ],
)
def test_a_text_file_named_like_weights_is_recognised(
    tmp_path: Path, content: str, said: str
) -> None:
    (tmp_path / "w.pth").write_text(content)
    with pytest.raises(WeightsError, match=said):
        read_state_dict(tmp_path / "w.pth")


@pytest.mark.parametrize("kept", [4, 60, 150])
def test_truncated_safetensors_are_refused_in_one_line(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "w.safetensors"
    save_file(TENSORS, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(WeightsError, match=r"is cut short or damaged: [^\n]*Download or copy"):
        read_state_dict(path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_truncated_torch_file_is_refused_in_one_line(
    tmp_path: Path, part: float, zipped: bool
) -> None:
    path = tmp_path / "w.pth"
    torch.save(TENSORS, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(WeightsError, match=r"^[^\n]*$"):
        read_state_dict(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1, 2], "holds a list, not named tensors"),
        (torch.ones(2), "holds a Tensor"),
        ({}, "holds an empty dictionary"),
        ({"epoch": 1, "lr": 0.1}, "holds a dictionary with the keys epoch, lr"),
        ({"encoder": TENSORS, "head": TENSORS}, "with the keys encoder, head.*Save model.state_d"),
    ],
)
def test_what_is_no_state_dict_is_described(tmp_path: Path, content: object, said: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=said):
        read_state_dict(tmp_path / "w.pth")
