"""Class folders on disk -> a list of labelled files."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from frostline.data.image_sets import Target
from frostline.data.images import IMAGE_SUFFIXES
from frostline.data.split_names import TABLE_SUFFIXES, split_name
from frostline.errors import DataError
from frostline.units import some_of

LAYOUT = "expected one folder per class: ants/1.jpg, bees/2.jpg"


@dataclass(frozen=True, slots=True)
class Found:
    """A labelled file.

    Attributes:
        key: its path below the data set's folder, with `/`; the same wherever that folder lies.
        target: what is learnt in place of a class, if anything; the name is empty then.
    """

    path: Path
    name: str
    key: str
    target: Target | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """What one folder or table holds; `classes` may name classes without any file.

    Attributes:
        root: the folder that the keys of `found` count from.
    """

    root: Path
    classes: tuple[str, ...]
    found: tuple[Found, ...]
    ignored: tuple[Path, ...] = ()


def list_class_folders(root: Path, *, aside: Collection[Path] = ()) -> Listing:
    """The pictures below each folder of `root`, labelled with that folder's name.

    Nested folders count towards their class; links are followed, and a loop of links ends.

    Args:
        aside: folders of `root` that are no classes.
    Raises:
        DataError: no class folders, no pictures in them, pictures beside a folder of their
            annotations, or a folder that may not be read.
    """
    folders = [folder for folder in subfolders(root) if folder not in aside]
    ignored = [path for path, is_folder in entries(root) if not is_folder]
    if not folders:
        raise DataError(_no_class_folders(root, ignored))
    _check_not_annotated(root, folders)
    found: list[Found] = []
    for folder in folders:
        name = normal(folder.name)
        for path in files_below(folder):
            if is_picture(path):
                found.append(Found(path, name, key_below(root, path)))
            else:
                ignored.append(path)
    if not found:
        raise DataError(
            f"no images in {root}: its {len(folders)} folders ({few(folders)}) hold none. "
            f"Check the path; {LAYOUT}."
        )
    classes = tuple(sorted({normal(folder.name) for folder in folders}))
    return Listing(root, classes, sort_found(found), tuple(ignored))


def subfolders(folder: Path) -> list[Path]:
    """The folders of `entries`."""
    return [path for path, is_folder in entries(folder) if is_folder]


def entries(folder: Path) -> list[tuple[Path, bool]]:
    """What lies in `folder` in natural order, and whether it is a folder itself.

    Hidden entries and systems' leftovers are left out.
    """
    try:
        with os.scandir(folder) as scan:  # knows folders from files without asking for each
            seen = [e for e in scan if e.name[0] != "." and e.name.lower() not in _LEFTOVERS]
            found = [(entry.name, _is_folder(entry)) for entry in seen]
    except OSError as error:
        raise DataError(
            f"cannot read the folder {folder}: {error.strerror or error}. Check its permissions."
        ) from error
    found.sort(key=lambda pair: natural(pair[0]))
    return [(folder / name, is_folder) for name, is_folder in found]


def files_below(folder: Path, *, depth: int | None = None) -> Iterator[Path]:
    """Every file below `folder`, by default at any depth; each real folder once, so loops end."""
    return _files(folder, depth, set())


def is_picture(path: Path) -> bool:
    """By its name's ending."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def tables_in(folder: Path) -> list[Path]:
    """The CSV and TSV files that lie in `folder` itself."""
    files = (path for path, is_folder in entries(folder) if not is_folder)
    return [path for path in files if path.suffix.lower() in TABLE_SUFFIXES]


def sort_found(found: list[Found]) -> tuple[Found, ...]:
    """By class, then by name with numbers counted as numbers."""
    return tuple(sorted(found, key=lambda item: (item.name, natural(item.key))))


def natural(text: str) -> tuple[list[str | int], str]:
    """Sort key that puts `img2` before `img10`."""
    parts = re.split(r"([0-9]+)", text)
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], text


def normal(name: str) -> str:
    """One spelling for names that look the same; file systems differ in how they write accents."""
    return unicodedata.normalize("NFC", name)


def key_below(root: Path, path: Path) -> str:
    """The path as it counts from `root`, with `/`, in one spelling."""
    inner, start = str(path), f"{root}{os.sep}"
    # `relpath` takes ten times as long, and there may be millions.
    is_plain = inner.startswith(start) and ".." not in inner
    below = inner[len(start) :] if is_plain else os.path.relpath(inner, root)
    return normal(below.replace(os.sep, "/"))


def few(paths: list[Path]) -> str:
    """The first names."""
    return some_of([path.name for path in paths], most=3)


_LEFTOVERS = {"thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "lost+found"}

# What stands beside pictures in sets for detection (YOLO, VOC, COCO) and segmentation.
ANNOTATIONS = {"labels", "annotations", "annots", "masks", "mask"}
PICTURES = {"images", "image", "imgs", "img", "jpegimages", "pictures", "photos"}


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link that points at itself


def _files(folder: Path, depth: int | None, seen: set[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    for path, is_folder in entries(folder):
        if not is_folder:
            yield path
        elif depth is None or depth > 0:
            yield from _files(path, None if depth is None else depth - 1, seen)


def _check_not_annotated(root: Path, folders: list[Path]) -> None:
    """Refuse pictures in one folder with their boxes or masks in another: no classes."""
    pictures = [folder for folder in folders if folder.name.lower() in PICTURES]
    notes = [folder for folder in folders if folder.name.lower() in ANNOTATIONS]
    if pictures and notes:
        raise DataError(_annotated(root, pictures[0], notes[0]))


def _annotated(root: Path, pictures: Path, notes: Path) -> str:
    return (
        f"{root} has {pictures.name}/ and {notes.name}/, as sets for detection or segmentation "
        f"have (YOLO, COCO, VOC), not one folder per class. {_DO}"
    )


def _no_class_folders(root: Path, loose: list[Path]) -> str:
    images = [path for path in loose if is_picture(path)]
    if images:
        return _flat(root, images)
    if loose:
        return f"no class folders in {root}, only {few(loose)}. Check the path; {LAYOUT}."
    return f"the folder {root} is empty. Check the path; {LAYOUT}."


_DO = "Sort the pictures into a folder per class, or list them in a CSV with columns file,label."


def _flat(root: Path, images: list[Path]) -> str:
    """What to do about pictures without class folders, by what lies around them."""
    here = root.absolute()
    for folder, pictures in ((here.parent, here), (here.parent.parent, here.parent)):
        beside = [path for path in _siblings(pictures) if path.name.lower() in ANNOTATIONS]
        if beside and pictures.name.lower() in PICTURES:
            return _annotated(folder, pictures, beside[0])
    begin, do = _beginnings(images), _DO
    is_split = split_name(here.name) is not None
    if tables := tables_in(root) or (tables_in(root.parent) if is_split else []):
        do = f"If {few(tables)} lists them, give it: {tables[0]}."
    elif begin:
        do = f"Their names begin with {begin}. If these are the classes: s{_DO[1:]}"
    elif not is_split and _siblings(here):
        above = f"If {here.name} is one class of several, give the folder above: {here.parent}"
        do = f"{above}. Else s{_DO[1:]}"
    count = "image" if len(images) == 1 else "images"
    lie = "lies" if len(images) == 1 else "lie"
    return (
        f"the {len(images)} {count} in {root} {lie} flat, so their classes are unknown; {LAYOUT}. "
        f"{do}"
    )


def _siblings(folder: Path) -> list[Path]:
    try:
        return [path for path in subfolders(folder.parent) if path.name != folder.name]
    except DataError:
        return []


def _beginnings(images: list[Path]) -> str:
    """`cat (12), dog (9)` where pictures are named so, as cat.0.jpg; empty where not."""
    named = Counter(re.sub(r"[\W_]*[0-9]+$", "", path.stem) for path in images)
    found = [f"{name} ({count})" for name, count in sorted(named.items()) if name and count > 1]
    is_class = len(found) == len(named) > 1
    return some_of(found, most=5) if is_class else ""
