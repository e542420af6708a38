"""Where a run's time went, and what a plain loop would have taken for the same epochs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from frostline.records.epochs import Spent
from frostline.records.journal import BY_MODEL, PipelineFacts
from frostline.records.reading import RunRecords


@final
@dataclass(frozen=True, slots=True)
class Spending:
    """Seconds of wall clock.

    Attributes:
        preparing: tracing the cut, timing forms, looking up and writing features.
        decode: waiting for samples while features were computed.
        prefix: computing the frozen part, once or as batches came.
        suffix: steps through what is trained; the whole model where nothing was cut off.
        idle: training waiting for its next batch.
        validation: after each epoch.
        rest: saving, hashing, the first look at the data.
        total: of all sessions; the sum of the others where that is more.
        plain: estimate for a plain loop's forwards, steps and validation; None if not known.
        own: what this run took for the same: prefix, decode, idle, suffix and validation.
    """

    preparing: float
    decode: float
    prefix: float
    suffix: float
    idle: float
    validation: float
    rest: float
    total: float
    plain: float | None
    own: float

    @property
    def parts(self) -> tuple[tuple[str, float], ...]:
        """Name and seconds of each part, in the order in which a run goes through them."""
        names = ("preparing", "decode", "prefix", "suffix", "idle", "validation", "rest")
        return tuple((name, getattr(self, name)) for name in names)


def spending(records: RunRecords) -> Spending | None:
    """Where the time went; None where a run did not note it."""
    epochs = records.epochs
    spent = [line.spent for line in epochs if line.spent is not None]
    if not epochs or len(spent) < len(epochs):
        return None
    fed = [note for session in records.sessions for note in session.fed]
    decode = sum(note.decode_seconds for note in fed)
    stored = sum(note.prefix_seconds for note in fed)
    preparing = max(0.0, sum(note.seconds for note in fed) - decode - stored)
    prefix = stored + sum(one.prefix_seconds for one in spent)
    suffix = sum(one.step_seconds for one in spent)
    idle = sum(one.idle_seconds for one in spent)
    validation = sum(one.validation_seconds for one in spent)
    known = preparing + decode + prefix + suffix + idle + validation
    total = max(known, sum(session.seconds for session in records.sessions))
    own = decode + prefix + idle + suffix + validation
    plain = _plain(records, _last_of_each_phase(fed))
    return Spending(
        *(preparing, decode, prefix, suffix, idle, validation, total - known, total), plain, own
    )


def _plain(records: RunRecords, fed: dict[int, PipelineFacts]) -> float | None:
    """What the frozen part would take in each epoch, and all else as it was."""
    seconds = 0.0
    for line in records.epochs:
        note = fed.get(line.phase)
        spent = line.spent or Spent()
        if note is None or (note.stored_samples and not note.plain_seconds_per_sample):
            return None
        seconds += spent.step_seconds + spent.validation_seconds
        seconds += spent.prefix_seconds  # computed as batches came, as a plain loop does
        if note.stored_samples:
            seconds += note.plain_seconds_per_sample * note.stored_samples
        else:
            seconds += spent.idle_seconds
    return seconds


def is_plain(records: RunRecords) -> bool:
    """Whether every phase was a plain loop, with nothing computed once."""
    fed = [note for session in records.sessions for note in session.fed]
    return bool(fed) and all(note.form == BY_MODEL for note in fed)


def _last_of_each_phase(fed: Sequence[PipelineFacts]) -> dict[int, PipelineFacts]:
    return {note.phase: note for note in fed}
