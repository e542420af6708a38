"""What a task without classes makes of samples: what it says of each, what is true, how wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import final

from pydantic import TypeAdapter

from frostline._files import json_checked, json_with_sum, write_text
from frostline.records.folder import RunFolder
from frostline.records.predictions import Judged, judged_of, write_judged
from frostline.tasks import Predictions, Task
from frostline.units import some_of

_KEPT = 100  # of the worst samples, which a report shows some of
_WORDS = 60  # of an answer that is a list


@final
@dataclass(frozen=True, slots=True)
class Answer:
    """One sample.

    Attributes:
        name: what it is called: its path, or `sample 17`.
        said, truth: in plain values by name.
        badness: larger is worse, as the task has it.
        place: among the samples, from 0.
    """

    name: str
    said: Mapping[str, object]
    truth: Mapping[str, object]
    badness: float
    place: int


@final
@dataclass(frozen=True, slots=True)
class Answers:
    """What was made of data, the worst sample first.

    Attributes:
        epoch: whose weights they are of, counted from 1.
        samples: how many there were; of a run's own file, `every` holds the worst of them alone.
    """

    epoch: int
    samples: int
    every: tuple[Answer, ...]

    def __len__(self) -> int:
        return self.samples


def judged_by(task: Task, found: Predictions, *, epoch: int) -> Judged | Answers:
    """What `task` makes of each sample by a model's outputs."""
    if task.classes:
        return judged_of(found.outputs, found.targets, names=found.names, epoch=epoch)
    return _answers(task, found, epoch, None)


def kept_of(task: Task, found: Predictions, *, epoch: int) -> Judged | Answers | None:
    """What a run keeps of it: of a task without classes the worst samples, of one's own nothing."""
    if task.classes:
        return judged_by(task, found, epoch=epoch)
    return None if task.settings() is None else _answers(task, found, epoch, _KEPT)


def write_kept(kept: Judged | Answers, folder: RunFolder) -> None:
    """Write it into the run's folder.

    Raises:
        OutputError: it cannot be written.
    """
    if isinstance(kept, Judged):
        write_judged(kept, folder.predictions)
    else:
        write_text(folder.answers, json_with_sum(asdict(kept)))


def read_answers(path: Path) -> Answers:
    """Read `best/answers.json`.

    Raises:
        OSError, ValueError: it is missing or damaged.
    """
    return TypeAdapter(Answers).validate_python(json_checked(path.read_text(encoding="utf-8")))


def _answers(task: Task, found: Predictions, epoch: int, most: int | None) -> Answers:
    badness = task.badness(found.outputs, found.targets)
    order = badness.argsort(descending=True, stable=True)[:most]
    outputs, targets = found.outputs[order], found.targets[order]
    rows = zip(
        order.tolist(),
        task.judged_answers(outputs, targets),
        task.truths(outputs, targets),
        badness[order].tolist(),
        strict=True,
    )
    every = (Answer(found.names[place], said, true, bad, place) for place, said, true, bad in rows)
    return Answers(epoch, len(found.names), tuple(every))


def in_words(values: Mapping[str, object]) -> str:
    """Plain values by name, for people: `price 3.21`, `labels red, round`."""
    return "; ".join(f"{name} {_word(value)}" for name, value in values.items())


def _word(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_word(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return some_of([_word(part) for part in value], most=_WORDS) or "none"
    return str(value)


def flat(values: Mapping[str, object], before: str = "") -> dict[str, object]:
    """Plain values as cells of a table: parts by their names, lists with `|` between."""
    found = dict[str, object]()
    for name, value in values.items():
        head = f"{before}_{name}" if before else name
        if isinstance(value, Mapping):
            found |= flat(value, head)
        elif isinstance(value, list | tuple):
            found[head] = "|".join("" if part is None else str(part) for part in value)
        else:
            found[head] = f"{value:.6g}" if isinstance(value, float) else value
    return found
