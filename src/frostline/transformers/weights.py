"""Whether the weights of a checkpoint came back, and what to do where the Trainer lost them.

transformers 5 saves some models under older names of their parameters. `from_pretrained` reads
these, but the Trainer does not as it resumes or takes the best (seen in 5.23 with ViT): a warning,
and training goes on from whatever the model held.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from frostline.deltas import all_tensors
from frostline.errors import ConfigError
from frostline.fingerprints import fingerprint_of
from frostline.transformers.package import PreTrainedModel, TrainerState, TrainingArguments

STATE_FILE = "trainer_state.json"


def weights_of(model: nn.Module) -> str:
    """Content hash of all that the model holds."""
    return str(fingerprint_of(all_tensors(model)))


def bring_back_resumed(
    model: nn.Module, weights: str, args: TrainingArguments, state: TrainerState
) -> None:
    """Make sure that the model has the weights of the checkpoint that is resumed from.

    Raises:
        ConfigError: it has not, and they cannot be read from where checkpoints are.
    """
    given = args.resume_from_checkpoint
    folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
    _bring_back(model, weights, [Path(given)] if isinstance(given, str) else [folder])


def bring_back_best(model: nn.Module, best: str, name: str) -> None:
    """Make sure that the model has the weights of the best checkpoint, if that has our state.

    Raises:
        ConfigError: it has not, and they cannot be read from there.
    """
    kept = _attributes(Path(best), name)
    if "weights" in kept:
        _bring_back(model, kept["weights"], [Path(best)])


def _bring_back(model: nn.Module, weights: str, folders: Iterable[Path]) -> None:
    if weights_of(model) == weights:
        return
    if isinstance(model, PreTrainedModel):
        for folder in filter(Path.is_dir, folders):
            with torch.random.fork_rng(devices=[]):
                read = type(model).from_pretrained(folder, dtype=model.dtype)
            model.load_state_dict(read.state_dict())
            if weights_of(model) == weights:
                return
    raise ConfigError(
        f"{type(model).__name__} does not have the weights that the checkpoint was saved with: the "
        "Trainer did not find them under the names in its file, or something changed them. Give "
        "the Trainer a model that has them, as type(model).from_pretrained(checkpoint), and resume."
    )


def _attributes(folder: Path, name: str) -> Mapping[str, Any]:
    """What a callback of that name kept there; nothing where none did."""
    file = folder / STATE_FILE
    content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    found = content.get("stateful_callbacks", {}).get(name)
    kept: Mapping[str, Any] = found["attributes"] if isinstance(found, dict) else {}
    return kept
