"""A fitted classifier -> the folder of a run, as `fl.fit` and `frostline train` write them."""

from __future__ import annotations

import json
from pathlib import Path

from frostline._files import write_text
from frostline.classifier.fitted import Fitted
from frostline.config import RunSettings
from frostline.deltas import save_delta
from frostline.fitting.beginning import about
from frostline.models import LoadedModel
from frostline.records import RunFolder
from frostline.runs.preparing import lasting
from frostline.session import survey


def write_run(fitted: Fitted, out: Path) -> None:
    """Write settings, frozen part, deltas and metrics into a new folder.

    Raises:
        DriftError: the frozen part is not what it was.
        OutputError: something is there, or it cannot be written.
    """
    folder, run = RunFolder(out), fitted.run
    folder.check_free()
    loaded, proof = fitted.whole()
    settings = _completed(fitted.spec.settings, loaded)
    planned = survey(loaded.model, settings.plan)
    notes = {**about(settings), "epoch": str(run.best.epoch), "phase": str(len(run.phases))}
    with folder.locked():
        settings.write(folder.settings)
        folder.write_frozen(planned.untouched)
        content = planned.copies(loaded.model)
        for file in (folder.best, folder.last):  # which are one: nothing goes on from here
            save_delta(loaded.model, file, about=notes, content=content)
        lines = (json.dumps(record.line()) + "\n" for record in run.history)
        write_text(folder.metrics, "".join(lines))
        frozen = {
            "tensors": proof.tensors,
            "bytes": proof.nbytes,
            "fingerprint": str(proof.fingerprint),
        }
        phases = [phase.as_dict() for phase in run.phases]
        result = {"epoch": run.best.epoch, **run.best.validation.as_dict()}
        folder.write_result({**result, "frozen": frozen, "phases": phases})


def _completed(settings: RunSettings, loaded: LoadedModel) -> RunSettings:
    model = settings.model
    if not model.is_from_python:
        model = lasting(model, loaded)
    return settings.model_copy(update={"model": model, "preprocessing": loaded.preprocessing})
