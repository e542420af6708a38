"""Files that are either whole or untouched: write beside, flush, rename; locks; checksums.

A text, or a file that allows for bytes behind its end, gets a last line with the xxh3_128 of all
that stands above it; a JSON object gets a key, and tensors a text in their file's header. What
carries none, like older files and those that were changed by hand, is read as it is.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import sys
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any, Literal, Self, final

import xxhash

from frostline.errors import OutputError
from frostline.wording import either, option

LockMode = Literal["exclusive", "shared"]

_HEAD_BYTES = 1 << 16
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a sibling temporary path; rename it over `path` when the block ends without an error.

    A reader, or a crash at any instant, sees the old file or the new one, never a part. A file
    that is memory-mapped elsewhere keeps its old content there.

    Raises:
        OutputError: the folder cannot be made or written, or the disk is full, or as
            `check_replaceable`.
    """
    check_replaceable(path)
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{token_hex(4)}.tmp")
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
    try:
        with output_errors(path):
            yield temporary
            _flush(temporary)
            temporary.chmod(mode)  # of a new file; safetensors puts a private one in its place
            temporary.replace(path)
            _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def check_replaceable(path: Path) -> None:
    """Make sure that a file may come to `path`: over another file at most.

    A rename over a device or a pipe would take it from everybody: `/dev/null`, say.

    Raises:
        OutputError: there is something else.
    """
    with output_errors(path):
        if path.exists() and not path.is_file():
            what = "a folder" if path.is_dir() else "no file but a device, a pipe or the like"
            raise OutputError(f"{path} is {what}, so it was not overwritten. Name a file to write.")


def check_new(path: Path) -> None:
    """Make sure that nothing stands at `path` yet, where nothing may be overwritten.

    Raises:
        OutputError: something does.
    """
    if path.exists() or path.is_symlink():
        raise OutputError(
            f"{path} is there already. Choose another {either('path', '--out')}, or remove it "
            "first."
        )


def check_own(path: Path, marks: Sequence[bytes], *, kind: str, force: bool = False) -> None:
    """Make sure that a `kind` may be written to `path`: over an older one, but over no other file.

    Args:
        marks: what the beginning of an older one holds one of.

    Raises:
        OutputError: it cannot be written, is no file, or another file is there and `force` is
            not given.
    """
    check_replaceable(path)
    check_writable(path.parent)
    if force or not path.exists():
        return
    with output_errors(path), path.open("rb") as content:
        head = content.read(_HEAD_BYTES)
    if not any(mark in head for mark in marks):
        raise OutputError(
            f"{path} is there already and is no {kind} that Frostline wrote, so it was not "
            f"overwritten. Choose another file, or give {option('force', True)}."
        )


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all.

    Raises:
        OutputError: as `replacing`.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, whole or not at all.

    Raises:
        OutputError: as `replacing`; or the text holds a file name that is no UTF-8.
    """
    try:
        content = text.encode()
    except UnicodeEncodeError as error:
        line = next(line for line in text.splitlines() if not is_text(line))
        raise OutputError(
            f"cannot write {path}: it would hold a file name that is no UTF-8, in: "
            f"{line.encode(errors='backslashreplace').decode()}. Rename the file or folder, or "
            "reach it by a link with another name."
        ) from error
    write_bytes(path, content)


def is_text(line: str) -> bool:
    """Whether UTF-8 can hold it; names of files that are no UTF-8 hold halves of characters."""
    return not any("\ud800" <= character <= "\udfff" for character in line)


def keep_as(path: Path, other: Path) -> None:
    """Let a file be found under another name too; written again only where links cannot be made.

    Raises:
        OutputError: as `replacing`.
    """
    try:
        other.unlink(missing_ok=True)
        other.hardlink_to(path)
    except OSError:
        with replacing(other) as temporary:
            shutil.copyfile(path, temporary)


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn what the system refuses about a file of output into a clear error."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"cannot write {path}: {reason}. Nothing was overwritten. "
            "Choose a folder you can write to, with room on its disk."
        ) from error


def check_writable(folder: Path) -> None:
    """Make sure files can be written in `folder`, and leave everything as it was.

    Raises:
        OutputError: as `replacing`.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        with output_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
    finally:
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()


def append_line(path: Path, line: str) -> None:
    """Add one line to a log and hand it to the system.

    Raises:
        OutputError: as `replacing`.
    """
    with output_errors(path), path.open("a", encoding="utf-8") as log:
        log.write(line + "\n")


def file_digest(path: Path) -> str:
    """xxh3_128 of a file's content, in hexadecimal digits."""
    return _hashed(path, sys.maxsize).hexdigest()


@final
class FileLock:
    """A held lock on a file; the system releases it when its holder ends, however it ends.

    Locks exclude each other between processes and between holders in one process. A forked child
    shares its parent's lock until both let go.
    """

    __slots__ = ("__weakref__", "_close")

    def __init__(self, handle: int) -> None:
        self._close = weakref.finalize(self, os.close, handle)

    def release(self) -> None:
        """Let go; a second call does nothing."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def lock(
    path: Path, *, mode: LockMode = "exclusive", wait: bool = True, needed: bool = True
) -> FileLock | None:
    """Lock the file at `path`, made if it is missing; `None` when it is taken and `wait` is false.

    The lock is on the file that stands at `path` when it is given, never on one that was removed
    or moved meanwhile. A shared lock needs no permission to write.

    Args:
        needed: whether a file system without locks is an error; else nobody is kept out there.

    Raises:
        OSError: the file cannot be opened, or its file system has no locks.
    """
    while True:
        handle = _open_lock(path, mode)
        held = FileLock(handle)  # an error lets go of it
        try:
            taken = _lock_handle(handle, mode, wait)
        except OSError as error:
            if needed or error.errno not in _NO_LOCKS:
                raise
            taken = True
        if taken and _stands_at(handle, path):
            return held
        held.release()
        if not taken:
            return None


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    # Some network file systems cannot flush a folder; the rename has happened all the same.
    try:
        with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():
            os.fsync(handle)
    finally:
        os.close(handle)


def _open_lock(path: Path, mode: LockMode) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        if mode == "exclusive":
            raise
        return os.open(path, os.O_RDONLY)


def _stands_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


if sys.platform == "win32":
    import msvcrt
    import random
    import time

    _SHARES = 1000

    def _lock_handle(handle: int, mode: LockMode, wait: bool) -> bool:
        """Windows locks bytes, never shared: a share is one byte of many, exclusive is all."""
        while True:
            count, first = (1, random.randrange(_SHARES)) if mode == "shared" else (_SHARES, 0)
            os.lseek(handle, first, os.SEEK_SET)
            try:
                msvcrt.locking(handle, msvcrt.LK_NBLCK, count)
                return True
            except OSError:
                if not wait:
                    return False
            time.sleep(0.01)

else:
    import fcntl

    def _lock_handle(handle: int, mode: LockMode, wait: bool) -> bool:
        operation = fcntl.LOCK_EX if mode == "exclusive" else fcntl.LOCK_SH
        try:
            fcntl.flock(handle, operation if wait else operation | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


_MARK = b"\n# checksum xxh3_128 "
_HINT = b" of all above; after a change by hand delete this line\n"
_TAIL_BYTES = 512  # an editor may have changed the line's end
_PIECE_BYTES = 1 << 20
_KEY = "checksum"
_DIFFERS = "its checksum is not that of its content"


def with_sum(text: str) -> str:
    """`text` and a last line with its checksum; what is no UTF-8 is refused where it is written."""
    return text + _line(xxhash.xxh3_128(text.encode(errors="surrogatepass"))).decode()


def checked(raw: bytes) -> str:
    """The text that `with_sum` was given, or all of it where it carries no sum.

    Raises:
        ValueError: it is not what was written, or no UTF-8.
    """
    content, mark, line = raw.rpartition(_MARK)
    if not mark:
        return raw.decode()
    if not _fits(xxhash.xxh3_128(content), line):
        raise ValueError(_DIFFERS)
    return content.decode()


def add_sum(path: Path) -> None:
    """Put the last line behind a file's content."""
    line = _line(_hashed(path, path.stat().st_size))
    with path.open("ab") as file:
        file.write(line)


def has_own_sum(path: Path) -> bool:
    """Whether a file carries its checksum.

    Raises:
        ValueError: it does, and the file is not what was written.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - _TAIL_BYTES))
        before, mark, line = file.read().rpartition(_MARK)
    if not mark:
        return False
    if not _fits(_hashed(path, max(0, size - _TAIL_BYTES) + len(before)), line):
        raise ValueError(_DIFFERS)
    return True


def json_with_sum(content: Mapping[str, object]) -> str:
    """A JSON object with the checksum of its values, however they are laid out."""
    written = json.loads(json.dumps(content))
    return json.dumps({**written, _KEY: json_sum(written)}, indent=1)


def json_checked(text: str) -> Any:
    """What `json_with_sum` was given, or what stands there where it carries no sum.

    Raises:
        ValueError: it is no JSON, or not what was written.
    """
    content = json.loads(text)
    if isinstance(content, dict) and _KEY in content:
        written = content.pop(_KEY)
        if written != json_sum(content):
            raise ValueError(_DIFFERS)
    return content


def json_sum(content: object) -> str:
    """The checksum of plain data, as of the texts in the header of a file of tensors."""
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())


def _line(found: xxhash.xxh3_128) -> bytes:
    return _MARK + found.hexdigest().encode() + _HINT


def _fits(found: xxhash.xxh3_128, line: bytes) -> bool:
    return line.split(maxsplit=1)[:1] == [found.hexdigest().encode()]


def _hashed(path: Path, count: int) -> xxhash.xxh3_128:
    """Of the first `count` bytes of a file."""
    found = xxhash.xxh3_128()
    with path.open("rb") as file:
        while count > 0 and (piece := file.read(min(count, _PIECE_BYTES))):
            found.update(piece)
            count -= len(piece)
    return found
