"""Fingerprints: equal exactly when names, shapes, dtypes and bits are."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import frostline as fl
from frostline.fingerprints import Record, digest, fingerprint_of


class Net(nn.Module):
    """A convolution, a norm and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)


@pytest.fixture
def net() -> Net:
    return Net()


CHANGES: dict[str, Callable[[Net], object]] = {
    "one bit of a weight": lambda net: (
        net.conv.weight.data.view(torch.int32).view(-1)[7:8].bitwise_xor_(1)
    ),
    "one bit of a buffer": lambda net: net.bn.running_var.view(torch.int32)[:1].bitwise_xor_(1),
    "a counter": lambda net: net.bn.num_batches_tracked.add_(1),
    "the sign of zero": lambda net: net.bn.bias.data.neg_(),
    "a shape": lambda net: setattr(net.head, "bias", nn.Parameter(net.head.bias.data[None])),
    "a dtype": lambda net: net.head.double(),
    "a name": lambda net: setattr(net.head, "offset", net.head._parameters.pop("bias")),
    "a missing tensor": lambda net: net.head.register_parameter("bias", None),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_gives_another_fingerprint(net: Net, change: Callable[[Net], object]) -> None:
    before = fl.fingerprint(net)
    change(net)
    assert fl.fingerprint(net) != before


SAME: dict[str, Callable[[Net], object]] = {
    "memory format": lambda net: net.to(memory_format=torch.channels_last),
    "mode": lambda net: net.eval(),
    "freezing": lambda net: fl.freeze(net, "conv"),
    "gradients": lambda net: net.head.weight.sum().backward(),
    "strides": lambda net: setattr(
        net.head.weight, "data", net.head.weight.data.t().contiguous().t()
    ),
    "loading the same": lambda net: net.load_state_dict(
        copy.deepcopy(net.state_dict()), assign=True
    ),
}


@pytest.mark.parametrize("act", SAME.values(), ids=SAME.keys())
def test_what_changes_no_bit_gives_the_same_fingerprint(
    net: Net, act: Callable[[Net], object]
) -> None:
    before = fl.fingerprint(net)
    act(net)
    assert fl.fingerprint(net) == before


def test_a_copy_has_the_same_fingerprint(net: Net) -> None:
    assert fl.fingerprint(copy.deepcopy(net)) == fl.fingerprint(net)


def test_a_compiled_model_has_the_fingerprint_of_its_inside(net: Net) -> None:
    assert fl.fingerprint(torch.compile(net, backend="eager")) == fl.fingerprint(net)


def test_a_part_has_the_buffers_that_belong_to_it(net: Net) -> None:
    assert list(fl.fingerprint(net, "bn").tensors) == [
        "bn.weight",
        "bn.bias",
        "bn.running_mean",
        "bn.running_var",
        "bn.num_batches_tracked",
    ]


def test_half_a_layer_brings_no_buffers(net: Net) -> None:
    assert list(fl.fingerprint(net, "bn.weight").tensors) == ["bn.weight"]


def test_the_fingerprint_of_everything_covers_the_state_dict(net: Net) -> None:
    assert list(fl.fingerprint(net).tensors) == list(net.state_dict())


def test_a_part_does_not_depend_on_the_rest(net: Net) -> None:
    before = fl.fingerprint(net, "conv")
    net.head.weight.data += 1
    assert fl.fingerprint(net, "conv") == before


def test_tensors_that_swap_places_give_another_fingerprint() -> None:
    a, b = torch.zeros(2), torch.ones(2)
    assert fingerprint_of({"a": a, "b": b}) != fingerprint_of({"a": b, "b": a})


TENSORS: dict[str, Tensor] = {
    "bfloat16": torch.ones(3, dtype=torch.bfloat16),
    "float16": torch.ones(3, dtype=torch.float16),
    "float8": torch.ones(3).to(torch.float8_e4m3fn),
    "bool": torch.tensor([True, False]),
    "int8": torch.arange(3, dtype=torch.int8),
    "uint16": torch.arange(3).to(torch.uint16),
    "scalar": torch.tensor(1.5),
    "empty": torch.empty(0, 3),
    "complex": torch.tensor([1 + 2j]),
    "wants gradients": torch.ones(3, requires_grad=True),
    "expanded": torch.ones(1).expand(4),
}


@pytest.mark.parametrize("tensor", TENSORS.values(), ids=TENSORS.keys())
def test_a_tensor_of_any_sort_has_the_digest_of_its_copy(tensor: Tensor) -> None:
    assert digest(tensor) == digest(tensor.detach().clone().contiguous())


def test_tensors_of_different_sorts_have_different_digests() -> None:
    assert len({digest(tensor) for tensor in TENSORS.values()}) == len(TENSORS)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_empty_tensors_differ_by_shape(shape: tuple[int, ...]) -> None:
    others = {(0,), (0, 3), (3, 0)} - {shape}
    assert digest(torch.empty(shape)) not in {digest(torch.empty(other)) for other in others}


def test_a_conjugate_view_has_the_digest_of_its_numbers() -> None:
    number = torch.tensor([1 + 2j])
    assert digest(number.conj()) == digest(torch.tensor([1 - 2j]))


def test_nans_of_different_payload_differ() -> None:
    quiet = torch.tensor([0x7FC00000], dtype=torch.int32).view(torch.float32)
    other = torch.tensor([0x7FC00001], dtype=torch.int32).view(torch.float32)
    assert digest(quiet) != digest(other)


def test_a_fingerprint_pickles_with_its_tensors(net: Net) -> None:
    before = fl.fingerprint(net)
    after = pickle.loads(pickle.dumps(before))
    assert after == before
    assert after.tensors == before.tensors
    assert copy.deepcopy(before).tensors == before.tensors


def test_a_fingerprint_is_text(net: Net) -> None:
    assert fl.fingerprint(net).startswith("xxh3:")


def test_a_known_tensor_keeps_its_digest() -> None:
    """Stored runs and deltas name their base by it: it may not change between versions."""
    assert digest(torch.arange(4.0)) == "e56c09f72273df5fe194489b310e1d60"


def test_a_tensor_without_data_is_refused() -> None:
    message = r"0\.weight has no data to hash: it lives on the meta device\. Load the weights first"
    with pytest.raises(fl.FrostlineError, match=message):
        fl.fingerprint(nn.Sequential(nn.Linear(2, 2, device="meta")))


class Wrapped(torch.Tensor):
    """A tensor subclass that is made of others, as libraries for quantisation have them."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapped:
        made: Wrapped = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=torch.float32)
        made.inner = inner
        return made

    def __tensor_flatten__(self) -> tuple[list[str], dict[str, int]]:
        return ["inner"], {"bits": 8}

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return Wrapped(args[0].inner)
        raise NotImplementedError(func)


def quantised(value: float) -> Tensor:
    return torch.quantize_per_tensor(torch.full((3,), value), 0.1, 2, torch.qint8)


KINDS: dict[str, Callable[[float], Tensor]] = {
    "quantised": quantised,
    "by channel": lambda v: torch.quantize_per_channel(
        torch.full((2, 3), v), torch.tensor([0.1, 0.2]), torch.tensor([0, 1]), 0, torch.qint8
    ),
    "coo": lambda v: torch.tensor([[0.0, v]]).to_sparse(),
    "csr": lambda v: torch.tensor([[0.0, v]]).to_sparse_csr(),
    "csc": lambda v: torch.tensor([[0.0, v]]).to_sparse_csc(),
    "wrapped": lambda v: Wrapped(torch.full((3,), int(v), dtype=torch.int8)),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch: such tensors are beta, or leave
@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_of_another_kind_has_a_digest_by_its_bits(kind: str) -> None:
    make = KINDS[kind]
    assert digest(make(1.0)) == digest(make(1.0)) != digest(make(2.0))
    record = Record.of(make(1.0), name="it")
    assert record.moved(make(1.0), name="it") is None
    assert record.moved(make(2.0), name="it")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_quantised_tensor_of_another_scale_has_another_digest() -> None:
    other = torch._make_per_tensor_quantized_tensor(quantised(1.0).int_repr(), 0.2, 2)
    assert digest(other) != digest(quantised(1.0))
