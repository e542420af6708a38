"""Tensors into files: a disk that is full is told as one, whichever library found it out."""

from __future__ import annotations

import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from frostline import OutputError
from frostline._files import has_own_sum
from frostline._tensor_files import save_tensors, save_torch
from frostline.callbacks.logs import TensorBoardLog
from frostline.engine import Training
from frostline.recipe import Recipe
from frostline.session import Session
from small_world import call, write_net, write_pictures

FULL = r"cannot write .*: File too large\. Nothing was overwritten\. Choose a folder"


@contextmanager
def files_of_at_most(count: int) -> Iterator[None]:
    """The system refuses to write on, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    heeded = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, heeded)


def test_torchs_own_format_on_a_full_disk_is_an_output_error(tmp_path: Path) -> None:
    save_torch({"a": torch.zeros(3)}, tmp_path / "state.pt")
    before = (tmp_path / "state.pt").read_bytes()
    with files_of_at_most(9_000), pytest.raises(OutputError, match=FULL):
        save_torch({"a": torch.zeros(50_000)}, tmp_path / "state.pt", own_sum=True)
    assert (tmp_path / "state.pt").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_safetensors_on_a_full_disk_are_an_output_error(tmp_path: Path) -> None:
    with files_of_at_most(9_000), pytest.raises(OutputError, match=FULL):
        save_tensors({"a": torch.zeros(50_000)}, tmp_path / "delta.safetensors", header={})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("save", [save_tensors, save_torch])
def test_tensors_are_readable_by_whom_the_mask_allows(
    tmp_path: Path, save: Callable[[dict[str, torch.Tensor], Path], None]
) -> None:
    (tmp_path / "plain").touch()
    save({"a": torch.zeros(3)}, tmp_path / "tensors")
    assert (tmp_path / "tensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_other_errors_of_torch_are_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    class Odd:
        def __reduce__(self) -> tuple[object, ...]:
            raise RuntimeError("cannot be written")

    with pytest.raises(RuntimeError, match="cannot be written"):
        save_torch(Odd(), tmp_path / "state.pt")


def test_what_torch_wrote_is_read_by_torch_with_the_checksum_behind_it(tmp_path: Path) -> None:
    save_torch({"a": torch.arange(5)}, tmp_path / "state.pt", own_sum=True)
    assert has_own_sum(tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True)["a"].tolist() == [0, 1, 2, 3, 4]


def test_curves_on_a_full_disk_are_an_output_error(tmp_path: Path) -> None:
    log = TensorBoardLog(tmp_path / "curves")
    training = Training(Session(torch.nn.Linear(1, 1), recipe=Recipe(), steps_per_epoch=1))
    with files_of_at_most(10), pytest.raises(OutputError, match=FULL):
        log.on_start(training)


@pytest.mark.parametrize("count", [900, 1_500, 4_500])
def test_a_run_on_a_full_disk_ends_in_one_message(tmp_path: Path, count: int) -> None:
    photos, model = write_pictures(tmp_path / "photos"), write_net(tmp_path)
    arguments = ["--model", model, "--weights", "none", "--epochs", 2, "--features", "off"]
    with files_of_at_most(count):
        answer = call("train", photos, *arguments, "--out", tmp_path / "run")
    assert answer.status == 1
    assert "File too large. Nothing was overwritten" in answer.message
