"""What a realised prefix owes in every form: the numbers, and to leave everything else alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from tuning_prefixes import Known, prefix_of, relative, tensors_of

from frostline.tuning import DEFAULT_TOLERANCE, PLAIN, Form, realise

FORMS = [
    Form(),
    Form(folded=True),
    Form(channels_last=True),
    Form("bfloat16"),
    Form("bfloat16", channels_last=True, folded=True),
    Form("float16", channels_last=True),
]
every_form = pytest.mark.parametrize("form", FORMS, ids=str)


class Writing(nn.Module):
    """Writes into its input, through a view of it, and into a buffer before it reads both."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.ones(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        centred = nn.functional.dropout(x, 0.5, self.training).sub_(1)
        centred[:, 0].mul_(2)
        return torch.relu_(centred) + x, x * self.table.add_(1)


def plain(prefix: GraphModule, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return tuple(prefix(*(tensor.clone() for tensor in inputs)))


def test_plain_float32_equals_the_graph_bit_for_bit(network: Known) -> None:
    _, prefix, inputs = network
    for ours, theirs in zip(realise(prefix)(*inputs), plain(prefix, inputs), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("form", [f for f in FORMS if f.dtype == "float32"], ids=str)
def test_float32_forms_differ_by_rounding_only(network: Known, form: Form) -> None:
    _, prefix, inputs = network
    assert relative(realise(prefix, form)(*inputs)[0], plain(prefix, inputs)[0]) < 1e-5


@pytest.mark.parametrize("form", [f for f in FORMS if f.dtype != "float32"], ids=str)
def test_reduced_forms_stay_within_the_default_tolerance(network: Known, form: Form) -> None:
    _, prefix, inputs = network
    error = relative(realise(prefix, form)(*inputs)[0], plain(prefix, inputs)[0])
    assert 1e-5 < error < DEFAULT_TOLERANCE


@every_form
def test_outputs_have_the_dtypes_and_shapes_of_the_model(network: Known, form: Form) -> None:
    _, prefix, inputs = network
    for ours, theirs in zip(realise(prefix, form)(*inputs), plain(prefix, inputs), strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        assert ours.is_contiguous()


@every_form
def test_integer_outputs_are_the_same_in_every_form(words: Known, form: Form) -> None:
    _, prefix, inputs = words
    assert torch.equal(realise(prefix, form)(*inputs)[1], plain(prefix, inputs)[1])


@every_form
def test_no_bit_of_the_model_or_the_inputs_moves(network: Known, form: Form) -> None:
    model, prefix, inputs = network
    before, given = tensors_of(model), [tensor.clone() for tensor in inputs]
    run = realise(prefix, form)
    assert all(map(torch.equal, run(*inputs), run(*inputs)))
    assert all(map(torch.equal, inputs, given))
    assert all(torch.equal(before[name], now) for name, now in tensors_of(model).items())


@every_form
def test_in_place_operations_reach_neither_inputs_nor_buffers(form: Form) -> None:
    model, x = Writing().eval(), torch.rand(4, 3) + 1
    prefix, given = prefix_of(model, x), x.clone()
    first, second = x.sub(1), x.sub(1)
    second[:, 0] *= 2
    run = realise(prefix, form)
    for _ in range(2):
        total, scaled = run(x)
        torch.testing.assert_close(total, second + second, rtol=0.02, atol=0.02)
        torch.testing.assert_close(scaled, second * 2, rtol=0.02, atol=0.02)
    assert torch.equal(x, given)
    assert torch.equal(model.table, torch.ones(3))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("form", [FORMS[0], FORMS[4]], ids=str)
def test_batches_of_other_sizes_than_the_example_pass(network: Known, form: Form) -> None:
    _, prefix, inputs = network
    run = realise(prefix, form)
    whole, part = run(*inputs)[0], run(*(tensor[:3] for tensor in inputs))[0]
    assert relative(part, whole[:3]) < DEFAULT_TOLERANCE


@every_form
def test_autograd_takes_the_outputs_as_inputs(resnet: Known, form: Form) -> None:
    _, prefix, inputs = resnet
    (features,) = realise(prefix, form)(*inputs)
    head = nn.Linear(features.shape[1], 2)
    head(features).sum().backward()
    assert not features.is_inference()
    assert not features.requires_grad
    assert head.weight.grad is not None


def test_autocast_around_plain_float32_does_not_round_it(resnet: Known) -> None:
    _, prefix, inputs = resnet
    with torch.autocast("cpu", torch.bfloat16):
        (ours,) = realise(prefix, PLAIN)(*inputs)
    assert torch.equal(ours, plain(prefix, inputs)[0])


def test_a_view_that_merges_channels_and_pixels_stands_channels_last() -> None:
    class Merging(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.conv(x)
            return y.view(y.shape[0], -1)

    x = torch.randn(2, 3, 8, 8)
    prefix = prefix_of(Merging(), x)
    ours = realise(prefix, Form(channels_last=True))(x)[0]
    torch.testing.assert_close(ours, plain(prefix, (x,))[0])


def test_statistics_of_batch_norms_are_not_rounded() -> None:
    norm = nn.BatchNorm2d(3)
    norm.running_var.fill_(1e6)  # float16 ends at 65504
    x = torch.randn(2, 3, 4, 4) * 1000
    prefix = prefix_of(norm, x)
    assert relative(realise(prefix, Form("float16"))(x)[0], plain(prefix, (x,))[0]) < 1e-3


def test_compiling_goes_through_torch_compile(
    resnet: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[object] = []

    def compile_(module: nn.Module, **_: object) -> nn.Module:
        compiled.append(module)
        return module

    monkeypatch.setattr(torch, "compile", compile_)
    _, prefix, inputs = resnet
    realise(prefix, Form(compiled=True))(*inputs)
    assert len(compiled) == 1
