"""The folder of a run that was judged on very many images, made of records alone."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch

from frostline.config import DataSettings, ModelSettings, RunSettings
from frostline.fingerprints import Fingerprint
from frostline.records import (
    DataNotes,
    EpochRecord,
    PipelineFacts,
    RunFolder,
    RunPart,
    Spent,
    judged_of,
    write_data_notes,
    write_judged,
    write_sessions,
)
from frostline.tasks import Evaluation, evaluate_logits

EPOCHS = 90
TENSORS = 160


def write_records(root: Path, *, samples: int, classes: int) -> Path:
    """Write them; the pictures' names are long, and none is there."""
    draw = random.Random(0)
    torch.manual_seed(0)
    folder, names = RunFolder(root / "run"), [f"n{n:08d} a class, as it is" for n in range(classes)]
    targets = torch.randint(classes, (samples,))
    logits = torch.randn(samples, classes).scatter_add_(
        1, targets[:, None], torch.full((samples, 1), 4.0)
    )
    files = [
        str(root / "photos" / "val" / names[label] / f"ILSVRC2012_val_{n:08d}.JPEG")
        for n, label in enumerate(targets.tolist())
    ]
    folder.best.parent.mkdir(parents=True)
    write_judged(judged_of(logits, targets, names=files, epoch=EPOCHS), folder.predictions)
    found = evaluate_logits(logits, targets, classes=names)
    settings = RunSettings(
        model=ModelSettings.from_python("ResNet"),
        data=DataSettings(path=str(root / "photos"), classes=tuple(names)),
    )
    settings.write(folder.settings)
    frozen = Fingerprint({f"layer{n % 4}.{n}.weight": f"{n:032x}" for n in range(TENSORS)})
    folder.write_frozen(frozen)
    digests = [f"{draw.getrandbits(128):032x}" for _ in range(samples)]
    folder.write_data([f"{draw.getrandbits(128):032x}" for _ in range(4 * samples)], digests)
    counts = dict.fromkeys(names, 4 * samples // classes)
    warning = ("warning", "few-images", "fewer than 5 training images of " + ", ".join(names))
    write_data_notes(DataNotes("train/ and val/", counts, counts, (warning,)), folder.data)
    note = PipelineFacts(1, "bfloat16", 700.0, 300.0, 350.0, 5 * samples, 10**10, 0.01, 5 * samples)
    session = RunPart("2026-01-01T00:00:00+00:00", "0", 900.0, "-", "cpu", (), (note,))
    write_sessions([session], folder.course)
    folder.metrics.write_text("".join(_lines(found)))
    folder.result.write_text(json.dumps(_result(found, frozen)))
    return folder.root


def _lines(found: Evaluation) -> Sequence[str]:
    spent, train = Spent(0.2, 0.0, 2.0, 0.3), {"loss": 1.0, "accuracy": 0.5}
    return [
        json.dumps(
            EpochRecord(n, 1e-3, train, found, 2.5, 1e5, n == EPOCHS, 1, (1e-3,), spent).line()
        )
        + "\n"
        for n in range(1, EPOCHS + 1)
    ]


def _result(found: Evaluation, frozen: Fingerprint) -> dict[str, object]:
    proof = {"tensors": TENSORS, "bytes": 10**8, "fingerprint": str(frozen)}
    return {"epoch": EPOCHS, **found.as_dict(), "frozen": proof, "phases": []}
