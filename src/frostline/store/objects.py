"""Whole objects at an address that fsspec knows, as `s3://bucket/prefix`: listed, put and got.

An object is there whole or not at all where the address is an object store. Nothing here relies on
it: what names an object says how long it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, final

from frostline.errors import OutputError, StoreError, one_line

_ADDRESS: Final = re.compile(r"[a-z][a-z0-9+.-]*://")
_TIMES: Final = ("LastModified", "last_modified", "updated", "mtime", "created")
_TOGETHER: Final = 64  # small objects that are asked for in one go
# Whatever an address refuses.
KEPT: Final = "Rows that were complete are kept in the local folder, and go there the next time."
_LOCAL: Final = ("file", "local")


def is_address(where: str | Path) -> bool:
    """Whether it is an address and not a folder."""
    return isinstance(where, str) and _ADDRESS.match(where) is not None


@final
@dataclass(frozen=True, slots=True)
class Found:
    """An object in a listing; `changed_at` in seconds since the epoch, 0 where it is not told."""

    nbytes: int
    changed_at: float


class AddressError(StoreError):
    """An address cannot be read."""


@final
@dataclass(frozen=True, slots=True)
class Objects:
    """The objects below an address, each by its name there.

    Raises:
        AddressError: from whatever reads: the address cannot be reached or read, or the package for
            it is not installed.
        OutputError: from whatever writes or deletes.
    """

    address: str

    def found(self, under: str) -> dict[str, Found]:
        """All objects whose names begin with the folder `under`; of all, where it is empty."""
        with self._reading():
            system, root = self._opened()
            system.invalidate_cache()
            base = f"{root}/{under}".rstrip("/")
            try:
                listed = system.find(base, detail=True)
            except FileNotFoundError:
                return {}
        start = len(root) + 1
        return {
            path[start:]: Found(int(info["size"] or 0), _changed_at(info))
            for path, info in listed.items()
            if info["type"] == "file"
        }

    def read(self, names: Sequence[str]) -> dict[str, bytes]:
        """The content of small objects; those that are gone are left out."""
        content: dict[str, bytes] = {}
        with self._reading():
            system, root = self._opened()
            for first in range(0, len(names), _TOGETHER):
                some = names[first : first + _TOGETHER]
                got = system.cat([f"{root}/{name}" for name in some], on_error="return")
                for name in some:
                    one = got[f"{root}/{name}"]
                    if isinstance(one, FileNotFoundError):
                        continue
                    if isinstance(one, Exception):
                        raise one
                    content[name] = one
        return content

    def get(self, files: Mapping[str, Path]) -> None:
        """Fetch objects into files.

        Raises:
            FileNotFoundError: one is gone.
        """
        with self._reading():
            system, root = self._opened()
            for name, path in files.items():
                system.get_file(f"{root}/{name}", str(path))

    def put(self, path: Path, name: str) -> None:
        """Store a file under a name."""
        with self._writing():
            system, root = self._opened()
            system.put_file(str(path), f"{root}/{name}")

    def write(self, name: str, content: bytes) -> None:
        """Store some bytes under a name."""
        with self._writing():
            system, root = self._opened()
            system.pipe_file(f"{root}/{name}", content)

    def delete(self, names: Sequence[str]) -> None:
        """Delete objects; those that are gone are no error."""
        with self._writing():
            system, root = self._opened()
            with suppress(FileNotFoundError):
                if names:
                    system.rm([f"{root}/{name}" for name in names])

    def _opened(self) -> tuple[Any, str]:
        """fsspec's file system, made anew after a fork, and the path of the address in it."""
        try:
            from fsspec.core import url_to_fs
        except ImportError as error:
            raise self._not_installed("fsspec") from error
        local = self.address.partition("://")[0] in _LOCAL
        try:
            system, root = url_to_fs(self.address, **({"auto_mkdir": True} if local else {}))
        except ImportError as error:
            raise self._not_installed(one_line(error)) from error
        return system, str(root).rstrip("/")

    def _not_installed(self, what: str) -> AddressError:
        return AddressError(
            f"{self.address} needs a package that is not installed ({what}): pip install "
            "'frostline[remote]', or fsspec's package for other addresses than s3://."
        )

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (StoreError, FileNotFoundError):
            raise
        except Exception as error:  # of any kind: each package has its own
            raise AddressError(
                f"cannot read features from {self.address}: {one_line(error)}. Check the address, "
                "the network and what your credentials allow."
            ) from error

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except AddressError:
            raise
        except Exception as error:
            raise OutputError(
                f"cannot write features to {self.address}: {one_line(error)}. {KEPT} Check the "
                "address, the network and what your credentials allow, and run it again."
            ) from error


def _changed_at(info: Mapping[str, Any]) -> float:
    for name in _TIMES:
        found = info.get(name)
        if isinstance(found, datetime):
            return found.timestamp()
        if isinstance(found, (int, float)):
            return float(found)
    return 0.0
