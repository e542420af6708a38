"""Each layer's gradients are PyTorch's bit for bit, whatever its options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lean_world import check
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

import frostline as fl
from frostline.backward import bits, saved_bytes
from frostline.freezing.held_layers import writes_in_eval

_many = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
_formats = st.sampled_from(["rows", "channels-last"])


def _laid(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    last = {4: torch.channels_last, 5: torch.channels_last_3d}
    if layout == "rows" or tensor.dim() not in last:
        return tensor
    return tensor.contiguous(memory_format=last[tensor.dim()])


def _inputs(draw: Any, dims: int, channels: int) -> torch.Tensor:
    sizes = [draw(st.integers(5, 9)) for _ in range(dims)]
    x = torch.randn(draw(st.integers(1, 3)), channels, *sizes)
    return _laid(x, draw(_formats)).detach().requires_grad_(draw(st.booleans()))


def _freeze(draw: Any, model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.requires_grad_(draw(st.booleans()))


def _check(model: nn.Module, x: torch.Tensor) -> tuple[int, int]:
    if not x.requires_grad and not any(p.requires_grad for p in model.parameters()):
        x.requires_grad_()
    plain, leaned = check(model, x)
    assert leaned <= plain
    return plain, leaned


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # PyTorch tells of a copy it makes
@_many
@given(st.data())
def test_convolutions(data: st.DataObject) -> None:
    draw = data.draw
    dims = draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, 2, 4]))
    options: dict[str, Any] = {
        "stride": draw(st.integers(1, 2)),
        "dilation": draw(st.integers(1, 2)),
        "groups": groups,
        "bias": draw(st.booleans()),
    }
    if draw(st.booleans()):
        kinds = [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]
        options["padding"] = draw(st.integers(0, 1))
        options["output_padding"] = draw(st.integers(0, options["stride"] - 1))
    else:
        kinds = [nn.Conv1d, nn.Conv2d, nn.Conv3d]
        options["padding"] = draw(st.sampled_from([0, 1, "valid", "same"]))
        options["padding_mode"] = draw(st.sampled_from(["zeros", "circular", "reflect"]))
        if options["padding"] == "same":
            options["stride"] = 1
    layer = kinds[dims - 1](4, 8, draw(st.integers(1, 3)), **options)
    _freeze(draw, layer)
    _check(layer, _inputs(draw, dims, 4))


@_many
@given(st.data())
def test_norms(data: st.DataObject) -> None:
    draw = data.draw
    dims = draw(st.integers(1, 3))
    affine = draw(st.booleans())
    batch = [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d][dims - 1]
    instance = [nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d][dims - 1]
    layer: nn.Module = draw(
        st.sampled_from(
            [
                batch(4, affine=affine),
                instance(4, affine=affine, track_running_stats=True),
                nn.GroupNorm(2, 4, affine=affine),
            ]
        )
    )
    for buffer in layer.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 2)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, 0.5, 2)
    layer.train(draw(st.booleans()))
    if isinstance(layer, instance) and writes_in_eval():
        layer.train()  # torch 2.9 rounds its statistics in eval mode, lean leaves them alone
    _freeze(draw, layer)
    x = _inputs(draw, dims, 4)
    if isinstance(layer, nn.GroupNorm) and torch.__version__ < "2.15":
        x.requires_grad_()  # without, channels last, PyTorch 2.9's own backward crashes at times
    _check(layer, x)


@_many
@given(st.data())
def test_masks(data: st.DataObject) -> None:
    draw = data.draw
    inplace = draw(st.booleans())
    layer: nn.Module = draw(
        st.sampled_from(
            [
                nn.ReLU(inplace),
                nn.ReLU6(inplace),
                nn.LeakyReLU(0.1, inplace),
                nn.Hardtanh(-0.5, 0.7, inplace),
                nn.Hardswish(inplace),
                nn.SiLU(inplace),
                nn.GELU(),
                nn.ELU(inplace=inplace),
                nn.Dropout(0.3, inplace),
            ]
        )
    )
    dims = draw(st.integers(1, 3))
    before = nn.Conv2d(4, 4, 1) if dims == 2 else nn.Identity()
    after: nn.Module = nn.Conv2d(4, 4, 1) if dims == 2 else nn.Flatten()
    model = nn.Sequential(before, nn.Flatten(0, 0), layer, after)
    _freeze(draw, model)
    x = _inputs(draw, dims, 4)
    if inplace and dims != 2:
        model[0] = nn.BatchNorm1d(4).eval() if dims == 1 else nn.BatchNorm3d(4).eval()
    _check(model, x)


@_many
@given(st.data())
def test_pools(data: st.DataObject) -> None:
    draw = data.draw
    dims = draw(st.integers(1, 3))
    kernel = draw(st.integers(1, 3))
    options: dict[str, Any] = {
        "stride": draw(st.integers(1, 3)),
        "padding": draw(st.integers(0, kernel // 2)),
        "ceil_mode": draw(st.booleans()),
    }
    kind = draw(st.sampled_from(["max", "avg", "adaptive avg", "adaptive max"]))
    if kind == "max":
        options["dilation"] = draw(st.integers(1, 2))
        layer: nn.Module = [nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d][dims - 1](kernel, **options)
    elif kind == "avg":
        layer = [nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d][dims - 1](kernel, **options)
    else:
        pools: dict[str, list[type[nn.Module]]] = {
            "adaptive avg": [nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d],
            "adaptive max": [nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d],
        }
        layer = pools[kind][dims - 1](draw(st.integers(1, 4)))
    _check(nn.Sequential(layer), _inputs(draw, dims, 4).requires_grad_())


@pytest.mark.parametrize(
    "kind", ["conv", "norm", "relu", "relu6", "leaky", "max", "avg", "adaptive"]
)
def test_second_derivatives_are_right(kind: str) -> None:
    layers: dict[str, nn.Module] = {
        "conv": nn.Conv2d(2, 3, 3),
        "norm": nn.BatchNorm2d(2).eval(),
        "relu": nn.ReLU(),
        "relu6": nn.ReLU6(),
        "leaky": nn.LeakyReLU(),
        "max": nn.MaxPool2d(2),
        "avg": nn.AvgPool2d(2),
        "adaptive": nn.AdaptiveMaxPool2d(2),
    }
    model = nn.Sequential(layers[kind], nn.Tanh()).double().requires_grad_(False)
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    with fl.lean(model, at_least_bytes=0):
        assert torch.autograd.gradcheck(model, x)
        assert torch.autograd.gradgradcheck(model, x)


@pytest.mark.parametrize(
    ("pool", "kept"),
    [
        (nn.AvgPool1d(2), 0),
        (nn.AdaptiveMaxPool1d(4), 2 * 3 * 4),
        (nn.AdaptiveMaxPool1d((4,)), 2 * 3 * 4),
    ],
)
def test_pools_over_rows_keep_no_input(pool: nn.Module, kept: int) -> None:
    x = torch.randn(2, 3, 16, requires_grad=True)
    with fl.lean(pool, at_least_bytes=0):
        assert saved_bytes(lambda: pool(x)) == kept


@pytest.mark.parametrize("width", [2**8, 2**8 + 1, 2**15, 2**15 + 1])
@pytest.mark.parametrize("kind", [nn.MaxPool1d, lambda _: nn.AdaptiveMaxPool1d(1)])
def test_the_last_place_of_a_wide_window_is_found_again(kind: Any, width: int) -> None:
    check(kind(width), torch.arange(2.0 * width).view(1, 2, width).requires_grad_())


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Conv2d(4, 4, 3, padding="same"),
        lambda: nn.ConvTranspose2d(4, 4, 3),
        lambda: nn.BatchNorm2d(4).eval(),
        lambda: nn.AvgPool2d(2),
        lambda: nn.AdaptiveMaxPool2d(2),
        lambda: nn.MaxPool2d(2),
    ],
)
def test_an_input_is_let_go_of_while_nobody_hooks_what_is_saved(
    make: Callable[[], nn.Module],
) -> None:
    layer = make().requires_grad_(False)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), layer)
    seen: list[StorageWeakRef] = []
    layer.register_forward_pre_hook(
        lambda _, given: seen.append(StorageWeakRef(given[0].untyped_storage()))
    )
    with fl.lean(model, at_least_bytes=0):
        loss = model(torch.randn(2, 3, 8, 8)).sum()
    assert seen[0].expired()
    loss.backward()


@pytest.mark.parametrize("layout", ["rows", "channels-last"])
def test_a_large_mask_is_made_in_pieces(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU6(), nn.Conv2d(8, 8, 1))
    model[2].requires_grad_(False)
    x = _laid(torch.randn(2, 3, 15, 13), layout)
    _, whole = check(model, x)
    monkeypatch.setattr(bits, "_PIECE", 1000 // 8 * 8)
    assert check(model, x)[1] == whole


def test_a_relu_before_a_frozen_layer_keeps_a_bit_an_element() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1))
    model[2].requires_grad_(False)
    x = torch.randn(2, 3, 16, 16)
    _, leaned = check(model, x)
    elements = 2 * 8 * 16 * 16
    weights_of_the_loss = 4 * elements
    assert leaned == x.nbytes + elements // 8 + weights_of_the_loss


def test_a_relu_before_a_trained_layer_keeps_nothing_of_its_own() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1))
    x = torch.randn(2, 3, 16, 16)
    plain, leaned = check(model, x)
    assert leaned == plain


LAYERS = [
    nn.ReLU(),
    nn.ReLU(True),
    nn.ReLU6(),
    nn.ReLU6(True),
    nn.LeakyReLU(0.1),
    nn.LeakyReLU(0.1, True),
    nn.Hardtanh(-0.5, 0.7),
    nn.Hardtanh(-0.5, 0.7, inplace=True),
    nn.Hardswish(),
    nn.SiLU(),
    nn.Mish(),
    nn.GELU(),
    nn.Dropout(0.3),
    nn.MaxPool2d(2),
    nn.AvgPool2d(2),
    nn.AdaptiveMaxPool2d(3),
    nn.AdaptiveAvgPool2d(3),
    nn.Conv2d(8, 8, 1).requires_grad_(False),
    nn.BatchNorm2d(8).eval().requires_grad_(False),
    nn.InstanceNorm2d(8, track_running_stats=True).eval(),
]
each_layer = pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: str(layer).split(",")[0])


@each_layer
def test_an_output_may_be_written_over_where_pytorch_lets_it(layer: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), layer)
    x = torch.randn(2, 3, 6, 6)

    def run(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        return model(inputs).mul_(2).add_(1)

    try:
        run(model, x).sum().backward()
    except RuntimeError:
        fl.lean(model, at_least_bytes=0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            run(model, x).sum().backward()
    else:
        check(model, x, run)


@each_layer
def test_an_empty_batch_goes_pytorchs_way(layer: nn.Module) -> None:
    def run(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(model(inputs), 0.3, training=True, inplace=True)

    check(nn.Sequential(nn.Conv2d(3, 8, 1), layer), torch.randn(0, 3, 6, 6), run)


@pytest.mark.parametrize("inplace", [False, True], ids=["", "in place"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_hardtanh_passes_what_pytorchs_kernel_passes(dtype: torch.dtype, inplace: bool) -> None:
    low, high = -0.1, 0.3  # neither is a number of the smaller types
    x = torch.randn(64, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[:8] = torch.tensor([low, high, float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 6.0])
    x.requires_grad_()

    def run(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        return model(inputs * 1).nan_to_num()

    check(nn.Hardtanh(low, high, inplace), x, run)


@pytest.mark.parametrize("layer", [nn.ReLU6(), nn.ReLU6(True), nn.LeakyReLU(0.1)])
def test_one_of_which_pytorch_keeps_the_input_keeps_a_bit_an_element(layer: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), layer, nn.Conv2d(8, 8, 1))
    x = torch.randn(2, 3, 16, 16)
    plain, leaned = check(model, x)
    output = 4 * 2 * 8 * 16 * 16
    assert leaned == plain - output + output // 32


@pytest.mark.parametrize("form", ["none", "tanh"])
def test_compressed_gelu_keeps_a_byte_and_its_gradient_is_within_the_error(form: str) -> None:
    model = nn.GELU(form)
    x = torch.linspace(-6, 6, 10_001, requires_grad=True)
    model(x).sum().backward()
    exact, x.grad = x.grad, None
    with fl.lean(model, gelu="compressed", at_least_bytes=0):
        assert saved_bytes(lambda: model(x)) == x.numel()
        model(x).sum().backward()
    assert exact is not None
    assert x.grad is not None
    assert (x.grad - exact).abs().max() <= 0.0025


def test_another_form_of_gelu_is_refused() -> None:
    with pytest.raises(fl.ConfigError, match=r"'fast' is not known.*'exact' or 'compressed'"):
        fl.lean(nn.GELU(), gelu="fast")  # type: ignore[arg-type]  # that is the mistake


GIVEN = {
    "a leaf": lambda leaf: leaf,
    "a view of a leaf": lambda leaf: leaf[:2],
    "one of several views": lambda leaf: (leaf * 1).chunk(2)[0],
}


@pytest.mark.parametrize(
    "layer", [nn.ReLU(True), nn.Hardtanh(-0.5, 0.7, True), nn.Dropout(0.9, True)], ids=repr
)
@pytest.mark.parametrize("of", GIVEN)
def test_what_pytorch_refuses_to_write_over_keeps_its_numbers(layer: nn.Module, of: str) -> None:
    numbers = [-1.0, 2.0, -3.0, 4.0]
    given = GIVEN[of](torch.tensor(numbers, requires_grad=True))
    with fl.lean(layer, at_least_bytes=0), pytest.raises(RuntimeError, match=r"in-?place"):
        layer(given)
    assert given.tolist() == numbers[: len(given)]
