"""A reader of the store's format written from its README alone; imports nothing of Frostline."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import xxhash


def canonical(content: object) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def read_key(folder: Path) -> dict[bytes, list[np.ndarray[Any, Any]]]:
    """Row id -> its values, of every complete row."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    checksum = manifest.pop("checksum")
    assert checksum == xxhash.xxh3_128_hexdigest(canonical(manifest))
    assert (manifest["format"], manifest["version"]) == ("frostline features", 1)
    assert folder.name == xxhash.xxh3_128_hexdigest(canonical(manifest["parts"]))
    manifest.pop("note")
    identity = xxhash.xxh3_64_intdigest(canonical(manifest))
    rows: dict[bytes, list[np.ndarray[Any, Any]]] = {}
    for segment in folder.glob("segment-*"):
        rows.update(read_segment(segment, manifest["values"], identity))
    return rows


def read_segment(
    segment: Path, values: list[dict[str, Any]], identity: int
) -> dict[bytes, list[np.ndarray[Any, Any]]]:
    log = (segment / "rows").read_bytes()
    data = [(segment / f"value{k}.npy").read_bytes()[128:] for k in range(len(values))]
    size = 16 + 8 + sum(map(field_bytes, values))
    rows = {}
    for n in range(len(log) // size):
        record = log[n * size : (n + 1) * size]
        (check,) = struct.unpack("<Q", record[-8:])
        if check == xxhash.xxh3_64_intdigest(record[:-8], (identity + n) % 2**64):
            found = read_row(record, n, values, data)
            if found is not None:
                rows[record[:16]] = found
    return rows


def field_bytes(value: dict[str, Any]) -> int:
    ragged = value["shape"].count(None)
    return 8 * ((1 + ragged if ragged else 0) + is_scaled(value) + 1)


def is_scaled(value: dict[str, Any]) -> bool:
    return value["stored"] == "int8" and "float" in value["dtype"]


def read_row(
    record: bytes, n: int, values: list[dict[str, Any]], data: list[bytes]
) -> list[np.ndarray[Any, Any]] | None:
    at, row = 16, []
    for value, content in zip(values, data, strict=True):
        shape, scale, first = list(value["shape"]), 1.0, n
        ragged = [k for k, length in enumerate(shape) if length is None]
        if ragged:
            first, *lengths = struct.unpack_from(f"<{1 + len(ragged)}Q", record, at)
            at += 8 * (1 + len(ragged))
            for k, length in zip(ragged, lengths, strict=True):
                shape[k] = length
        if is_scaled(value):
            (scale,) = struct.unpack_from("<d", record, at)
            at += 8
        (total,) = struct.unpack_from("<Q", record, at)
        at += 8
        last = ragged[-1] + 1 if ragged else 0
        unit = math.prod(shape[last:]) * np.dtype(value["numpy"]).itemsize
        raw = content[first * unit : (first + math.prod(shape[:last])) * unit]
        if xxhash.xxh3_64_intdigest(raw) != total:
            return None
        numbers = np.frombuffer(raw, dtype=value["numpy"]).reshape(shape)
        if value["stored"] == "bfloat16":
            numbers = (numbers.astype("<u4") << 16).view("<f4")
        row.append(numbers * np.float32(scale) if is_scaled(value) else numbers)
    return row
