"""How large is the report of a run judged on 50,000 images, and how long does it take to make?

    python benchmarks/report.py [--repeats 3] [--json FILE]

The run is its records alone: 50,000 validation samples of 1,000 classes, 200,000 training digests,
90 epochs, and 24 real photos among the samples to be shown. `frostline report` is started as a
person would, imports and all; the model was handed over in Python, so that no network is built.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import xxhash
from shared import DATA, median, options, report, seconds

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "reports"))

from many_records import write_records

from frostline._files import file_digest
from frostline.records import RunFolder, read_judged
from frostline.runs import open_run

SAMPLES, CLASSES = 50_000, 1_000


def main() -> None:
    chosen = options(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        run = write_records(Path(folder), samples=SAMPLES, classes=CLASSES)
        shown = put_photos(run)
        command = [sys.executable, "-m", "frostline", "report", str(run)]
        times = [
            seconds(lambda: subprocess.run(command, check=True, capture_output=True))
            for _ in range(chosen.repeats)
        ]
        size = (run / "report.html").stat().st_size
        predictions = RunFolder(run).predictions.stat().st_size
    result = {
        "seconds": median(times),
        "page_bytes": size,
        "predictions_bytes": predictions,
        "pictures": shown,
    }
    print(
        f"{SAMPLES:,} images of {CLASSES:,} classes: {median(times):.2f} s, page {size / 1e6:.2f} "
        f"MB with {shown} pictures, predictions.safetensors {predictions / 1e6:.2f} MB"
    )
    report(result, chosen.json)


def put_photos(run: Path) -> int:
    """Let the samples that a report shows be real photos, where there are any; how many."""
    photos = sorted((DATA / "hymenoptera" / "val").glob("*/*.jpg"))
    made, folder = open_run(run).report(), RunFolder(run)
    judged = read_judged(folder.predictions)
    digests = list(folder.read_validated_on())
    below = {name: place for place, name in enumerate(judged.names)}
    wanted = [f"{made.pictures_in}{os.sep}{one.file}" for one in (*made.mistakes, *made.doubts)]
    found = list(zip(wanted, photos, strict=False))
    for name, photo in found:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photo, name)
        digests[below[name]] = file_digest(photo, xxhash.xxh3_128)
    folder.validated_on.write_text("".join(f"{digest}\n" for digest in digests))
    return len(found)


if __name__ == "__main__":
    main()
