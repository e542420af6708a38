"""How far outputs are from the reference, and what cannot stand for it at all."""

from __future__ import annotations

import math

import pytest
import torch

from frostline.tuning.search import relative_error

HALF = torch.tensor([[3.0, 4.0]])


def test_the_error_is_that_of_the_worst_output() -> None:
    near, far = HALF * 1.01, HALF * 1.5
    assert relative_error([near, far], [HALF, HALF]) == pytest.approx(0.5)


def test_any_output_is_infinitely_far_from_zero() -> None:
    zero = torch.zeros(1, 2)
    assert relative_error([zero], [zero]) == 0
    assert relative_error([HALF], [zero]) == math.inf


def test_infinities_and_nan_in_the_same_places_are_no_error() -> None:
    reference = torch.tensor([1.0, math.inf, math.nan, -math.inf])
    assert relative_error([reference.clone()], [reference]) == 0


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_nan_or_infinity_elsewhere_is_refused(number: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinity where plain float32 has none"):
        relative_error([torch.tensor([number, 4.0])], [HALF[0]])


def test_infinities_of_another_sign_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        relative_error([torch.tensor([math.inf])], [torch.tensor([-math.inf])])


def test_integers_that_differ_are_refused() -> None:
    ids = torch.tensor([1, 2])
    assert relative_error([ids], [ids]) == 0
    with pytest.raises(ValueError, match="integers differ"):
        relative_error([ids + 1], [ids])


def test_other_shapes_dtypes_and_numbers_of_outputs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"torch.float64 \(1, 2\) instead of torch.float32 \(1, 2"):
        relative_error([HALF.double()], [HALF])
    with pytest.raises(ValueError, match="2 outputs instead of 1"):
        relative_error([HALF, HALF], [HALF])
