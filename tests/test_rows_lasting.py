"""Held rows stay held through copies, files, casts and loaded weights; a dropped model is freed."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim import optimizer as torch_optimizer
from torch.optim.swa_utils import AveragedModel

import frostline as fl
from frostline.freezing.rows import Kept, any_differs, are_same, held, held_rows


class Net(nn.Module):
    """An embedding, tied to a head that is registered before it, and a bias."""

    def __init__(self, *, tied: bool = False) -> None:
        super().__init__()
        self.head = nn.Linear(3, 8)
        self.embed = nn.Embedding(8, 3)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.embed(tokens))
        return out


def assert_holds(net: nn.Module, *, steps: int = 3) -> None:
    """Train `net` and see that rows 0 to 4 of its embedding stay and the others move."""
    embed = net.get_submodule("embed").weight
    start = embed.detach().clone()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.arange(8)).square().sum().backward()
        assert embed.grad is not None
        assert not embed.grad[:5].any()
        optimizer.step()
    assert (start != embed).any(dim=1).tolist() == [False] * 5 + [True] * 3


def through_file(net: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


def through_pickle(net: nn.Module) -> nn.Module:
    loaded: nn.Module = pickle.loads(pickle.dumps(net))
    return loaded


COPIES = pytest.mark.parametrize("copied", [copy.deepcopy, through_file, through_pickle])
TIED = pytest.mark.parametrize("tied", [False, True])


@COPIES
@TIED
def test_a_copy_of_the_model_holds_its_own_rows(
    copied: Callable[[nn.Module], nn.Module], tied: bool
) -> None:
    net = Net(tied=tied)
    frozen = fl.freeze(net, "rows:embed.weight[0:5]")
    before = copy.deepcopy(net.state_dict())
    twin = copied(net)
    assert_holds(twin)
    assert all(torch.equal(before[name], now) for name, now in net.state_dict().items())
    assert_holds(net)
    frozen.verify()
    fl.thaw(twin, "embed")
    assert not held(twin.get_submodule("embed").weight)
    assert held(net.embed.weight)


@COPIES
def test_a_copy_stands_on_its_own_once_the_original_is_gone(
    copied: Callable[[nn.Module], nn.Module],
) -> None:
    net = Net(tied=True)
    fl.freeze(net, "rows:embed.weight[0:5]")
    twin = copied(net)
    del net
    assert_holds(twin)


def test_a_copied_handle_verifies_its_own_model() -> None:
    net = Net()
    twin = copy.deepcopy(fl.freeze(net, "rows:embed.weight[0:5]"))
    net.embed.weight.data += 1
    assert twin.verify().tensors == 1
    assert_holds(twin.model)


def test_a_copied_part_holds_its_rows_alone() -> None:
    net = Net(tied=True)
    fl.freeze(net, "rows:embed.weight[0:5]")
    part = copy.deepcopy(net.embed)
    assert held_rows(part.weight) == (range(5),)
    assert part.weight is not net.embed.weight


def test_the_average_of_a_model_can_follow_it() -> None:
    net = Net()
    fl.freeze(net, "rows:embed.weight[0:5]")
    average = AveragedModel(net)
    for _ in range(3):
        assert_holds(net, steps=1)
        average.update_parameters(net)
    assert torch.equal(average.module.embed.weight[:5], net.embed.weight[:5])


def test_state_dict_and_types_are_as_without_a_freeze() -> None:
    net = Net()
    plain = Net()
    fl.freeze(net, "rows:embed.weight[0:5]")
    assert net.state_dict().keys() == plain.state_dict().keys()
    assert [type(m) for m in net.modules()] == [type(m) for m in plain.modules()]
    assert dict(net.named_parameters()).keys() == dict(plain.named_parameters()).keys()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_cast_model_holds_the_cast_rows(dtype: torch.dtype) -> None:
    net = Net()
    fl.freeze(net, "rows:embed.weight[0:5]")
    cast = net.embed.weight.detach()[:5].to(dtype)
    net.to(dtype)
    assert_holds(net)
    assert torch.equal(net.embed.weight[:5], cast)


def test_a_cast_there_and_back_that_cost_digits_is_an_error_before_the_next_step() -> None:
    net = Net()
    fl.freeze(net, "rows:embed.weight[0:5]")
    net.half().float()
    with pytest.raises(fl.DriftError, match=r"rows of embed\.weight that are frozen were written"):
        torch.optim.SGD(net.parameters()).step()


@pytest.mark.parametrize("assign", [False, True])
@TIED
def test_rows_stay_held_when_the_same_weights_are_loaded(assign: bool, tied: bool) -> None:
    net = Net(tied=tied)
    frozen = fl.freeze(net, "rows:embed.weight[0:5]")
    net.load_state_dict(copy.deepcopy(net.state_dict()), assign=assign)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.5)
    net(torch.arange(8)).square().sum().backward()
    optimizer.step()
    frozen.verify()
    optimizer.zero_grad()
    if not (tied and assign):  # then the two names have come apart
        assert_holds(net)


@pytest.mark.parametrize("assign", [False, True])
def test_other_weights_loaded_after_the_freeze_are_neither_kept_nor_written_over(
    assign: bool,
) -> None:
    net, other = Net(), Net()
    frozen = fl.freeze(net, "rows:embed.weight[0:5]")
    net.load_state_dict(other.state_dict(), assign=assign)
    with pytest.raises(fl.DriftError, match=r"embed\.weight\[0:5\]: moved by up to"):
        frozen.verify()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    with pytest.raises(fl.DriftError, match=r"embed\.weight\[0:5\]: 5 of 5 rows differ"):
        optimizer.step()
    assert torch.equal(net.embed.weight, other.embed.weight)
    fl.freeze(net, "rows:embed.weight[0:5]")
    assert_holds(net)


def test_leaving_the_context_releases_a_parameter_that_was_replaced_inside() -> None:
    net = Net()
    with fl.frozen(net, "rows:embed.weight[0:5]"):
        net.load_state_dict(copy.deepcopy(net.state_dict()), assign=True)
    assert not held(net.embed.weight)
    assert "_frostline_rows" not in net.embed.__dict__


def test_a_context_around_a_cast_gives_back_rows_that_fit() -> None:
    net = Net()
    fl.freeze(net, "rows:embed.weight[0:5]")
    with fl.frozen(net, "embed"):
        net.double()
    assert_holds(net)


def test_two_models_hold_each_their_own_rows() -> None:
    one, two = Net(), Net()
    fl.freeze(one, "rows:embed.weight[0:5]")
    fl.freeze(two, "rows:embed.weight[0:5]")
    assert_holds(one)
    del one
    assert_holds(two)


@TIED
def test_a_dropped_model_is_freed_at_once_and_leaves_no_hook(tied: bool) -> None:
    hooks = [
        torch_optimizer._global_optimizer_pre_hooks,
        torch_optimizer._global_optimizer_post_hooks,
    ]
    gc.collect()  # a model of another test that is no more used has the same hooks
    before = [dict(found) for found in hooks]
    net = Net(tied=tied)
    frozen = fl.freeze(net, "rows:embed.weight[0:5,7]")
    twin = copy.deepcopy(net)
    alive = [weakref.ref(module) for model in (net, twin) for module in model.modules()]
    assert [len(found) for found in hooks] == [len(found) + 1 for found in before]
    str(frozen)
    frozen.verify()
    gc.disable()
    try:
        del net, frozen, twin
        assert [reference() for reference in alive] == [None] * 6
        assert [dict(found) for found in hooks] == before
    finally:
        gc.enable()


def test_a_parameter_that_outlives_its_model_is_a_plain_one_again() -> None:
    net = Net()
    fl.freeze(net, "rows:embed.weight[0:5]")
    weight = net.embed.weight
    optimizer = torch.optim.SGD([weight], lr=1.0)
    del net
    weight.sum().backward()
    start = weight.detach().clone()
    optimizer.step()
    assert bool((weight != start).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.complex128])
def test_an_accelerator_compares_the_same_bits_in_one_go(dtype: torch.dtype) -> None:
    now = torch.tensor([[0.0, float("nan")], [1.0, 2.0]]).to(dtype)
    same, other = now.clone(), now.clone()
    other[0, 0] = -0.0
    for before, equal in ((same, True), (other, False)):
        kept = [Kept(range(row, row + 1), before[row : row + 1]) for row in range(2)]
        pairs = [(piece.of(now), piece.values) for piece in kept]
        assert (are_same(kept, now), not any_differs(pairs)) == (equal, equal)


def test_a_copy_of_a_model_that_lost_the_tensor_is_a_copy() -> None:
    net = Net()
    fl.freeze(net, "rows:head.bias[0:5]")
    net.head.register_parameter("bias", None)
    assert copy.deepcopy(net).head.bias is None


def test_a_file_of_a_held_model_can_be_read_without_its_data() -> None:
    net = Net()
    fl.freeze(net, "rows:embed.weight[0:5]")
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False, map_location="meta")
    assert loaded.embed.weight.is_meta
