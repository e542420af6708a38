"""Where a lock surely holds: on one machine, since its last start, through one mount.

Between machines that is up to the file system: NFS passes locks on, unless it was mounted with
`nolock` or `local_lock`; sshfs and some others grant each machine its own.
"""

from __future__ import annotations

import platform
import uuid
from functools import cache
from pathlib import Path

from frostline.store.layout import HOME, open_own

_LONGEST = 200


def home_of(folder: Path) -> str:
    """A name for this machine since its last start, and the mount through which it sees `folder`.

    Processes of one home exclude each other by locks on files in the folder.
    """
    return f"{_started()} {folder.stat().st_dev:x}"


def place_of(folder: Path) -> str:
    """This machine since its last start, and a folder's path on it; it need not be there."""
    return f"{_started()} {folder.absolute()}"


def write_home(segment: Path, home: str) -> None:
    """Say where a new segment's writers live."""
    with open_own(segment / HOME, "r+b") as file:
        file.write(home.encode())


def read_home(segment: Path) -> str:
    """Where a segment's writers live; empty where it does not say."""
    try:
        with open_own(segment / HOME) as file:
            return file.read(_LONGEST).decode(errors="replace")
    except OSError:
        return ""


@cache
def _started() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux: the machine, whenever it was started
        return f"{platform.node()} {uuid.getnode():x}"
