"""Pictures with numbers, labels or masks as targets, as tables and folders give them."""

from __future__ import annotations

import csv
import shutil
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

import frostline as fl
from frostline.data import (
    ImageDataset,
    MaskFile,
    audit,
    hold_fractions,
    likely_task,
    open_data,
    read_task_set,
    read_task_splits,
)
from frostline.data.masks import cut_mask, open_mask

SIZE = (24, 18)  # width and height
SMALL = fl.Preprocessing(resize=12, crop=(10, 10))
ROWS = [
    (f"images/{n}.png", f"{n / 2}", f"{n % 2}", f"{n % 3 == 0}", "|".join("ab"[: n % 3]))
    for n in range(10)
]


def picture(path: Path, seed: int = 0, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def mask(path: Path, values: Sequence[int], size: tuple[int, int] = SIZE) -> None:
    """A mask that is divided into stripes of these values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stripes = np.array(values, np.uint8)[np.arange(size[0]) * len(values) // size[0]]
    Image.fromarray(np.tile(stripes, (size[1], 1))).save(path)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    for number in range(10):
        picture(tmp_path / "images" / f"{number}.png", number)
    return write(tmp_path / "table.csv", ["file", "Amount", "odd", "third", "tags"], ROWS)


def write(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def paired(root: Path, values: Sequence[int] = (0, 1, 2), count: int = 6) -> Path:
    for number in range(count):
        picture(root / "images" / f"{number}.png", number)
        mask(root / "masks" / f"{number}.png", values)
    return root


def targets_of(splits: Any) -> dict[str, Any]:
    every = [*splits.train.samples, *splits.val.samples]
    return {sample.path.stem: sample.target for sample in every}


def test_a_column_of_numbers_is_read_and_a_part_held_out(table: Path) -> None:
    splits = read_task_splits(table, task="regression", label_column="Amount")
    assert targets_of(splits) == {str(n): (n / 2,) for n in range(10)}
    assert (len(splits.train), len(splits.val)) == (8, 2)
    assert splits.train.label_names == splits.val.label_names == ("Amount",)
    assert splits.how == "20 % held out (seed 0)"
    again = read_task_splits(table, task="regression", label_column="amount,odd")
    assert [s.path for s in again.val.samples] == [s.path for s in splits.val.samples]
    assert targets_of(again)["3"] == (1.5, 1.0)
    folds = [
        read_task_splits(table, task="regression", label_column="odd", folds=5, fold=fold)
        for fold in range(5)
    ]
    assert len({s.path for part in folds for s in part.val.samples}) == 10


@pytest.mark.parametrize("column", ["odd,third", "tags"])
def test_labels_come_in_columns_or_in_a_list(table: Path, column: str) -> None:
    splits = read_task_splits(table, task="multilabel", label_column=column)
    names = ("odd", "third") if column != "tags" else ("a", "b")
    assert splits.train.label_names == names
    found = targets_of(splits)
    assert found["3"] == ((1.0, 1.0) if column != "tags" else (0.0, 0.0))
    assert found["4"] == ((0.0, 0.0) if column != "tags" else (1.0, 0.0))


def test_audit_and_the_data_set_take_targets_as_they_take_classes(table: Path) -> None:
    shutil.copy(table.parent / "images" / "0.png", table.parent / "images" / "1.png")
    splits = read_task_splits(table, task="regression", label_column="amount")
    found = audit(splits, bad_images="error")
    said = {finding.code for finding in found.findings}
    assert said <= {"label-conflict", "train-val-overlap"}
    assert said
    data = ImageDataset(found.splits.train, SMALL, digests=found.digests)
    assert data.targets.shape == (8, 1)
    assert data.targets.dtype == torch.float64
    image, target = data[2]
    assert image.shape == (3, 10, 10)
    assert target == data.targets[2]
    assert open_data(data).ids([0])[0] == open_data(data).ids(range(8))[0]


def test_masks_lie_beside_their_pictures(tmp_path: Path) -> None:
    paired(tmp_path)
    (tmp_path / "classes.txt").write_text("sky\nsea\nland\n")
    splits = read_task_splits(tmp_path, task="segmentation")
    assert splits.train.label_names == ("sky", "sea", "land")
    assert targets_of(splits)["4"] == MaskFile(tmp_path / "masks" / "4.png")
    assert audit(splits, bad_images="error").findings == ()
    data = ImageDataset(splits.train, SMALL)
    image, found = data[0]
    assert found.shape == image.shape[1:] == (10, 10)
    assert found.dtype == torch.uint8
    assert found.unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize("layout", ["in each split", "splits in both", "table"])
def test_masks_of_divided_data_are_found_however_it_is_laid_out(
    layout: str, tmp_path: Path
) -> None:
    if layout == "in each split":
        paired(tmp_path / "train")
        paired(tmp_path / "val", count=2)
        write(tmp_path / "notes.csv", ["about"], [["a table of something else"]])
    elif layout == "splits in both":
        for role, count in (("train", 6), ("val", 2)):
            for kind in ("images", "masks"):
                source = paired(tmp_path / "old", count=count) / kind
                shutil.copytree(source, tmp_path / "new" / kind / role)
            shutil.rmtree(tmp_path / "old")
    else:
        paired(tmp_path, count=8)
        rows = [
            (f"images/{n}.png", f"masks/{n}.png", "val" if n < 2 else "train") for n in range(8)
        ]
        write(tmp_path / "table.csv", ["file", "mask", "split"], rows)
    root = {"splits in both": "new", "table": "table.csv"}.get(layout, "")
    splits = read_task_splits(tmp_path / root, task="segmentation")
    assert (len(splits.train), len(splits.val)) == (6, 2)
    assert splits.train.label_names == ("0", "1", "2")
    held = read_task_set(tmp_path / root, task="segmentation", label_names=("a", "b", "c"))
    assert {s.path for s in held.samples} == {s.path for s in splits.val.samples}
    assert held.label_names == ("a", "b", "c")


def test_black_and_white_masks_are_two_classes_and_said_to_be(tmp_path: Path) -> None:
    splits = read_task_splits(paired(tmp_path, (0, 255)), task="segmentation")
    assert splits.train.label_names == ("0", "1")
    assert "255 is taken for class 1" in splits.notes[0]
    assert ImageDataset(splits.train, SMALL)[0][1].unique().tolist() == [0, 1]


def test_in_other_masks_255_is_no_class(tmp_path: Path) -> None:
    splits = read_task_splits(paired(tmp_path, (0, 1, 255)), task="segmentation")
    assert splits.train.label_names == ("0", "1")
    assert splits.notes == ()
    assert ImageDataset(splits.train, SMALL)[0][1].unique().tolist() == [0, 1, 255]


@pytest.mark.parametrize("mode", ["palette", "two colours", "16 bits"])
def test_a_mask_is_read_by_its_indices(mode: str, tmp_path: Path) -> None:
    values = np.array([[0, 1, 0], [1, 1, 0]], np.uint8)
    image = Image.fromarray(values)
    if mode == "palette":
        image = Image.frombytes("P", image.size, values.tobytes())
        image.putpalette([255, 0, 0, 0, 0, 255])
    elif mode == "two colours":
        image = Image.fromarray(values * 255).convert("1")
    else:
        image = Image.fromarray(values.astype(np.uint16))
    image.save(tmp_path / "mask.png")
    assert np.array_equal(np.asarray(open_mask(tmp_path / "mask.png")), values)


@pytest.mark.parametrize("kind", ["2 bits", "4 bits", "pgm", "plain pgm", "16-bit pgm", "tiff"])
def test_a_mask_of_few_greys_is_read_by_what_is_stored(kind: str, tmp_path: Path) -> None:
    """Pillow scales each of them to all of black and white."""
    file = tmp_path / "mask"
    head = {"pgm": b"P5 4 1 3\n", "plain pgm": b"P2 4 1 3\n", "16-bit pgm": b"P5 4 1 999\n"}
    if kind in head:
        rows = {"plain pgm": b"0 1 2 3\n", "16-bit pgm": bytes([0, 0, 0, 1, 0, 2, 0, 3])}
        file.write_bytes(head[kind] + rows.get(kind, bytes(range(4))))
    elif kind == "tiff":
        file.write_bytes(_tiff_of_4_bits(4, b"\x01\x23"))
    else:
        row = b"\x1b" if kind == "2 bits" else b"\x01\x23"
        file.write_bytes(_grey_png(int(kind[0]), 4, row))
    assert np.asarray(open_mask(file)).tolist() == [[0, 1, 2, 3]]


def _grey_png(bits: int, wide: int, row: bytes) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", wide, 1, bits, 0, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def _tiff_of_4_bits(wide: int, row: bytes) -> bytes:
    # Width, height, bits, no compression, black is 0, place and number of the bytes.
    tags = {256: wide, 257: 1, 258: 4, 259: 1, 262: 1, 273: 8, 278: 1, 279: len(row)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    start = struct.pack("<2sHI", b"II", 42, 12)
    return start + row.ljust(4, b"\0") + struct.pack("<H", len(tags)) + entries + bytes(4)


def test_a_mask_is_cut_where_its_picture_is(tmp_path: Path) -> None:
    """Of a picture in the colours of its mask, nearest neighbours are the same."""
    mask(tmp_path / "mask.png", range(10))
    found = cut_mask(open_mask(tmp_path / "mask.png"), SMALL)
    resized = F.resize(open_mask(tmp_path / "mask.png"), [12], InterpolationMode.NEAREST)
    assert torch.equal(found, F.pil_to_tensor(F.center_crop(resized, [10, 10]))[0])
    wide = cut_mask(open_mask(tmp_path / "mask.png"), fl.Preprocessing(resize=12, crop=(12, 20)))
    assert (wide[:, :2] == 255).all()
    assert (wide[:, 2:18] < 10).all()


def test_views_of_pictures_with_masks_are_refused(tmp_path: Path) -> None:
    from frostline.data import Augment

    splits = read_task_splits(paired(tmp_path), task="segmentation")
    with pytest.raises(fl.ConfigError, match=r"^augment views:2 shows parts of the pictures, and"):
        ImageDataset(splits.train, SMALL, augment=Augment("views", 2))


def _mask_of_another_size(root: Path) -> None:
    mask(paired(root) / "masks" / "3.png", [0, 1], size=(18, 24))


def _unknown_value(root: Path) -> None:
    mask(paired(root) / "masks" / "3.png", [0, 7, 9])
    (root / "classes.txt").write_text("a\nb\nc\n")


def _coloured_mask(root: Path) -> None:
    picture(paired(root) / "masks" / "3.png")


def _lossy_mask(root: Path) -> None:
    (paired(root) / "masks" / "3.png").unlink()
    mask(root / "masks" / "3.jpg", [0, 1])


def _no_mask(root: Path) -> None:
    (paired(root) / "masks" / "3.png").unlink()


def _broken_mask(root: Path) -> None:
    (paired(root) / "masks" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n")


def _no_masks(root: Path) -> None:
    picture(root / "a" / "1.png")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (_mask_of_another_size, r"masks/3\.png is 18 x 24 pixels, but its picture .* is 24 x 18"),
        (_unknown_value, r"masks/3\.png has the values 7, 9, but there are 3 classes: 0 to 2"),
        (_coloured_mask, r"cannot read the mask .*3\.png: it is in colours \(RGB\)"),
        (_lossy_mask, r"cannot read the mask .*3\.jpg: JPEG changes values\. Save masks as PNG"),
        (_no_mask, r"1 pictures have no mask in .*masks: images/3\.png"),
        (_broken_mask, r"cannot read the mask .*3\.png: it is no picture"),
        (_no_masks, r"has no images/ with a masks/ beside it"),
    ],
)
def test_masks_that_do_not_go_are_named(
    make: Callable[[Path], None], told: str, tmp_path: Path
) -> None:
    make(tmp_path)
    with pytest.raises(fl.DataError, match=told) as caught:
        read_task_splits(tmp_path, task="segmentation")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("task", "column", "change", "told"),
    [
        ("regression", "amount", ("1", "heavy"), r"^the target of images/2\.png is 'heavy', not a"),
        ("regression", "amount", ("1", "nan"), r"^the target of images/2\.png is 'nan', not a num"),
        ("regression", "amount", ("1", ""), r"line 4: no amount\. Fill it in"),
        ("regression", "tags", ("1", ""), r"line 2: no tags\. Fill it in"),
        ("regression", "amont", ("1", ""), r"no column amont; it has .*did you mean amount"),
        ("regression", "amount,ood", ("1", ""), r"no column ood; it has .*did you mean odd"),
        ("multilabel", "odd,amount", ("1", "2"), r"^the label amount of images/2\.png is '2'\."),
        ("multilabel", "odd,amount", ("1", ""), r"line 4: no amount\. Fill it in"),
    ],
)
def test_targets_that_do_not_go_are_named(
    task: Any, column: str, change: tuple[str, str], told: str, table: Path
) -> None:
    old, new = change
    table.write_text(table.read_text().replace(f"2.png,{old}.0,", f"2.png,{new},"))
    with pytest.raises(fl.DataError, match=told):
        read_task_splits(table, task=task, label_column=column)


def test_a_label_that_a_run_does_not_know_is_refused(table: Path) -> None:
    with pytest.raises(fl.DataError, match=r"has the label 'b', which the run does not know: it"):
        read_task_set(table, task="multilabel", label_names=("a", "c"), label_column="tags")


def test_a_folder_of_classes_holds_no_numbers(tmp_path: Path) -> None:
    picture(tmp_path / "ants" / "1.png")
    with pytest.raises(fl.DataError, match=r"is a folder without a table, and regression takes"):
        read_task_splits(tmp_path, task="regression")


@pytest.mark.parametrize(
    ("cells", "found"),
    [
        (("0.5", "2"), True),
        (("0.5", "NaN", "n/a"), True),
        (("1", "2"), False),
        (("0.5", "heavy"), False),
        (("nan",), False),
        ((), False),
    ],
)
def test_numbers_with_fractions_are_told_from_classes(cells: tuple[str, ...], found: bool) -> None:
    assert hold_fractions(cells) is found


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([f"{n},5" for n in range(20)], r"holds numbers with fractions, but for 0,5, .* a dot"),
        ([*(f"{n}.5" for n in range(19)), "12.5 um"], "but for 12.5 um. Correct these"),
    ],
)
def test_numbers_that_are_not_read_are_not_taken_for_classes(
    tmp_path: Path, cells: list[str], message: str
) -> None:
    rows = [(f"{n}.png", cell) for n, cell in enumerate(cells)]
    for name, _ in rows:
        picture(tmp_path / name)
    with pytest.raises(fl.DataError, match=message):
        likely_task(write(tmp_path / "sizes.csv", ["file", "size"], rows), label_column="size")


def test_classes_may_be_called_as_numbers(tmp_path: Path) -> None:
    rows = [(f"{n}.png", f"v{n % 12}.5" if n % 3 else str(n)) for n in range(40)]
    for name, _ in rows:
        picture(tmp_path / name)
    table = write(tmp_path / "classes.csv", ["file", "kind"], rows)
    assert likely_task(table, label_column="kind") == ("classification", "")


def test_several_columns_of_words_are_no_numbers(table: Path) -> None:
    with pytest.raises(fl.DataError, match=r"odd,tags hold 'a'\. Name the columns of numbers"):
        likely_task(table, label_column="odd,tags")


def test_lists_of_json_are_lists(table: Path) -> None:
    rows = [(f"images/{n}.png", '["a", "b"]' if n % 2 else '["b"]') for n in range(10)]
    path = write(table.parent / "json.csv", ["file", "tags"], rows)
    assert likely_task(path, label_column="tags")[0] == "multilabel"
    splits = read_task_splits(path, task="multilabel", label_column="tags")
    assert splits.names == ("a", "b")
    assert {tuple(item.target) for item in splits.train.samples} == {(0.0, 1.0), (1.0, 1.0)}


def test_commas_between_labels_are_refused_where_nothing_else_divides(table: Path) -> None:
    rows = [(f"images/{n}.png", "red, round" if n % 2 else "red") for n in range(10)]
    path = write(table.parent / "commas.csv", ["file", "tags"], rows)
    with pytest.raises(fl.DataError, match=r"holds 'red, round', and no \| or ; anywhere"):
        read_task_splits(path, task="multilabel", label_column="tags")
