"""The resume state of a session by `torch.distributed.checkpoint`: each process writes its parts.

A checkpoint is a folder: what trains, the session's state, and digests of all other tensors, its
base. Each tensor goes by the name of the parameter whose form it has, so that another number of
processes reads it, sharded or not. All else is bytes that `torch.load(weights_only=True)` reads.
What each process has of its own, as random numbers and running statistics of its batches, stands
under its number.
"""

from __future__ import annotations

import io
import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from frostline._files import output_errors
from frostline.deltas import Delta, all_tensors, compare_base, delta_content, put_tensors, rest_of
from frostline.errors import ConfigError, CorruptDelta, DeltaError, OutputError, one_line
from frostline.fingerprints import Fingerprint, fingerprint_of
from frostline.session.session import Session
from frostline.sharding import whole
from frostline.units import some_of
from frostline.world import Ranks, World, gathered_names, together, world_here

_FORMAT = "frostline checkpoint 1"
_PART = "tensor of"  # in a state: the parameter as which a tensor is sharded that has its own key
_METADATA = ".metadata"  # which torch writes last
_STATE = "state"


def save_checkpoint(session: Session, folder: str | Path) -> None:
    """Write what `load_checkpoint` goes on from; all processes call it, after the same step.

    The frozen part is not in it, but its digests are. What was there before is replaced once all
    have written; until then a checkpoint that was cut short lies beside it, in `NAME.writing`.

    Raises:
        DeltaError: nothing is trainable.
        OutputError: a process cannot write there, or there is something else; all raise it.
    """
    folder, world = Path(folder), world_here()
    with together(world):
        _check_replaceable(folder)
        tensors = all_tensors(session.model)
        content = delta_content(session.model, also=session.position.moved)
        state, parts = session.state_dict(), dict[str, Tensor]()
        random = state.pop("random")
        told = {
            "format": _FORMAT,
            "processes": world.size,
            "weights": _apart(content, ("weights",), tensors, parts),
            "session": _apart(state, ("session",), tensors, parts),
            "base": dict(rest_of(session.model, tensors, content).tensors),
            "digests": (common := _common(world, fingerprint_of(parts).tensors)),
        }
        own = {key: tensor for key, tensor in parts.items() if key not in common}
        parts[_own(world.rank)] = _packed({"random": random, "tensors": own})
        if world.writes:
            parts[_STATE] = _packed(told)
        _write(parts, folder, world)


def load_checkpoint(session: Session, folder: str | Path) -> None:
    """Go on from what `save_checkpoint` wrote; all processes call it, and `session.enter()` next.

    The model is the one that was trained, with the weights of its base, sharded as it is to be now
    or not at all. As many processes as wrote go on to the bits of a session that was not cut. With
    another number, weights and optimizer state have these bits.

    Raises:
        ConfigError: there is no whole checkpoint, or it is of another plan.
        DeltaError: it is of another model, or of one with another base.
        CorruptDelta: it is damaged.
    """
    world = world_here()
    with together(world):
        folder = _complete(Path(folder))
        entries = _entries(folder)
        told = _unpacked(folder, entries, _STATE, world)
        if told.get("format") != _FORMAT:
            raise ConfigError(f"{folder} is no checkpoint of a session that this version reads.")
        own = _unpacked(folder, entries, _own(world.rank % told["processes"]), world)
        tensors = all_tensors(session.model)
        room = _Room(tensors, entries, folder)
        weights, state = room.of(told["weights"]), room.of(told["session"])
        _load(room.parts, folder, world)
        _check_bits(room.parts, told["digests"], folder)
        for key, values in own["tensors"].items():
            room.parts[key].copy_(values)
        delta = Delta(weights, Fingerprint(told["base"]), {})
        compare_base(session.model, delta, tensors, folder)
        session.load_state_dict({**state, "random": own["random"]})
        put_tensors(session.model, weights)


def _apart(
    value: Any, path: tuple[str, ...], tensors: Mapping[str, Tensor], parts: dict[str, Tensor]
) -> Any:
    """`value` without its tensors that have a parameter's form: these go to `parts`.

    Args:
        path: of `value` in what is saved, in which the parameter's name stands.
    """
    if isinstance(value, Tensor):
        for name in reversed(path):
            if name in tensors and tensors[name].shape == value.shape:
                key = "/".join(path)
                parts[key] = value.detach()
                return {_PART: name, "key": key}
        return whole(value).cpu()
    if isinstance(value, Mapping):
        return {k: _apart(v, (*path, str(k)), tensors, parts) for k, v in value.items()}
    if isinstance(value, list | tuple):
        items = [_apart(v, (*path, str(i)), tensors, parts) for i, v in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    return value


@final
class _Room:
    """Tensors into which a checkpoint is read, each sharded as its parameter is now."""

    def __init__(
        self, tensors: Mapping[str, Tensor], entries: Mapping[str, Any], folder: Path
    ) -> None:
        self._tensors = tensors
        self._entries = entries
        self._folder = folder
        self.parts: dict[str, Tensor] = {}

    def of(self, value: Any) -> Any:
        """What `_apart` was given, with such a tensor in each place.

        Raises:
            DeltaError: the model has no such parameter, or one of another shape.
        """
        if isinstance(value, Mapping):
            if _PART in value:
                return self._made(value[_PART], value["key"])
            return {key: self.of(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            items = [self.of(inner) for inner in value]
            return items if isinstance(value, list) else tuple(items)
        return value

    def _made(self, name: str, key: str) -> Tensor:
        entry, tensor = self._entries[key], self._tensors.get(name)
        if tensor is None or tensor.shape != entry.size:
            found = "none" if tensor is None else f"one of {tuple(tensor.shape)}"
            raise DeltaError(
                f"{self._folder} holds {name} with the shape {tuple(entry.size)}, and this model "
                f"has {found}. Build the model as it was trained, with the same head."
            )
        made = torch.empty_like(tensor.detach(), dtype=entry.properties.dtype)
        self.parts[key] = made
        return made


def _common(world: World, own: Mapping[str, str]) -> dict[str, str]:
    """The digests of what is the same in all processes."""
    every = map(json.loads, gathered_names(world, [json.dumps(dict(own))]))
    same = dict(own)
    for other in every:
        same = {key: digest for key, digest in same.items() if other.get(key) == digest}
    return same


def _check_bits(parts: Mapping[str, Tensor], digests: Mapping[str, str], folder: Path) -> None:
    found = fingerprint_of({key: parts[key] for key in digests if key in parts}).tensors
    wrong = [key for key, digest in digests.items() if found.get(key) != digest]
    if wrong:
        raise CorruptDelta(
            f"{folder} is damaged: {some_of(wrong, most=3)} are not what was written. Go on from "
            "an earlier one."
        )


def _own(rank: int) -> str:
    return f"process {rank}"


def _packed(value: object) -> Tensor:
    file = io.BytesIO()
    torch.save(value, file)
    return torch.frombuffer(bytearray(file.getbuffer()), dtype=torch.uint8)


def _unpacked(folder: Path, entries: Mapping[str, Any], key: str, world: World) -> dict[str, Any]:
    if key not in entries:
        raise ConfigError(f"{folder} is no checkpoint of a session: it has no {key!r}.")
    content = torch.empty(entries[key].size, dtype=torch.uint8)
    _load({key: content}, folder, world)
    try:
        found: dict[str, Any] = torch.load(io.BytesIO(content.numpy().tobytes()), weights_only=True)
    except Exception as error:  # whatever torch makes of bytes that are not its own
        raise _damaged(folder, error) from error
    return found


def _entries(folder: Path) -> Mapping[str, Any]:
    """What the checkpoint holds, by key."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader  # a second to import

    try:
        return FileSystemReader(folder).read_metadata().state_dict_metadata
    except Exception as error:  # whatever unpickling makes of it
        raise _damaged(folder, error) from error


def _load(parts: dict[str, Tensor], folder: Path, world: World) -> None:
    """Fill the tensors, all processes together."""
    from torch.distributed.checkpoint.state_dict_loader import load

    try:
        with _quiet():
            load(parts, checkpoint_id=folder, **_group(world))
    except Exception as error:  # torch reports those of its readers as errors of its own
        raise _damaged(folder, error) from error


def _damaged(folder: Path, error: Exception) -> CorruptDelta:
    return CorruptDelta(
        f"{folder} cannot be read: {one_line(error, first=True)}. Go on from an earlier one."
    )


def _write(parts: dict[str, Tensor], folder: Path, world: World) -> None:
    """Beside the folder, and over it once all have written."""
    from torch.distributed.checkpoint.state_dict_saver import save

    writing = _beside(folder, "writing")
    if world.writes:
        with output_errors(folder):
            shutil.rmtree(writing, ignore_errors=True)
            writing.mkdir(parents=True)
    world.barrier()
    try:
        with _quiet():
            save(parts, checkpoint_id=writing, **_group(world))
    except Exception as error:  # torch reports what the system refused as an error of its own
        raise OutputError(
            f"cannot write {folder}: {one_line(error, first=True)}. Nothing was overwritten. "
            "Choose a folder that all processes can write to, with room on its disk."
        ) from error
    world.barrier()
    if world.writes:
        with output_errors(folder):
            _replace(folder, writing)
    world.barrier()


def _replace(folder: Path, writing: Path) -> None:
    """Killed in between, `_complete` finds what was there before."""
    former = _beside(folder, "former")
    if folder.exists():
        shutil.rmtree(former, ignore_errors=True)
        folder.rename(former)
    writing.rename(folder)
    shutil.rmtree(former, ignore_errors=True)


def _complete(folder: Path) -> Path:
    for found in (folder, _beside(folder, "former")):
        if (found / _METADATA).is_file():
            return found
    raise ConfigError(
        f"there is no whole checkpoint at {folder}. Give the folder that was saved to, on a "
        "disk that all processes see; one that was cut short before the first is none."
    )


def _check_replaceable(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()) and not (folder / _METADATA).is_file():
        raise OutputError(
            f"{folder} is there and is no checkpoint, so it is not replaced. Choose another name."
        )


def _beside(folder: Path, word: str) -> Path:
    return folder.with_name(f"{folder.name}.{word}")


def _quiet() -> warnings.catch_warnings[None]:
    """Torch warns of a single process, though it is told that there is one (2.15)."""
    return warnings.catch_warnings(action="ignore", category=UserWarning)


def _group(world: World) -> dict[str, Any]:
    """What torch is told of the processes."""
    return {"process_group": world.group} if isinstance(world, Ranks) else {"no_dist": True}
