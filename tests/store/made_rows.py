"""Rows that follow from their number, in every kind of value; each survives its storage exactly."""

from __future__ import annotations

import hashlib
import os
import signal
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from frostline.store import FeatureKey, Features, FeatureStore, StoredRows, ValueSpec

KEY = FeatureKey({"prefix": "stem", "tensors": "abc", "transform": "crop 224"})
VALUES = (
    ValueSpec("map", (2, 3), torch.float32),
    ValueSpec("tokens", (None, 4), torch.float32, "bfloat16"),
    ValueSpec("scaled", (8,), torch.float32, "int8"),
    ValueSpec("label", (), torch.int64),
)


def row_id(number: int) -> bytes:
    return hashlib.md5(str(number).encode(), usedforsecurity=False).digest()


def row_ids(numbers: Iterable[int]) -> list[bytes]:
    return [row_id(number) for number in numbers]


def row(number: int) -> list[Tensor]:
    numbers = torch.Generator().manual_seed(number)
    scaled = torch.randint(-127, 128, (8,), generator=numbers).float()
    scaled[0] = 127.0
    return [
        torch.randn(2, 3, generator=numbers),
        torch.randn(number % 4, 4, generator=numbers).bfloat16().float(),
        scaled,
        torch.tensor(number),
    ]


def batch(numbers: Sequence[int]) -> list[Tensor | list[Tensor]]:
    maps, tokens, scaled, labels = zip(*map(row, numbers), strict=True)
    return [torch.stack(maps), list(tokens), torch.stack(scaled), torch.stack(labels)]


def opened(root: Path, **options: int) -> Features:
    return FeatureStore(root, **options).open(KEY, VALUES)


def fill(features: Features, numbers: Sequence[int], *, batch_size: int = 4) -> None:
    with features.writer() as writer:
        for at in range(0, len(numbers), batch_size):
            some = numbers[at : at + batch_size]
            writer.put(row_ids(some), batch(some))


def stored_numbers(features: Features, numbers: Sequence[int]) -> list[int]:
    missing = set(features.missing(row_ids(numbers)))
    return [number for at, number in enumerate(numbers) if at not in missing]


def assert_rows(rows: StoredRows, numbers: Sequence[int]) -> None:
    assert len(rows) == len(numbers)
    found = rows.gather(torch.arange(len(numbers)))
    shapes = rows.shapes(1)
    for at, number in enumerate(numbers):
        wanted = row(number)
        length = int(shapes[at, 0])
        assert torch.equal(found[0][at], wanted[0]), f"row {number}, map"
        assert torch.equal(found[1][at, :length], wanted[1]), f"row {number}, tokens"
        assert not found[1][at, length:].any(), f"row {number}, padding"
        assert torch.equal(found[2][at], wanted[2]), f"row {number}, scaled"
        assert torch.equal(found[3][at], wanted[3]), f"row {number}, label"


def assert_holds(features: Features, numbers: Sequence[int]) -> None:
    assert features.missing(row_ids(numbers)) == []
    assert_rows(features.read(row_ids(numbers)), numbers)


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def in_child(work: Callable[[], None]) -> int:
    """Run `work` in a forked process that ends there; gives its process id.

    Forked and not started anew, so that a hundred of them cost no import of torch.
    """
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        signal.alarm(60)
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def claiming_child(root: Path, ids: list[bytes]) -> int:
    """A process that has claimed rows and waits; gives its process id."""
    ear, mouth = os.pipe()

    def claim_and_stay() -> None:
        with opened(root).writer() as writer:
            writer.claim(ids, len(ids))
            os.write(mouth, b"x")
            signal.pause()

    child = in_child(claim_and_stay)
    os.read(ear, 1)
    os.close(ear)
    os.close(mouth)
    return child


def ended(child: int) -> int:
    """Wait for the child; gives its exit status, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
