"""A path -> the data set it holds, divided into training and validation."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import xxhash

from frostline.data.image_sets import ImageSet, Sample, Splits, UnknownClass, class_order, in_order
from frostline.data.listing import (
    LAYOUT,
    Found,
    Listing,
    Role,
    entries,
    held_out_folder,
    list_class_folders,
    normal,
    read_table,
    split_folders,
    subfolders,
)
from frostline.errors import ConfigError, DataError, nearest
from frostline.units import some_of

_ARCHIVES = {".zip", ".tar", ".gz", ".tgz", ".xz", ".bz2", ".7z", ".rar"}


def read_splits(
    path: str | os.PathLike[str],
    *,
    val_fraction: float = 0.2,
    folds: int | None = None,
    fold: int = 0,
    seed: int = 0,
    classes: Sequence[str] = (),
) -> Splits:
    """Read a data set for training.

    Args:
        path: a folder with train/ and val/ (or valid/, validation/; or test/, which then is the
            validation set), each a folder of class folders; or one folder of class folders; or a
            CSV with the columns `file,label` and perhaps `split`.
        val_fraction: part of each class to hold out where the data are not divided already.
        folds: divide each class into this many parts instead, and hold out part `fold`.
        seed: of the division, which depends on it and on the file names below `path` only.
        classes: the order in which labels count the classes, where these are the names that are
            found; else numbers count as numbers, if all are, and other names as text.
    Returns:
        The splits. No image has been opened: `audit` does that.
    Raises:
        DataError: the path is missing or is none of the above; names what was found there.
        ConfigError: `val_fraction`, `folds` or `fold` out of range.
    """
    if folds is None and fold != 0:
        raise ConfigError(
            f"asked for fold {fold} without folds. Say into how many folds to divide."
        )
    root = _existing(path)
    parts, origin = _read_parts(root)
    if "all" not in parts:
        if folds is not None:
            raise DataError(
                f"asked for {folds} folds, but {root} is divided already ({origin}). "
                "Leave folds out, or point at a folder of class folders."
            )
        splits = _given(root, parts, origin)
    else:
        listing = parts["all"]
        if folds is None:
            held = hold_out(listing.found, fraction=val_fraction, seed=seed)
            how = f"{val_fraction * 100:g} % of each class{origin} held out (seed {seed})"
        else:
            held = hold_out_fold(listing.found, folds=folds, fold=fold, seed=seed)
            how = f"fold {fold} of {folds} held out, from 0 (seed {seed})"
        splits = _divided(root, listing, held, how)
    found = splits.train.classes
    known = len(classes) == len(found) and set(classes) == set(found)
    return in_order(splits, classes if known else class_order(found))


def read_set(path: str | os.PathLike[str], *, classes: Sequence[str]) -> ImageSet:
    """Read a data set to evaluate a finished run on; labels count through `classes`.

    Args:
        path: a folder of class folders; or a folder with test/ or val/ (test is preferred, train
            is never read); or a CSV, of which the test or else the val rows are read, or all rows
            if it has no split column.
        classes: the run's class names in its order.
    Raises:
        DataError: as `read_splits`, or a class that the run does not know; names the nearest.
    """
    root = _existing(path)
    known = tuple(map(normal, classes))
    listing = _read_held_out(root, known)
    if unknown := sorted({item.name for item in listing.found}.difference(known)):
        near = ((name, nearest(name, classes, count=2)) for name in unknown[:5])
        described = [f"{name!r}" + (f" (nearest: {', '.join(c)})" if c else "") for name, c in near]
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise DataError(
            f"{root} has classes that the run does not know: {', '.join(described)}{more}. "
            f"The run knows {some_of(classes, most=10)}. Rename or remove them."
        )
    return replace(_image_set(listing, known), classes=tuple(classes))


def _read_parts(root: Path) -> tuple[dict[Role, Listing], str]:
    """The listings by role, and where the division comes from, in words."""
    if not root.is_dir():
        parts = read_table(root)
        return parts, "" if "all" in parts else f"the split column of {root.name}"
    folders = split_folders(root)
    if not folders:
        return {"all": list_class_folders(root)}, ""
    parts = {role: list_class_folders(folder) for role, folder in folders.items()}
    first = next(iter(parts))
    beside = tuple(path for path, _ in entries(root) if path not in folders.values())
    parts[first] = replace(parts[first], ignored=beside + parts[first].ignored)
    names = {role: f"{folder.name}/" for role, folder in folders.items()}
    if "all" in names:
        return parts, f" of {names['all']}"
    origin = f"{names['train']} and {names.get('val') or names['test']} folders"
    if "val" in names and "test" in names:
        origin += f", {names['test']} kept apart"
    return parts, origin


def _given(root: Path, parts: dict[Role, Listing], origin: str) -> Splits:
    if "train" not in parts or len(parts) == 1:
        missing = "train" if "train" not in parts else "val or test"
        raise DataError(
            f"{root} has a split column, but no row of it is {missing}. "
            "Add such rows, or remove the column to have a part held out."
        )
    classes = parts["train"].classes
    val = parts.get("val") or parts["test"]
    test = parts["test"] if "val" in parts and "test" in parts else None
    unknown = [*_unknown(val, classes, "val"), *(_unknown(test, classes, "test") if test else ())]
    return Splits(
        train=_image_set(parts["train"], classes),
        val=_image_set(val, classes),
        test=_image_set(test, classes) if test else None,
        how=origin,
        unknown=tuple(unknown),
    )


def _divided(root: Path, listing: Listing, held: frozenset[int], how: str) -> Splits:
    if not held:
        raise DataError(
            f"{root} has no class with 2 or more images, so none can be held out to judge by. "
            "Add images, or a val/ folder beside train/."
        )
    kept = tuple(item for index, item in enumerate(listing.found) if index not in held)
    out = tuple(item for index, item in enumerate(listing.found) if index in held)
    train = _image_set(replace(listing, found=kept), listing.classes)
    return Splits(train, _image_set(Listing(listing.classes, out), listing.classes), None, how)


def _image_set(listing: Listing, classes: tuple[str, ...]) -> ImageSet:
    label = {name: index for index, name in enumerate(classes)}
    samples = (Sample(item.path, label[item.name]) for item in listing.found if item.name in label)
    in_order = sorted(samples, key=lambda sample: sample.label)
    return ImageSet(classes, tuple(in_order), listing.ignored)


def _unknown(
    listing: Listing, classes: tuple[str, ...], split: Literal["val", "test"]
) -> list[UnknownClass]:
    by_name: dict[str, list[Path]] = {}
    for item in listing.found:
        if item.name not in classes:
            by_name.setdefault(item.name, []).append(item.path)
    return [UnknownClass(split, name, tuple(paths)) for name, paths in sorted(by_name.items())]


def _read_held_out(root: Path, classes: tuple[str, ...]) -> Listing:
    if not root.is_dir():
        parts = read_table(root)
        for role in ("test", "val", "all"):
            if role in parts:
                return parts[role]
        raise DataError(f"{root} has train rows only. Evaluate on rows with split val or test.")
    if all(normal(folder.name) in classes for folder in subfolders(root)):
        return list_class_folders(root)
    folder = held_out_folder(root)
    if folder is None and set(split_folders(root)) == {"all"}:
        raise DataError(f"{root} has train/ only. Evaluate on a test/ or val/ folder beside it.")
    return list_class_folders(root if folder is None else folder)


def _existing(path: str | os.PathLike[str]) -> Path:
    """The path, once it is known to be a folder or a CSV."""
    root = Path(path).expanduser()
    try:
        if not root.exists():
            raise DataError(_missing_message(root))
    except OSError as error:
        raise DataError(
            f"cannot look at {root}: {error.strerror or error}. Check its permissions."
        ) from error
    if root.is_dir() or root.suffix.lower() == ".csv":
        return root
    advice = (
        "Unpack it first and point at the folder"
        if root.suffix.lower() in _ARCHIVES
        else f"Give a folder ({LAYOUT}) or a .csv file"
    )
    raise DataError(f"{root} is a file, neither a folder nor a CSV. {advice}.")


def _missing_message(root: Path) -> str:
    """Names the nearest thing that is there, beside the first part of the path that is not."""
    missing = root
    while not missing.parent.exists():
        missing = missing.parent
    siblings = entries(missing.parent) if missing.parent.is_dir() else []
    close = nearest(missing.name, [path.name for path, _ in siblings], count=2)
    near = f" Nearest: {', '.join(str(missing.parent / name) for name in close)}." if close else ""
    return f"no data set at {root}: {missing} does not exist.{near} Check the path."


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


def hold_out_fold(found: Sequence[Found], *, folds: int, fold: int, seed: int) -> frozenset[int]:
    """Positions in `found` of fold number `fold`, counted from 0.

    The folds divide the samples, differ in size by at most one, and so do they in each class.

    Raises:
        ConfigError: fewer than 2 folds, or no such fold.
        DataError: more folds than samples, or a class that one fold would take out of training.
    """
    if folds < 2 or not 0 <= fold < folds:
        raise ConfigError(f"asked for fold {fold} of {folds}. Use 2 or more folds, counted from 0.")
    if folds > len(found):
        raise DataError(f"asked for {folds} folds of {len(found)} images. Use fewer folds.")
    held: set[int] = set()
    dealt = 0
    for members in _shuffled_classes(found, seed):
        if len(members) == 1:
            raise DataError(
                f"class {found[members[0]].name!r} has a single image, so one of the {folds} folds "
                "would train without it. Add images of it, or leave it out."
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
