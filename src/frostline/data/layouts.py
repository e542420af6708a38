"""A folder, as people and archives lay them out -> the parts of the data set in it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import final

from frostline.data.listing import (
    Listing,
    entries,
    few,
    files_below,
    is_picture,
    list_class_folders,
    normal,
    subfolders,
    tables_in,
)
from frostline.data.split_names import Role, by_role, split_name
from frostline.data.table import Columns, has_column, read_table
from frostline.errors import DataError
from frostline.units import some_of

_DEEPEST = 4  # folders that are entered in search of the one that holds the pictures


@final
@dataclass(frozen=True, slots=True)
class Parts:
    """What lies at a path.

    Attributes:
        by_role: what it holds by split; under "all" where it is not divided.
        origin: what divides it, in words; of undivided data the folder that it is in.
        notes: what was found beside, or taken for something.
    """

    by_role: dict[Role, Listing]
    origin: str
    notes: tuple[str, ...] = ()


def find_parts(root: Path, columns: Columns) -> Parts:
    """The listings of a folder or a table.

    Raises:
        DataError: as `read_table` and `list_class_folders`; names what lies there.
    """
    if not root.is_dir():
        return _of_table(root, columns)
    base = data_folder(root)
    if tables := _tables(base):
        return _of_tables(base, tables, columns)
    if columns != Columns():
        raise DataError(
            f"asked for columns of a table, and {root} is a folder without train.csv. Give the "
            "table itself, or leave the columns out."
        )
    roles = split_folders(base)
    return _of_splits(base, roles) if roles else _of_classes(root, base)


def data_folder(root: Path) -> Path:
    """`root`, or the folder below it that alone holds pictures, as archives unpack to."""
    for _ in range(_DEEPEST):
        folders = subfolders(root)
        if by_role(root, folders) or _tables(root) or _pictures_in(root):
            break
        # Two are enough to know: each is read whole before its first file is given.
        full = list(islice((f for f in folders if any(map(is_picture, files_below(f)))), 2))
        if len(full) != 1 or not subfolders(full[0]):
            break
        (root,) = full
    return root


def divided_by(names: dict[Role, str]) -> str:
    """What divides the data, in words, from the names of files or folders by split."""
    kind = " folders" if names.get("train", "").endswith("/") else ""
    words = f"{names.get('train')} and {names.get('val') or names['test']}{kind}"
    return words + (f", {names['test']} kept apart" if "val" in names and "test" in names else "")


def split_folders(root: Path) -> dict[Role, Path]:
    """The train, val and test folders of `root` by role; empty if its folders are classes.

    Raises:
        DataError: two folders for one role, or classes both beside and inside such a folder.
    """
    folders = subfolders(root)
    roles = by_role(root, folders)
    if "train" in roles and len(roles) > 1:
        return roles
    others = [folder for folder in folders if folder not in roles.values()]
    if any(len(subfolders(f)) > 1 for f in roles.values()) and not any(map(subfolders, others)):
        return roles
    if not others:
        return roles
    names = {normal(folder.name) for folder in folders}
    for folder in roles.values():
        if twice := sorted(names & {normal(inner.name) for inner in subfolders(folder)}):
            raise DataError(
                f"{root} has {twice[0]}/ both beside and inside {folder.name}/. "
                "Put all classes to train on into train/, or move that folder elsewhere."
            )
    return {}


def _of_splits(base: Path, roles: dict[Role, Path]) -> Parts:
    """Folders by role; a flat one beside train is left out: its pictures have no classes."""
    notes = []
    unused = [folder for folder in subfolders(base) if folder not in roles.values()]
    if unused:
        notes.append(f"{few(unused)} in {base}: not used, as its other folders are the splits.")
    folders = {role: _entered(folder, role) for role, folder in roles.items()}
    for role, folder in list(folders.items()):
        if role != "train" and "train" in folders and not subfolders(folder):
            del folders[role]
            notes.append(
                f"{folder} holds {len(_pictures_in(folder)):,} pictures and no class folders: not "
                "used."
            )
    parts = {role: list_class_folders(folder) for role, folder in folders.items()}
    first = next(iter(parts))
    loose = tuple(path for path, is_folder in entries(base) if not is_folder)
    parts[first] = replace(parts[first], ignored=loose + parts[first].ignored)
    names = {role: f"{folder.name}/" for role, folder in folders.items()}
    divided = divided_by(names) if len(parts) > 1 else f" of {names.get('train')}"
    return Parts(parts, divided, tuple(notes))


def _entered(folder: Path, role: Role) -> Path:
    """Some archives hold a folder of the same name in it: seg_train/seg_train/."""
    inner = subfolders(folder)
    if len(inner) == 1 and (split_name(inner[0].name) or ("",))[0] == role:
        return inner[0]
    return folder


def _of_classes(root: Path, base: Path) -> Parts:
    """Class folders; one that is called like a split is none of them."""
    folders = subfolders(base)
    aside = [path for role, path in by_role(base, folders).items() if role != "train"]
    classes = [folder for folder in folders if folder not in aside]
    if len(classes) == 1 and not subfolders(classes[0]):
        _check_no_table(base, classes[0])
    listing = list_class_folders(base, aside=aside)
    notes = []
    if aside:
        notes.append(
            f"{few(aside)} in {base}: not used, as by its name it is no class. Rename it if it is "
            "one, or move the classes to train on into train/."
        )
    if tables := tables_in(base):
        notes.append(
            f"{few(tables)} in {base}: not used, as the folders are taken for the classes. If it "
            f"lists the classes, give it: {tables[0]}."
        )
        listing = replace(listing, ignored=tuple(p for p in listing.ignored if p not in tables))
    inside = _names_in(classes[0])
    if len(classes) > 1 and len(inside) > 1 and all(_names_in(f) == inside for f in classes):
        notes.append(
            f"{few(classes)} are taken for the classes, and each holds the folders "
            f"{some_of(sorted(inside), most=3)}. If these are the classes, give one folder: "
            f"{classes[0]}."
        )
    return Parts({"all": listing}, "" if base == root else f" of {base.name}/", tuple(notes))


def _names_in(folder: Path) -> set[str]:
    return {normal(inner.name) for inner in subfolders(folder)}


def _check_no_table(base: Path, pictures: Path) -> None:
    """Refuse one flat folder of pictures with a table beside it, which will hold the classes."""
    if tables := tables_in(base):
        raise DataError(
            f"{base} has one folder of pictures, {pictures.name}/, and {few(tables)}. If that "
            f"lists their classes, give it: {tables[0]}."
        )


def _tables(folder: Path) -> dict[Role, Path]:
    """train.csv and its like, where the training folder is not one of class folders."""
    found = by_role(folder, tables_in(folder))
    train = by_role(folder, subfolders(folder)).get("train")
    has_classes = train is not None and bool(subfolders(train))
    return found if "train" in found and not has_classes else {}


def _of_tables(base: Path, tables: dict[Role, Path], columns: Columns) -> Parts:
    """One table a split; one without labels, as competitions give for the test, is left out."""
    notes = []
    for role, table in list(tables.items()):
        if role != "train" and not has_column(table, columns.label):
            notes.append(f"{tables.pop(role).name} has no column {columns.label}: not used.")
    if len(tables) == 1:
        alone = _of_table(tables["train"], columns)
        return replace(alone, notes=(*notes, *alone.notes))
    parts: dict[Role, Listing] = {}
    for role, table in tables.items():
        content = read_table(table, columns)
        if "all" not in content.by_role:
            raise DataError(
                f"{few(list(tables.values()))} in {base} divide the data, and so does the column "
                f"{content.split} of {table.name}. Give one table, or remove the column."
            )
        parts[role] = content.by_role["all"]
        notes += content.notes
    return Parts(parts, divided_by({role: t.name for role, t in tables.items()}), tuple(notes))


def _of_table(table: Path, columns: Columns) -> Parts:
    content = read_table(table, columns)
    origin = f"the {content.split} column of {table.name}" if content.split else ""
    return Parts(content.by_role, origin, content.notes)


def _pictures_in(folder: Path) -> list[Path]:
    return [path for path, is_folder in entries(folder) if not is_folder and is_picture(path)]
