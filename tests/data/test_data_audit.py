from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import xxhash

from frostline.data import Audit, audit, read_splits
from frostline.errors import ConfigError, DataError

MakeFolder = Callable[[dict[str, int]], Path]
GOOD = {"train/ants": 6, "train/bees": 6, "val/ants": 2, "val/bees": 2}


def codes(result: Audit) -> list[str]:
    return [finding.code for finding in result.findings]


def message(result: Audit, code: str) -> str:
    (finding,) = [finding for finding in result.findings if finding.code == code]
    assert finding.level == "warning"
    return finding.message


def test_good_data_give_no_findings_and_a_digest_for_each_file(make_folder: MakeFolder) -> None:
    splits = read_splits(make_folder(GOOD))
    result = audit(splits, bad_images="error")
    assert result.splits == splits
    assert result.findings == ()
    assert len(result.digests) == 16
    for path, digest in result.digests.items():
        assert digest == xxhash.xxh3_128_hexdigest(path.read_bytes())


def test_progress_counts_every_image_in_the_calling_thread(make_folder: MakeFolder) -> None:
    calls = []
    audit(
        read_splits(make_folder(GOOD)),
        bad_images="skip",
        progress=lambda done, total: calls.append((done, total, threading.current_thread())),
    )
    assert calls == [(done, 16, threading.current_thread()) for done in range(1, 17)]


def test_threads_end_when_progress_fails(make_folder: MakeFolder) -> None:
    def interrupt(done: int, _: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        audit(read_splits(make_folder(GOOD)), bad_images="skip", threads=4, progress=interrupt)
    assert threading.active_count() == before


def test_broken_images_are_skipped_with_a_warning(make_folder: MakeFolder) -> None:
    root = make_folder({**GOOD, "train/ants": 19})
    for index in range(12):
        (root / "train/ants" / f"{index}.png").write_bytes(b"")
    result = audit(read_splits(root), bad_images="skip")
    assert result.splits.train.counts == {"ants": 7, "bees": 6}
    assert len(result.digests) == 17
    text = message(result, "broken-image")
    assert text.startswith("12 images cannot be read and will be left out:")
    assert text.count("it has zero bytes") == 10
    assert text.endswith("and 2 more")


def test_broken_image_is_an_error_where_asked(make_folder: MakeFolder) -> None:
    root = make_folder(GOOD)
    (root / "val/bees/0.png").write_bytes(b"text")
    with pytest.raises(
        DataError, match=r"1 image cannot be read\. Repair or remove(.|\n)*bees/0.png: it is not an"
    ):
        audit(read_splits(root), bad_images="error")


def test_all_errors_come_in_one_message(make_folder: MakeFolder) -> None:
    root = make_folder({"train/ants": 2, "train/none": 0, "val/ants": 1, "val/wasps": 2})
    (root / "val/ants/0.png").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        audit(read_splits(root), bad_images="error")
    text = str(caught.value)
    assert text.startswith("the data set cannot be trained on, for 4 reasons:\n- 1 image cannot")
    assert "the val split has the class 'wasps' (2 images), which the train split lacks" in text
    assert "no usable training images of none. Add images" in text
    assert "no usable image is left to validate on (train/ and val/ folders)" in text


def test_single_class_is_an_error(make_folder: MakeFolder) -> None:
    with pytest.raises(DataError, match=r"nothing to tell apart: found 1 class \(ants\)"):
        audit(read_splits(make_folder({"ants": 6})), bad_images="skip")


def test_class_whose_images_are_all_broken_is_an_error(make_folder: MakeFolder) -> None:
    root = make_folder(GOOD)
    for path in (root / "train/bees").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="no usable training images of bees") as caught:
        audit(read_splits(root), bad_images="skip")
    assert "bees/0.png: it has zero bytes" in str(caught.value)
    assert "train/bees/0.png: it has zero bytes" in str(caught.value)


def test_reasons_are_told_where_no_image_of_a_class_can_be_read(make_folder: MakeFolder) -> None:
    root = make_folder({**GOOD, "train/ants": 19})
    for path in [*(root / "train").rglob("*.png")]:
        if path.parent.name == "bees" or path.stem != "7":
            path.write_bytes(b"")
    with pytest.raises(
        DataError, match=r"no usable training images of bees.*\n.*bees/.*zero bytes"
    ):
        audit(read_splits(root), bad_images="skip")


@pytest.mark.parametrize("options", [{"val_fraction": 0.5}, {"folds": 3, "fold": 1}])
def test_the_held_out_part_is_drawn_among_what_can_be_read(
    make_folder: MakeFolder, options: dict[str, float]
) -> None:
    root = make_folder({"ants": 12, "bees": 12})
    before = read_splits(root, **options)  # type: ignore[arg-type]  # numbers by name
    for sample in before.val.samples[::2]:
        sample.path.write_bytes(b"")
    found = audit(before, bad_images="skip").splits
    assert len(found.train) + len(found.val) == 24 - len(before.val.samples[::2])
    for sample in before.val.samples[::2]:
        sample.path.unlink()
    assert found == read_splits(root, **options)  # type: ignore[arg-type]  # numbers by name


def test_a_part_that_was_given_is_not_drawn(make_folder: MakeFolder) -> None:
    root = make_folder(GOOD)
    (root / "val/ants/0.png").write_bytes(b"")
    found = audit(read_splits(root), bad_images="skip").splits
    assert (len(found.train), len(found.val)) == (12, 3)


def test_what_was_said_in_reading_is_a_finding(make_folder: MakeFolder) -> None:
    result = audit(read_splits(make_folder({"Ants": 8, "ants": 8})), bad_images="skip")
    assert "differ in capitals only" in message(result, "layout")


def test_pictures_beside_the_class_folders_are_reported(make_folder: MakeFolder) -> None:
    result = audit(read_splits(make_folder({**GOOD, "train": 2})), bad_images="skip")
    assert "left out 2 pictures beside the class folders: " in message(result, "no-class")


def test_unknown_class_in_test_is_an_error(make_folder: MakeFolder) -> None:
    root = make_folder({**GOOD, "test/moths": 1})
    with pytest.raises(DataError, match=r"the test split has the class 'moths' \(1 image\)"):
        audit(read_splits(root), bad_images="skip")


def test_class_that_val_lacks_is_a_warning(make_folder: MakeFolder) -> None:
    root = make_folder({"train/ants": 6, "train/bees": 6, "val/ants": 2})
    result = audit(read_splits(root), bad_images="skip")
    assert "no validation images of bees" in message(result, "class-not-in-val")


def test_few_images_are_a_warning(make_folder: MakeFolder) -> None:
    result = audit(read_splits(make_folder({**GOOD, "train/ants": 4})), bad_images="skip")
    assert "fewer than 5 training images of ants (4)" in message(result, "few-images")


@pytest.mark.parametrize(("count", "reported"), [(50, False), (51, True)])
def test_imbalance_beyond_ten_to_one_is_a_warning(
    make_folder: MakeFolder, count: int, reported: bool
) -> None:
    root = make_folder({**GOOD, "train/ants": count, "train/bees": 5})
    result = audit(read_splits(root), bad_images="skip")
    assert ("imbalance" in codes(result)) is reported
    if reported:
        assert "ants has 51 training images, bees 5" in message(result, "imbalance")


@pytest.mark.parametrize("held_out", ["val", "test"])
def test_image_on_both_sides_is_a_warning_that_names_the_pair(
    make_folder: MakeFolder, held_out: str
) -> None:
    root = make_folder({**GOOD, "test/ants": 2, "test/bees": 2})
    shutil.copy(root / "train/ants/3.png", root / held_out / "ants/copy.png")
    text = message(audit(read_splits(root), bad_images="skip"), f"train-{held_out}-overlap")
    assert f"1 image of the {held_out} split is in the train split as well" in text
    assert f"{root / 'train/ants/3.png'} = {root / held_out / 'ants/copy.png'}" in text


def test_same_image_under_two_labels_is_a_warning(make_folder: MakeFolder) -> None:
    root = make_folder(GOOD)
    shutil.copy(root / "train/ants/3.png", root / "train/bees/copy.png")
    text = message(audit(read_splits(root), bad_images="skip"), "label-conflict")
    assert "1 image is in the train split under different labels" in text
    assert f"{root / 'train/ants/3.png'} = {root / 'train/bees/copy.png'}" in text


def test_same_image_twice_under_one_label_is_no_finding(make_folder: MakeFolder) -> None:
    root = make_folder(GOOD)
    shutil.copy(root / "train/ants/3.png", root / "train/ants/copy.png")
    assert audit(read_splits(root), bad_images="skip").findings == ()


def test_files_that_are_no_images_are_reported(make_folder: MakeFolder) -> None:
    root = make_folder(GOOD)
    (root / "train/ants/clip.mp4").touch()
    text = message(audit(read_splits(root), bad_images="skip"), "not-images")
    assert "left out 1 entry that is no image by name: " in text
    assert "clip.mp4" in text


def test_findings_come_worst_first(make_folder: MakeFolder) -> None:
    root = make_folder({**GOOD, "train/ants": 3})
    (root / "train/bees/0.png").write_bytes(b"")
    (root / "train/bees/notes.txt").touch()
    shutil.copy(root / "train/ants/1.png", root / "val/ants/copy.png")
    found = codes(audit(read_splits(root), bad_images="skip"))
    assert found == ["broken-image", "train-val-overlap", "few-images", "not-images"]


def test_impossible_number_of_threads_is_refused(make_folder: MakeFolder) -> None:
    with pytest.raises(ConfigError, match=r"asked for 0 threads. Use 1 or more"):
        audit(read_splits(make_folder(GOOD)), bad_images="skip", threads=0)


def test_real_photos_are_good(photos: Path) -> None:
    splits = read_splits(photos)
    few = replace(splits, train=replace(splits.train, samples=splits.train.samples[::8]))
    result = audit(few, bad_images="error", threads=2)
    assert "broken-image" not in codes(result)
    assert len(result.digests) == len(few.train) + len(few.val)
