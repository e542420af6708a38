"""What stored numbers depend on, and what one row holds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, final, get_args

import torch
import xxhash

from frostline.choices import Storage
from frostline.errors import StoreError

# torch dtype -> how its bytes are declared in an `.npy` file; NumPy has no bfloat16.
NUMPY_TYPES: Final[Mapping[torch.dtype, str]] = {
    torch.float64: "<f8",
    torch.float32: "<f4",
    torch.float16: "<f2",
    torch.bfloat16: "<u2",
    torch.int64: "<i8",
    torch.int32: "<i4",
    torch.int16: "<i2",
    torch.int8: "|i1",
    torch.uint64: "<u8",
    torch.uint32: "<u4",
    torch.uint16: "<u2",
    torch.uint8: "|u1",
    torch.bool: "|b1",
    torch.complex64: "<c8",
    torch.complex128: "<c16",
}
STORAGES: Final[Mapping[str, torch.dtype]] = {
    name: getattr(torch, name) for name in get_args(Storage) if name != "auto"
}
MOST_NUMBERS: Final = 10**12
MOST_DIMENSIONS: Final = 5  # so that the header of the `.npy` file fits its 128 bytes


@final
@dataclass(frozen=True, slots=True)
class FeatureKey:
    """What the numbers depend on, part by part; equal keys share their rows.

    Attributes:
        parts: name of the part -> its content or content hash, such as `prefix`, `transform`.
    """

    parts: Mapping[str, str]

    def __post_init__(self) -> None:
        if not self.parts:
            raise StoreError(
                "a feature key needs at least one part. Name what the numbers depend on."
            )
        object.__setattr__(self, "parts", dict(self.parts))

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def digest(self) -> str:
        """32 hexadecimal digits: the name of the key's folder."""
        return xxhash.xxh3_128_hexdigest(canonical_json(dict(self.parts)))


@final
@dataclass(frozen=True, slots=True)
class ValueSpec:
    """One value of a row.

    Attributes:
        name: what it is, for people; unique within a row.
        shape: of one sample, without the batch dimension; `None` marks a ragged dimension.
        dtype: as computed, and as given back.
        storage: how floating point numbers lie on disk: `same`, `float32`, `bfloat16`,
            `float16` or `int8` (one scale per row). Other numbers are always kept as they are.

    Raises:
        StoreError: a shape, dtype or storage the store does not know.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: torch.dtype
    storage: str = "same"

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        if self.storage not in ("same", *STORAGES):
            known = ", ".join(["same", *STORAGES])
            raise StoreError(
                f"storage {self.storage!r} of value '{self.name}' is not known. "
                f"Use one of: {known}."
            )
        if self.dtype not in NUMPY_TYPES:
            raise StoreError(
                f"value '{self.name}' is {self.dtype}, which cannot be stored. "
                "Convert it to a float, integer, bool or complex type first."
            )
        if len(self.shape) > MOST_DIMENSIONS or any(s is not None and s < 0 for s in self.shape):
            raise StoreError(
                f"value '{self.name}' has shape {self.shape} per sample; the store takes up to "
                f"{MOST_DIMENSIONS} dimensions, none negative. Flatten some of them."
            )
        if math.prod(size or 1 for size in self.shape) > MOST_NUMBERS:
            raise StoreError(
                f"value '{self.name}' has shape {self.shape} per sample, which is more than "
                f"{MOST_NUMBERS:.0e} numbers. Keep a smaller value of it."
            )

    @property
    def stored(self) -> torch.dtype:
        """The dtype on disk."""
        if self.storage == "same" or not self.dtype.is_floating_point:
            return self.dtype
        return STORAGES[self.storage]

    @property
    def is_scaled(self) -> bool:
        """Whether each row has a scale, because floats are kept as int8."""
        return self.dtype.is_floating_point and self.stored == torch.int8

    @property
    def leading(self) -> tuple[int | None, ...]:
        """Dimensions up to the last ragged one; empty when none is."""
        ragged = [at for at, size in enumerate(self.shape) if size is None]
        return self.shape[: ragged[-1] + 1] if ragged else ()

    @property
    def unit_shape(self) -> tuple[int, ...]:
        """Fixed dimensions after the last ragged one: the file is an array of such units."""
        return tuple(size for size in self.shape[len(self.leading) :] if size is not None)

    @property
    def unit_nbytes(self) -> int:
        """Bytes of one unit on disk."""
        return math.prod(self.unit_shape) * self.stored.itemsize

    @property
    def ragged_count(self) -> int:
        """How many dimensions are ragged."""
        return self.shape.count(None)

    def describe(self) -> dict[str, object]:
        """As it stands in the manifest: `same` is replaced by what it means."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": dtype_name(self.dtype),
            "stored": dtype_name(self.stored),
            "numpy": NUMPY_TYPES[self.stored],
        }


def dtype_name(dtype: torch.dtype) -> str:
    """`torch.float32` -> `float32`."""
    return str(dtype).removeprefix("torch.")


def canonical_json(content: object) -> bytes:
    """The one spelling of `content` that is hashed: sorted names, no spaces, UTF-8."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()
