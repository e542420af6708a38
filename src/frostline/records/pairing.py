"""The same samples in two runs, found by the content of their files."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Literal, final

from frostline.records.certainty import Paired, paired
from frostline.records.reading import RunRecords

Sameness = Literal["same", "different", "unknown"]


@final
@dataclass(frozen=True, slots=True)
class Side:
    """What a comparison needs of one run."""

    records: RunRecords
    classes: tuple[str, ...]
    trained_on: frozenset[str] = frozenset()


def same_validation(one: Side, other: Side) -> Sameness:
    """Whether two runs were judged by the same samples.

    By the files' content where both noted it; else by what the samples are called, with their
    targets, which tells that they differ but never for sure that they do not.
    """
    a, b = one.records, other.records
    if a.validated_on and b.validated_on:
        return "same" if sorted(a.validated_on) == sorted(b.validated_on) else "different"
    if bool(a.validated_on) != bool(b.validated_on):
        return "unknown"
    if a.judged is None or b.judged is None:
        return "unknown"
    differ = a.judged.names != b.judged.names or not a.judged.targets.equal(b.judged.targets)
    return "different" if differ else "unknown"


def same_training(one: Side, other: Side) -> Sameness:
    """The same of the training samples."""
    if not one.trained_on or not other.trained_on:
        return "unknown"
    return "same" if one.trained_on == other.trained_on else "different"


def compared(one: Side, other: Side) -> Paired | None:
    """The second run against the first, on samples that both were judged on.

    Not on those that one of them has trained on. None where no sample is known to be the same:
    samples without a digest are paired by name where all names and targets are alike.
    """
    if one.classes != other.classes:
        return None
    hits, others = _hits(one), _hits(other)
    pairs = [
        pair
        for key in (hits.keys() & others.keys()) - one.trained_on - other.trained_on
        # A content that is there twice has the same answer each time.
        for pair in zip(hits[key], others[key], strict=False)
    ]
    if not pairs:
        return None
    gained = sum(b and not a for a, b in pairs)
    lost = sum(a and not b for a, b in pairs)
    return paired(gained, lost, len(pairs))


def _hits(side: Side) -> dict[str, list[bool]]:
    """Digest (or name) of each sample -> whether it was taken for what it is."""
    judged, digests = side.records.judged, side.records.validated_on
    if judged is None:
        return {}
    if len(digests) != len(judged):
        named = zip(judged.names, judged.targets.tolist(), strict=True)
        digests = tuple(f"name {name} {target}" for name, target in named)
    found: defaultdict[str, list[bool]] = defaultdict(list)
    for key, hit in zip(digests, judged.hits.tolist(), strict=True):
        found[key].append(hit)
    return found
