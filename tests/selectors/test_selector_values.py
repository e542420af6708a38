"""Python values as selectors: modules, parameters, functions, lists; and wrapped models."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import frostline as fl


class Net(nn.Module):
    """A body and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x))
        return out


HEAD = ("head.weight", "head.bias")


def test_a_module_selects_all_below_it() -> None:
    net = Net()
    assert fl.select(net, net.body).names == fl.select(net, "body").names


def test_a_parameter_selects_itself_and_no_equal_one() -> None:
    net = Net()
    nn.init.zeros_(net.head.bias)
    nn.init.zeros_(net.body[0].bias)
    assert fl.select(net, net.head.bias).names == ("head.bias",)


def test_a_function_is_asked_with_name_parameter_and_owner() -> None:
    def small_bias(name: str, parameter: Tensor, module: nn.Module) -> bool:
        return name.endswith("bias") and parameter.numel() == 2 and isinstance(module, nn.Linear)

    assert fl.select(Net(), small_bias).names == ("head.bias",)


def test_a_list_selects_what_any_of_its_items_does() -> None:
    net = Net()
    chosen = fl.select(net, ["head", net.body[0], net.body[2].bias, fl.path("body.2.weight")])
    assert set(chosen.names) == {name for name, _ in net.named_parameters()}


def test_a_generator_is_read_like_a_list() -> None:
    assert fl.select(Net(), (name for name in HEAD)).names == HEAD


def test_values_join_with_text_by_algebra() -> None:
    net = Net()
    assert fl.select(net, fl.exactly(net.head) & fl.kind("bias")).names == ("head.bias",)


def test_selectors_of_the_same_objects_are_equal() -> None:
    net = Net()
    assert fl.exactly(net.head, net.body) == fl.exactly(net.body, net.head)
    assert hash(fl.exactly(net.head)) == hash(fl.exactly(net.head))


def test_selectors_of_equal_but_other_objects_differ() -> None:
    assert fl.exactly(nn.Parameter(torch.zeros(1))) != fl.exactly(nn.Parameter(torch.zeros(1)))


def test_a_parameter_list_is_selected_item_by_item() -> None:
    net = nn.ParameterDict({"a": nn.Parameter(torch.zeros(1)), "b": nn.Parameter(torch.zeros(1))})
    assert fl.select(net, "b").names == ("b",)


def test_a_statistics_only_layer_is_matched_though_it_has_no_parameter() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False))
    chosen = fl.select(net, "1")
    assert chosen.names == ()
    assert [entry.name for entry in chosen.entries] == [
        "1.running_mean",
        "1.running_var",
        "1.num_batches_tracked",
    ]


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_a_ddp_wrapped_model_gives_inner_names() -> None:
    wrapped = nn.parallel.DistributedDataParallel(Net())
    assert fl.select(wrapped, "head").names == HEAD


def test_a_data_parallel_model_gives_inner_names() -> None:
    assert fl.select(nn.DataParallel(Net()), "head").names == HEAD


def test_a_compiled_model_gives_inner_names() -> None:
    assert fl.select(torch.compile(Net(), backend="eager"), "head").names == HEAD


def test_a_wrapper_around_a_wrapper_gives_inner_names() -> None:
    wrapped = torch.compile(nn.DataParallel(Net()), backend="eager")
    assert fl.select(wrapped, "head").names == HEAD


def test_a_compiled_part_is_reached_by_its_plain_name() -> None:
    net = Net()
    net.body = torch.compile(net.body, backend="eager")
    assert fl.select(net, "body.0.weight").names == ("body._orig_mod.0.weight",)


def test_names_as_a_compiled_model_has_them_are_taken() -> None:
    net = torch.compile(Net(), backend="eager")
    for name, parameter in net.named_parameters():
        (entry,) = fl.select(net, name).entries
        assert entry.tensor is parameter
    assert fl.select(net, "_orig_mod.head").names == HEAD
    assert fl.select(net, "_orig_mod.head.*").names == HEAD


def test_the_wrapper_itself_selects_the_whole_model() -> None:
    compiled = torch.compile(Net(), backend="eager")
    assert fl.select(compiled, compiled).modules == ("",)


def test_selecting_leaves_the_environment_alone() -> None:
    before = dict(os.environ)
    fl.select(Net(), "head")
    assert dict(os.environ) == before
