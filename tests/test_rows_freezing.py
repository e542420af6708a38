"""Freezing and thawing rows: what is held after which calls, what is proved, what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

import frostline as fl
from blocks_net import state, wanting
from frostline.freezing import freezes_kept, frozen_part
from frostline.freezing.rows import held, held_numel, held_rows

EMBED = "rows:embed.weight"


class Net(nn.Module):
    """An embedding of 24 rows, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(24, 2)
        self.head = nn.Linear(2, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.embed(tokens))
        return out


@pytest.fixture
def net() -> Net:
    return Net()


def rows(net: Net) -> list[tuple[int, int]]:
    """The held rows of the embedding."""
    return [(r.start, r.stop) for r in held_rows(net.embed.weight)]


def step(net: Net) -> None:
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.5)
    net(torch.arange(24)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


# Freezing and thawing


def test_a_partly_frozen_tensor_still_wants_gradients(net: Net) -> None:
    frozen = fl.freeze(net, f"{EMBED}[0:10]")
    assert wanting(net) == {"embed.weight", "head.weight", "head.bias"}
    assert frozen.names == ("embed.weight[0:10]",)


def test_overlapping_freezes_and_a_thaw_within_leave_what_is_outside(net: Net) -> None:
    fl.freeze(net, f"{EMBED}[0:10]")
    fl.freeze(net, f"{EMBED}[5:20]")
    assert rows(net) == [(0, 20)]
    fl.thaw(net, f"{EMBED}[8:12]")
    assert rows(net) == [(0, 8), (12, 20)]


def test_freezing_the_rows_twice_is_the_same_as_once(net: Net) -> None:
    once = fl.freeze(net, f"{EMBED}[0:10]")
    before = state(net)
    twice = fl.freeze(net, f"{EMBED}[0:10]")
    assert (state(net), twice.fingerprint) == (before, once.fingerprint)
    twice.thaw()
    assert rows(net) == []


def test_freezing_the_last_rows_freezes_the_tensor_whole(net: Net) -> None:
    fl.freeze(net, f"{EMBED}[0:20]")
    fl.freeze(net, f"{EMBED}[15:]")
    assert rows(net) == []
    assert not net.embed.weight.requires_grad
    assert not net.train().embed.training


def test_thawing_rows_of_a_wholly_frozen_tensor_leaves_the_others_frozen(net: Net) -> None:
    frozen = fl.freeze(net.train(), "embed")
    fl.thaw(net, f"{EMBED}[-4:]")
    assert rows(net) == [(0, 20)]
    assert net.embed.training
    start = net.embed.weight.detach().clone()
    step(net)
    assert (start != net.embed.weight).any(dim=1).tolist() == [False] * 20 + [True] * 4
    assert list(frozen.verify().fingerprint.tensors) == ["embed.weight[0:20]"]


def test_thawing_rows_of_a_tensor_frozen_by_hand_leaves_the_others_frozen(net: Net) -> None:
    net.embed.requires_grad_(False)
    fl.thaw(net, f"{EMBED}[-4:]")
    assert net.embed.weight.requires_grad
    assert rows(net) == [(0, 20)]


def test_freezing_rows_of_a_frozen_tensor_leaves_it_frozen_whole(net: Net) -> None:
    fl.freeze(net, "embed")
    fl.freeze(net, f"{EMBED}[0:3]")
    assert (rows(net), wanting(net)) == ([], {"head.weight", "head.bias"})


def test_freezing_the_tensor_takes_over_its_held_rows(net: Net) -> None:
    rows_frozen = fl.freeze(net, f"{EMBED}[0:3]")
    fl.freeze(net, "embed")
    assert rows(net) == []
    assert rows_frozen.verify().tensors == 1


def test_thawing_the_tensor_thaws_its_rows_and_leaves_no_trace(net: Net) -> None:
    before = state(net)
    fl.freeze(net, f"{EMBED}[0:3] | {EMBED}[7]")
    fl.thaw(net, "embed")
    assert state(net) == before
    assert not net.embed.weight._post_accumulate_grad_hooks


def test_thawing_rows_that_are_free_changes_nothing(net: Net) -> None:
    fl.freeze(net, f"{EMBED}[0:3]")
    fl.thaw(net, f"{EMBED}[3:9]")
    assert rows(net) == [(0, 3)]


def test_the_handle_thaws_the_named_part_of_its_rows(net: Net) -> None:
    frozen = fl.freeze(net, f"{EMBED}[0:10] | head")
    frozen.thaw(f"{EMBED}[8:20] | head.bias")
    assert rows(net) == [(0, 8)]
    assert wanting(net) == {"embed.weight", "head.bias"}
    frozen.thaw()
    assert (rows(net), len(wanting(net))) == ([], 3)


def test_train_only_some_rows_freezes_the_others_and_the_rest(net: Net) -> None:
    fl.freeze(net, "embed")
    frozen = fl.train_only(net, f"{EMBED}[20:] | head.bias")
    assert frozen.names == ("embed.weight[0:20]", "head.weight")
    assert rows(net) == [(0, 20)]
    fl.train_only(net, f"{EMBED}[0:2]")
    assert rows(net) == [(2, 24)]


def test_a_tied_tensor_reached_through_one_of_its_modules_is_thawed_for_both() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(6, 4), "head": nn.Linear(4, 6, bias=False)})
    model["head"].weight = model["embed"].weight
    fl.freeze(model, f"{EMBED}[0:4]")
    fl.thaw(model["head"], "rows:weight[0:2]")
    assert [piece.rows for piece in held(model["embed"].weight)] == [range(2, 4)]
    fl.thaw(model["head"], "weight")
    assert not held(model["embed"].weight)
    assert "_frostline_rows" not in model["embed"].__dict__


def test_rows_of_integers_are_frozen_and_thawed_without_gradients() -> None:
    net = nn.ParameterDict({"codes": nn.Parameter(torch.arange(5), requires_grad=False)})
    net["scale"] = nn.Parameter(torch.ones(2))
    frozen = fl.freeze(net, "rows:codes[0:2]")
    net["codes"].data[1] = 7
    with pytest.raises(fl.DriftError, match=r"codes\[0:2\]: moved by up to 6 \(1 of 2 numbers\)"):
        frozen.verify()
    frozen.thaw()
    assert not net["codes"].requires_grad


def test_the_copy_takes_the_bytes_of_the_frozen_rows_and_no_more(net: Net) -> None:
    fl.freeze(net, f"{EMBED}[0:12]")
    fl.thaw(net, f"{EMBED}[2:11]")
    kept = held(net.embed.weight)
    assert sum(piece.values.untyped_storage().nbytes() for piece in kept) == 3 * 2 * 4
    assert held_numel(net.embed.weight) == 3 * 2


changes = st.lists(
    st.tuples(st.sampled_from(["freeze", "thaw"]), st.integers(0, 23), st.integers(1, 24)).filter(
        lambda change: change[1] < change[2]
    ),
    max_size=12,
)


@given(changes)
@settings(max_examples=60, deadline=None)
def test_any_freezes_and_thaws_hold_the_rows_that_a_set_would(
    changes: list[tuple[str, int, int]],
) -> None:
    net, wanted = Net(), frozenset[int]()
    start = net.embed.weight.detach().clone()
    for verb, first, stop in changes:
        if verb == "freeze":
            fl.freeze(net, fl.rows("embed.weight", first, stop))
            wanted |= set(range(first, stop))
        else:
            fl.thaw(net, fl.rows("embed.weight", first, stop))
            wanted -= set(range(first, stop))
        whole = len(wanted) == 24
        assert net.embed.weight.requires_grad == (not whole)
        assert {r for found in held_rows(net.embed.weight) for r in found} == (
            set() if whole else wanted
        )
    step(net)
    moved = (start != net.embed.weight).any(dim=1)
    assert {row for row in range(24) if not moved[row]} == wanted
    frozen_part(net).verify()


# The context, and all or nothing


def test_the_context_restores_rows_switches_and_gradients(net: Net) -> None:
    fl.freeze(net, f"{EMBED}[0:10]")
    step(net)
    net(torch.arange(24)).sum().backward()
    before, gradient = state(net), net.embed.weight.grad
    with fl.frozen(net, f"{EMBED}[5:20] | head"):
        assert rows(net) == [(0, 20)]
        with fl.frozen(net, "embed"):
            assert rows(net) == []
        assert rows(net) == [(0, 20)]
    after = state(net)
    assert rows(net) == [(0, 10)]
    assert net.embed.weight.grad is gradient
    assert {k: v for k, v in after.items() if k != "grads"} == {
        k: v for k, v in before.items() if k != "grads"
    }


def test_the_context_gives_back_the_gradient_it_cleared(net: Net) -> None:
    net(torch.arange(24)).sum().backward()
    gradient = net.embed.weight.grad
    assert gradient is not None
    whole = gradient.clone()
    with fl.frozen(net, f"{EMBED}[0:10]"):
        assert net.embed.weight.grad is not None
        assert not net.embed.weight.grad[:10].any()
    assert net.embed.weight.grad is gradient
    assert torch.equal(gradient, whole)


def test_whatever_a_block_freezes_and_thaws_is_undone_where_that_is_asked(net: Net) -> None:
    fl.freeze(net, f"{EMBED}[0:10]")
    before = state(net)
    with freezes_kept(net):
        fl.train_only(net, "head")
        fl.train_only(net, f"{EMBED}[3:]")
    assert state(net) == before
    assert rows(net) == [(0, 10)]


def test_a_freeze_that_fails_leaves_the_rows_as_they_were(net: Net) -> None:
    net.register_parameter("missing", nn.Parameter(torch.empty(4, 2, device="meta")))
    fl.freeze(net, f"{EMBED}[0:10]")
    before = state(net)
    with pytest.raises(fl.FreezeError, match=r"no rows of missing can be held: it is without data"):
        fl.freeze(net, f"{EMBED}[5:20] | rows:missing[0:2]")
    assert (state(net), rows(net)) == (before, [(0, 10)])


def test_a_thaw_that_fails_leaves_everything_frozen(net: Net) -> None:
    missing = nn.Parameter(torch.empty(4, 2, device="meta"), requires_grad=False)
    net.register_parameter("missing", missing)
    fl.freeze(net, "embed")
    with pytest.raises(fl.FreezeError, match="no rows of missing can be held: it is without data"):
        fl.thaw(net, "embed | rows:missing[0:2]")
    assert wanting(net) == {"head.weight", "head.bias"}


# Proof


def test_moved_rows_are_named_with_their_distance(net: Net) -> None:
    frozen = fl.freeze(net, f"{EMBED}[0:10,20:]")
    net.embed.weight.data[21, 0] += 0.25
    net.embed.weight.data[15] += 1
    with pytest.raises(
        fl.DriftError,
        match=r"one thing.*\n  embed\.weight\[20:24\]: moved by up to 0\.25 \(1 of 8 numbers\)",
    ):
        frozen.verify()


def test_the_handles_fingerprint_is_that_of_the_rows(net: Net) -> None:
    frozen = fl.freeze(net, f"{EMBED}[0:10] | head")
    assert frozen.fingerprint == fl.fingerprint(net, f"{EMBED}[0:10] | head")
    assert frozen.verify().fingerprint == frozen.fingerprint
    assert str(frozen.verify()) == "3 frozen tensors (116 B) are bit for bit as they were"


def test_rows_left_by_a_later_thaw_are_still_proved(net: Net) -> None:
    frozen = fl.freeze(net, f"{EMBED}[0:10]")
    net.embed.weight.data[9] += 1
    net.embed.weight.data[1] += 2
    fl.thaw(net, f"{EMBED}[8:12]")
    with pytest.raises(fl.DriftError, match=r"embed\.weight\[0:8\]: moved by up to 2 \(2 of 16"):
        frozen.verify()


def test_rows_frozen_again_after_they_were_written_drift_for_the_first_handle(net: Net) -> None:
    first = fl.freeze(net, f"{EMBED}[0:10]")
    net.embed.weight.data[1] += 2
    second = fl.freeze(net, f"{EMBED}[0:10]")
    second.verify()
    with pytest.raises(fl.DriftError, match=r"embed\.weight\[0:10\]: moved by up to 2"):
        first.verify()


def test_a_replaced_module_is_caught_though_only_rows_were_frozen(net: Net) -> None:
    frozen = fl.freeze(net, f"{EMBED}[0:10]")
    net.embed = nn.Embedding(24, 2)
    with pytest.raises(fl.DriftError, match=r"embed\.weight\[0:10\]: is gone; it or the module"):
        frozen.verify()


def test_a_tensor_that_lost_rows_says_so(net: Net) -> None:
    frozen = fl.freeze(net, f"{EMBED}[0:10]")
    net.embed.weight.data = net.embed.weight.data[:4]
    with pytest.raises(fl.DriftError, match=r"shape changed from \(10, 2\) to \(4, 2\)"):
        frozen.verify()


def test_gradients_switched_back_on_are_caught_for_rows_of_a_tensor_frozen_whole(net: Net) -> None:
    frozen = fl.freeze(net, f"{EMBED}[0:10]")
    fl.freeze(net, "embed")
    net.embed.requires_grad_(True)
    with pytest.raises(fl.DriftError, match=r"embed\.weight\[0:10\]: wants gradients again"):
        frozen.verify()


def test_all_that_is_frozen_counts_the_rows(net: Net) -> None:
    fl.freeze(net, f"{EMBED}[0:10,12]")
    net.head.bias.requires_grad_(False)
    names = ("embed.weight[0:10]", "embed.weight[12:13]", "head.bias")
    assert frozen_part(net).names == names
    assert rows(net) == [(0, 10), (12, 13)]


def test_rows_of_a_tensor_that_was_switched_off_by_hand_as_well_are_frozen_whole(net: Net) -> None:
    fl.freeze(net, f"{EMBED}[0:10]")
    net.embed.requires_grad_(False)
    assert frozen_part(net).names == ("embed.weight",)
    assert rows(net) == []


# What the table shows


def test_the_table_counts_trainable_rows_alone(net: Net) -> None:
    frozen = fl.freeze(net, f"{EMBED}[0:10]")
    found = {row.path: row for row in frozen.summary().rows}
    assert (found["embed"].parameters, found["embed"].trainable) == (48, 28)
    assert found["embed"].state == found[""].state == "partly frozen"
    assert found["head"].state == "trainable"
    assert "37 of 57 parameters trainable" in str(frozen)


def test_a_partly_frozen_parameter_beside_modules_says_so(net: Net) -> None:
    net.token = nn.Parameter(torch.zeros(4, 2))
    fl.freeze(net, "rows:token[0:3]")
    row = next(row for row in fl.summary(net).rows if row.path == "token")
    assert (row.trainable, row.state) == (2, "partly frozen")


def test_a_module_with_a_partly_frozen_tensor_follows_the_mode(net: Net) -> None:
    net.dropout = nn.Dropout(0.5)
    fl.freeze(net, f"{EMBED}[0:10] | head")
    net.train()
    assert net.embed.training
    assert net.dropout.training
    assert not net.head.training


# Refusals


def test_freezing_the_rows_that_were_left_is_refused(net: Net) -> None:
    fl.freeze(net, f"head | {EMBED}[0:10]")
    with pytest.raises(fl.FreezeError, match=r"weight\[10:\]' would leave nothing trainable"):
        fl.freeze(net, f"{EMBED}[10:]")
    fl.freeze(net, f"{EMBED}[10:23]")
    assert rows(net) == [(0, 23)]


def test_rows_that_meet_nothing_are_refused(net: Net) -> None:
    with pytest.raises(fl.FreezeError, match="leaves nothing to freeze in Net"):
        fl.freeze(net, f"{EMBED}[0:10] & head")


def test_rows_of_a_wrapped_model_are_refused(net: Net) -> None:
    with pytest.raises(fl.FreezeError, match="already wrapped in DataParallel"):
        fl.freeze(nn.DataParallel(net), f"{EMBED}[0:10]")


class FullyShardedDataParallel(nn.Module):
    """Stands in for torch's wrapper, which is known by its name, since importing it is slow."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._fsdp_wrapped_module = module


def test_rows_of_a_flattened_model_are_refused(net: Net) -> None:
    with pytest.raises(
        fl.FreezeError, match=r"no rows of .*weight can be held: FullyShardedDataParallel flat"
    ):
        fl.freeze(FullyShardedDataParallel(net), f"{EMBED}[0:10]")


class FlatParameter(nn.Parameter):
    """Stands in for torch's, likewise."""


def test_rows_of_a_flat_parameter_are_refused(net: Net) -> None:
    net.flat = FlatParameter(torch.zeros(8))
    with pytest.raises(fl.FreezeError, match="no rows of flat can be held: it is a FlatParameter"):
        fl.freeze(net, "rows:flat[0:4]")


def test_rows_of_a_sparse_parameter_are_refused(net: Net) -> None:
    net.thin = nn.Parameter(torch.eye(4).to_sparse())
    with pytest.raises(fl.FreezeError, match="no rows of thin can be held: it is sparse"):
        fl.freeze(net, "rows:thin[0:2]")


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def sharded(parameter: nn.Parameter) -> nn.Parameter:
    mesh = init_device_mesh("cpu", (1,))
    return nn.Parameter(distribute_tensor(parameter.detach(), mesh, [Shard(0)]))


@pytest.mark.usefixtures("process_group")
def test_rows_of_a_sharded_parameter_are_refused(net: Net) -> None:
    net.embed.weight = sharded(net.embed.weight)
    with pytest.raises(
        fl.FreezeError,
        match=r"no rows of embed\.weight can be held: it is a DTensor, so they cannot",
    ):
        fl.freeze(net, f"{EMBED}[0:10]")


@pytest.mark.usefixtures("process_group")
def test_sharding_after_the_freeze_is_refused_at_the_first_step(net: Net) -> None:
    fl.freeze(net, f"{EMBED}[0:10]")
    net.embed.weight = sharded(net.embed.weight)
    with pytest.raises(fl.FreezeError, match=r"embed\.weight can be held: it is a DTensor"):
        torch.optim.SGD(net.parameters()).step()


@pytest.mark.usefixtures("process_group")
def test_rows_frozen_before_the_model_is_wrapped_hold_under_ddp(net: Net) -> None:
    frozen = fl.freeze(net, f"{EMBED}[0:10]")
    wrapped = nn.parallel.DistributedDataParallel(net)
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        wrapped(torch.arange(24)).square().sum().backward()
        assert net.embed.weight.grad is not None
        assert not net.embed.weight.grad[:10].any()
        optimizer.step()
    frozen.verify()


@pytest.mark.parametrize("start", [[0], slice(0, 2), "0:1", 1.0])
def test_rows_by_something_else_than_numbers_are_refused(start: object) -> None:
    with pytest.raises(fl.SelectorError, match=r"first and the one after the last, as fl\.rows\("):
        fl.rows("head.weight", start)
