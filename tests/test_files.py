"""Files are whole or untouched, and nothing is left beside them."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
import xxhash

from frostline import OutputError
from frostline._files import (
    append_line,
    check_replaceable,
    file_digest,
    lock,
    replacing,
    write_bytes,
    write_text,
)


def test_a_file_is_written_with_its_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.txt"
    write_text(path, "früh")
    assert path.read_bytes() == "früh".encode()


def test_writing_over_a_file_replaces_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old and long")
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"


def test_an_open_file_keeps_its_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")
    with path.open("rb") as reader:
        write_bytes(path, b"new")
        assert reader.read() == b"old"


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_an_exception_in_the_block_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: BaseException
) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")
    with pytest.raises(type(error)):
        _write_half_and_raise(path, error)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_finished_write_leaves_no_temporary_file(tmp_path: Path) -> None:
    write_bytes(tmp_path / "file", b"new")
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_the_old_file_stands_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")
    with replacing(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"


def test_the_temporary_file_is_a_sibling_so_that_the_rename_is_atomic(tmp_path: Path) -> None:
    with replacing(tmp_path / "file") as temporary:
        assert temporary.parent == tmp_path


def test_a_written_file_is_readable_by_whom_the_mask_allows(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    write_bytes(tmp_path / "file", b"")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_a_folder_that_is_a_file_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write .*inner: (File exists|Not a directory)"):
        write_bytes(tmp_path / "file" / "inner", b"")


def test_a_path_that_is_a_folder_is_an_output_error_and_stays(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match=r"is a folder, so it was not overwritten\. Name a"):
        write_bytes(tmp_path / "folder", b"")
    assert [found.name for found in tmp_path.iterdir()] == ["folder"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names here")
def test_a_pipe_or_a_device_is_never_replaced_by_a_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for file in (pipe, Path(os.devnull)):
        with pytest.raises(OutputError, match=r"is no file but a device, a pipe .*Name a file"):
            check_replaceable(file)
    with pytest.raises(OutputError, match="is no file but a device"):
        write_bytes(pipe, b"new")
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


@pytest.mark.usefixtures("permissions_hold")
def test_a_folder_without_permission_is_an_output_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="Permission denied"):
        write_bytes(tmp_path / "file", b"")


def test_a_refused_temporary_file_is_an_output_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_given: object, **_options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(OutputError, match=r"cannot write .*file: Permission denied"):
        write_bytes(tmp_path / "file", b"")


def test_a_full_disk_is_an_output_error_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")
    with pytest.raises(OutputError, match="No space left on device"), replacing(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_lines_are_appended_in_order(tmp_path: Path) -> None:
    append_line(tmp_path / "log", "one")
    append_line(tmp_path / "log", "two")
    assert (tmp_path / "log").read_text() == "one\ntwo\n"


def test_a_log_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        append_line(tmp_path / "missing" / "log", "one")


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_a_files_digest_is_that_of_its_bytes(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    assert file_digest(tmp_path / "file") == xxhash.xxh3_128_hexdigest(content)


def test_an_exclusive_lock_is_had_by_one(tmp_path: Path) -> None:
    held = lock(tmp_path / "lock")
    assert held is not None
    assert lock(tmp_path / "lock", wait=False) is None
    assert lock(tmp_path / "lock", mode="shared", wait=False) is None
    held.release()
    assert lock(tmp_path / "lock", wait=False) is not None


def test_a_shared_lock_is_had_by_many_and_keeps_an_exclusive_one_out(tmp_path: Path) -> None:
    with lock(tmp_path / "lock", mode="shared"), lock(tmp_path / "lock", mode="shared"):
        assert lock(tmp_path / "lock", wait=False) is None
    assert lock(tmp_path / "lock", wait=False) is not None


def test_a_lock_that_is_forgotten_is_released(tmp_path: Path) -> None:
    held = lock(tmp_path / "lock")
    del held
    assert lock(tmp_path / "lock", wait=False) is not None


def test_a_lock_is_released_once(tmp_path: Path) -> None:
    held = lock(tmp_path / "lock")
    assert held is not None
    held.release()
    with (tmp_path / "other").open("w") as other:  # may get the number of the lock's handle
        held.release()
        other.write("still open")
    assert (tmp_path / "other").read_text() == "still open"


def test_a_lock_that_cannot_be_made_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        lock(tmp_path / "missing" / "lock")


def test_a_lock_is_on_the_file_that_stands_there_and_not_on_a_removed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lock"
    real, calls = os.fstat, []

    def remove_first(handle: int) -> os.stat_result:
        if not calls:
            path.unlink()
        calls.append(handle)
        return real(handle)

    monkeypatch.setattr(os, "fstat", remove_first)
    held = lock(path)
    assert len(calls) == 2
    assert path.exists()
    assert held is not None
    assert lock(path, wait=False) is None


def _write_half_and_raise(path: Path, error: BaseException) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise error
