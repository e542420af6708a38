"""Checksums that files carry themselves, so that a flipped bit is found.

A text, or a file that allows for bytes behind its end, gets a last line with the xxh3_128 of all
that stands above it; a JSON object gets a key, and tensors a text in their file's header. What
carries none, like older files and those that were changed by hand, is read as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

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
    return json.dumps({**written, _KEY: _json_sum(written)}, indent=1)


def json_checked(text: str) -> Any:
    """What `json_with_sum` was given, or what stands there where it carries no sum.

    Raises:
        ValueError: it is no JSON, or not what was written.
    """
    content = json.loads(text)
    if isinstance(content, dict) and _KEY in content:
        written = content.pop(_KEY)
        if written != _json_sum(content):
            raise ValueError(_DIFFERS)
    return content


def sum_of_texts(texts: Mapping[str, str]) -> str:
    """The checksum of named texts, as of the header of a file of tensors."""
    return _json_sum(dict(texts))


def _json_sum(content: object) -> str:
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
