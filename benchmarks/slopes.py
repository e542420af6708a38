"""What does one more sample, one more row, one more byte cost? Slopes, for the plan of `scale.py`.

    python benchmarks/slopes.py [--json FILE] [--repeats 3]

Each is the difference of two sizes, over the difference of the sizes, so that what happens once
drops out; in processes of their own with one torch thread each, medians. Seconds are of a processor
core, all threads together.

- photos: seconds of `fl.extract` for a photo of hymenoptera (500 x 375) through MobileNetV2 at
  224 px, into an empty store; and of naming a picture by its content.
- epoch: seconds of a step's share of a sample, a new head on stored features of 1,280 numbers.
- check: seconds for which a row of 128 bytes, and each byte more, is looked at before it is read.
- memory: bytes that a process keeps of a picture of CIFAR-10 once its features are stored: its
  path, class and name; its row's id and place. And what it has without any.
- address: requests and bytes of a segment that is pushed, listed and fetched, by the log of an S3
  server (moto) in a process of its own.
"""

from __future__ import annotations

import gc
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

import frostline as fl
from frostline.store import FeatureKey, FeatureStore, ValueSpec

FEW, MANY = 2_000, 8_000  # pictures, samples and rows
PHOTOS = 60
WIDTH = 1280


def main() -> None:
    if len(sys.argv) > 2 and sys.argv[1] in PARTS:
        torch.set_num_threads(1)
        print(json.dumps(PARTS[sys.argv[1]](*sys.argv[2:])))
        return
    from shared import DATA, options, report

    chosen = options(__doc__)
    with tempfile.TemporaryDirectory() as scratch:
        with tarfile.open(DATA / "cifar10.tar.xz") as archive:
            archive.extractall(scratch, filter="data")
        runs = [measured(Path(scratch)) for _ in range(chosen.repeats)]
    result: dict[str, Any] = {
        name: statistics.median(run[name] for run in runs) for name in runs[0]
    }
    result |= address()
    for name, value in result.items():
        print(f"{name}: {value:.3g}")
    report(result, chosen.json)


def measured(scratch: Path) -> dict[str, float]:
    """The slopes of one run of everything."""
    root = next(path for path in scratch.rglob("train") if path.is_dir())
    memory = [told("memory", root, count) for count in (FEW, MANY)]
    kept = {
        f"{name}_bytes_per_sample": (memory[1][name] - memory[0][name]) / (MANY - FEW)
        for name in ("data", "stored")
    }
    return {**told("times", ""), **kept, "process_bytes": memory[0]["base"]}


def times(_: str) -> dict[str, float]:
    photos(8)  # imports, and all that happens once
    few, many = photos(PHOTOS), photos(3 * PHOTOS)
    each = {
        f"{name}_seconds_per_photo": (many[name] - few[name]) / (2 * PHOTOS)
        for name in ("extract", "ids")
    }

    def slope(of: Callable[[int], float]) -> float:
        return (of(MANY) - of(FEW)) / (MANY - FEW)

    epoch(FEW)
    narrow, wide = (slope(partial(check, width=width)) for width in (32, WIDTH))
    return {
        **each,
        "epoch_seconds_per_sample": slope(epoch),
        "check_seconds_per_row": narrow,
        "check_seconds_per_byte": max(0.0, wide - narrow) / (4 * (WIDTH - 32)),
    }


def told(part: str, *arguments: object) -> dict[str, float]:
    """What a part measured in a process of its own."""
    command = [sys.executable, __file__, part, *map(str, arguments)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(answer.splitlines()[-1])
    return found


def photos(count: int) -> dict[str, float]:
    from shared import DATA, network

    from frostline.data import ImageDataset, ImageSet, open_data, read_splits

    loaded = network("mobilenet_v2")
    train = read_splits(DATA / "hymenoptera").train
    data = ImageDataset(ImageSet(train.classes, train.samples[:count]), loaded.preprocessing)
    samples = open_data(data)
    seconds_of_ids = seconds(lambda: samples.ids(range(len(data))))
    cut = fl.cut(loaded.model, torch.randn(2, 3, 224, 224))
    with tempfile.TemporaryDirectory() as store:
        took = seconds(lambda: fl.extract(cut, data, store))
    return {"extract": took, "ids": seconds_of_ids}


def epoch(samples: int) -> float:
    from torch.utils.data import TensorDataset

    model = torch.nn.Sequential(torch.nn.Linear(8, WIDTH), torch.nn.Linear(WIDTH, 100))
    fl.train_only(model, "1")
    data = TensorDataset(torch.randn(samples, 8), torch.randint(100, (samples,)))
    few = TensorDataset(torch.randn(64, 8), torch.randint(100, (64,)))
    with tempfile.TemporaryDirectory() as store:

        def fit(epochs: int) -> float:
            return seconds(
                lambda: fl.fit(model, data, few, features=store, epochs=epochs, batch_size=64)
            )

        fit(1)
        return (fit(6) - fit(1)) / 5


def check(rows: int, width: int) -> float:
    values = (ValueSpec("value 0", (width,), torch.float32),)
    ids = [number.to_bytes(16, "little") for number in range(rows)]
    with tempfile.TemporaryDirectory() as folder:
        features = FeatureStore(folder).open(FeatureKey({"prefix": "synthetic"}), values)
        with features.writer() as writer:
            writer.put(ids, [torch.zeros(rows, width)])
        return statistics.median(seconds(lambda: features.read(ids)) for _ in range(3))


def memory(root: str, count: str) -> dict[str, float]:
    from frostline import Preprocessing
    from frostline.data import ImageDataset, read_set

    classes = sorted(path.name for path in Path(root).iterdir())
    preprocessing = Preprocessing(resize=32, crop=(32, 32))
    pooled = torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Flatten(), torch.nn.Linear(48, 16))
    model = torch.nn.Sequential(pooled, torch.nn.Linear(16, 10))
    fl.train_only(model, "1")
    cut = fl.cut(model, torch.zeros(2, 3, 32, 32))

    def extracted(folder: Path) -> fl.FeatureData:
        data = ImageDataset(read_set(folder, classes=classes), preprocessing)
        return fl.extract(cut, data, folder.parent / "store", precision="exact")

    with tempfile.TemporaryDirectory() as place:
        few, many = Path(place) / "few", Path(place) / "many"
        linked(Path(root), few, 64)
        linked(Path(root), many, int(count))
        extracted(few)  # imports, and all that happens once
        if os.fork() == 0:  # a process of its own computes, so that nothing of it is counted here
            extracted(many)
            os._exit(0)
        os.wait()
        base = resident()
        kept = ImageDataset(read_set(many, classes=classes), preprocessing)
        after = resident()
        found = fl.extract(cut, kept, many.parent / "store", precision="exact")
        assert (len(found), found.computed) == (len(kept), 0)
        return {"base": base, "data": after - base, "stored": resident() - after}


def linked(root: Path, to: Path, count: int) -> None:
    """A folder with about so many of the pictures in `root`, as many of each class."""
    folders = sorted(root.iterdir())
    for folder in folders:
        (to / folder.name).mkdir(parents=True)
        for path in sorted(folder.iterdir())[: max(1, count // len(folders))]:
            (to / folder.name / path.name).symlink_to(path)


PARTS: dict[str, Callable[..., dict[str, float]]] = {
    "times": times,
    "memory": memory,
}


def address() -> dict[str, float]:
    """Requests of one segment with one value, and of ten of them, by kind."""
    import s3fs

    with tempfile.TemporaryDirectory() as place, socket.create_server(("127.0.0.1", 0)) as free:
        port, log = free.getsockname()[1], Path(place) / "log"
        free.close()
        with log.open("wb") as file:
            command = [sys.executable, "-m", "moto.server", "-p", str(port)]
            server = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "anybody",
            "AWS_SECRET_ACCESS_KEY": "none",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        try:
            await_server(port)
            s3fs.S3FileSystem().mkdir("bucket")
            pushed, fetched = [], []
            for segments in (1, 10):
                where = f"s3://bucket/{segments}"
                before = requests(log)
                push(where, Path(place) / f"push {segments}", segments)
                middle = requests(log)
                fetch(where, Path(place) / f"fetch {segments}", segments)
                pushed.append(middle - before)
                fetched.append(requests(log) - middle)
        finally:
            server.kill()
            server.wait()
    slope = {
        "push_requests_per_segment": (pushed[1] - pushed[0]) / 9,
        "fetch_requests_per_segment": (fetched[1] - fetched[0]) / 9,
    }
    # Each push lists once and reads the manifest once, so all but the first are in the slope.
    return {**slope, "fetch_requests_per_process": fetched[0] - slope["fetch_requests_per_segment"]}


ROWS = 100  # of a segment


def opened(where: str, cache: Path) -> Any:
    values = (ValueSpec("value 0", (WIDTH,), torch.float32),)
    return FeatureStore(where, cache=cache).open(FeatureKey({"prefix": "synthetic"}), values)


def ids_of(segments: int) -> list[bytes]:
    return [number.to_bytes(16, "little") for number in range(ROWS * segments)]


def push(where: str, cache: Path, segments: int) -> None:
    ids = ids_of(segments)
    for first in range(0, len(ids), ROWS):
        with opened(where, cache).writer() as writer:
            writer.put(ids[first : first + ROWS], [torch.zeros(ROWS, WIDTH)])


def fetch(where: str, cache: Path, segments: int) -> None:
    assert len(opened(where, cache).read(ids_of(segments))) == ROWS * segments


def requests(log: Path) -> int:
    return len(
        re.findall(r'"(?:PUT|GET|POST|HEAD|DELETE) /', re.sub(r"\x1b\[\d+m", "", log.read_text()))
    )


def await_server(port: int) -> None:
    for _ in range(600):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.1)
    raise SystemExit("the S3 server did not start")


def seconds(work: Callable[[], object]) -> float:
    """Processor seconds of all threads, which others on the machine do not lengthen."""
    start = time.process_time()
    work()
    return time.process_time() - start


def resident() -> int:
    """Bytes of this process's own memory."""
    gc.collect()
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


if __name__ == "__main__":
    main()
