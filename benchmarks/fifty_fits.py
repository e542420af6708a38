"""Does the memory of a process stay flat over 50 fits? Small heads on stored features.

    python benchmarks/fifty_fits.py [--fits 50] [--json FILE]

MobileNetV2 frozen but for its head, on 397 photos of hymenoptera; each `fl.fit` has a new head
and another learning rate, two epochs, all features in the store. Resident memory is read after
each one, once the garbage collector has run and freed memory was given back to the system. The
first ten fits bring in what is loaded once; growth is told over the others.
"""

from __future__ import annotations

import ctypes
import gc
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from shared import network, options, photos, report, threads

import frostline as fl
from frostline.models import put_head

WARM = 10  # fits that bring in what is loaded once
_PAGE_BYTES = 4096


def main() -> None:
    chosen = options(__doc__, fits=50)
    threads()
    loaded = network("mobilenet_v2")
    train, val = photos(loaded)
    resident: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(chosen.fits):
            put_head(loaded.model, classes=2, seed=number)
            fl.train_only(loaded.model, loaded.head)
            common: dict[str, Any] = {"epochs": 2, "features": Path(folder) / "features"}
            fl.fit(loaded.model, train, val, lr=1e-3 * (1 + number % 5), **common)
            resident.append(resident_bytes())
            print(f"{number + 1:3} {resident[-1] / 1e6:8.1f} MB", flush=True)
    late = np.array(resident[WARM:], dtype=float)
    slope = float(np.polyfit(np.arange(len(late)), late, 1)[0]) if len(late) > 1 else 0.0
    growth = float(late[-1] - late[0]) if len(late) else 0.0
    print(f"{slope / 1e3:.1f} kB a fit over the last {len(late)}; {growth / 1e6:.1f} MB in all")
    report(
        {"resident_bytes": resident, "bytes_per_fit": slope, "growth_bytes": growth}, chosen.json
    )


def resident_bytes() -> int:
    """Of this process, without what is freed and not given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES


if __name__ == "__main__":
    main()
