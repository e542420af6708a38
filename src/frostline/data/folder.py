"""A path -> the data set it holds, divided into training and validation."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from frostline.data.division import divide
from frostline.data.image_sets import (
    Division,
    ImageSet,
    Sample,
    Splits,
    UnknownClass,
    class_order,
    in_order,
)
from frostline.data.layouts import Parts, data_folder, find_parts
from frostline.data.listing import LAYOUT, Listing, entries, list_class_folders, normal, subfolders
from frostline.data.split_names import TABLE_SUFFIXES
from frostline.data.table import Columns
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
    file_column: str = "file",
    label_column: str = "label",
    split_column: str = "",
) -> Splits:
    """Read a data set for training.

    Args:
        path: a folder with train/ and val/ (or training_set/, valid/ and the like; or test/, which
            then is the validation set), each a folder of class folders; or one folder of class
            folders; or a CSV or TSV; or a folder with train.csv and val.csv. The one folder that
            holds all of it is entered.
        val_fraction: part of each class to hold out where the data are not divided already.
        folds: divide each class into this many parts instead, and hold out part `fold`.
        seed: of the division, which depends on it and on the file names below `path` only.
        classes: the order in which labels count the classes, where these are the names that are
            found; else numbers count as numbers, if all are, and other names as text.
        file_column, label_column: of a table: the pictures, as they count from its folder, and
            their classes.
        split_column: of a table: train, val or test, or for `is_valid` true or false; by default
            `split` or `is_valid`, if there is one.
    Returns:
        The splits, with notes on what was left out. No image has been opened: `audit` does that.
    Raises:
        DataError: the path is missing or is none of the above; names what was found there.
        ConfigError: `val_fraction`, `folds` or `fold` out of range.
    """
    root = existing(path)
    parts = find_parts(root, Columns(file_column, label_column, split_column))
    splits = divided(root, parts, val_fraction=val_fraction, folds=folds, fold=fold, seed=seed)
    found = splits.train.classes
    known = len(classes) == len(found) and set(classes) == set(found)
    splits = replace(splits, notes=(*parts.notes, *alike(found)))
    return in_order(splits, classes if known else class_order(found))


def divided(
    root: Path, parts: Parts, *, val_fraction: float, folds: int | None, fold: int, seed: int
) -> Splits:
    """What lies at `root`, in the parts that it is divided into, or with one held out.

    Raises:
        DataError, ConfigError: as `read_splits`.
    """
    if folds is None and fold != 0:
        raise ConfigError(
            f"asked for fold {fold} without folds. Say into how many folds to divide."
        )
    roles = set(parts.by_role)
    if roles == {"all"} or (roles == {"train"} and root.is_dir()):
        (listing,) = parts.by_role.values()
        division = Division(listing.root, val_fraction, folds, fold, seed)
        return _held_out(root, listing, division, parts)
    if folds is not None:
        raise DataError(
            f"asked for {folds} folds, but {root} is divided already ({parts.origin}). "
            "Leave folds out, or point at a folder of class folders."
        )
    return _given(root, parts)


def read_set(
    path: str | os.PathLike[str],
    *,
    classes: Sequence[str],
    file_column: str = "file",
    label_column: str = "label",
    split_column: str = "",
) -> ImageSet:
    """Read a data set to evaluate a finished run on; labels count through `classes`.

    Args:
        path: a folder of class folders; or a folder with test/ or val/ (test is preferred, train
            is never read); or a CSV, of which the test or else the val rows are read, or all rows
            if it has no split column.
        classes: the run's class names in its order.
        file_column, label_column, split_column: of a table, as for `read_splits`.
    Raises:
        DataError: as `read_splits`, or a class that the run does not know; names the nearest.
    """
    root = existing(path)
    known = tuple(map(normal, classes))
    listing = _read_held_out(root, known, Columns(file_column, label_column, split_column))
    if unknown := sorted({item.name for item in listing.found}.difference(known)):
        near = ((name, nearest(name, classes, count=2)) for name in unknown[:5])
        described = [f"{name!r}" + (f" (nearest: {', '.join(c)})" if c else "") for name, c in near]
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise DataError(
            f"{root} has classes that the run does not know: {', '.join(described)}{more}. "
            f"The run knows {some_of(classes, most=10)}. Rename or remove them."
        )
    return replace(image_set(listing, known), classes=tuple(classes))


def existing(
    path: str | os.PathLike[str], tables: Collection[str] = TABLE_SUFFIXES, what: str = LAYOUT
) -> Path:
    """The path, once it is known to be a folder or a table.

    Args:
        tables: endings of files that are taken.
        what: what a folder should hold.

    Raises:
        DataError: there is nothing, or a file with another ending.
    """
    root = Path(path).expanduser()
    try:
        if not root.exists():
            raise DataError(_missing_message(root))
    except OSError as error:
        raise DataError(
            f"cannot look at {root}: {error.strerror or error}. Check its permissions."
        ) from error
    if root.is_dir() or root.suffix.lower() in tables:
        return root
    advice = (
        "Unpack it first and point at the folder"
        if root.suffix.lower() in _ARCHIVES
        else f"Give a folder ({what}) or a file that ends in {' or '.join(sorted(tables))}"
    )
    raise DataError(f"{root} is a file, neither a folder nor a table. {advice}.")


def alike(classes: Sequence[str]) -> list[str]:
    """Names the classes that differ in capitals only."""
    same: defaultdict[str, list[str]] = defaultdict(list)
    for name in classes:
        same[name.casefold()].append(name)
    return [
        f"the classes {' and '.join(map(repr, names))} differ in capitals only and count as "
        f"{len(names)}. Rename one if they are one."
        for names in same.values()
        if len(names) > 1
    ]


def _given(root: Path, found: Parts) -> Splits:
    parts = found.by_role
    if "train" not in parts and root.is_dir():
        folder = next(iter(parts.values())).root
        raise DataError(
            f"{root} has {folder.name}/ but no train/. "
            "Add train/ with one folder per class, or point at a folder of class folders."
        )
    if "train" not in parts or len(parts) == 1:
        missing = "train" if "train" not in parts else "val or test"
        raise DataError(
            f"{root} is divided by {found.origin}, but no row of it is {missing}. "
            "Add such rows, or remove the column to have a part held out."
        )
    classes = parts["train"].classes
    val = parts.get("val") or parts["test"]
    test = parts["test"] if "val" in parts and "test" in parts else None
    unknown = [*_unknown(val, classes, "val"), *(_unknown(test, classes, "test") if test else ())]
    return Splits(
        train=image_set(parts["train"], classes),
        val=image_set(val, classes),
        test=image_set(test, classes) if test else None,
        how=found.origin,
        unknown=tuple(unknown),
    )


def _held_out(root: Path, listing: Listing, division: Division, found: Parts) -> Splits:
    train, val = divide(image_set(listing, listing.classes), division)
    if not val.samples:
        raise DataError(
            f"{root} has no class with 2 or more images, so none can be held out to judge by. "
            "Add images, or a val/ folder beside train/."
        )
    seed = f"(seed {division.seed})"
    if division.folds is None:
        of = " of each class" if any(train.classes) else ""
        how = f"{division.fraction * 100:g} %{of}{found.origin} held out {seed}"
    else:
        how = f"fold {division.fold} of {division.folds} held out, from 0 {seed}"
    return Splits(train, val, None, how, division=division)


def image_set(listing: Listing, classes: tuple[str, ...]) -> ImageSet:
    """The listed pictures of these classes, in the classes' order."""
    label = {name: index for index, name in enumerate(classes)}
    label = label or {"": 0}  # of samples that have targets
    samples = (
        Sample(item.path, label[item.name], item.target)
        for item in listing.found
        if item.name in label
    )
    in_order = sorted(samples, key=lambda sample: sample.label)
    return ImageSet(classes, tuple(in_order), listing.ignored)


def _unknown(
    listing: Listing, classes: tuple[str, ...], split: Literal["val", "test"]
) -> list[UnknownClass]:
    by_name: dict[str, list[Path]] = {}
    for item in listing.found:
        if item.name not in classes and item.target is None:
            by_name.setdefault(item.name, []).append(item.path)
    return [UnknownClass(split, name, tuple(paths)) for name, paths in sorted(by_name.items())]


def _read_held_out(root: Path, classes: tuple[str, ...], columns: Columns) -> Listing:
    if root.is_dir():
        base = data_folder(root)
        if all(normal(folder.name) in classes for folder in subfolders(base)):
            return list_class_folders(base)
    parts = find_parts(root, columns).by_role
    for role in ("test", "val", "all"):
        if role in parts:
            return parts[role]
    if root.is_dir():
        raise DataError(f"{root} has train/ only. Evaluate on a test/ or val/ folder beside it.")
    raise DataError(f"{root} has train rows only. Evaluate on rows with split val or test.")


def _missing_message(root: Path) -> str:
    """Names the nearest thing that is there, beside the first part of the path that is not."""
    missing = root
    while not missing.parent.exists():
        missing = missing.parent
    siblings = entries(missing.parent) if missing.parent.is_dir() else []
    close = nearest(missing.name, [path.name for path, _ in siblings], count=2)
    near = f" Nearest: {', '.join(str(missing.parent / name) for name in close)}." if close else ""
    return f"no data set at {root}: {missing} does not exist.{near} Check the path."
