"""How fast is `fl.fingerprint`? Against reading the same bytes from disk, and SHA-256, in one run.

    python benchmarks/fingerprint.py [--json FILE]

The file is dropped from the page cache before each read, so that the disk answers.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torchvision.models import alexnet

import frostline as fl

REPEATS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    model = alexnet(weights=None).eval()
    tensors = list(model.state_dict().values())
    size = sum(tensor.nbytes for tensor in tensors)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        file = Path(folder) / "weights"
        file.write_bytes(b"".join(tensor.numpy().tobytes() for tensor in tensors))
        seconds = {
            "fingerprint": median(lambda: fl.fingerprint(model)),
            "disk read": median(lambda: file.read_bytes(), before=lambda: drop_from_cache(file)),
            "sha256": median(lambda: [hashlib.sha256(t.numpy().data) for t in tensors]),
        }
    rates = {name: size / 1e6 / value for name, value in seconds.items()}
    result = {
        "model": "AlexNet",
        "bytes": size,
        "megabytes_per_second": rates,
        "fingerprint_to_disk": rates["fingerprint"] / rates["disk read"],
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
    }
    for name, rate in rates.items():
        print(f"{name:<12} {rate:8,.0f} MB/s")
    print(f"fingerprint is {result['fingerprint_to_disk']:.1f} times the disk; {result['machine']}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


def median(work: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
    """Median seconds of `work`, `before` not counted, after one run to warm up."""
    times = []
    for _ in range(REPEATS + 1):
        before()
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def drop_from_cache(file: Path) -> None:
    """Have the next read come from the disk."""
    handle = os.open(file, os.O_RDONLY)
    os.fsync(handle)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)


if __name__ == "__main__":
    main()
