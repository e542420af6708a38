"""Where a run computes: scaled steps, and batches in their containers."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from frostline.devices import Compute, to_device


class Pair(NamedTuple):
    pixels: Tensor
    name: str


class Encoding:
    """As transformers' batches, it moves itself."""

    def __init__(self) -> None:
        self.device = "here"

    def to(self, device: torch.device) -> Encoding:
        self.device = str(device)
        return self


@pytest.mark.parametrize(
    "batch",
    [
        {"a": torch.ones(2), "b": [torch.ones(1), "text"]},
        OrderedDict(a=torch.ones(2)),
        (torch.ones(1), 5),
        Pair(torch.ones(3), "cat"),
    ],
)
def test_a_batch_moves_in_containers_of_the_same_kind(batch: Any) -> None:
    moved = to_device(batch, torch.device("meta"))
    assert type(moved) is type(batch)
    first = next(iter(moved.values())) if isinstance(moved, dict) else moved[0]
    assert first.is_meta


def test_what_moves_itself_is_asked_to() -> None:
    assert to_device(Encoding(), torch.device("meta")).device == "meta"


def _scaling() -> tuple[Compute, torch.nn.Parameter, torch.optim.SGD]:
    weight = torch.nn.Parameter(torch.ones(2))
    compute = Compute("cpu")
    compute.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    return compute, weight, torch.optim.SGD([weight], lr=1.0)


def test_scaled_gradients_are_clipped_and_applied_at_their_own_size() -> None:
    compute, weight, optimizer = _scaling()
    compute.scaler.scale((weight * torch.tensor([3.0, 4.0])).sum()).backward()
    compute.step(optimizer, clip_norm=1.0)
    torch.testing.assert_close(weight.detach(), torch.tensor([0.4, 0.2]))


def test_a_step_is_left_out_where_scaled_gradients_overflow() -> None:
    compute, weight, optimizer = _scaling()
    compute.scaler.scale((weight * torch.tensor([1e38, 1.0])).sum()).backward()
    compute.step(optimizer)
    assert weight.tolist() == [1.0, 1.0]
    assert compute.scaler.get_scale() == 2.0
