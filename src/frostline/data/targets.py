"""Pictures with other targets than a class: numbers or labels of a table, or masks."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from frostline.data.folder import divided, existing, image_set
from frostline.data.image_sets import ImageSet, MaskFile, Splits, Target, class_order
from frostline.data.layouts import Parts, data_folder, find_parts
from frostline.data.listing import (
    ANNOTATIONS,
    PICTURES,
    Found,
    Listing,
    files_below,
    is_picture,
    key_below,
    natural,
    normal,
    subfolders,
    tables_in,
)
from frostline.data.masks import IGNORED, check_masks
from frostline.data.split_names import Role, by_role
from frostline.data.table import CELL_GAP, Columns, has_column
from frostline.errors import DataError
from frostline.units import some_of
from frostline.wording import option

TargetKind = Literal["multilabel", "regression", "segmentation"]

_YES, _NO = {"1", "1.0", "true", "yes"}, {"0", "0.0", "false", "no"}
_SEPARATORS = "|;"  # between labels in one cell
_CLASSES = "classes.txt"
_MASK_ENDINGS = ("", "_mask", "-mask", "_seg", "_label")  # of a mask's stem behind its picture's


def read_task_splits(
    path: str | os.PathLike[str],
    *,
    task: TargetKind,
    val_fraction: float = 0.2,
    folds: int | None = None,
    fold: int = 0,
    seed: int = 0,
    label_names: Sequence[str] = (),
    file_column: str = "file",
    label_column: str = "label",
    split_column: str = "",
    black_and_white: bool | None = None,
) -> Splits:
    """Read pictures with their targets for training; divided as `read_splits` divides.

    Args:
        path: a CSV or TSV of pictures, or a folder with train.csv and val.csv. For segmentation
            also a folder with images/ and masks/, in which a picture and its mask have one stem,
            or with such a pair in each of train/ and val/, or train/ and val/ in both.
        task: what the targets are. `regression`: a column of numbers, or several. `multilabel`:
            several columns of 0 and 1, or one with a list such as `red|round`, empty for none.
            `segmentation`: masks, in a table in the column `mask`; their classes are named in
            `classes.txt` beside them, a line each, else numbered. Masks of 0 and 255 alone are
            black and white: 255 is class 1; in others 255 is no class.
        val_fraction, folds, fold, seed: as for `read_splits`.
        label_names: names of a run's labels or classes in its order; by default those found.
        label_column: several with commas between.
        black_and_white: whether masks hold 0 and 255 for two classes; None looks at them.
    Raises:
        DataError: as `read_splits`; or a target is none of its kind; names file and picture.
    """
    root = existing(path)
    columns = Columns(file_column, label_column, split_column)
    parts, names = _with_targets(root, task, columns, tuple(label_names), black_and_white)
    splits = divided(root, parts, val_fraction=val_fraction, folds=folds, fold=fold, seed=seed)
    named = splits.each(lambda images: replace(images, classes=(), label_names=names))
    return replace(named, notes=parts.notes)


def read_task_set(
    path: str | os.PathLike[str],
    *,
    task: TargetKind,
    label_names: Sequence[str],
    file_column: str = "file",
    label_column: str = "label",
    split_column: str = "",
    black_and_white: bool | None = None,
) -> ImageSet:
    """Read pictures with their targets to evaluate a finished run on; parts as for `read_set`.

    Args:
        label_names: the run's labels, targets or classes in its order.
    Raises:
        DataError: as `read_task_splits`, or there are train rows or folders only.
    """
    root = existing(path)
    columns = Columns(file_column, label_column, split_column)
    parts, names = _with_targets(root, task, columns, tuple(label_names), black_and_white)
    for role in ("test", "val", "all"):
        if role in parts.by_role:
            listing = parts.by_role[role]
            return replace(image_set(listing, ("",)), classes=(), label_names=names)
    raise DataError(f"{root} has a train part only. Evaluate on a test or val part.")


def _with_targets(
    root: Path,
    task: TargetKind,
    columns: Columns,
    names: tuple[str, ...],
    black_and_white: bool | None,
) -> tuple[Parts, tuple[str, ...]]:
    """The parts of a data set, with a target for each picture; and names for the targets."""
    if task == "segmentation":
        return _masked(root, columns, names, black_and_white)
    if root.is_dir() and not tables_in(data_folder(root)):
        raise DataError(
            f"{root} is a folder without a table, and {task} takes its targets from one. Give a "
            f"CSV with a column of pictures and one of targets ({option('label_column')})."
        )
    if task == "multilabel" and "," not in columns.label:  # a list, which may be empty
        columns = replace(columns, empty_labels="none")
    parts = find_parts(root, columns)
    found = [item for listing in parts.by_role.values() for item in listing.found]
    several = any(CELL_GAP in item.name for item in found)
    heads = tuple(part.strip() for part in columns.label.split(",")) if several else ()
    _check_heads(heads, names, root)
    if several:
        read = _numbers if task == "regression" else partial(_flags, heads)
        order = [heads.index(name) for name in names or heads]
        return _retargeted(parts, partial(_in_order, read, order)), names or heads
    if task == "regression":
        return _retargeted(parts, _numbers), names or (columns.label.strip(),)
    lists = {item.name: _labels(item.name) for item in found}
    if (commas := [cell for cell in lists if "," in cell]) and not any(map(_is_list, lists)):
        raise DataError(
            f"the column {columns.label} holds {commas[0]!r}, and no | or ; anywhere. Write | "
            "between the labels of one cell."
        )
    known = names or class_order({label for labels in lists.values() for label in labels})
    if not known:
        raise DataError(f"no picture of {root} has a label in the column {columns.label}.")
    return _retargeted(parts, partial(_holding, known, lists)), known


def _check_heads(heads: Sequence[str], names: Sequence[str], root: Path) -> None:
    """Make sure that each label column is there once, and is one that the run knows."""
    if len(set(heads)) != len(heads):
        raise DataError(f"asked for the label columns {', '.join(heads)}. Name each once.")
    if heads and names and set(heads) != set(names):
        raise DataError(
            f"the run learnt {', '.join(names)}, and of {root} the columns {', '.join(heads)} were "
            f"asked for. Give columns of these names ({option('label_column')})."
        )


def _in_order(
    read: Callable[[Found], tuple[float, ...]], order: Sequence[int], item: Found
) -> tuple[float, ...]:
    found = read(item)
    return tuple(found[place] for place in order)


def _retargeted(parts: Parts, target_of: Callable[[Found], Target]) -> Parts:
    """The same pictures with a target each, in place of a class."""

    def changed(listing: Listing) -> Listing:
        found = [replace(item, name="", target=target_of(item)) for item in listing.found]
        found.sort(key=lambda item: natural(item.key))
        return replace(listing, classes=("",), found=tuple(found))

    return replace(parts, by_role={role: changed(part) for role, part in parts.by_role.items()})


def _numbers(item: Found) -> tuple[float, ...]:
    return tuple(_number(item, cell) for cell in item.name.split(CELL_GAP))


def _number(item: Found, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(
            f"the target of {item.key} is {cell!r}, not a number. Correct it, or delete the line; "
            "a decimal comma is written as a dot."
        )
    return value


def _flags(heads: Sequence[str], item: Found) -> tuple[float, ...]:
    cells = item.name.split(CELL_GAP)
    for head, cell in zip(heads, cells, strict=True):
        if cell.lower() not in _YES | _NO:
            raise DataError(
                f"the label {head} of {item.key} is {cell!r}. Write 1 where it holds and 0 where "
                "not, or true and false."
            )
    return tuple(float(cell.lower() in _YES) for cell in cells)


def _labels(cell: str) -> tuple[str, ...]:
    """The labels in one cell."""
    if (listed := _json_list(cell)) is not None:
        return tuple(map(normal, listed))
    for separator in _SEPARATORS:
        cell = cell.replace(separator, "\n")
    return tuple(normal(part.strip()) for part in cell.split("\n") if part.strip())


def _is_list(cell: str) -> bool:
    return _json_list(cell) is not None or any(separator in cell for separator in _SEPARATORS)


def _json_list(cell: str) -> list[str] | None:
    if not cell.startswith("["):
        return None
    try:
        found = json.loads(cell)
    except ValueError:
        return None
    is_list = isinstance(found, list) and all(isinstance(one, str) for one in found)
    return found if is_list else None


def _holding(
    known: Sequence[str], lists: Mapping[str, Sequence[str]], item: Found
) -> tuple[float, ...]:
    labels = lists[item.name]
    if unknown := [label for label in labels if label not in known]:
        raise DataError(
            f"{item.key} has the label {unknown[0]!r}, which the run does not know: it knows "
            f"{some_of(known, most=10)}. Rename or remove it."
        )
    return tuple(float(label in labels) for label in known)


def _masked(
    root: Path, columns: Columns, names: tuple[str, ...], black_and_white: bool | None
) -> tuple[Parts, tuple[str, ...]]:
    """Pictures with masks, of a table or in folders."""
    base = data_folder(root) if root.is_dir() else root.parent
    folders = _in_folders(root) if root.is_dir() else None
    if folders is None:
        if root.is_dir() and not tables_in(base):
            raise DataError(
                f"{root} has no images/ with a masks/ beside it. Put each picture's mask there "
                "under the picture's name, as images/1.jpg and masks/1.png; or give a CSV with the "
                "columns file,mask."
            )
        if columns.label == Columns().label:
            columns = replace(columns, label="mask")
        parts = find_parts(root, columns)
        folder = next(iter(parts.by_role.values())).root
        parts = _retargeted(parts, lambda item: MaskFile(folder / item.name))
    else:
        parts = folders
    found = [item for listing in parts.by_role.values() for item in listing.found]
    pairs = [(item.path, item.target.path) for item in found if isinstance(item.target, MaskFile)]
    values = check_masks(pairs)
    every = frozenset[int]().union(*values.values())
    told = names or _told_classes([base, *dict.fromkeys(mask.parent for _, mask in pairs)])
    is_plain = black_and_white
    if is_plain is None:
        is_plain = every <= {0, IGNORED} and IGNORED in every and len(told or "01") == 2
    if is_plain:
        _check_plain(values)
        parts = _black_and_white(parts)
        line = "masks hold 0 and 255 alone: 255 is taken for class 1, not for pixels to ignore"
        parts = replace(parts, notes=(*parts.notes, f"{line}."))
        every = frozenset({0, 1})
    known = told or tuple(map(str, range(max(every - {IGNORED}, default=0) + 1)))
    if not is_plain:
        _check_known(values, known)
    return parts, known


def _check_plain(values: Mapping[Path, frozenset[int]]) -> None:
    for mask, found in values.items():
        if odd := sorted(found - {0, IGNORED}):
            raise DataError(
                f"the mask {mask} has the values {some_of(list(map(str, odd)), most=5)}, and the "
                f"run's masks hold 0 and {IGNORED} alone. Write it like these."
            )


def _check_known(values: Mapping[Path, frozenset[int]], known: Sequence[str]) -> None:
    if len(known) < 2:
        raise DataError("the masks hold one class, so there is nothing to tell apart.")
    for mask, found in values.items():
        odd = sorted(value for value in found if value >= len(known) and value != IGNORED)
        if odd:
            raise DataError(
                f"the mask {mask} has the values {some_of(list(map(str, odd)), most=5)}, but there "
                f"are {len(known)} classes: 0 to {len(known) - 1}, and {IGNORED} for none. Fix the "
                f"mask, or name all classes in {_CLASSES}."
            )


def _black_and_white(parts: Parts) -> Parts:
    def changed(item: Found) -> Found:
        if not isinstance(item.target, MaskFile):
            return item
        return replace(item, target=replace(item.target, is_black_and_white=True))

    return replace(
        parts,
        by_role={
            role: replace(listing, found=tuple(map(changed, listing.found)))
            for role, listing in parts.by_role.items()
        },
    )


def _told_classes(folders: Iterable[Path]) -> tuple[str, ...]:
    """The lines of the first `classes.txt` in or above one of these folders."""
    for folder in dict.fromkeys(place for one in folders for place in (one, one.parent)):
        file = folder / _CLASSES
        if file.is_file():
            try:
                lines = file.read_text(encoding="utf-8-sig").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"cannot read {file}: {error}. Save it as UTF-8 text.") from error
            return tuple(normal(line.strip()) for line in lines if line.strip())
    return ()


def _in_folders(root: Path) -> Parts | None:
    """images/ and masks/: at the root, in each split, or with splits in both; None without."""
    base = _base(root)
    if pair := _pair(base):
        inner = [by_role(folder, subfolders(folder)) for folder in pair]
        roles: list[Role] = [role for role in inner[0] if role in inner[1]]
        if "train" in roles and len(roles) > 1:
            listings = {role: _paired(base, inner[0][role], inner[1][role]) for role in roles}
            return Parts(listings, f"{pair[0].name}/{inner[0]['train'].name} and its like")
        return Parts({"all": _paired(base, *pair)}, "")
    found = {role: _pair(folder) for role, folder in by_role(base, subfolders(base)).items()}
    if "train" in found and len(found) > 1:
        lists = {role: _paired(base, *pair) for role, pair in found.items() if pair}
        if "train" in lists and len(lists) > 1:
            return Parts(lists, " and ".join(f"{role}/" for role in lists) + " folders")
    return None


def _base(root: Path) -> Path:
    """`root`, or the one folder in it where it has no more."""
    folders = subfolders(root)
    is_wrapped = len(folders) == 1 and not _pair(root) and not by_role(root, folders)
    return folders[0] if is_wrapped else root


def _pair(folder: Path) -> tuple[Path, Path] | None:
    """The folders of pictures and of masks in `folder`, by their names."""
    folders = subfolders(folder)
    pictures = [f for f in folders if f.name.lower() in PICTURES]
    masks = [f for f in folders if f.name.lower() in ANNOTATIONS]
    return (pictures[0], masks[0]) if len(pictures) == len(masks) == 1 else None


def _paired(base: Path, pictures: Path, masks: Path) -> Listing:
    """The pictures below a folder, each with the mask of its stem.

    Raises:
        DataError: there are none, or one has no mask.
    """
    known = {key_below(masks, f.with_suffix("")): f for f in files_below(masks) if is_picture(f)}
    found, lost = list[Found](), list[str]()
    for file in filter(is_picture, files_below(pictures)):
        stem = key_below(pictures, file.with_suffix(""))
        mask = next((known[stem + e] for e in _MASK_ENDINGS if stem + e in known), None)
        if mask is None:
            lost.append(key_below(base, file))
        else:
            found.append(Found(file, "", key_below(base, file), MaskFile(mask)))
    if lost:
        raise DataError(
            f"{len(lost)} pictures have no mask in {masks}: {some_of(lost, most=5)}. Put it there "
            "under the picture's name, or take the picture out."
        )
    if not found:
        raise DataError(f"no pictures in {pictures}. Check the path.")
    found.sort(key=lambda item: natural(item.key))
    return Listing(base, ("",), tuple(found))


def likely_task(
    path: str | os.PathLike[str],
    *,
    file_column: str = "file",
    label_column: str = "label",
    split_column: str = "",
) -> tuple[Literal["classification"] | TargetKind, str]:
    """What is most likely to be learnt of these pictures, and why if it is no class.

    Masks are for segmentation. Of a table several label columns, or lists in one, are multi-label
    where they hold 0 and 1 or names; numbers are a regression where one has a fraction, or where
    there are several columns.

    Raises:
        DataError: the path is missing, or neither a folder nor a table.
    """
    root = existing(path)
    base = data_folder(root) if root.is_dir() else root.parent
    tables = tables_in(base) if root.is_dir() else [root]
    if not tables or (root.is_dir() and _pair(base)):
        is_masked = root.is_dir() and _has_masks(root)
        return ("segmentation", "there are masks beside images") if is_masked else _CLASSES_ARE
    columns = Columns(file_column, label_column, split_column, empty_labels="none")
    try:
        if label_column == Columns().label and not has_column(tables[0], label_column):
            is_masked = has_column(tables[0], "mask")
            return ("segmentation", "there is a column mask") if is_masked else _CLASSES_ARE
        listings = find_parts(root, columns).by_role.values()
    except DataError:
        return _CLASSES_ARE  # reading them says what is wrong
    cells = {item.name for listing in listings for item in listing.found}
    named = label_column if "," in label_column else f"the column {label_column}"
    parts = {part.lower() for cell in cells for part in cell.split(CELL_GAP)}
    if any(CELL_GAP in cell for cell in cells):
        if parts <= _YES | _NO:
            return "multilabel", f"{named} hold 0 and 1"
        if words := sorted(p for p in parts - _NO_NUMBER if p and not _is_number(p)):
            raise DataError(
                f"several label columns hold 0 and 1, or numbers, and {named} hold {words[0]!r}. "
                "Name the columns of numbers, or one of classes."
            )
        return "regression", f"{named} hold numbers"
    if any(_is_list(cell) for cell in cells):
        return "multilabel", f"{named} holds lists of labels"
    if hold_fractions(parts):
        return "regression", f"{named} holds numbers with fractions"
    check_are_classes(parts, named)
    return _CLASSES_ARE


_NO_NUMBER = frozenset(("nan", "na", "n/a", "null", "none", "inf", "+inf", "-inf"))
_FEW_CLASSES = 10  # whose names may be numbers
_CLASSES_ARE: tuple[Literal["classification"], str] = ("classification", "")


def _has_masks(root: Path) -> bool:
    base = _base(root)
    return any(map(_pair, (base, *by_role(base, subfolders(base)).values())))


def hold_fractions(cells: Iterable[str]) -> bool:
    """Whether cells hold numbers, of which some have fractions.

    One for which there is no number is no class either: whoever reads it as one says where it is.
    """
    told = {cell.lower() for cell in cells} - _NO_NUMBER
    return all(map(_is_number, told)) and not all(float(cell).is_integer() for cell in told)


def check_are_classes(cells: Iterable[str], named: str) -> None:
    """Refuse what is likely to be measured rather than a class.

    Raises:
        DataError: nearly all of many cells are numbers with fractions.
    """
    told = {cell.lower() for cell in cells if cell} - _NO_NUMBER
    numbers = {cell for cell in told if _is_number(cell.replace(",", "."))}
    others = sorted(told - numbers) or sorted(cell for cell in numbers if "," in cell)
    fractions = sum(not float(cell.replace(",", ".")).is_integer() for cell in numbers)
    if len(told) > _FEW_CLASSES and len(numbers) >= 0.9 * len(told) and 2 * fractions > len(told):
        raise DataError(
            f"{named} holds numbers with fractions, but for {some_of(others, most=3)}. Correct "
            "these, a decimal comma as a dot, or delete their lines; if they are classes all the "
            f"same, {option('task', 'classification')} says so."
        )


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False
