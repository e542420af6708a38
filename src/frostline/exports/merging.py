"""A delta and its base as one full checkpoint, for tools that know nothing of deltas."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from frostline._files import check_new
from frostline._tensor_files import save_tensors, save_torch
from frostline.choices import Snapshot
from frostline.config import RunSettings
from frostline.deltas import Delta, load_delta, merge_tensors, read_delta
from frostline.errors import ConfigError
from frostline.models import load_model
from frostline.models.state_files import read_state_dict
from frostline.records import RunFolder
from frostline.runs.finished import open_run
from frostline.wording import option

_SAFE = ".safetensors"
_SUFFIXES = (_SAFE, ".pth", ".pt")


def merged(
    source: Path, *, base: Path | None = None, which: Snapshot = "best"
) -> dict[str, Tensor]:
    """The whole `state_dict` of a run, or of a delta with the base that it belongs to.

    What a network of a regression gives is in standard deviations, unless it was not scaled.

    Args:
        source: a run's folder, or a delta.
        base: a file of the base's weights, where they are not where they were.
        which: delta of the run.

    Raises:
        ConfigError: the base can be built from nothing that is recorded; give `base`.
        DeltaError: the base is another one; names the first tensors that differ.
        WeightsError: the base's weights are not where they were, or cannot be read.
    """
    is_run = source.is_dir()
    folder = RunFolder(source)
    file = (folder.best if which == "best" else folder.last) if is_run else source
    delta = read_delta(file)
    run = open_run(source, weights=base) if is_run else None
    if base is not None and (run is None or run.settings.model.is_from_python):
        return merge_tensors(delta, read_state_dict(base), where=str(base))
    model = run.built_for(delta).model if run else _model_of(delta, file)
    load_delta(model, file)
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def scaling(settings: RunSettings) -> str:
    """What the network's outputs are, where the run answers in other units; else empty."""
    task = settings.task
    if task is None or not task.mean:
        return ""
    answers = zip(task.labels, task.mean, task.std, strict=True)
    each = "; ".join(f"{name} = {std:g} * output + {mean:g}" for name, mean, std in answers)
    return f"Its outputs are in standard deviations from the targets' mean: {each}."


def write_state_dict(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a full checkpoint as its ending says: `.safetensors`, or `.pth` for torch.

    Raises:
        ConfigError: the ending is another one.
        OutputError: the file is there already, or cannot be written.
    """
    check_checkpoint_path(path)
    if path.suffix == _SAFE:
        write_safetensors(tensors, path)
    else:
        save_torch(dict(tensors), path)


def write_safetensors(
    tensors: Mapping[str, Tensor], path: Path, texts: Mapping[str, str] | None = None
) -> None:
    """Write tensors, each name its own, since safetensors holds no shared ones; and texts.

    Raises:
        OutputError: the file cannot be written.
    """
    whole = {name: tensor.cpu().clone().contiguous() for name, tensor in tensors.items()}
    save_tensors(whole, path, header=texts)


def check_checkpoint_path(path: Path) -> None:
    """Make sure that a full checkpoint can go to `path`, before anything is read for it.

    Raises:
        ConfigError, OutputError: as `write_state_dict`.
    """
    if path.suffix not in _SUFFIXES:
        raise ConfigError(f"{path} does not end like a checkpoint. Use {', '.join(_SUFFIXES)}.")
    check_new(path)


def _model_of(delta: Delta, file: Path) -> torch.nn.Module:
    """The model that the delta's own notes describe."""
    about = delta.about
    if "head" not in about or "classes" not in about:
        raise ConfigError(
            f"{file} does not say how its base was built. Give the file of the base's weights: "
            f"{option('base', 'FILE')}."
        )
    head = json.loads(about["head"])
    return load_model(
        about["model"],
        weights=about["weights"],
        classes=len(json.loads(about["classes"])),
        hidden=tuple(head["hidden"]),
        on=head["on"],
    ).model
