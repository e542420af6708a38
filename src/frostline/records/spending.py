"""Where a run's time went, and what a plain loop would have taken for the same epochs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from frostline.records.epochs import Spent
from frostline.records.journal import BY_MODEL, PipelineFacts
from frostline.records.reading import RunRecords

# Of a run's time, in the order in which it goes through them. The prefix is computed once or as
# batches come; the suffix is the whole model where nothing was cut off.
PARTS = {
    "preparing": "Preparing: tracing the frost line, timing forms, looking up and writing features",
    "decode": "Decode: waiting for samples while features were computed",
    "prefix": "Prefix: computing the frozen part",
    "suffix": "Suffix: steps through what is trained",
    "idle": "Idle: training waited for its next batch",
    "validation": "Validation after each epoch",
    "rest": "Rest: saving, hashing, the first look at the data",
}
_OF_A_LOOP = ("decode", "prefix", "suffix", "idle", "validation")  # what a plain loop does too


@final
@dataclass(frozen=True, slots=True)
class Spending:
    """Seconds of wall clock.

    Attributes:
        parts: by the names of `PARTS`.
        total: of all sessions; the sum of the others where that is more.
        plain: estimate for a plain loop's forwards, steps and validation; None if not known.
    """

    parts: Mapping[str, float]
    total: float
    plain: float | None

    @property
    def own(self) -> float:
        """What this run took for the same as a plain loop."""
        return sum(self.parts[name] for name in _OF_A_LOOP)


def spending(records: RunRecords) -> Spending | None:
    """Where the time went; None where a run did not note it."""
    epochs = records.epochs
    spent = [line.spent for line in epochs if line.spent is not None]
    if not epochs or len(spent) < len(epochs):
        return None
    pipelines = _pipelines(records)
    decode = sum(facts.decode_seconds for facts in pipelines)
    stored = sum(facts.prefix_seconds for facts in pipelines)
    parts = {
        "preparing": max(0.0, sum(facts.seconds for facts in pipelines) - decode - stored),
        "decode": decode,
        "prefix": stored + sum(one.prefix_seconds for one in spent),
        "suffix": sum(one.step_seconds for one in spent),
        "idle": sum(one.idle_seconds for one in spent),
        "validation": sum(one.validation_seconds for one in spent),
    }
    known = sum(parts.values())
    total = max(known, sum(session.seconds for session in records.sessions))
    return Spending({**parts, "rest": total - known}, total, _plain(records))


def is_plain(records: RunRecords) -> bool:
    """Whether every phase was a plain loop, with nothing computed once."""
    pipelines = _pipelines(records)
    return bool(pipelines) and all(facts.form == BY_MODEL for facts in pipelines)


def _pipelines(records: RunRecords) -> list[PipelineFacts]:
    return [facts for session in records.sessions for facts in session.fed]


def _plain(records: RunRecords) -> float | None:
    """What the frozen part would take in each epoch, and all else as it was."""
    last_of_phase = {facts.phase: facts for facts in _pipelines(records)}
    seconds = 0.0
    for line in records.epochs:
        facts = last_of_phase.get(line.phase)
        spent = line.spent or Spent()
        if facts is None or (facts.stored_samples and not facts.plain_seconds_per_sample):
            return None
        stored = facts.plain_seconds_per_sample * facts.stored_samples
        # Prefixes computed as batches came are what a plain loop does too.
        seconds += spent.step_seconds + spent.validation_seconds + spent.prefix_seconds
        seconds += stored if facts.stored_samples else spent.idle_seconds
    return seconds
