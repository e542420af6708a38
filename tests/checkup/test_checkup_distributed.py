"""What the doctor says of models in data-parallel wrappers; one process is enough to see it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from checkup_zoo import Net, Unused, pictures
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel

import frostline as fl


@pytest.fixture(autouse=True)
def _one_process(tmp_path: Path) -> Iterator[None]:
    method = f"file://{tmp_path / 'meeting'}"
    dist.init_process_group("gloo", init_method=method, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def frozen(net: nn.Module) -> nn.Module:
    fl.freeze(net, "backbone")
    return net


def sharded(net: nn.Module, *, keep: bool) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one process shards nothing
        return FullyShardedDataParallel(net, use_orig_params=keep, device_id=torch.device("cpu"))


def test_frozen_and_then_wrapped_is_healthy() -> None:
    assert fl.doctor(DistributedDataParallel(frozen(Net())), pictures()).codes == ()


def test_parameters_thawed_after_wrapping_are_named() -> None:
    net = Net()
    net.backbone.requires_grad_(False)
    net.backbone.eval()
    model = DistributedDataParallel(net)
    net.backbone[1][0].weight.requires_grad_(True)
    told = next(f for f in fl.doctor(model) if f.code == "ddp-changed")
    assert told.level == "error"
    assert told.names == ("backbone.1.0.weight",)
    assert "1 parameter thawed after wrapping in DistributedDataParallel" in told.seen
    assert "never averaged" in told.why


def test_parameters_frozen_after_wrapping_are_named_and_the_fix_wraps_anew() -> None:
    net = Net()
    model = DistributedDataParallel(net)
    net.backbone.requires_grad_(False)
    net.backbone.eval()
    told = next(f for f in fl.doctor(model).findings if f.code == "ddp-changed")
    assert (told.code, len(told.names)) == ("ddp-changed", 8)
    assert "8 parameters frozen after wrapping" in told.seen
    given = {"model": model}
    exec(told.fix, {"torch": torch}, given)
    assert "ddp-changed" not in fl.doctor(given["model"]).codes


def test_a_wrapper_is_seen_from_the_inner_model_as_long_as_it_lives() -> None:
    net = frozen(Net())
    model = DistributedDataParallel(net)
    assert fl.doctor(net).codes == fl.doctor(model).codes
    net.backbone[1][0].weight.requires_grad_(True)
    told = next(f for f in fl.doctor(net) if f.code == "ddp-changed")
    assert told.names == ("backbone.1.0.weight",)
    assert told.fix.startswith("model = torch.nn.parallel.DistributedDataParallel(model)")
    del model
    assert "ddp-changed" not in fl.doctor(net).codes


def test_an_inner_model_is_not_thawed_or_frozen_while_its_wrapper_lives() -> None:
    net, part = Net(), "backbone.1"
    handle = fl.freeze(net, part)
    model = DistributedDataParallel(net)
    inner = net.get_submodule(part)
    before = [p.requires_grad for p in net.parameters()]
    for change in (
        lambda: fl.thaw(inner, "all"),
        lambda: fl.train_only(net, "backbone"),
        handle.thaw,
    ):
        with pytest.raises(
            fl.FreezeError, match="DistributedDataParallel that still lives"
        ) as told:
            change()
        assert "Let go of the wrapper" in str(told.value)
        assert [p.requires_grad for p in net.parameters()] == before
    fl.freeze(net, part)  # as it is wrapped
    with fl.frozen(net, "head"):  # undone before anybody trains
        pass
    del model
    handle.thaw()
    assert all(p.requires_grad for p in net.parameters())


def test_no_optimizer_is_synced_with_what_a_living_wrapper_does_not_average() -> None:
    net = frozen(Net())
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    model = DistributedDataParallel(net)
    assert fl.sync(optimizer, model).joined == ()
    net.backbone[1][0].weight.requires_grad_(True)
    for one in (net, model):
        with pytest.raises(fl.FreezeError, match=r"made before backbone\.1\.0\.weight was frozen"):
            fl.sync(optimizer, one)
    del model, one
    assert fl.sync(optimizer, net).joined == ("backbone.1.0.weight",)


def test_what_the_user_told_the_wrapper_to_ignore_or_not_to_wait_for_is_no_stray() -> None:
    net = Net()
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(net, ["head.weight"])
    model = DistributedDataParallel(net, find_unused_parameters=True)
    fl.freeze(net, "backbone.0")
    assert not net.backbone[0][0].weight.requires_grad
    del model


def test_a_freeze_that_is_only_asked_for_counts_as_after_wrapping() -> None:
    model = DistributedDataParallel(Net())
    assert fl.doctor(model, freeze="backbone").codes == ("ddp-changed",)


def test_unused_parameters_stop_the_second_step() -> None:
    model = DistributedDataParallel(frozen(Unused()))
    told = next(f for f in fl.doctor(model, pictures()) if f.code == "ddp-unused")
    assert told.names == ("spare.weight", "spare.bias")
    assert "the second step raises, or hangs" in told.why


def test_searching_for_unused_parameters_is_noted_where_there_are_none() -> None:
    model = DistributedDataParallel(frozen(Net()), find_unused_parameters=True)
    checkup = fl.doctor(model, pictures())
    assert checkup.codes == ("ddp-searching",)
    given = {"model": model}
    exec(checkup.findings[0].fix, {"torch": torch}, given)
    assert fl.doctor(given["model"], pictures()).codes == ()


def test_a_plan_of_two_sets_needs_a_wrapper_for_each() -> None:
    model = DistributedDataParallel(frozen(Net()))
    plan = fl.Plan([fl.Phase(train="head", epochs=1), fl.Phase(train="all", epochs=1)])
    told = fl.doctor(model, plan=plan).findings[0]
    assert (told.code, told.level) == ("ddp-plan", "error")
    assert "2 sets of trainable parameters" in told.seen


def test_frozen_and_trainable_in_one_sharded_unit_are_named() -> None:
    checkup = fl.doctor(sharded(frozen(Net()), keep=True), pictures())
    assert checkup.codes == ("fsdp-mixed", "not-tried")
    assert "one unit of FullyShardedDataParallel at (model)" in checkup.findings[0].seen
    assert "the model is sharded by FullyShardedDataParallel" in checkup.findings[1].seen


def test_a_flat_unit_cannot_be_frozen_in_part() -> None:
    checkup = fl.doctor(sharded(Net(), keep=False), freeze="backbone")
    assert "fsdp-flat" in checkup.codes
    told = next(finding for finding in checkup if finding.code == "fsdp-flat")
    assert "use_orig_params=False at (model)" in told.seen
