"""What PyTorch runs as one kernel where no gradient is wanted stays so in a leaned model."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from lean_world import check, same
from torch import Tensor, nn

import frostline as fl
from frostline.backward import is_lean, unlean


class Attending(nn.Module):
    """Frozen attention on the batch, and a head that trains."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.attention, nn.MultiheadAttention):
            return self.head(self.attention(x, x, x, need_weights=False)[0])
        return self.head(self.attention(x))


def layer() -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)


def encoder() -> nn.TransformerEncoder:
    return nn.TransformerEncoder(layer(), 2)


KINDS = {
    "attention": lambda: nn.MultiheadAttention(8, 2, batch_first=True),
    "layer": layer,
    "encoder": encoder,
}


@contextmanager
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The fused kernels that are called within the block."""
    called: list[str] = []
    with monkeypatch.context() as patched:
        for name in ("_transformer_encoder_layer_fwd", "_native_multi_head_attention"):
            kernel = getattr(torch, name)

            def run(*args: object, _kernel: object = kernel, _name: str = name) -> object:
                called.append(_name)
                return _kernel(*args)  # type: ignore[operator]

            patched.setattr(torch, name, run)
        yield called


@pytest.mark.parametrize("root", [True, False], ids=["itself", "in a model"])
@pytest.mark.parametrize("name", KINDS)
def test_a_frozen_one_in_eval_keeps_its_kernel_and_its_bits(
    name: str, root: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = Attending(KINDS[name]())
    fl.freeze(model, "attention")
    model.train()
    part = model.attention if root else model
    x = torch.randn(4, 6, 8)
    given = (x, x, x) if root and name == "attention" else (x,)
    with counting(monkeypatch) as plain:
        expected = part(*given)
    with fl.lean(part, at_least_bytes=0), counting(monkeypatch) as leaned:
        found = part(*given)
    pairs = (
        zip(expected, found, strict=True) if isinstance(expected, tuple) else [(expected, found)]
    )
    assert plain
    assert leaned == plain
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("name", KINDS)
def test_one_that_trains_keeps_its_kernel_where_gradients_are_off(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Detached(Attending):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = super().forward(x)
            return self.head(x.repeat(1, 1, 3)[..., :8])

    model = Detached(KINDS[name]()).eval()
    x = torch.randn(4, 6, 8)
    with counting(monkeypatch) as plain:
        expected = model(x)
    with fl.lean(model, at_least_bytes=0), counting(monkeypatch) as leaned:
        found = model(x)
    assert plain
    assert leaned == plain
    assert torch.equal(expected, found)


def test_frozen_attention_in_a_layer_that_trains_keeps_its_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Attending(layer()).eval()
    fl.freeze(model, "attention.self_attn")
    x = torch.randn(4, 6, 8)
    with fl.lean(model, at_least_bytes=0), counting(monkeypatch) as leaned:
        model(x)
    assert leaned == ["_native_multi_head_attention"]
    check(model, x)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", KINDS)
def test_one_that_gradients_cross_is_leaned_as_before(name: str, training: bool) -> None:
    model = Attending(KINDS[name]()).train(training)
    fl.freeze(model, "attention")
    plain, leaned = check(model, torch.randn(4, 6, 8, requires_grad=True))
    assert leaned <= plain
    if name != "attention":
        assert leaned < plain


@pytest.mark.parametrize("name", KINDS)
def test_copies_are_leaned_and_made_plain_again(name: str) -> None:
    model = KINDS[name]().eval()
    handles = [fl.lean(model), fl.lean(model)]
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for copied in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert is_lean(copied)
        x = torch.randn(2, 3, 8)
        given = (x, x, x) if name == "attention" else (x,)
        own, other = model(*given), copied(*given)
        assert same(own, other) if isinstance(own, tuple) else torch.equal(own, other)
        unlean(copied)
        assert not is_lean(copied)
        assert not any("forward" in module.__dict__ for module in copied.modules())
    handles[0].remove()
    assert is_lean(model)
    handles[1].remove()
    assert not any("forward" in module.__dict__ for module in model.modules())
