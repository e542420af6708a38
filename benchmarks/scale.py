"""How long, how large, how many requests: a plan for any number of pictures, from measured slopes.

    python benchmarks/scale.py [--pictures 1300000] [--devices 1,8,64] [--epochs 10]
        [--feature-bytes 5120] [--seconds-per-picture S] [--json FILE]

Reads `results/slopes.json` and `results/million_rows.json` and simulates: pictures are handed out
to the devices in chunks as an extraction does, each device stores its rows in segments, brings them
to an address, and fetches what the others stored; then epochs are divided. A device is one process
on one core of the machine of the slopes; for another give `--seconds-per-picture`.

What is not in it: network bandwidth (bytes are told), the sum of gradients in a step, decoding
that competes for one disk.
"""

from __future__ import annotations

import heapq
import json
import math
import random
from pathlib import Path
from typing import Any

from shared import options, report, table

from frostline.store.writing import FULL_BYTES, FULL_SECONDS

RESULTS = Path(__file__).parent / "results"
CHUNK = 128  # pictures that a process claims at a time: four batches of 32
SPREAD = 0.1  # of the time of a chunk, from one to the next
RECORD_BYTES = 32  # of a row of one value in the log, with its id and sums
LISTED = 1000  # objects in an answer of S3


def main() -> None:
    chosen = options(
        __doc__,
        pictures=1_300_000,
        devices="1,8,64",
        epochs=10,
        feature_bytes=5120,
        seconds_per_picture=0.0,
    )
    slopes = json.loads((RESULTS / "slopes.json").read_text())
    slopes["place_bytes_per_row"] = place_bytes(
        json.loads((RESULTS / "million_rows.json").read_text())
    )
    if chosen.seconds_per_picture:
        slopes["extract_seconds_per_photo"] = chosen.seconds_per_picture
    plans = {
        devices: plan(slopes, chosen.pictures, int(devices), chosen.epochs, chosen.feature_bytes)
        for devices in chosen.devices.split(",")
    }
    names = list(next(iter(plans.values())))
    table(
        [
            ["", *(f"{devices} devices" for devices in plans)],
            *([name, *(shown(name, found[name]) for found in plans.values())] for name in names),
        ]
    )
    report({"slopes": slopes, "plans": plans}, chosen.json)


def plan(
    slopes: dict[str, float], pictures: int, devices: int, epochs: int, feature_bytes: int
) -> dict[str, float]:
    """What a training on stored features takes, from the first picture to the last epoch."""
    row_bytes = feature_bytes + RECORD_BYTES
    each = slopes["extract_seconds_per_photo"]
    extraction = filled(pictures, devices, each)
    by_bytes = math.ceil(pictures / devices * feature_bytes / FULL_BYTES)
    segments = devices * max(by_bytes, math.ceil(extraction / FULL_SECONDS))
    names = pictures * slopes["ids_seconds_per_photo"]
    check = pictures * (
        slopes["check_seconds_per_row"] + feature_bytes * slopes["check_seconds_per_byte"]
    )
    epoch = math.ceil(pictures / devices) * slopes["epoch_seconds_per_sample"]
    listing = math.ceil(3 * segments / LISTED)
    return {
        "extraction, seconds": extraction,
        "naming pictures again, seconds": names,
        "checking rows, seconds": check,
        f"{epochs} epochs, seconds": epochs * epoch,
        "all, first run, seconds": extraction + check + epochs * epoch,
        "all, later runs, seconds": names + check + epochs * epoch,
        "disk, bytes": pictures * row_bytes,
        "segments": segments,
        "requests to push": segments * (slopes["push_requests_per_segment"] + listing - 1),
        "requests to fetch, a machine": segments * slopes["fetch_requests_per_segment"]
        + listing
        + slopes["fetch_requests_per_process"],
        "memory, bytes a process": slopes["process_bytes"]
        + pictures * (slopes["data_bytes_per_sample"] + slopes["stored_bytes_per_sample"]),
        "while it looks rows up, bytes a process": pictures * slopes["place_bytes_per_row"],
    }


def filled(pictures: int, devices: int, seconds: float) -> float:
    """Seconds until the last device is done, where each takes the next chunk when it is free."""
    chance = random.Random(0)
    free = [0.0] * devices
    chunks = math.ceil(pictures / CHUNK)
    for number in range(chunks):
        count = min(CHUNK, pictures - number * CHUNK)
        took = count * seconds * chance.uniform(1 - SPREAD, 1 + SPREAD)
        heapq.heappush(free, heapq.heappop(free) + took)
    return max(free)


def place_bytes(measured: dict[str, Any]) -> float:
    """Bytes of memory for each row while a store is opened, without the features themselves."""
    (few, less), (many, more) = list(measured["rows"].items())[-2:]
    slope: float = (more["use_peak"] - less["use_peak"]) / (int(many) - int(few))
    return slope - measured["row_bytes"]


def shown(name: str, value: float) -> str:
    if name.endswith("seconds"):
        return f"{value / 3600:.1f} h" if value > 5400 else f"{value:,.0f} s"
    if "bytes" in name:
        return f"{value / 1e9:.2f} GB"
    return f"{value:,.0f}"


if __name__ == "__main__":
    main()
