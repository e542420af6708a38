"""Frozen rows do not move by one bit, whatever optimizer, loop or layer; the others train."""

from __future__ import annotations

import copy
import gc
import warnings
from collections.abc import Callable, Iterable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import optimizer as torch_optimizer

import frostline as fl

Make = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]

ROWS = 11
WIDTH = 16  # whole vectors of the processor, so that no number is in one's odd end in one run alone
FREE = slice(4, 11)
SELECTOR = "rows:embed.weight[0:4]"
_optim = torch.optim
# All of them compute each number from its own gradient and state alone.
ELEMENTWISE: dict[str, Make] = {
    "sgd": partial(_optim.SGD, lr=0.1, weight_decay=0.1),
    "sgd-momentum": partial(_optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.1),
    "sgd-nesterov": partial(_optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.1, nesterov=True),
    "sgd-foreach": partial(_optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.1, foreach=True),
    "sgd-fused": partial(_optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.1, fused=True),
    "adam": partial(_optim.Adam, lr=0.01, weight_decay=0.1),
    "adam-amsgrad": partial(_optim.Adam, lr=0.01, amsgrad=True),
    "adamw": partial(_optim.AdamW, lr=0.01, weight_decay=0.1),
    "adamw-foreach": partial(_optim.AdamW, lr=0.01, weight_decay=0.1, foreach=True),
    "adamw-fused": partial(_optim.AdamW, lr=0.01, weight_decay=0.1, fused=True),
    "rmsprop": partial(_optim.RMSprop, lr=0.01, momentum=0.9, weight_decay=0.1),
    "adagrad": partial(_optim.Adagrad, lr=0.1, weight_decay=0.1),
    "nadam": partial(_optim.NAdam, lr=0.01, weight_decay=0.1),
    "radam": partial(_optim.RAdam, lr=0.01, weight_decay=0.1),
    "adamax": partial(_optim.Adamax, lr=0.01, weight_decay=0.1),
    "adadelta": partial(_optim.Adadelta, lr=1.0, weight_decay=0.1),
    "asgd": partial(_optim.ASGD, lr=0.05, weight_decay=0.1),
    "rprop": partial(_optim.Rprop, lr=0.01),
}
WHOLE: dict[str, Make] = {
    "adafactor": partial(_optim.Adafactor, lr=0.01, weight_decay=0.1),
    "lbfgs": partial(_optim.LBFGS, lr=0.1, max_iter=3),
}
BEFORE = pytest.mark.parametrize("before", [0, 3], ids=["fresh", "with-momentum"])


class Net(nn.Module):
    """An embedding and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(ROWS, WIDTH)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.embed(tokens))
        return out


class Split(nn.Module):
    """The same network, its embedding made of a constant and a parameter that hold the rows."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.constant = net.embed.weight.detach()[:4].clone()
        self.free = nn.Parameter(net.embed.weight.detach()[FREE].clone())
        self.head = copy.deepcopy(net.head)

    def forward(self, tokens: Tensor) -> Tensor:
        table = torch.cat([self.constant, self.free])
        out: Tensor = self.head(F.embedding(tokens, table))
        return out


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int, *, start: int = 0) -> None:
    for number in range(start, start + steps):
        tokens = torch.randint(ROWS, (16,), generator=torch.Generator().manual_seed(number))

        def closure(tokens: Tensor = tokens) -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = net(tokens).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)


def state_of_free_rows(
    optimizer: torch.optim.Optimizer, net: Net, split: Split, make: Make
) -> torch.optim.Optimizer:
    """An optimizer of `split` with the state that `optimizer` has of the same numbers."""
    other = make(split.parameters())
    heads = zip(net.head.parameters(), split.head.parameters(), strict=True)
    pairs = [(net.embed.weight, split.free), *heads]
    for old, new in pairs:
        for key, value in optimizer.state[old].items():
            tensor = isinstance(value, Tensor)
            sliced = value[FREE] if tensor and value.shape == net.embed.weight.shape else value
            other.state[new][key] = sliced.clone() if tensor else value
    return other


@BEFORE
@pytest.mark.parametrize("name", [*ELEMENTWISE, *WHOLE])
def test_frozen_rows_keep_every_bit_through_fifty_steps(name: str, before: int) -> None:
    net = Net()
    optimizer = {**ELEMENTWISE, **WHOLE}[name](net.parameters())
    train(net, optimizer, before)
    start = net.embed.weight.detach().clone()
    frozen = fl.freeze(net, SELECTOR)
    train(net, optimizer, 50, start=before)
    now = net.embed.weight.detach()
    assert torch.equal(now[:4], start[:4])
    assert bool((now[FREE] != start[FREE]).any(dim=1).all())
    assert frozen.verify().tensors == 1


@BEFORE
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_free_rows_move_as_if_the_frozen_were_no_parameters(name: str, before: int) -> None:
    net, make = Net(), ELEMENTWISE[name]
    optimizer = make(net.parameters())
    train(net, optimizer, before)
    split = Split(net)
    fl.freeze(net, SELECTOR)
    other = state_of_free_rows(optimizer, net, split, make)
    train(net, optimizer, 20, start=before)
    train(split, other, 20, start=before)
    assert torch.equal(net.embed.weight[FREE], split.free)
    assert torch.equal(net.head.weight, split.head.weight)


def test_weight_decay_moves_rows_whose_gradients_are_only_masked() -> None:
    """Pitfall 6, the control, and what it asks for: not one bit in 50 steps of AdamW."""
    masked, net = Net(), Net()
    masked.embed.weight.register_hook(lambda grad: grad * (torch.arange(ROWS) >= 4)[:, None])
    fl.freeze(net, SELECTOR)
    moved = []
    for model in (masked, net):
        start = model.embed.weight.detach().clone()
        train(model, torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1), 50)
        shift = model.embed.weight.detach() - start
        moved.append(float(shift[:4].norm() / start[:4].norm()))
    assert moved[0] == pytest.approx(0.049, abs=0.001)
    assert moved[1] == 0


# The loop around it


def test_clipping_counts_the_free_rows_alone() -> None:
    net = Net()
    free = copy.deepcopy(net)
    fl.freeze(net, SELECTOR)
    tokens = torch.arange(ROWS)
    for model in (net, free):
        model(tokens).square().sum().backward()
    assert free.embed.weight.grad is not None
    alone = [free.embed.weight.grad[FREE], *(p.grad for p in free.head.parameters())]
    clipped = nn.utils.clip_grad_norm_(net.parameters(), 1e9)
    torch.testing.assert_close(clipped, nn.utils.get_total_norm(g for g in alone if g is not None))
    free.embed.weight.grad[:4] = 0
    assert torch.equal(clipped, nn.utils.clip_grad_norm_(free.parameters(), 1e9))


def test_accumulated_gradients_of_frozen_rows_stay_zero() -> None:
    net = Net()
    fl.freeze(net, SELECTOR)
    for _ in range(3):
        net(torch.arange(ROWS)).square().sum().backward()
        assert net.embed.weight.grad is not None
        assert not net.embed.weight.grad[:4].any()
        assert bool(net.embed.weight.grad[FREE].all())


@pytest.mark.parametrize("to_none", [True, False])
def test_frozen_rows_hold_whichever_way_gradients_are_cleared(to_none: bool) -> None:
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    train(net, optimizer, 2)
    frozen = fl.freeze(net, SELECTOR)
    for _ in range(5):
        optimizer.zero_grad(set_to_none=to_none)
        optimizer.step()
        net(torch.arange(ROWS)).square().sum().backward()
        optimizer.step()
    frozen.verify()


def test_gradients_set_by_hand_do_not_reach_frozen_rows() -> None:
    net = Net()
    frozen = fl.freeze(net, SELECTOR)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    frozen.verify()
    assert net.embed.weight.grad is not None
    assert not net.embed.weight.grad[:4].any()


def test_gradients_that_were_there_before_the_freeze_are_cleared_in_the_rows_alone() -> None:
    net = Net()
    net(torch.arange(ROWS)).square().sum().backward()
    before = net.embed.weight.grad
    assert before is not None
    fl.freeze(net, SELECTOR)
    assert net.embed.weight.grad is not None
    assert not net.embed.weight.grad[:4].any()
    assert torch.equal(net.embed.weight.grad[FREE], before[FREE])


def test_a_gradient_that_is_infinite_in_frozen_rows_does_no_harm() -> None:
    net = Net()
    frozen = fl.freeze(net, SELECTOR)
    optimizer = torch.optim.AdamW(net.parameters())
    scale = torch.tensor([float("inf")] * 4 + [1.0] * 7)[:, None]
    (net.embed.weight * scale).sum().backward()
    assert bool(torch.isfinite(nn.utils.clip_grad_norm_(net.parameters(), 1.0)))
    optimizer.step()
    frozen.verify()
    assert bool(torch.isfinite(net.embed.weight).all())


def test_a_gradient_with_a_graph_keeps_it_and_is_zero_in_frozen_rows() -> None:
    net = Net()
    fl.freeze(net, SELECTOR)
    with warnings.catch_warnings(action="ignore"):  # of the cycle; PyTorch says it once a process
        net(torch.arange(ROWS)).square().sum().backward(create_graph=True)
    gradient = net.embed.weight.grad
    assert gradient is not None
    assert gradient.requires_grad
    assert not gradient[:4].any()
    (further,) = torch.autograd.grad(gradient[:4].sum(), net.head.weight, materialize_grads=True)
    assert not further.any()
    net.embed.weight.grad = None  # ends the cycle, and with it the network


def test_steps_within_the_backward_hold_rows_too() -> None:
    net = Net()
    optimizer = torch.optim.AdamW([net.embed.weight], weight_decay=0.5)
    net.embed.weight.register_post_accumulate_grad_hook(lambda _: optimizer.step() and None)
    frozen = fl.freeze(net, SELECTOR)
    net(torch.arange(ROWS)).square().sum().backward()
    frozen.verify()


def test_a_compiled_step_holds_rows() -> None:
    net = Net()
    frozen = fl.freeze(net, SELECTOR)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.5)
    start = net.embed.weight.detach().clone()
    step = torch.compile(optimizer.step, backend="eager")
    for _ in range(2):
        net(torch.arange(ROWS)).square().sum().backward()
        step()
    frozen.verify()
    assert not torch.equal(net.embed.weight[FREE], start[FREE])


def test_a_compiled_model_holds_rows() -> None:
    net = Net()
    frozen = fl.freeze(net, SELECTOR)
    train(
        torch.compile(net, backend="aot_eager"),
        torch.optim.AdamW(net.parameters(), weight_decay=0.5),
        3,
    )
    frozen.verify()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}, {"capturable": True}])
@pytest.mark.filterwarnings("ignore:.*capturable=True")
def test_frozen_rows_hold_on_cuda(options: dict[str, bool]) -> None:
    net = Net()
    frozen = fl.freeze(net, f"{SELECTOR} | rows:embed.weight[6,8]")
    net.cuda()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, **options)  # type: ignore[arg-type]
    for _ in range(20):
        optimizer.zero_grad()
        net(torch.arange(ROWS, device="cuda")).square().sum().backward()
        optimizer.step()
    frozen.verify()


# Layers


def test_output_channels_of_a_convolution_hold_while_the_others_train() -> None:
    net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.Flatten(), nn.LazyLinear(2))
    net(torch.randn(4, 2, 5, 5))
    net.to(memory_format=torch.channels_last)
    frozen = fl.freeze(net, "rows:0.weight[0:2,4] | rows:0.bias[0:2,4]")
    start = [p.detach().clone() for p in net[0].parameters()]
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(10):
        optimizer.zero_grad()
        net(torch.randn(4, 2, 5, 5)).square().mean().backward()
        optimizer.step()
    assert frozen.verify().tensors == 4
    for before, now in zip(start, net[0].parameters(), strict=True):
        moved = (before != now).reshape(6, -1).any(dim=1)
        assert moved.tolist() == [False, False, True, True, False, True]


def test_old_classes_of_a_classifier_hold_while_a_new_one_trains() -> None:
    net = Net()
    frozen = fl.train_only(net, "rows:head.weight[-1] | rows:head.bias[-1]")
    start = [p.detach().clone() for p in net.parameters()]
    train(net, torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.1), 10)
    frozen.verify()
    pairs = zip(start, net.parameters(), strict=True)
    changed = [(a != b).reshape(len(a), -1).any(dim=1) for a, b in pairs]
    assert not changed[0].any()
    assert [c.tolist() for c in changed[1:]] == [[False, False, True]] * 2


def test_a_tied_embedding_is_held_under_both_its_names() -> None:
    net = nn.ModuleDict({"embed": nn.Embedding(6, 4), "head": nn.Linear(4, 6, bias=False)})
    net["head"].weight = net["embed"].weight
    frozen = fl.freeze(net, "rows:head.weight[0:3]")
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(5):
        optimizer.zero_grad()
        net["head"](net["embed"](torch.arange(6))).square().sum().backward()
        optimizer.step()
    assert sorted(frozen.records) == ["embed.weight[0:3]", "head.weight[0:3]"]
    assert frozen.verify().tensors == 2
    frozen.thaw()
    train_once = net["embed"].weight.detach().clone()
    optimizer.step()
    assert not torch.equal(net["embed"].weight[:3], train_once[:3])


def test_the_padding_row_can_be_frozen_with_others() -> None:
    net = nn.Sequential(nn.Embedding(6, 4, padding_idx=2), nn.Linear(4, 1))
    frozen = fl.freeze(net, "rows:0.weight[1:4]")
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(5):
        net(torch.arange(6)).sum().backward()
        optimizer.step()
    frozen.verify()


@pytest.mark.parametrize("make", [torch.optim.SparseAdam, partial(torch.optim.SGD, momentum=0.9)])
def test_sparse_gradients_are_zero_in_frozen_rows(make: Make) -> None:
    embed = nn.Embedding(6, 4, sparse=True)
    frozen = fl.freeze(embed, "rows:weight[1:3,5]")
    optimizer = make(embed.parameters())
    start = embed.weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        embed(torch.tensor([0, 1, 1, 2, 4, 5, 5])).square().sum().backward()
        assert embed.weight.grad is not None
        dense = embed.weight.grad.to_dense()
        assert dense.any(dim=1).tolist() == [True, False, False, False, True, False]
        optimizer.step()
    frozen.verify()
    assert (start != embed.weight).any(dim=1).tolist() == [True, False, False, False, True, False]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.complex64])
def test_rows_of_any_trainable_dtype_hold(dtype: torch.dtype) -> None:
    net = nn.ParameterDict({"table": nn.Parameter(torch.randn(6, 3).to(dtype))})
    net["table"].data[1, 0] = float("nan")
    net["table"].data[1, 1] = -0.0
    frozen = fl.freeze(net, "rows:table[0:2]")
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        net["table"].abs().square().sum().backward()
        optimizer.step()
    frozen.verify()


def test_a_norm_with_frozen_channels_keeps_its_statistics() -> None:
    norm = nn.BatchNorm1d(4)
    fl.freeze(norm, "rows:weight[0:2]")
    before = norm.running_mean.clone() if norm.running_mean is not None else None
    norm.train()(torch.randn(8, 4) + 3)
    assert before is not None
    assert torch.equal(norm.running_mean, before)  # type: ignore[arg-type]


def test_a_norm_with_frozen_channels_adapts_where_that_was_asked() -> None:
    norm = nn.BatchNorm1d(4)
    fl.freeze(norm, "rows:weight[0:2]", norm="adapt")
    norm.train()(torch.randn(8, 4) + 3)
    assert norm.running_mean is not None
    assert bool(norm.running_mean.all())


# Between the steps


def test_other_optimizers_of_the_process_are_left_alone() -> None:
    net, other = Net(), Net()
    fl.freeze(net, SELECTOR)
    start = other.embed.weight.detach().clone()
    net.embed.weight.data[0] += 1
    train(other, torch.optim.AdamW(other.parameters(), lr=0.1), 3)
    assert bool((other.embed.weight != start).any(dim=1).all())


def test_rows_written_to_between_steps_are_an_error_before_the_next() -> None:
    net = Net()
    fl.freeze(net, "rows:embed.weight[0:4,9]")
    optimizer = torch.optim.AdamW(net.parameters())
    net.embed.weight.data[2:4] += 1
    written = net.embed.weight.detach().clone()
    with pytest.raises(
        fl.DriftError,
        match=r"rows of embed\.weight that are frozen were written to by something other than an "
        r"optimizer's step:\n  embed\.weight\[0:4\]: 2 of 4 rows differ, the first is row 2\n"
        r"Load weights before freezing; to keep what was written, freeze these rows again\.",
    ) as caught:
        optimizer.step()
    assert len(caught.value.drifts) == 1
    assert torch.equal(net.embed.weight, written)
    frozen = fl.freeze(net, "rows:embed.weight[0:4]")
    train(net, optimizer, 2)
    frozen.verify()


def test_the_sign_of_zero_written_between_steps_is_an_error() -> None:
    net = Net()
    nn.init.zeros_(net.embed.weight)
    fl.freeze(net, SELECTOR)
    net.embed.weight.data.neg_()
    with pytest.raises(fl.DriftError, match="4 of 4 rows differ, the first is row 0"):
        torch.optim.SGD(net.parameters()).step()


def test_a_tensor_that_lost_frozen_rows_is_an_error() -> None:
    net = Net()
    fl.freeze(net, SELECTOR)
    net.embed.weight.data = torch.zeros(2, WIDTH)
    with pytest.raises(fl.DriftError, match=r"shape changed from \(4, 16\) to \(2, 16\)"):
        torch.optim.SGD(net.parameters()).step()


def test_an_embedding_that_grew_holds_the_rows_it_had() -> None:
    net = Net()
    frozen = fl.freeze(net, SELECTOR)
    net.embed.weight.data = torch.cat([net.embed.weight.data, torch.zeros(3, WIDTH)])
    train(net, torch.optim.AdamW(net.parameters(), lr=0.1), 3)
    frozen.verify()


def test_no_hook_is_left_once_the_last_rows_are_thawed() -> None:
    gc.collect()
    before = dict(torch_optimizer._global_optimizer_post_hooks)  # one, if another test left a model
    net = Net()
    one = fl.freeze(net, "rows:embed.weight[0:2]")
    two = fl.freeze(net, "rows:head.weight[0:1]")
    assert len(torch_optimizer._global_optimizer_post_hooks) == 1
    one.thaw()
    assert len(torch_optimizer._global_optimizer_post_hooks) == 1
    two.thaw()
    assert dict(torch_optimizer._global_optimizer_post_hooks) == before
    assert not net.embed.weight._post_accumulate_grad_hooks
