"""Do rows hold on a disk that several machines see, each with caches and locks of its own?

    python benchmarks/shared_disk.py [--rows 2000] [--kills 5] [--json FILE]

One folder is mounted twice by sshfs (with `sftp-server` itself, no network and no daemon), which
gives what a disk shared by two machines may: what one writes the other sees late, and a lock is
seen in its own mount only. Two processes on each mount claim, compute and store all rows together;
one is killed and started again every so often. Told is whether

- every row that was stored is there in the end, bit for bit, through both mounts and beneath them,
- how often a row was computed, with how many of those twice within one mount,
- segments were written from both, each from one.

Needs Linux, FUSE, sshfs and sftp-server (Debian: `sshfs`, `openssh-sftp-server`).
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from frostline.store import FeatureKey, Features, FeatureStore, ValueSpec

KEY = FeatureKey({"prefix": "synthetic"})
VALUES = (ValueSpec("value 0", (16,), torch.float32), ValueSpec("value 1", (None,), torch.float32))
CLAIMED, WAIT_SECONDS = 20, 30.0
SERVERS = ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server")


UNCACHED = ("dir_cache=no", "attr_timeout=0", "entry_timeout=0", "auto_cache")


def main() -> None:
    if len(sys.argv) == 4 and sys.argv[1] == "--fill":
        fill(FeatureStore(sys.argv[2]).open(KEY, VALUES), int(sys.argv[3]))
        return
    from shared import options, report

    chosen = options(__doc__, rows=2000, kills=5, caches=("yes", "no"))
    results = {}
    for caches in chosen.caches:
        mount_options = UNCACHED if caches == "no" else ()
        with tempfile.TemporaryDirectory() as place:
            result = measured(Path(place), chosen.rows, chosen.kills, mount_options)
        results["mounts with caches" if caches == "yes" else "mounts without caches"] = result
    for mounts, result in results.items():
        print(mounts)
        for name, found in result.items():
            print(f"    {name}: {found}")
    report(dict(results), chosen.json)
    if not all(
        result["rows right"] and result["machines that wrote"] == 2 for result in results.values()
    ):
        raise SystemExit("rows do not hold on a shared disk")


def measured(place: Path, rows: int, kills: int, mount_options: Sequence[str]) -> dict[str, object]:
    folder = place / "folder"
    folder.mkdir()
    told = place / "told"
    mount = partial(mounted, folder, mount_options)
    with mount(place / "one") as one, mount(place / "two") as two:
        start = time.perf_counter()
        fill_killed([one, one, two, two], rows, kills, told)
        seconds = time.perf_counter() - start
        views = [are_right(FeatureStore(root).open(KEY, VALUES), rows) for root in (one, two)]
    views.append(are_right(FeatureStore(folder).open(KEY, VALUES), rows))
    computed = [line.split() for line in told.read_text().splitlines()]
    twice = Counter(row for _, row in computed)
    inside = Counter((mount, row) for mount, row in computed)
    homes = [path.read_text() for path in folder.glob("*/segment-*/home")]
    gone = FeatureStore(folder).prune(max_bytes=0)
    return {
        "rows": rows,
        "kills": kills,
        "seconds": round(seconds, 2),
        "rows right": all(views),
        "computed": len(computed),
        "computed twice": sum(count > 1 for count in twice.values()),
        "computed twice in one mount": sum(count > 1 for count in inside.values()),
        "segments": len(homes),
        "machines that wrote": len(set(homes)),
        "left after pruning": [p.name for p in folder.iterdir()] if len(gone) == 1 else ["the key"],
    }


@contextmanager
def mounted(folder: Path, mount_options: Sequence[str], at: Path) -> Iterator[Path]:
    """`folder` through a mount of its own."""
    server = next(path for path in SERVERS if Path(path).exists())
    at.mkdir()
    ssh = at.with_suffix(".sh")
    ssh.write_text(f"#!/bin/sh\nexec {server}\n")
    ssh.chmod(0o755)
    chosen = [word for each in (f"ssh_command={ssh}", *mount_options) for word in ("-o", each)]
    subprocess.run(["sshfs", *chosen, f"here:{folder}", str(at)], check=True)
    try:
        yield at
    finally:
        unmount = shutil.which("fusermount3") or "fusermount"
        subprocess.run([unmount, "-u", "-z", str(at)], check=True)


def fill_killed(roots: list[Path], rows: int, kills: int, told: Path) -> None:
    """Let one process for each root fill the store; kill one of them every so often."""
    with told.open("a") as file:

        def started(root: Path) -> subprocess.Popen[bytes]:
            command = [sys.executable, __file__, "--fill", str(root), str(rows)]
            return subprocess.Popen(command, stdout=file)

        processes = [started(root) for root in roots]
        for number in range(kills):
            before = told.stat().st_size
            while told.stat().st_size < before + 300 and any(p.poll() is None for p in processes):
                time.sleep(0.05)
            victim = number % len(processes)
            processes[victim].send_signal(signal.SIGKILL)
            processes[victim].wait()
            processes[victim] = started(roots[victim])
        ends = [process.wait() for process in processes]
    assert not any(ends), ends


def fill(features: Features, rows: int) -> None:
    """Claim, compute and store until all rows are there; tell each row that is computed."""
    ids, mount = row_ids(range(rows)), Path(sys.argv[2]).name
    with features.writer() as writer:
        first = 0
        while first < rows:
            some = ids[first : first + 10 * CLAIMED]
            mine = writer.claim(some, CLAIMED)
            if not mine:
                missing = features.missing(some)
                if missing:
                    writer.wait([some[at] for at in missing], WAIT_SECONDS)
                else:
                    first += len(some)
                continue
            numbers = [first + at for at in mine]
            time.sleep(0.02)  # so that the others have their turn
            for number in numbers:
                os.write(1, f"{mount} {number}\n".encode())
            values = [torch.stack([row(n)[0] for n in numbers]), [row(n)[1] for n in numbers]]
            writer.put([ids[n] for n in numbers], values)


def are_right(features: Features, rows: int) -> bool:
    ids = row_ids(range(rows))
    if features.missing(ids):
        return False
    found = features.read(ids)
    fixed, ragged = found.gather(torch.arange(rows))
    lengths = found.shapes(1)[:, 0].tolist()
    return all(
        torch.equal(fixed[n], row(n)[0]) and torch.equal(ragged[n, : lengths[n]], row(n)[1])
        for n in range(rows)
    )


def row(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    numbers = torch.Generator().manual_seed(number)
    length = number % 7
    return torch.randn(16, generator=numbers), torch.randn(length, generator=numbers)


def row_ids(numbers: range) -> list[bytes]:
    return [random.Random(number).randbytes(16) for number in numbers]


if __name__ == "__main__":
    main()
