"""Weight files -> named tensors, without ever running what a pickle asks for."""

from __future__ import annotations

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from frostline._files import file_digest
from frostline.errors import WeightsError, a_type, nearest, one_line
from frostline.models.spec import INDEX_SUFFIX, WEIGHT_SUFFIXES

# Under these, training scripts keep the model beside the optimizer, the epoch and so on.
_WRAPPERS = ("state_dict", "model_state_dict", "model")
# Put before every name by DistributedDataParallel and by torch.compile.
_PREFIXES = ("module.", "_orig_mod.")


# What checkpoints hold beside weights and needs nothing run: options, counts, paths, histories.
_HARMLESS = (
    "argparse.Namespace",
    *(f"builtins.{name}" for name in ("dict", "float", "int", "list")),  # a defaultdict's factory
    *(
        f"pathlib{inner}.{pure}{system}Path"
        for inner in ("", "._local")  # the latter as Python 3.13 writes it
        for pure in ("", "Pure")
        for system in ("Posix", "Windows")
    ),
    "numpy.dtype",
    *(f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")),  # before and since 2.0
)
_DEEPEST = 8  # dictionaries in dictionaries; a pickle can hold one that holds itself


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, on the CPU, by their place in it: `state_dict.module.fc.weight`.

    Takes a `.safetensors`, a torch file (`.pth`, `.pt`, `.bin`, `.ckpt`, `.pth.tar`), or the
    `.index.json` of several. A torch file is a pickle, which can run any program; it is read with
    torch's `weights_only`, and refused if it needs more than tensors and a few plain values, of
    which only the place is kept.

    Raises:
        WeightsError: there is no such file, or it holds no weights that can be read safely.
    """
    content = _content(path)
    if tensors := dict(_by_place(content)):
        return tensors
    raise _no_tensors(content, path)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that `read_tensors` takes, by the names of a model alone.

    The model of a training checkpoint is found under `state_dict`, `model_state_dict` or `model`;
    the prefixes `module.` and `_orig_mod.` are taken off where every name has them.

    Raises:
        WeightsError: as `read_tensors`.
    """
    tensors = _tensors(_content(path), path)
    for prefix in _PREFIXES * 2:  # whichever was put first
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _content(path: Path) -> object:
    return _read_shards(path) if path.name.lower().endswith(INDEX_SUFFIX) else _one_file(path)


def _one_file(path: Path) -> object:
    _check_file(path)
    is_safe = path.suffix.lower() == ".safetensors"
    return _read_safetensors(path) if is_safe else _read_pickle(path)


def _by_place(content: object, place: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Tensor) and place:
        yield place, content
    elif isinstance(content, Mapping) and depth < _DEEPEST:
        for key, value in content.items():
            if isinstance(key, str):
                yield from _by_place(value, f"{place}.{key}" if place else key, depth + 1)


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise WeightsError(f"{path} is a folder, not a file of weights. {_candidates(path)}")
    if not path.is_file():
        raise WeightsError(f"there is no file {path}. {_candidates(path.parent, near=path.name)}")
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror}. Check its rights.") from error
    if kind := _program(path):
        name, opened = kind
        raise WeightsError(
            f"{path} is {name}: a program with its weights, not weights alone. Where you trust "
            f"it, take them out: torch.save({opened}, 'weights.pth')."
        )
    if not path.name.lower().endswith(WEIGHT_SUFFIXES):
        raise WeightsError(
            f"{path} does not end like a file of weights ({', '.join(WEIGHT_SUFFIXES)}). "
            "Give one that does, or rename it if it is one."
        )
    if not head:
        raise WeightsError(f"{path} is empty (0 bytes). Download or copy it again.")
    if head.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path} is a Git LFS pointer, not the weights. Run: git lfs pull.")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise WeightsError(f"{path} is a web page, not weights. Download the file itself.")
    if head[257:262] == b"ustar":
        raise WeightsError(f"{path} is a tar archive of files. Unpack it and give the weights.")
    is_index = path.name.lower().endswith(INDEX_SUFFIX)
    if not is_index and all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        raise WeightsError(f"{path} is a text file, not weights. Give the file of weights.")


def _program(path: Path) -> tuple[str, str] | None:
    """What an archive of a compiled model is called, and what makes a `state_dict` of it."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = {name.partition("/")[2] for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError):
        return None
    if "archive_format" in parts:
        return "an exported program (torch.export)", "torch.export.load(FILE).state_dict"
    if "constants.pkl" in parts:
        return "a TorchScript archive", "torch.jit.load(FILE).state_dict()"
    return None


def _candidates(folder: Path, *, near: str = "") -> str:
    entries = folder.iterdir() if folder.is_dir() else iter(())
    files = sorted(entry.name for entry in entries if entry.name.lower().endswith(WEIGHT_SUFFIXES))
    close = nearest(near, files) if near else files[:3]
    return f"Found in {folder}: {', '.join(close)}." if close else "Check the path."


def weights_digest(path: Path) -> str:
    """xxh3_128 of the content of a file of weights, hexadecimal; of an index, with all its files.

    Raises:
        WeightsError: an index is none.
        OSError: a file cannot be read.
    """
    if not path.name.lower().endswith(INDEX_SUFFIX):
        return file_digest(path)
    files = (path, *sorted({path.parent / name for name in _index(path).values()}))
    return xxhash.xxh3_128_hexdigest("".join(map(file_digest, files)).encode())


def _index(index: Path) -> dict[str, str]:
    """Names of tensors -> names of the files that they are in."""
    try:
        files: dict[str, str] = json.loads(index.read_bytes())["weight_map"]
        return {name: Path(file).name for name, file in files.items()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(
            f"{index} is no index of weights: it has no 'weight_map' of names to files. Copy it "
            "again, or give the file of weights."
        ) from error


def _read_shards(index: Path) -> dict[str, Tensor]:
    """The tensors of several files, each in the file that the index names for it."""
    _check_file(index)
    files, tensors = _index(index), dict[str, Tensor]()
    for shard in sorted({index.parent / file for file in files.values()}):
        held = dict(_by_place(_one_file(shard)))
        named = {name for name, file in files.items() if file == shard.name}
        if wrong := sorted(named ^ held.keys()):
            raise WeightsError(
                f"{shard} is not the file that {index.name} describes: {wrong[0]} is in one of "
                f"them only. Copy all of them again."
            )
        tensors |= held
    return tensors


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
            with torch.serialization.safe_globals(_stand_ins()):
                return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(_refusal(path, str(error))) from error
    except Exception as error:  # a damaged pickle raises anything
        raise WeightsError(
            f"{path} is cut short, damaged or no file of weights: {one_line(error)}. "
            "Download or copy it again."
        ) from error


class _SetAside:
    """In place of an object that is no weight: whatever makes or fills it, it holds nothing.

    Not the objects themselves: numpy's would read a crafted dtype's bytes as addresses, and a
    path of Windows cannot be made elsewhere.
    """

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


def _empty(*_: object) -> dict[object, object]:
    """A defaultdict as a dict, which `weights_only` can fill; it refuses the other (torch 2.15)."""
    return {}


def _stand_ins() -> list[Any]:
    return [(_empty, "collections.defaultdict"), *((_SetAside, name) for name in _HARMLESS)]


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
    raise _no_tensors(content, path)


def _no_tensors(content: object, path: Path) -> WeightsError:
    return WeightsError(
        f"{path} holds {_described(content)}, not named tensors. "
        "Save model.state_dict(), alone or under the key 'state_dict'."
    )


def _described(content: object) -> str:
    if isinstance(content, Mapping):
        keys = ", ".join(str(key) for key in list(content)[:5])
        return f"a dictionary with the keys {keys}" if keys else "an empty dictionary"
    return a_type(content)
