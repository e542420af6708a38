"""Links and folders of others in a store are never written, deleted or followed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from made_rows import assert_holds, batch, files_of, fill, opened, row_ids

from frostline import OutputError, StoreError
from frostline.store import FeatureStore

NUMBERS = range(8)
SEGMENT = "segment-" + "a" * 16


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in files_of(folder)}


def everything_done(root: Path) -> None:
    """All that a store does to its files."""
    store = FeatureStore(root)
    fill(opened(root), NUMBERS)
    assert_holds(opened(root), NUMBERS)
    with opened(root).writer():  # and one that leaves nothing behind
        pass
    store.ls()
    store.verify()
    store.prune(damaged=True)
    store.prune(max_bytes=0)


def foreign(folder: Path) -> Path:
    """A folder of somebody's, with names that the store has too."""
    folder.mkdir(parents=True)
    for name in ("notes.txt", "rows", "claims", "value0.npy", "writer.lock", "manifest.json"):
        (folder / name).write_text(f"my {name}")
    return folder


@pytest.mark.parametrize("name", ["segment-backup", "segment-", SEGMENT])
def test_a_foreign_folder_named_like_a_segment_stays_as_it_is(tmp_path: Path, name: str) -> None:
    mine = foreign(opened(tmp_path).path / name)
    before = contents(mine)
    fill(opened(tmp_path), NUMBERS)
    with opened(tmp_path).writer():
        pass
    assert_holds(opened(tmp_path), NUMBERS)
    assert contents(mine) == before


@pytest.mark.parametrize("name", [".removed-photos", ".removed-" + "a" * 32])
def test_a_foreign_folder_named_like_a_removed_key_stays(tmp_path: Path, name: str) -> None:
    mine = foreign(tmp_path / name)
    before = contents(mine)
    everything_done(tmp_path)
    assert contents(mine) == before


def test_what_lies_in_a_pruned_key_and_is_not_the_stores_stays(tmp_path: Path) -> None:
    fill(opened(tmp_path), NUMBERS)
    path = opened(tmp_path).path
    segment = next(path.glob("segment-*"))
    for folder in (path, segment):
        (folder / "notes.txt").write_text("mine")
    foreign(path / "segment-backup")
    assert len(FeatureStore(tmp_path).prune(max_bytes=0)) == 1
    left = {name for name, text in contents(path).items() if text}
    backup = {name for name in left if name.startswith("segment-backup")}
    assert len(backup) == 6
    assert left - backup == {"notes.txt", f"{segment.name}/notes.txt"}
    fill(opened(tmp_path), NUMBERS)
    assert_holds(opened(tmp_path), NUMBERS)


def test_a_folder_with_the_name_of_a_key_and_nothing_of_the_store_stays(tmp_path: Path) -> None:
    mine = tmp_path / ("5" * 32)
    mine.mkdir()
    (mine / "photo.png").write_text("mine")
    everything_done(tmp_path)
    assert contents(mine) == {"photo.png": b"mine"}


def link_segment(path: Path, outside: Path) -> None:
    (path / SEGMENT).symlink_to(outside, target_is_directory=True)


def link_file(name: str) -> Callable[[Path, Path], None]:
    def link(path: Path, outside: Path) -> None:
        (path / SEGMENT).mkdir()
        (path / SEGMENT / name).symlink_to(outside / name)

    return link


def link_hard(path: Path, outside: Path) -> None:
    (path / SEGMENT).mkdir()
    (path / SEGMENT / "value0.npy").hardlink_to(outside / "value0.npy")


def link_to_nothing(path: Path, outside: Path) -> None:
    (path / SEGMENT).mkdir()
    (path / SEGMENT / "writer.lock").symlink_to(outside / "made")


@pytest.mark.parametrize(
    "link",
    [link_segment, *map(link_file, ("rows", "value0.npy", "claims")), link_hard, link_to_nothing],
)
def test_a_link_in_a_key_changes_nothing_outside_and_harms_no_row(
    tmp_path: Path, link: Callable[[Path, Path], None]
) -> None:
    root, outside = tmp_path / "store", foreign(tmp_path / "outside")
    before = contents(outside)
    fill(opened(root), NUMBERS[:4])
    link(opened(root).path, outside)
    fill(opened(root), NUMBERS)
    assert_holds(opened(root), NUMBERS)
    everything_done(root)
    assert contents(outside) == before


@pytest.mark.parametrize("name", ["manifest.json", "in-use.lock", "turn.lock", ""])
def test_a_key_that_is_a_link_or_holds_one_of_its_files_as_one_is_refused(
    tmp_path: Path, name: str
) -> None:
    root, outside = tmp_path / "store", foreign(tmp_path / "outside")
    (outside / "in-use.lock").write_text("mine")
    before = contents(outside)
    path = opened(root).path
    linked = path / name if name else path
    linked.parent.mkdir(parents=True)
    linked.symlink_to(outside / name if name else outside)
    with pytest.raises(StoreError, match=r"is a link, and a store follows none.*delete the link"):
        opened(root)
    store = FeatureStore(root)
    store.ls()
    store.verify()
    store.prune(max_bytes=0)
    store.prune(damaged=True)
    assert contents(outside) == before
    linked.unlink(missing_ok=True)
    fill(opened(root), NUMBERS)
    assert_holds(opened(root), NUMBERS)


def test_a_link_named_like_a_removed_key_is_left_alone(tmp_path: Path) -> None:
    root, outside = tmp_path / "store", foreign(tmp_path / "outside")
    before = contents(outside)
    root.mkdir()
    link = root / f".removed-{'0' * 32}-{'0' * 16}"
    link.symlink_to(outside)
    everything_done(root)
    assert link.is_symlink()
    assert contents(outside) == before


def test_links_of_a_store_to_pipes_do_not_stop_a_reader(tmp_path: Path) -> None:
    fill(opened(tmp_path), NUMBERS[:4])
    segment = next(opened(tmp_path).path.glob("segment-*"))
    (segment / "rows").unlink()
    os.mkfifo(segment / "rows")
    assert opened(tmp_path).missing(row_ids(NUMBERS)) == list(NUMBERS)
    fill(opened(tmp_path), NUMBERS)
    assert_holds(opened(tmp_path), NUMBERS)


def test_a_store_may_lie_behind_a_link_and_be_copied(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "store").symlink_to(tmp_path / "real")
    fill(opened(tmp_path / "store"), NUMBERS)
    shutil.copytree(tmp_path / "store", tmp_path / "copy")
    assert_holds(opened(tmp_path / "copy"), NUMBERS)
    with opened(tmp_path / "copy").writer() as writer:
        writer.put(row_ids([20]), batch([20]))
    FeatureStore(tmp_path / "store").prune(max_bytes=0)
    assert list((tmp_path / "real").iterdir()) == []


def test_a_store_behind_a_link_to_nothing_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "store").symlink_to(tmp_path / "gone")
    with pytest.raises(OutputError, match=r"cannot write features to .*File exists"):
        fill(opened(tmp_path / "store"), NUMBERS)
