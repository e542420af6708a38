"""What torch.export is given while a model is followed: right, and gone afterwards."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.fx.config
import torch.utils.checkpoint
from torch import Tensor, nn
from torch._decomp import decomposition_table

import frostline as fl
from frostline.cutting import following

NORM = torch.ops.aten._native_batch_norm_legit_no_training.default
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": Tensor.contiguous,
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3),
    "every second": lambda x: x[:, :, ::2],
    "a copy of one expanded": lambda x: (
        x[:1].expand(3, -1, -1, -1).clone(memory_format=torch.preserve_format)
    ),
    "flat": lambda x: x[:, :, 0, 0],
    "sequences": lambda x: x[:, :, 0],
}


def form(value: Tensor) -> tuple[object, ...]:
    return value.shape, value.stride(), value.dtype


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("operation", following._SIZES, ids=str)
def test_the_form_that_is_told_is_that_of_the_result(operation: Any, layout: str) -> None:
    x = LAYOUTS[layout](torch.rand(3, 4, 6, 8))
    one = torch.ones(4)
    given = (x, one, one, one, one, 0.1, 1e-5) if operation is NORM else (x,)
    told = following._SIZES[operation](*given)
    found = operation(*given)
    if operation is NORM:
        assert [form(value) for value in found] == [form(value) for value in told]
    else:
        assert found is x
        assert told is x


class Failing(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError(f"no forward of {x.dim()} dimensions")


def globals_of_torch() -> tuple[object, ...]:
    return (
        torch.cuda.is_available,
        torch.utils.checkpoint.CheckpointFunction,
        getattr(torch.fx.config, "do_not_emit_stack_traces", None),  # torch 2.9 has none
        [decomposition_table[operation] for operation in following._SIZES],
        gc.isenabled(),
    )


@pytest.mark.parametrize("layer", [nn.Linear, Failing])
def test_torch_is_as_it_was_when_a_model_has_been_followed(layer: type[nn.Linear]) -> None:
    before = globals_of_torch()
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), layer(4, 2))
    fl.freeze(model, "0")
    if layer is Failing:
        with pytest.raises(fl.CutError, match="no forward"):
            fl.cut(model, torch.randn(3, 4))
    else:
        assert fl.cut(model, torch.randn(3, 4)).error == 0
    assert globals_of_torch() == before


def test_whoever_does_without_collections_goes_on_without(request: pytest.FixtureRequest) -> None:
    gc.disable()
    request.addfinalizer(gc.enable)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    fl.freeze(model, "0")
    fl.cut(model, torch.randn(3, 4))
    assert not gc.isenabled()
