"""Rows that nobody reads are left out, and what is left gives the same but for last bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from timm.models import VisionTransformer as VisionTransformerOfTimm
from torch import Tensor, fx, nn
from torch.utils.data import TensorDataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import VisionTransformer

import frostline as fl
from frostline.cutting.suffix import Suffix
from frostline.narrowing import narrow
from frostline.tuning import Form, realise


def torchvisions(**options: float) -> nn.Module:
    made = VisionTransformer(32, 8, 3, 2, 32, 64, num_classes=2, **options)  # type: ignore[arg-type]
    nn.init.normal_(made.heads.head.weight)  # which begins as zeros
    return made


def timms(**options: object) -> nn.Module:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
    return VisionTransformerOfTimm(num_classes=2, **sizes, **options)


def cut_of(model: nn.Module) -> fl.Cut:
    fl.train_only(model, "stage:2..-1")
    return fl.cut(model, torch.randn(4, 3, 32, 32))


@pytest.fixture(scope="module")
def timms_cut() -> fl.Cut:
    return cut_of(timms())


def both(made: fl.Cut) -> tuple[Suffix, Suffix]:
    narrowed = made.suffix.narrowed(made.frontier.values)
    assert narrowed is not None
    return made.suffix, narrowed


def gradients(model: nn.Module, suffix: Suffix, values: Tensor) -> list[Tensor]:
    wanted = [p for p in model.parameters() if p.requires_grad]
    torch.manual_seed(0)
    loss = suffix(values).square().sum()
    return [loss.detach(), *torch.autograd.grad(loss, wanted)]


@pytest.mark.parametrize("name", ["torchvision", "timm", "with dropout"])
def test_losses_and_gradients_are_those_of_all_rows(name: str, timms_cut: fl.Cut) -> None:
    dropout = {"dropout": 0.2} if name == "with dropout" else {}
    made = timms_cut if name == "timm" else cut_of(torchvisions(**dropout))
    (suffix, narrowed), model = both(made), made.suffix.model
    for training in (True, False):
        model.train(training)
        for rows in (1, 2, 5):
            (values,) = made.prefix(torch.randn(rows, 3, 32, 32))
            ours, theirs = gradients(model, narrowed, values), gradients(model, suffix, values)
            for one, other in zip(ours, theirs, strict=True):
                least = 1e-5 * float(other.abs().max())
                torch.testing.assert_close(one, other, rtol=1e-4, atol=least)


def test_of_the_last_block_one_token_alone_goes_through_the_mlp(timms_cut: fl.Cut) -> None:
    (values,) = timms_cut.prefix(torch.randn(8, 3, 32, 32))
    counted = []
    for suffix in both(timms_cut):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            suffix(values)
        counted.append(counter.get_total_flops())
    # Two blocks: of the last one what is left is keys, values and queries, 3 of 12 parts.
    assert counted[1] / counted[0] < 0.66


def test_nothing_is_left_out_where_all_tokens_are_read() -> None:
    made = cut_of(timms(global_pool="avg"))
    assert made.suffix.narrowed(made.frontier.values) is None


def graph_of(function: Callable[[Tensor], Tensor], example: Tensor) -> fx.Graph:
    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    return torch.export.export(Plain(), (example,), strict=False).module(check_guards=False).graph


def run(graph: fx.Graph, given: Tensor) -> Tensor:
    graph.set_codegen(fx.graph.CodeGen())
    (found,) = fx.GraphModule(nn.Module(), graph)(given)
    return found


def twice_read(x: Tensor) -> Tensor:
    y = x.sigmoid()
    return y[:, 0] + y.sum(1)


def two_rows(x: Tensor) -> Tensor:
    y = x.relu().sigmoid()
    return y[:, 0] + y[:, 1]


def the_same_row(x: Tensor) -> Tensor:
    y = x.relu().sigmoid()
    return y[:, 3] * y[:, 3]


def written_into(x: Tensor) -> Tensor:
    y = x.sigmoid()
    y.add_(x)
    return y.tanh()[:, 1]


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "a token": lambda x: x.relu().transpose(1, 2)[:, :, 2],
    "added to a mean": lambda x: (x.tanh() + x.mean(1, keepdim=True))[:, 1],
    "scaled by channel": lambda x: (x * x.new_ones(6))[:, 1],
    "joined behind": lambda x: x.relu().reshape(-1, 8, 3, 2).sigmoid().reshape(-1, 8, 6)[:, 1],
    "joined before": lambda x: x.relu().reshape(-1, 4, 12).sigmoid()[:, 1],
    "of one sample": lambda x: x.relu().permute(1, 0, 2)[3],
    "also read whole": twice_read,
    "two rows": two_rows,
    "other rows of one value": lambda x: x[:, :, 1:][:, 2] + x[:, :, :5][:, 0].relu(),
    "rows of two branches": lambda x: x.relu()[:, 1] - x.tanh()[:, 4],
    "the same row twice": the_same_row,
    "written into": written_into,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_any_way_to_read_a_row_gives_that_row(name: str) -> None:
    function = FUNCTIONS[name]
    example = torch.randn(2, 8, 6)
    graph = graph_of(function, example)
    narrow(graph)
    graph.lint()
    for _ in range(2):
        given = torch.randn(2, 8, 6)
        torch.testing.assert_close(run(graph, given.clone()), function(given.clone()))


def test_a_frozen_network_in_a_rounded_form_computes_one_token_at_the_end() -> None:
    model = timms()
    fl.train_only(model, "stage:-1")
    prefix = fl.cut(model, torch.randn(4, 3, 32, 32)).prefix.graph
    assert prefix is not None
    pictures = torch.randn(3, 3, 32, 32)
    counted = []
    for form in (Form("float32"), Form("bfloat16")):
        run_form = realise(prefix, form)
        with FlopCounterMode(display=False) as counter:
            (found,) = run_form(pictures)
        counted.append(counter.get_total_flops())
        torch.testing.assert_close(found, prefix(pictures)[0], rtol=0.05, atol=0.05)
    assert counted[1] < 0.85 * counted[0]


def test_an_exact_run_computes_all_rows(tmp_path: Path) -> None:
    model, data = timms(), TensorDataset(torch.randn(6, 3, 32, 32), torch.arange(6) % 2)
    fl.train_only(model, "stage:2..-1")
    said = [
        fl.fit(model, data, data, epochs=1, features=tmp_path, precision=asked).says  # type: ignore[arg-type]
        for asked in ("exact", "auto")
    ]
    left_out = "above the line rows that the head does not read are left out"
    assert [any(left_out in line for line in lines) for lines in said] == [False, True]
