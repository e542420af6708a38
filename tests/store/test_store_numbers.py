"""Storage types: what is exact, what is lost, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from made_rows import KEY, row_ids
from torch import Tensor

from frostline import StoreError
from frostline.store import FeatureStore, ValueSpec, storage_error
from frostline.store.keys import NUMPY_TYPES

# Largest relative error of rounding to the type: half a step of its mantissa; of int8 the error
# of normal numbers scaled by the largest of 512, seen to be 0.007.
BOUNDS = {"same": 0.0, "float32": 0.0, "float16": 2**-11, "bfloat16": 2**-8, "int8": 0.01}


def stored_and_read(root: Path, tensor: Tensor, storage: str) -> Tensor:
    spec = ValueSpec("x", tuple(tensor.shape[1:]), tensor.dtype, storage)
    features = FeatureStore(root).open(KEY, [spec])
    with features.writer() as writer:
        writer.put(row_ids(range(len(tensor))), [tensor])
    (found,) = features.read(row_ids(range(len(tensor)))).gather(torch.arange(len(tensor)))
    assert found.dtype == tensor.dtype
    return found


@pytest.mark.parametrize("dtype", NUMPY_TYPES, ids=str)
def test_every_dtype_is_kept_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    bits = torch.randint(0, 256, (6, 5 * dtype.itemsize), dtype=torch.uint8)
    tensor = bits % 2 == 0 if dtype == torch.bool else bits.view(dtype)
    found = stored_and_read(tmp_path, tensor, "same")
    assert torch.equal(found.view(torch.uint8), tensor.view(torch.uint8))


@pytest.mark.parametrize("storage", BOUNDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_what_storage_loses_is_what_is_reported(
    tmp_path: Path, dtype: torch.dtype, storage: str
) -> None:
    tensor = torch.randn(8, 512).to(dtype)
    found = stored_and_read(tmp_path, tensor, storage)
    error = float((found.double() - tensor.double()).norm() / tensor.double().norm())
    assert error == pytest.approx(storage_error(tensor, storage), rel=1e-6, abs=1e-12)
    # float64 in float32 loses what float32 does not have.
    assert error <= BOUNDS[storage] + (2**-24 if dtype == torch.float64 else 0)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8])
@pytest.mark.parametrize("storage", BOUNDS)
def test_numbers_that_are_not_floats_are_never_converted(
    tmp_path: Path, dtype: torch.dtype, storage: str
) -> None:
    tensor = torch.arange(12).view(3, 4).to(dtype)
    assert torch.equal(stored_and_read(tmp_path, tensor, storage), tensor)
    assert storage_error(tensor, storage) == 0.0


def test_each_row_of_int8_has_a_scale_of_its_own(tmp_path: Path) -> None:
    tensor = torch.randn(3, 100) * torch.tensor([[1e-30], [1.0], [1e30]])
    found = stored_and_read(tmp_path, tensor, "int8").double()
    errors = (found - tensor.double()).norm(dim=1) / tensor.double().norm(dim=1)
    assert float(errors.max()) < 0.02


def test_a_row_of_zeros_stays_zeros_in_int8(tmp_path: Path) -> None:
    assert not stored_and_read(tmp_path, torch.zeros(2, 4), "int8").any()
    assert storage_error(torch.zeros(2, 4), "int8") == 0.0


def test_scalars_can_be_int8(tmp_path: Path) -> None:
    tensor = torch.tensor([0.5, -3.0, 0.0])
    assert torch.allclose(stored_and_read(tmp_path, tensor, "int8"), tensor)


def test_infinities_and_nan_are_kept_by_the_float_types(tmp_path: Path) -> None:
    tensor = torch.tensor([[torch.inf, -torch.inf, torch.nan, 1.0]])
    found = stored_and_read(tmp_path, tensor, "float16")
    assert torch.equal(found.view(torch.int32), tensor.half().float().view(torch.int32))


@pytest.mark.parametrize(
    ("number", "storage"), [(1e5, "float16"), (torch.inf, "int8"), (torch.nan, "int8")]
)
def test_a_number_the_storage_cannot_keep_is_refused(
    tmp_path: Path, number: float, storage: str
) -> None:
    tensor = torch.tensor([[1.0, number]])
    with pytest.raises(StoreError, match=rf"'x' holds .*, which storage '{storage}' cannot keep"):
        stored_and_read(tmp_path, tensor, storage)


def test_an_empty_tensor_loses_nothing() -> None:
    assert storage_error(torch.empty(0, 3), "int8") == 0.0
