"""Which samples are held out where the data are not divided already."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import xxhash

from frostline.data.image_sets import Division, ImageSet, Splits
from frostline.data.listing import Found, key_below, natural
from frostline.errors import ConfigError, DataError


def divide(whole: ImageSet, division: Division) -> tuple[ImageSet, ImageSet]:
    """The training part and the held-out part, each in the order of `whole`.

    Raises:
        ConfigError, DataError: as `hold_out` and `hold_out_fold`.
    """
    found = [
        Found(s.path, whole.class_of(s), key_below(division.root, s.path)) for s in whole.samples
    ]
    seed = division.seed
    if division.folds is None:
        held = hold_out(found, fraction=division.fraction, seed=seed)
    else:
        held = hold_out_fold(found, folds=division.folds, fold=division.fold, seed=seed)
    kept = tuple(sample for place, sample in enumerate(whole.samples) if place not in held)
    out = tuple(sample for place, sample in enumerate(whole.samples) if place in held)
    return replace(whole, samples=kept), replace(whole, samples=out, ignored=())


def without(splits: Splits, broken: Collection[Path]) -> Splits:
    """The splits less these files; a part held out here is drawn anew among the rest.

    So it has its share of what can be read, as if the broken files had never lain there.

    Raises:
        DataError: as `hold_out_fold`.
    """
    kept = splits.each(
        lambda images: replace(
            images, samples=tuple(s for s in images.samples if s.path not in broken)
        )
    )
    division = splits.division
    if division is None or kept == splits:
        return kept
    both = sorted(
        [*kept.train.samples, *kept.val.samples],
        key=lambda sample: (sample.label, natural(key_below(division.root, sample.path))),
    )
    train, val = divide(replace(kept.train, samples=tuple(both)), division)
    return replace(kept, train=train, val=val)


def hold_out(found: Sequence[Found], *, fraction: float, seed: int) -> frozenset[int]:
    """Positions in `found` of the samples to hold out, about `fraction` of each class.

    A class with 2 or more samples has at least one on either side; a single one stays in training.
    The same names and seed give the same choice, whatever the order or place of the files.

    Raises:
        ConfigError: `fraction` is not between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise ConfigError(
            f"asked to hold out {fraction:g} of each class. Use a fraction above 0 and below 1."
        )
    held: set[int] = set()
    for members in _shuffled_classes(found, seed):
        count = min(max(1, int(len(members) * fraction + 0.5)), len(members) - 1)
        held.update(members[:count])
    return frozenset(held)


def hold_out_fold(
    found: Sequence[Found], *, folds: int, fold: int, seed: int, what: str = "images"
) -> frozenset[int]:
    """Positions in `found` of fold number `fold`, counted from 0.

    The folds divide the samples, differ in size by at most one, and so do they in each class.

    Raises:
        ConfigError: fewer than 2 folds, or no such fold.
        DataError: more folds than samples, or a class that one fold would take out of training.
    """
    if folds < 2 or not 0 <= fold < folds:
        raise ConfigError(f"asked for fold {fold} of {folds}. Use 2 or more folds, counted from 0.")
    if folds > len(found):
        raise DataError(f"asked for {folds} folds of {len(found)} {what}. Use fewer folds.")
    held: set[int] = set()
    dealt = 0
    for members in _shuffled_classes(found, seed):
        if len(members) == 1:
            raise DataError(
                f"class {found[members[0]].name!r} has a single one of the {what}, so one of "
                f"the {folds} folds would train without it. Add {what} of it, or leave it out."
            )
        held.update(index for place, index in enumerate(members, dealt) if place % folds == fold)
        dealt += len(members)
    return frozenset(held)


def _shuffled_classes(found: Sequence[Found], seed: int) -> list[list[int]]:
    """Positions by class, in the order of a hash of seed and name."""
    classes: defaultdict[str, list[int]] = defaultdict(list)
    for index, item in enumerate(found):
        classes[item.name].append(index)

    def drawn(index: int) -> tuple[int, str]:
        key = found[index].key
        return xxhash.xxh3_64_intdigest(f"{seed}\0{key}".encode(errors="backslashreplace")), key

    return [sorted(classes[name], key=drawn) for name in sorted(classes)]
