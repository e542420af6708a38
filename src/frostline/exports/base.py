"""A run's base beside what was trained, so that the run's folder needs no other file."""

from __future__ import annotations

from pathlib import Path

from frostline.errors import FrostlineError
from frostline.exports.merging import write_safetensors
from frostline.models import ModelSpec, build
from frostline.runs.finished import FinishedRun


def keep_base(run: FinishedRun) -> Path:
    """Write the base's weights into the run's folder, where the run looks for them first.

    The code of a model of one's own stays where it is. A base that is kept already is tried.

    Raises:
        OutputError: the file cannot be written.
        ConfigError, WeightsError, DeltaError, DriftError: as `FinishedRun.loaded`; nothing is kept.
    """
    file, model = run.folder.base, run.settings.model
    _ = run.loaded
    if file.is_file() and not run.weights:
        return file
    built = build(
        ModelSpec.parse(model.name),
        weights=run.base_weights,
        seed=run.settings.training.seed,
        replaced=model.on == "classifier",
    )
    write_safetensors(built.model.state_dict(), file)
    try:
        _ = FinishedRun(run.folder, run.settings).loaded
    except FrostlineError:
        file.unlink()
        raise
    return file
