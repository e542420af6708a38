"""Reading weight files: what is accepted, what is refused and why, and that nothing runs."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import tarfile
from collections import defaultdict
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from frostline._files import file_digest
from frostline.errors import WeightsError
from frostline.models import read_state_dict
from frostline.models.state_files import read_tensors, weights_digest

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
    torch.save({"model": TENSORS, "args": SimpleNamespace(lr=1)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"wants to run types\.SimpleNamespace"):
        read_state_dict(tmp_path / "w.pth")


HARMLESS = {
    "args": argparse.Namespace(lr=1, data=Path("photos"), more=argparse.Namespace(a=[1])),
    "best": np.float64(0.5),
    "step": np.int64(3),
    "path": PureWindowsPath("c:/photos"),
    "history": defaultdict(list, {"loss": [1.0, np.float32(2)]}),
    "counts": defaultdict(int, {"ant": 2}),
}


@pytest.mark.parametrize("zipped", [True, False])
def test_options_paths_and_numpy_numbers_beside_the_weights_do_no_harm(
    tmp_path: Path, zipped: bool
) -> None:
    content = {"model": TENSORS, **HARMLESS}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    before = set(torch.serialization.get_safe_globals())
    assert equal(read_state_dict(tmp_path / "w.pth"), TENSORS)
    assert set(torch.serialization.get_safe_globals()) == before


def test_names_that_other_systems_and_versions_write_are_known(tmp_path: Path) -> None:
    path, content = (
        tmp_path / "w.bin",
        {"none": {}, "best": np.float64(1), "at": PurePosixPath("x")},
    )
    torch.save(content, path, _use_new_zipfile_serialization=False)
    pickled = path.read_bytes()
    for old, new in (
        (b"numpy._core.multiarray", b"numpy.core.multiarray"),
        (b"pathlib\nPurePosixPath", b"pathlib\nWindowsPath"),
        (b"pathlib\nPurePosixPath", b"pathlib._local\nPosixPath"),
    ):
        assert old in pickled
        path.write_bytes(pickled.replace(old, new))
        with pytest.raises(WeightsError, match="keys none, best, at, not named tensors"):
            read_tensors(path)


@pytest.mark.parametrize(
    "hide",
    [
        lambda bad: argparse.Namespace(x=bad),
        lambda bad: defaultdict(list, {"x": [bad]}),
        lambda bad: {"x": np.float64(1), "y": bad},
    ],
)
def test_what_is_hidden_in_a_harmless_object_is_not_run(tmp_path: Path, hide: Any) -> None:
    torch.save({"model": TENSORS, "args": hide(Mischief(tmp_path / "ran"))}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"wants to run \S*mkdir"):
        read_tensors(tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()


def test_a_pickle_that_fills_a_function_wrongly_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"\x80\x02ctorch\nSize\nX\x01\x00\x00\x00x\x85R.")
    with pytest.raises(WeightsError, match=r"^[^\n]*damaged or no file of weights[^\n]*$"):
        read_state_dict(tmp_path / "w.bin")


def test_a_dictionary_that_holds_itself_is_read(tmp_path: Path) -> None:
    content: dict[str, Any] = {"fc": dict(TENSORS)}
    content["again"] = content
    torch.save(content, tmp_path / "w.pth")
    assert "fc.fc.weight" in read_tensors(tmp_path / "w.pth")


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")  # files of it stay around
def test_compiled_and_exported_models_are_called_so(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"is a TorchScript archive.*torch\.jit\.load\(FILE\)"):
        read_state_dict(tmp_path / "w.pt")
    exported = torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),))
    torch.export.save(exported, tmp_path / "w.pt2")
    with pytest.raises(WeightsError, match=r"is an exported program .*torch\.export\.load\(FILE\)"):
        read_state_dict(tmp_path / "w.pt2")


def test_a_checkpoint_named_tar_is_read_and_a_real_tar_archive_is_called_so(tmp_path: Path) -> None:
    torch.save({"epoch": 1, "state_dict": TENSORS}, tmp_path / "w.pth.tar")
    assert equal(read_state_dict(tmp_path / "w.pth.tar"), TENSORS)
    with tarfile.open(tmp_path / "many.tar", "w") as archive:
        archive.add(tmp_path / "w.pth.tar", "w.pth")
    with pytest.raises(WeightsError, match=r"is a tar archive of files. Unpack it"):
        read_state_dict(tmp_path / "many.tar")


def sharded(folder: Path, suffix: str = "safetensors") -> Path:
    """`TENSORS` in two files and their index."""
    save: Any = save_file if suffix == "safetensors" else torch.save
    places = {"fc.weight": f"m-00001-of-00002.{suffix}", "fc.bias": f"m-00002-of-00002.{suffix}"}
    for name, file in places.items():
        save({name: TENSORS[name]}, folder / file)
    index = folder / f"m.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 32}, "weight_map": places}, indent=1))
    return index


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_weights_in_several_files_are_read_by_their_index(tmp_path: Path, suffix: str) -> None:
    found = read_state_dict(sharded(tmp_path, suffix))
    assert equal(dict(sorted(found.items(), reverse=True)), TENSORS)


def test_the_digest_of_an_index_is_of_all_its_files(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    before = weights_digest(index)
    assert weights_digest(index) == before != file_digest(index)
    save_file({"fc.bias": TENSORS["fc.bias"] + 1}, tmp_path / "m-00002-of-00002.safetensors")
    assert weights_digest(index) != before


def test_several_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    second = tmp_path / "m-00002-of-00002.safetensors"
    save_file({"fc.scale": torch.ones(1)}, second)
    with pytest.raises(
        WeightsError, match=r"m-00002\S* is not the file that m\S*json describes: fc"
    ):
        read_state_dict(index)
    second.unlink()
    with pytest.raises(WeightsError, match=r"there is no file .*m-00002-of-00002"):
        read_state_dict(index)


@pytest.mark.parametrize(
    "text",
    ["{}", "[1]", "not json", '{"weight_map": {"a": 1}}', '{"weight_map": {}}', "[" * 9999],
)
def test_an_index_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.index.json").write_text(text)
    with pytest.raises(WeightsError, match=r"no index of weights|not named tensors"):
        read_tensors(tmp_path / "m.index.json")


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
