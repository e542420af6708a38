"""Weight files -> named tensors, without ever running what a pickle asks for."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from frostline.errors import WeightsError, a_type, nearest, one_line
from frostline.models.spec import WEIGHT_SUFFIXES

# Under these, training scripts keep the model beside the optimizer, the epoch and so on.
_WRAPPERS = ("state_dict", "model_state_dict", "model")
# Put before every name by DistributedDataParallel and by torch.compile.
_PREFIXES = ("module.", "_orig_mod.")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` or a torch file (`.pth`, `.pt`, `.bin`, `.ckpt`), on the CPU.

    A torch file is a pickle, which can run any program; it is read with torch's `weights_only`
    and refused if it needs more. The model of a training checkpoint is found under `state_dict`,
    `model_state_dict` or `model`; the prefixes `module.` and `_orig_mod.` are taken off where
    every name has them.

    Raises:
        WeightsError: there is no such file, or it holds no weights that can be read safely.
    """
    _check_file(path)
    if path.suffix.lower() == ".safetensors":
        tensors = _read_safetensors(path)
    else:
        tensors = _tensors(_read_pickle(path), path)
    for prefix in _PREFIXES * 2:  # whichever was put first
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise WeightsError(f"{path} is a folder, not a file of weights. {_candidates(path)}")
    if not path.is_file():
        raise WeightsError(f"there is no file {path}. {_candidates(path.parent, near=path.name)}")
    if path.suffix.lower() not in WEIGHT_SUFFIXES:
        raise WeightsError(
            f"{path} does not end like a file of weights ({', '.join(WEIGHT_SUFFIXES)}). "
            "Give one that does, or rename it if it is one."
        )
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror}. Check its rights.") from error
    if not head:
        raise WeightsError(f"{path} is empty (0 bytes). Download or copy it again.")
    if head.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path} is a Git LFS pointer, not the weights. Run: git lfs pull.")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise WeightsError(f"{path} is a web page, not weights. Download the file itself.")
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        raise WeightsError(f"{path} is a text file, not weights. Give the file of weights.")


def _candidates(folder: Path, *, near: str = "") -> str:
    entries = folder.iterdir() if folder.is_dir() else iter(())
    files = sorted(entry.name for entry in entries if entry.suffix.lower() in WEIGHT_SUFFIXES)
    close = nearest(near, files) if near else files[:3]
    return f"Found in {folder}: {', '.join(close)}." if close else "Check the path."


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(
            f"{path} is cut short or damaged: {one_line(error)}. Download or copy it again."
        ) from error


def _read_pickle(path: Path) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle's protocol; it is refused or read
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(_refusal(path, str(error))) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError) as error:
        raise WeightsError(
            f"{path} is cut short, damaged or no file of weights: {one_line(error)}. "
            "Download or copy it again."
        ) from error


def _refusal(path: Path, message: str) -> str:
    advice = "Convert it to safetensors with code and on a machine that you trust."
    if found := re.search(r"GLOBAL (\S+)", message):
        return (
            f"{path} is a pickle that wants to run {found[1]}, which weights never need; "
            f"nothing of it was run. {advice}"
        )
    reason = re.search(r"WeightsUnpickler error:\s*(.+)", message)
    said = reason[1].strip().rstrip(".") if reason else " ".join(message.split())[:200]
    return f"{path} cannot be read as weights alone: {said}. {advice}"


def _tensors(content: object, path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict, wrapped or bare; its other entries are no weights."""
    for _ in range(3):
        if isinstance(content, Mapping):
            wrapped = (content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping))
            content = next(wrapped, content)
    entries = content.items() if isinstance(content, Mapping) else ()
    if tensors := {n: v for n, v in entries if isinstance(n, str) and isinstance(v, Tensor)}:
        return tensors
    raise WeightsError(
        f"{path} holds {_described(content)}, not named tensors. "
        "Save model.state_dict(), alone or under the key 'state_dict'."
    )


def _described(content: object) -> str:
    if isinstance(content, Mapping):
        keys = ", ".join(str(key) for key in list(content)[:5])
        return f"a dictionary with the keys {keys}" if keys else "an empty dictionary"
    return a_type(content)
