"""Texts looked through before training: what is empty, double, under two labels or hardly there."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from frostline.choices import BadImages
from frostline.data.audit import DataFinding, class_findings
from frostline.data.text_samples import TextSamples
from frostline.data.text_sets import TextSet, TextSplits
from frostline.errors import DataError
from frostline.preprocessing import Text
from frostline.units import some_of

_NAMED = 5  # texts that are named
_OF_TEXTS = ("label", "text", "texts")


def audit_texts(splits: TextSplits, *, bad_texts: BadImages = "skip") -> tuple[DataFinding, ...]:
    """What to know of the texts before training, worst first; empty if nothing is odd.

    Args:
        bad_texts: what to do about texts without a letter: leave them out with a warning, or
            refuse the data.

    Raises:
        DataError: fewer than two classes, a validation or test label that training lacks, or
            empty texts where these are refused. One message holds all that was found.
    """
    empty = [name for part in splits.sets.values() for name in part.empty]
    errors = list(_errors(splits))
    if empty and bad_texts == "error":
        errors.insert(
            0, f"{_texts(len(empty))} empty: {_some(empty)}. Fill them in or delete them."
        )
    if len(errors) > 1:
        lines = "".join(f"\n- {message}" for message in errors)
        raise DataError(f"the data set cannot be trained on, for {len(errors)} reasons:{lines}")
    if errors:
        raise DataError(errors[0])
    found = [("layout", note) for note in splits.notes]
    if empty:
        found.insert(0, ("empty-text", f"{_texts(len(empty))} empty and left out: {_some(empty)}."))
    found += _doubles(splits)
    if splits.classes:
        train, val = (part.counts(splits.classes) for part in (splits.train, splits.val))
        has_words = splits.train.has_words
        odd = class_findings(train, val, "words" if has_words else "texts")
        # Most words are of no kind, which is as it should be.
        found += [one for one in odd if one[0] != "imbalance" or not has_words]
    return tuple(DataFinding("warning", *each) for each in found)


def cut_texts(samples: Mapping[str, TextSamples]) -> Iterator[DataFinding]:
    """A note for each split in which texts are longer than the model takes; by split."""
    for name, part in samples.items():
        if said := part.truncation():
            yield DataFinding("note", "cut-text", f"{name}: {said}")


def _errors(splits: TextSplits) -> Iterator[str]:
    if not splits.classes:
        return
    label_word, one, many = ("tag", "word", "words") if splits.train.has_words else _OF_TEXTS
    if len(splits.classes) < 2:
        yield (
            f"there is nothing to tell apart: found the {label_word} {splits.classes[0]!r} alone. "
            f"Give {many} of each further {'kind' if one == 'word' else 'class'}, or name another "
            "column."
        )
    for name, part in splits.sets.items():
        for label, count in Counter(part.every_label).items():
            if label not in splits.classes:
                counted = f"{count:,} {one if count == 1 else many}"
                yield (
                    f"the {name} split has the {label_word} {label!r} ({counted}), which the "
                    f"train split lacks (it has {some_of(splits.classes, most=10)}). Correct or "
                    f"remove it, or add training {many} of it."
                )


def _doubles(splits: TextSplits) -> Iterator[tuple[str, str]]:
    """The same text twice, under two labels, or in training and beside it."""
    train = splits.train
    places: defaultdict[Text, list[int]] = defaultdict(list)
    for place, text in enumerate(train.texts):
        places[text].append(place)
    twice = [found for found in places.values() if len(found) > 1]
    odd = [found for found in twice if len({train.said[place] for place in found}) > 1]
    if odd:
        yield (
            "label-conflict",
            f"{_texts(len(odd))} in the train split under different labels: "
            f"{_pairs(train, odd)}. Remove the wrong one of each.",
        )
    if same := [found for found in twice if found not in odd]:
        yield (
            "double-text",
            f"{_texts(len(same))} in the train split more than once: {_pairs(train, same)}. Each "
            "counts as often as it is there.",
        )
    for name, part in splits.sets.items():
        shared = [place for place, text in enumerate(part.texts) if text in places]
        if name != "train" and shared:
            named = [
                f"{train.name(places[part.texts[place]][0])} = {part.name(place)}"
                for place in shared[:_NAMED]
            ]
            more = f" and {len(shared) - _NAMED:,} more" if len(shared) > _NAMED else ""
            yield (
                f"train-{name}-overlap",
                f"{_texts(len(shared))} in the {name} split and in the train split as well: "
                f"{', '.join(named)}{more}. The metrics will be too good; remove one of each.",
            )


def _pairs(part: TextSet, found: list[list[int]]) -> str:
    return _some([" = ".join(map(part.name, places[:2])) for places in found])


def _some(names: list[str]) -> str:
    return some_of(names, most=_NAMED)


def _texts(count: int) -> str:
    return f"{count:,} {'text is' if count == 1 else 'texts are'}"
