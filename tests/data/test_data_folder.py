from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frostline.data import ImageSet, Splits, read_set, read_splits
from frostline.data.division import hold_out, hold_out_fold
from frostline.data.listing import Found, natural
from frostline.errors import ConfigError, DataError

MakeFolder = Callable[[dict[str, int]], Path]


def keys(images: ImageSet | None, root: Path) -> list[str]:
    assert images is not None
    return [sample.path.relative_to(root).as_posix() for sample in images.samples]


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_train_and_val_folders_are_the_splits(make_folder: MakeFolder, val: str) -> None:
    root = make_folder({"train/bees": 3, "train/ants": 2, f"{val}/ants": 1, f"{val}/bees": 1})
    splits = read_splits(root)
    assert splits.train.classes == splits.val.classes == ("ants", "bees")
    assert splits.train.counts == {"ants": 2, "bees": 3}
    assert keys(splits.val, root) == [f"{val}/ants/0.png", f"{val}/bees/0.png"]
    assert splits.test is None
    assert splits.how == f"train/ and {val}/ folders"


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (("0", "1", "2", "10", "11"), ("0", "1", "2", "10", "11")),
        (("1", "02", "10", "b"), ("02", "1", "10", "b")),
    ],
)
def test_names_are_counted_as_numbers_where_all_are(
    tmp_path: Path, names: tuple[str, ...], order: tuple[str, ...]
) -> None:
    for name in names:
        for index in range(3):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"{index}.png").touch()
    splits = read_splits(tmp_path)
    for part in (splits.train, splits.val):
        assert part.classes == order
        assert all(order[s.label] == s.path.parent.name for s in part.samples)
        assert [s.label for s in part.samples] == sorted(s.label for s in part.samples)
    recorded = tuple(sorted(names))
    assert read_splits(tmp_path, classes=recorded).train.classes == recorded
    assert read_splits(tmp_path, classes=("a", "b")).train.classes == order


def test_test_folder_serves_as_validation_set_where_there_is_no_other(
    make_folder: MakeFolder,
) -> None:
    root = make_folder({"train/a": 2, "train/b": 2, "test/a": 1, "test/b": 1})
    splits = read_splits(root)
    assert keys(splits.val, root) == ["test/a/0.png", "test/b/0.png"]
    assert splits.test is None
    assert splits.how == "train/ and test/ folders"


def test_test_folder_is_kept_apart_from_val(make_folder: MakeFolder) -> None:
    root = make_folder(
        {f"{split}/{name}": 1 for split in ("train", "val", "test") for name in "ab"}
    )
    splits = read_splits(root)
    assert keys(splits.test, root) == ["test/a/0.png", "test/b/0.png"]
    assert splits.how == "train/ and val/ folders, test/ kept apart"


def test_class_that_only_val_has_is_carried_along(make_folder: MakeFolder) -> None:
    root = make_folder({"train/a": 1, "train/b": 1, "val/a": 1, "val/c": 2})
    splits = read_splits(root)
    assert splits.train.classes == splits.val.classes == ("a", "b")
    assert len(splits.val) == 1
    (unknown,) = splits.unknown
    assert (unknown.split, unknown.name, len(unknown.paths)) == ("val", "c", 2)


def test_one_folder_of_classes_is_split_stratified(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 20, "b": 10, "c": 2, "d": 1})
    splits = read_splits(root)
    assert splits.val.counts == {"a": 4, "b": 2, "c": 1, "d": 0}
    assert splits.train.counts == {"a": 16, "b": 8, "c": 1, "d": 1}
    assert splits.how == "20 % of each class held out (seed 0)"


def test_train_folder_alone_is_split(make_folder: MakeFolder) -> None:
    root = make_folder({"train/a": 4, "train/b": 4})
    splits = read_splits(root, val_fraction=0.25, seed=7)
    assert splits.val.counts == {"a": 1, "b": 1}
    assert splits.how == "25 % of each class of train/ held out (seed 7)"


def test_split_stays_when_the_folder_moves(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder({"a": 20, "b": 20})
    moved = tmp_path / "elsewhere" / "other name"
    shutil.copytree(root, moved)
    assert keys(read_splits(root).val, root) == keys(read_splits(moved).val, moved)


def test_split_does_not_depend_on_listing_order(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder({"a": 20, "b": 20})
    before = read_splits(root)
    plain = os.scandir

    class Backwards:
        def __init__(self, path: Path) -> None:
            self._entries = list(plain(path))[::-1]

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self._entries

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(os, "scandir", Backwards)
    assert read_splits(root) == before


def test_other_seed_holds_out_other_images(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 20, "b": 20})
    assert read_splits(root, seed=1).val != read_splits(root, seed=2).val


def test_folds_divide_the_images(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 7, "b": 5, "c": 2})
    folds = [read_splits(root, folds=3, fold=fold) for fold in range(3)]
    held = [key for splits in folds for key in keys(splits.val, root)]
    assert sorted(held) == sorted(keys(folds[0].train, root) + keys(folds[0].val, root))
    assert len(set(held)) == 14
    assert folds[1].how == "fold 1 of 3 held out, from 0 (seed 0)"


names = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 999)), min_size=1, unique=True)


def found(pairs: list[tuple[str, int]]) -> list[Found]:
    return [Found(Path(f"{name}/{n}"), name, f"{name}/{n}") for name, n in pairs]


@given(names, st.floats(0.01, 0.99), st.integers(0, 9))
def test_held_out_part_leaves_some_of_each_class_on_both_sides(
    pairs: list[tuple[str, int]], fraction: float, seed: int
) -> None:
    items = found(pairs)
    held = hold_out(items, fraction=fraction, seed=seed)
    for name in {item.name for item in items}:
        members = {index for index, item in enumerate(items) if item.name == name}
        if len(members) == 1:
            assert not members & held
        else:
            assert 0 < len(members & held) < len(members)


@given(names, st.integers(2, 6), st.integers(0, 9))
def test_folds_are_a_balanced_partition(
    pairs: list[tuple[str, int]], folds: int, seed: int
) -> None:
    items = found([*pairs, *((name, n + 1000) for name, n in pairs)])
    if folds > len(items):
        return
    parts = [hold_out_fold(items, folds=folds, fold=fold, seed=seed) for fold in range(folds)]
    assert sorted(index for part in parts for index in part) == list(range(len(items)))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


@given(st.lists(st.text(max_size=8)))
def test_natural_order_takes_any_names(texts: list[str]) -> None:
    backwards = texts[::-1]
    assert sorted(texts, key=natural) == sorted(backwards, key=natural)


def test_natural_order_counts_numbers_as_numbers() -> None:
    assert sorted(["b1", "a10", "a9", "a"], key=natural) == ["a", "a9", "a10", "b1"]


def test_samples_come_in_natural_order(tmp_path: Path, make_image: Callable[..., Path]) -> None:
    for name in ("img10.png", "img2.png", "img1.png"):
        make_image(tmp_path / "a" / name)
    make_image(tmp_path / "b" / "x.png")
    found = read_set(tmp_path, classes=["a", "b"])
    assert [sample.path.name for sample in found.samples] == [
        "img1.png", "img2.png", "img10.png", "x.png",
    ]  # fmt: skip


def test_nested_folders_count_and_leftovers_do_not(
    make_folder: MakeFolder, make_image: Callable[..., Path]
) -> None:
    root = make_folder({"train/a": 1, "train/b": 1, "val/a": 1, "val/b": 1})
    make_image(root / "train/a/deep/er/x.JPG")
    for junk in (".hidden.png", "Thumbs.db", ".DS_Store", "desktop.ini"):
        (root / "train/a" / junk).touch()
    for folder in (".git", "__MACOSX"):
        make_image(root / "train" / folder / "x.png")
    (root / "train/a/notes.TXT").touch()
    (root / "README.md").touch()
    splits = read_splits(root)
    assert keys(splits.train, root) == ["train/a/0.png", "train/a/deep/er/x.JPG", "train/b/0.png"]
    assert [path.name for path in splits.train.ignored] == ["README.md", "notes.TXT"]


def test_loop_of_links_ends(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 2, "b": 2})
    (root / "a" / "again").symlink_to(root / "a", target_is_directory=True)
    (root / "a" / "up").symlink_to(root, target_is_directory=True)
    (root / "a" / "self").symlink_to(root / "a" / "self")
    found = read_set(root, classes=["a", "b"])
    assert (
        len({sample.path for sample in found.samples if sample.label == 0}) == 4
    )  # a, and b by up
    assert [path.name for path in found.ignored] == ["self"]


def test_linked_class_folder_is_read(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 2, "b": 2})
    (root / "c").symlink_to(root / "b", target_is_directory=True)
    assert read_set(root, classes=["a", "b", "c"]).counts == {"a": 2, "b": 2, "c": 2}


def test_dangling_link_stays_for_the_audit_to_name(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 1, "b": 1})
    (root / "a" / "gone.jpg").symlink_to(root / "nowhere.jpg")
    assert len(read_set(root, classes=["a", "b"])) == 3


def test_accents_are_one_class_however_they_are_stored(
    tmp_path: Path, make_image: Callable[..., Path]
) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    make_image(tmp_path / "train" / composed / "1.png")
    make_image(tmp_path / "train" / "tea" / "1.png")
    make_image(tmp_path / "val" / decomposed / "1.png")
    splits = read_splits(tmp_path)
    assert splits.unknown == ()
    assert splits.val.counts == {composed: 1, "tea": 0}


def test_empty_class_folder_stays_a_class(make_folder: MakeFolder) -> None:
    assert read_splits(make_folder({"a": 3, "b": 3, "empty": 0})).train.counts["empty"] == 0


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ({}, r"the folder .*set is empty\..*expected one folder per class: ants/1.jpg"),
        ({"": 3}, r"the 3 images in .*set lie flat.*expected one folder per class.*file,label"),
        ({"a": 0, "b": 0}, r"no images in .*set: its 2 folders \(a, b\) hold none"),
        ({"val/a": 1}, r"has val/ but no train/\. Add train/"),
        ({"val/a": 1, "test/a": 1}, r"has test/ but no train/"),
        ({"train/a": 1, "val/a": 1, "valid/a": 1}, r"both val/ and valid/ for the val split"),
        ({"a": 1, "b": 1, "test/a": 1}, r"has a/ both beside and inside test/\. Put all classes"),
        ({"train": 2, "val": 2}, r"the 2 images in .*train lie flat"),
        ({"a": 1, "b": 1}, r"no class with 2 or more images, so none can be held out"),
    ],
)
def test_folder_that_is_no_data_set_is_refused(
    make_folder: MakeFolder, folders: dict[str, int], message: str
) -> None:
    root = make_folder(folders)
    root.mkdir(exist_ok=True)
    with pytest.raises(DataError, match=message):
        read_splits(root)


# As archives unpack


def classes_in(*folders: str) -> dict[str, int]:
    return {f"{folder}/{name}": 3 for folder in folders for name in ("cats", "dogs")}


@pytest.mark.parametrize(
    ("folders", "how"),
    [
        (classes_in("training_set", "test_set"), "training_set/ and test_set/ folders"),
        (classes_in("seg_train/seg_train", "seg_test"), "seg_train/ and seg_test/ folders"),
        (classes_in("trainData", "TestData"), "trainData/ and TestData/ folders"),
        (classes_in("TRAIN", "Valid", "Test"), "TRAIN/ and Valid/ folders, Test/ kept apart"),
        (classes_in("Training", "Testing"), "Training/ and Testing/ folders"),
        (classes_in("dataset/train", "dataset/val"), "train/ and val/ folders"),
        (classes_in("a/b/c/train2017", "a/b/c/val2017"), "train2017/ and val2017/ folders"),
    ],
)
def test_split_folders_are_known_by_any_of_their_names(
    make_folder: MakeFolder, folders: dict[str, int], how: str
) -> None:
    root = make_folder({**folders, "__MACOSX/train/cats": 1})
    splits = read_splits(root)
    assert splits.how == how
    assert splits.train.counts == {"cats": 3, "dogs": 3}
    assert len(splits.val) == 6
    assert splits.notes == ()
    assert len(read_set(root, classes=["cats", "dogs"])) == 6


@pytest.mark.parametrize(
    "names", [("train station", "test tube"), ("train", "bus"), ("tested", "b")]
)
def test_classes_that_hold_a_word_of_splits_stay_classes(
    make_folder: MakeFolder, names: tuple[str, str]
) -> None:
    splits = read_splits(make_folder(dict.fromkeys(names, 3)))
    assert splits.train.classes == tuple(sorted(names))
    assert splits.notes == ()


@pytest.mark.parametrize(
    ("folders", "how"),
    [
        ({"Plants/a": 3, "Plants/b": 3}, "20 % of each class of Plants/ held out (seed 0)"),
        (
            {"birds/images/a": 3, "birds/images/b": 3, "birds/attributes": 0, "birds/parts": 0},
            "20 % of each class of images/ held out (seed 0)",
        ),
    ],
)
def test_the_one_folder_that_holds_pictures_is_entered(
    make_folder: MakeFolder, folders: dict[str, int], how: str
) -> None:
    root = make_folder(folders)
    splits = read_splits(root)
    assert (splits.how, splits.train.classes) == (how, ("a", "b"))
    assert keys(splits.val, root) == keys(
        read_splits(splits.train.samples[0].path.parents[1]).val, root
    )


@pytest.mark.parametrize(
    ("folders", "note"),
    [
        (
            {**classes_in("train"), "test": 2},
            r"test holds 2 pictures and no class folders: not used",
        ),
        (
            {**classes_in("train"), "unlabelled": 2},
            r"unlabelled in .*: not used, as its other folders are the splits",
        ),
        (
            {"cats": 3, "dogs": 3, "test_set": 2},
            r"test_set in .*: not used, as by its name it is no class",
        ),
    ],
)
def test_pictures_without_class_folders_are_left_out_and_named(
    make_folder: MakeFolder, folders: dict[str, int], note: str
) -> None:
    splits = read_splits(make_folder(folders))
    assert splits.train.counts == {"cats": 2, "dogs": 2}
    assert splits.val.counts == {"cats": 1, "dogs": 1}
    (said,) = splits.notes
    assert re.search(note, said)


def test_folders_that_hold_the_same_folders_are_classes_with_a_note(
    make_folder: MakeFolder,
) -> None:
    splits = read_splits(make_folder(classes_in("color", "grayscale")))
    assert splits.train.classes == ("color", "grayscale")
    (said,) = splits.notes
    assert re.search(r"each holds the folders cats, dogs.* give one folder: .*/color\.", said)


def test_a_table_beside_class_folders_is_named(make_folder: MakeFolder) -> None:
    root = make_folder({"part_1": 3, "part_2": 3})
    (root / "labels.csv").write_text("file,label\n")
    splits = read_splits(root)
    assert splits.train.ignored == ()
    (said,) = splits.notes
    assert re.search(r"labels.csv in .*: not used.* give it: .*labels.csv", said)


def test_classes_that_differ_in_capitals_only_are_named(make_folder: MakeFolder) -> None:
    (said,) = read_splits(make_folder({"Ant": 3, "ant": 3, "bee": 3})).notes
    assert "the classes 'Ant' and 'ant' differ in capitals only and count as 2" in said


@pytest.mark.parametrize(
    ("folders", "inside", "message"),
    [
        (
            {"cats": 3, "dogs": 3},
            "cats",
            r"If cats is one class of several, give .* above: .*set\.",
        ),
        (
            {"images/train": 3, "labels/train": 0},
            "",
            r"set has images/ and labels/, as sets for det",
        ),
        ({"images/train": 3, "labels/train": 0}, "images/train", r"set has images/ and labels/"),
        ({"train/images": 3, "train/labels": 0, "val/images": 3}, "", r"train has images/ and lab"),
        ({"images": 3, "masks": 3}, "", r"images/ and masks/, as sets for detection or segm"),
        ({"trainA": 3, "testA": 3, "trainB": 3, "testB": 3}, "", r"is divided in several ways: "),
    ],
)
def test_pictures_without_classes_are_refused_with_what_they_may_be(
    make_folder: MakeFolder, folders: dict[str, int], inside: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_splits(make_folder(folders) / inside)


def test_classes_in_the_names_of_flat_pictures_are_named(
    tmp_path: Path, make_image: Callable[..., Path]
) -> None:
    for name in ("cat.0.png", "cat.1.png", "dog_1.png", "dog_2.png"):
        make_image(tmp_path / "train" / name)
    with pytest.raises(DataError, match=r"Their names begin with cat \(2\), dog \(2\)\. If these"):
        read_splits(tmp_path)


@pytest.mark.parametrize("folder", ["images", "train"])
def test_a_table_beside_flat_pictures_is_to_be_given(make_folder: MakeFolder, folder: str) -> None:
    root = make_folder({folder: 3})
    (root / "labels.csv").write_text("id,breed\n")
    with pytest.raises(DataError, match=r"give it: .*set/labels.csv\."):
        read_splits(root)


def test_columns_of_a_folder_are_refused(make_folder: MakeFolder) -> None:
    with pytest.raises(
        DataError, match=r"asked for columns of a table, and .* is a folder without"
    ):
        read_splits(make_folder({"a": 2, "b": 2}), label_column="dx")


def test_folder_of_other_files_is_refused_by_naming_them(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"no class folders in .*, only notes.txt\. Check the path"):
        read_splits(tmp_path)


def test_missing_path_names_the_nearest(make_folder: MakeFolder) -> None:
    root = make_folder({"hymenoptera/a": 1})
    asked = root / "hymenoptra" / "train"
    with pytest.raises(DataError, match=r"hymenoptra does not exist\. Nearest: .*hymenoptera\."):
        read_splits(asked)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("set.zip", "neither a folder nor a table. Unpack it first"),
        ("photo.jpg", r"neither a folder nor a table. Give a folder \(expected one folder"),
    ],
)
def test_file_that_is_no_table_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match=message):
        read_splits(tmp_path / name)


def test_unreadable_folder_is_refused(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder({"a": 2, "b": 2})

    def locked(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(DataError, match=r"cannot read the folder .*: Permission denied. Check its"):
        read_splits(root)


def test_path_below_a_locked_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locked(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "exists", locked)
    with pytest.raises(DataError, match=r"cannot look at .*: Permission denied"):
        read_splits(tmp_path)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"val_fraction": 0.0}, ConfigError, "asked to hold out 0 of each class. Use a fraction"),
        ({"val_fraction": 1.0}, ConfigError, "asked to hold out 1 of each class"),
        ({"folds": 1}, ConfigError, "asked for fold 0 of 1. Use 2 or more folds"),
        ({"folds": 3, "fold": 3}, ConfigError, "asked for fold 3 of 3"),
        ({"fold": 1}, ConfigError, "asked for fold 1 without folds"),
        ({"folds": 99}, DataError, "asked for 99 folds of 9 images. Use fewer"),
        (
            {"folds": 2},
            DataError,
            "class 'c' has a single one of the images, so one of",
        ),
    ],
)
def test_impossible_division_is_refused(
    make_folder: MakeFolder,
    options: dict[str, float],
    error: type[Exception],
    message: str,
) -> None:
    root = make_folder({"a": 4, "b": 4, "c": 1})
    with pytest.raises(error, match=message):
        read_splits(root, **options)  # type: ignore[arg-type]  # floats and ints by name


def test_folds_of_a_divided_set_are_refused(make_folder: MakeFolder) -> None:
    root = make_folder({"train/a": 2, "val/a": 2})
    with pytest.raises(DataError, match=r"asked for 5 folds, but .* divided already \(train/ and"):
        read_splits(root, folds=5)


def test_labels_of_a_set_follow_the_classes_of_the_run(make_folder: MakeFolder) -> None:
    root = make_folder({"ants": 1, "bees": 2})
    found = read_set(root, classes=["bees", "wasps", "ants"])
    assert found.classes == ("bees", "wasps", "ants")
    assert [sample.label for sample in found.samples] == [0, 0, 2]


def test_evaluation_prefers_test_then_val_and_never_reads_train(make_folder: MakeFolder) -> None:
    root = make_folder({"train/a": 3, "val/a": 2, "test/a": 1})
    assert keys(read_set(root, classes=["a", "b"]), root) == ["test/a/0.png"]
    shutil.rmtree(root / "test")
    assert len(read_set(root, classes=["a", "b"])) == 2
    shutil.rmtree(root / "val")
    with pytest.raises(DataError, match=r"has train/ only. Evaluate on a test/ or val/ folder"):
        read_set(root, classes=["a", "b"])


def test_unknown_class_in_evaluation_names_the_nearest(make_folder: MakeFolder) -> None:
    root = make_folder({"ant": 1, "bees": 1})
    with pytest.raises(
        DataError, match=r"does not know: 'ant' \(nearest: ants.*The run knows ants, bees\. Rename"
    ):
        read_set(root, classes=["ants", "bees"])


def test_real_photos_are_read(photos: Path) -> None:
    splits = read_splits(photos)
    assert splits.train.counts == {"ants": 123, "bees": 121}
    assert len(splits.val) == 153
    assert isinstance(splits, Splits)
    assert splits.train.ignored == ()
