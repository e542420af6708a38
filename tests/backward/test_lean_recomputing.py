"""What is computed again in the backward pass gives the same gradients and is not kept."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from lean_world import check, same, step
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

import frostline as fl
from frostline.backward import recomputing, saved_bytes

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu tanh": lambda: nn.GELU("tanh"),
    "silu": nn.SiLU,
    "silu in place": lambda: nn.SiLU(inplace=True),
    "hard swish": nn.Hardswish,
    "hard swish in place": lambda: nn.Hardswish(inplace=True),
    "mish": nn.Mish,
    "mish in place": lambda: nn.Mish(inplace=True),
}


class Gate(nn.Module):
    """A product of what comes in with something of its own that wants a gradient."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(*sizes))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.weight * inputs


class Checked(nn.Module):
    """A module in a checkpoint."""

    def __init__(self, inner: nn.Module, reentrant: bool) -> None:
        super().__init__()
        self.inner = inner
        self.reentrant = reentrant

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = checkpoint(self.inner, inputs, use_reentrant=self.reentrant)
        return found


def linear(activation: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), activation, nn.Linear(16, 4))


def convolutions(activation: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(8)
    return nn.Sequential(nn.Conv2d(3, 8, 3), norm, activation, nn.Conv2d(8, 4, 3, groups=4))


def pictures() -> Tensor:
    return torch.randn(3, 3, 9, 7, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("sizes", [(6, 8), (5, 6, 8)])
def test_a_linear_layer_keeps_no_activation(name: str, sizes: tuple[int, ...]) -> None:
    model = linear(ACTIVATIONS[name]())
    plain, leaned = check(model, torch.randn(sizes))
    assert plain - leaned == 4 * 2 * torch.Size(sizes).numel()  # the 16 wide output


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_convolution_keeps_no_activation(name: str, channels_last: bool) -> None:
    model = convolutions(ACTIVATIONS[name]())
    inputs = pictures()
    if channels_last:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    plain, leaned = check(model, inputs)
    assert plain - leaned == 4 * 3 * 8 * 7 * 5


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_product_keeps_no_activation(name: str) -> None:
    model = nn.Sequential(nn.Linear(8, 16), ACTIVATIONS[name](), Gate(5, 16))
    plain, leaned = check(model, torch.randn(5, 8))
    assert plain - leaned == 4 * 5 * 16


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_keeps_no_layer_norm(affine: bool, bias: bool) -> None:
    norm = nn.LayerNorm(16, elementwise_affine=affine, bias=bias)
    model = nn.Sequential(nn.Linear(8, 16), norm, nn.Linear(16, 4))
    plain, leaned = check(model, torch.randn(5, 6, 8))
    assert plain - leaned == 4 * 5 * 6 * 16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("width", [(16,), (6, 16)])
def test_rms_norm_keeps_its_input_once(dtype: torch.dtype, width: tuple[int, ...]) -> None:
    norm = nn.RMSNorm(width, dtype=dtype)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
    model = nn.Sequential(norm)
    inputs = torch.randn(5, 6, 16, dtype=dtype, requires_grad=True)
    plain, leaned = check(model, inputs)
    assert plain - leaned in (0, 5 * 6 * 16 * max(4, dtype.itemsize))
    assert leaned < plain or plain < 2 * inputs.nbytes  # where PyTorch has a kernel of its own


class Attention(nn.Module):
    """Of four heads, with dropout, from PyTorch's function alone."""

    def __init__(self, *, p: float = 0.2, **options: bool) -> None:
        super().__init__()
        self.three = nn.Linear(16, 48)
        self.p = p
        self.options = options

    def forward(self, inputs: Tensor) -> Tensor:
        rows = self.three(inputs).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4)
        given = (rows[0], rows[1], rows[2])
        return F.scaled_dot_product_attention(*given, dropout_p=self.p, **self.options)


class Frozen(nn.Module):
    """Attention in which only one of query, key and value wants a gradient."""

    def __init__(self, place: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(16))
        self.place = place

    def forward(self, inputs: Tensor) -> Tensor:
        rows = [inputs, inputs, inputs]
        rows[self.place] = inputs * self.weight
        return F.scaled_dot_product_attention(rows[0], rows[1], rows[2], dropout_p=0.2)


def attending(**options: object) -> nn.Module:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.MultiheadAttention(16, 4, dropout=0.2, batch_first=True)

        def forward(self, inputs: Tensor) -> Tensor:
            found: Tensor = self.heads(inputs, inputs, inputs, **options)[0]
            return found

    return Heads()


class Named(nn.Module):
    """Attention of heads, all of it given by name."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.MultiheadAttention(16, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        return F.multi_head_attention_forward(
            **dict.fromkeys(("query", "key", "value"), inputs.transpose(0, 1)),
            embed_dim_to_check=16,
            num_heads=4,
            in_proj_weight=self.heads.in_proj_weight,
            in_proj_bias=self.heads.in_proj_bias,
            bias_k=None,
            bias_v=None,
            add_zero_attn=False,
            dropout_p=0.2,
            out_proj_weight=self.heads.out_proj.weight,
            out_proj_bias=self.heads.out_proj.bias,
        )[0]


def encoder() -> nn.Module:
    return nn.TransformerEncoderLayer(16, 4, 8, dropout=0.2, batch_first=True)


ATTENTIONS: dict[str, Callable[[], nn.Module]] = {
    "a function": Attention,
    "a causal one": lambda: Attention(is_causal=True),
    "heads": lambda: attending(need_weights=False),
    "heads that tell their weights": attending,
    "heads, by name": Named,
    "a layer of an encoder": encoder,
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention_with_dropout_keeps_bits_of_what_it_drops(name: str) -> None:
    torch.manual_seed(0)
    plain, leaned = check(ATTENTIONS[name](), torch.randn(3, 10, 16))
    weights = 3 * 4 * 10 * 10
    assert plain - leaned >= 2 * 4 * weights - (weights + 7) // 8


@pytest.mark.parametrize("p", [0.15, 0.45, 0.87])  # of which 1 / (1 - p) rounds otherwise
@pytest.mark.parametrize("make", [lambda p: Attention(p=p), nn.Dropout])
def test_what_makes_up_for_the_dropped_is_rounded_as_pytorch_does(
    make: Callable[[float], nn.Module], p: float
) -> None:
    check(make(p), torch.randn(3, 10, 16, requires_grad=True))


@pytest.mark.parametrize("place", [0, 1, 2])
def test_attention_of_one_that_is_wanted(place: int) -> None:
    plain, leaned = check(Frozen(place), torch.randn(3, 10, 16))
    assert leaned <= plain


@pytest.mark.parametrize("reentrant", [False, True])
def test_attention_under_a_checkpoint(reentrant: bool) -> None:
    inner = encoder()
    check(Checked(inner, reentrant), torch.randn(3, 10, 16, requires_grad=True))


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_relu_whose_output_nobody_keeps_under_a_checkpoint(reentrant: bool) -> None:
    inner = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 4))
    check(Checked(inner, reentrant), torch.randn(5, 8, requires_grad=True))


@pytest.mark.parametrize("name", ATTENTIONS)
def test_a_forward_without_a_backward_holds_nothing(name: str) -> None:
    def held() -> int:
        gc.collect()
        return sum(type(one) is Tensor for one in gc.get_objects())

    model = ATTENTIONS[name]()
    with fl.lean(model, at_least_bytes=0):
        before = held()
        output = model(torch.randn(3, 10, 16))
        assert held() > before
        del output
        assert held() == before


def test_a_value_that_is_a_product_is_not_taken_for_the_weights_of_attention() -> None:
    x = torch.randn(2, 3, 8, 8, requires_grad=True)  # as many elements as the weights have

    class Attention(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            given = (inputs.sin(), inputs.cos(), inputs * 2)
            return F.scaled_dot_product_attention(*given, dropout_p=0.2)

    check(Attention(), x)


def test_second_derivatives_of_attention_are_right() -> None:
    model = Attention().double()

    def run(inputs: Tensor) -> Tensor:
        torch.manual_seed(3)
        return model(inputs)

    x = torch.randn(1, 3, 16, dtype=torch.float64, requires_grad=True)
    with fl.lean(model, at_least_bytes=0):
        assert torch.autograd.gradcheck(run, x)
        assert torch.autograd.gradgradcheck(run, x)


def test_a_trained_norm_behind_a_frozen_first_layer_keeps_the_batch_instead() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    model[0].requires_grad_(False)
    inputs = pictures()
    plain, leaned = check(model, inputs)
    made = 4 * 3 * 8 * 9 * 7
    assert plain - leaned == made - inputs.nbytes


def test_a_frozen_prefix_lets_go_of_its_values_as_it_goes() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 1), nn.ReLU(), nn.Conv2d(16, 2, 1))
    fl.train_only(model, "3")
    seen: list[StorageWeakRef] = []
    alive: list[bool] = []
    model[0].register_forward_hook(
        lambda _module, _args, output: seen.append(StorageWeakRef(output.untyped_storage()))
    )
    model[3].register_forward_pre_hook(lambda _module, _args: alive.append(not seen[0].expired()))
    with fl.lean(model, at_least_bytes=0):
        model(pictures()).sum().backward()
    assert alive == [False]


def test_a_frozen_convolution_of_one_sample_without_a_batch_keeps_no_activation() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GELU(), nn.Conv2d(8, 4, 3))
    fl.freeze(model, "2")
    plain, leaned = check(model, torch.randn(3, 9, 7))
    assert plain - leaned == 4 * 8 * 9 * 7


def test_a_first_layer_that_makes_less_of_its_input_leaves_it_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.BatchNorm2d(2))
    model[0].requires_grad_(False)
    plain, leaned = check(model, pictures())
    assert plain == leaned


def test_a_first_layer_under_autocast_is_kept() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    model[0].requires_grad_(False)

    def run(model: nn.Module, inputs: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(inputs)

    plain, leaned = check(model, pictures(), run)
    assert plain == leaned


class Written(nn.Module):
    """Writes to the activation before it is used."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.last = nn.Linear(16, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        found = F.silu(self.first(inputs))
        found.add_(1)
        return self.last(found)


def test_an_activation_that_was_written_to_is_kept_as_it_is() -> None:
    plain, leaned = check(Written(), torch.randn(5, 8))
    assert plain == leaned


class Pieces(nn.Module):
    """Two pieces of one activation, and one used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.last = nn.Linear(8, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        found = F.gelu(self.first(inputs))
        left, right = found.chunk(2, dim=1)
        return self.last(left * right) + self.last(found[:, ::2]) + (found * found).sum()


def test_pieces_of_an_activation_are_right() -> None:
    plain, leaned = check(Pieces(), torch.randn(5, 8))
    assert leaned <= plain


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_checkpoints_around_any_part(reentrant: bool, place: int) -> None:
    """Also with the activation outside and the layer behind it inside."""
    parts = list(linear(nn.GELU()).children())

    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(parts)

        def forward(self, inputs: Tensor) -> Tensor:
            for number, part in enumerate(self.parts):
                inputs = (
                    checkpoint(part, inputs, use_reentrant=reentrant)
                    if number == place
                    else part(inputs)
                )
            return inputs

    check(Parts(), torch.randn(5, 8, requires_grad=True))


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_around_it_all(reentrant: bool) -> None:
    inner = convolutions(nn.SiLU(inplace=True))
    check(Checked(inner, reentrant), pictures().requires_grad_())


def test_what_is_offloaded_is_computed_from_what_comes_back() -> None:
    def offloaded(model: nn.Module, inputs: Tensor) -> Tensor:
        with save_on_cpu():
            return model(inputs)

    inputs = pictures().contiguous(memory_format=torch.channels_last)
    model = convolutions(nn.SiLU(inplace=True))
    plain = step(model, inputs)
    with fl.lean(model, at_least_bytes=0):
        leaned = step(model, inputs, offloaded)
    assert same(plain.gradients, leaned.gradients)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_second_derivatives_are_right(name: str) -> None:
    model = linear(ACTIVATIONS[name]()).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    x = torch.randn(2, 8, dtype=torch.float64, requires_grad=True)
    with fl.lean(model, at_least_bytes=0):
        assert torch.autograd.gradcheck(model, x)
        assert torch.autograd.gradgradcheck(model, x)


def test_a_batch_that_is_written_to_before_the_backward_pass_is_an_error() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))
    model[0].requires_grad_(False)
    inputs = pictures()
    with fl.lean(model, at_least_bytes=0):
        loss = model(inputs).sum()
        inputs.zero_()
        with pytest.raises(RuntimeError, match=r"3x3x9x7.*at version 1 and not 0"):
            loss.backward()


def test_a_weight_that_is_written_to_before_the_backward_pass_is_an_error_as_in_pytorch() -> None:
    model = linear(nn.GELU())
    inputs = torch.randn(5, 8)
    for context in (torch.enable_grad(), fl.lean(model, at_least_bytes=0)):
        with context:
            loss = model(inputs).sum()
            with torch.no_grad():
                model[2].weight.add_(1)
            with pytest.raises(RuntimeError, match="at version"):
                loss.backward()


def test_two_backward_passes_over_one_graph_are_the_same() -> None:
    model = linear(nn.GELU())
    with fl.lean(model, at_least_bytes=0):
        loss = model(torch.randn(5, 8)).square().sum()
        wanted = list(model.parameters())
        first = torch.autograd.grad(loss, wanted, retain_graph=True)
        second = torch.autograd.grad(loss, wanted)
    assert same(first, second)


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_held_when_the_forward_is_over(fails: bool) -> None:
    model = linear(nn.GELU())
    made: list[weakref.ref[Tensor]] = []
    model[1].register_forward_hook(
        lambda _m, given, output: made.extend(weakref.ref(t) for t in (*given, output))
    )
    if fails:
        model.append(nn.Linear(99, 1))
    with fl.lean(model, at_least_bytes=0):
        if fails:
            with pytest.raises(RuntimeError, match="shapes"):
                model(torch.randn(5, 8))
        else:
            model(torch.randn(5, 8)).sum().backward()
        gc.collect()
        assert [reference() for reference in made] == [None, None]
        assert not recomputing._running.origins


def test_compressed_gelu_keeps_neither_input_nor_a_way_back() -> None:
    model = linear(nn.GELU())
    inputs = torch.randn(5, 8)
    with fl.lean(model, gelu="compressed", at_least_bytes=0):
        kept = saved_bytes(lambda: model(inputs), besides=[*model.parameters(), inputs])
    assert kept == 5 * 16 + 4 * 5 * 16  # the slope, and the output for the layer behind


def test_where_hooks_are_forbidden_all_is_kept_as_in_pytorch() -> None:
    def run(model: nn.Module, inputs: Tensor) -> Tensor:
        with torch.autograd.graph.disable_saved_tensors_hooks("not here"):
            return model(inputs)

    model = convolutions(nn.SiLU(inplace=True))
    plain = _gradients(model, run)
    with fl.lean(model, at_least_bytes=0):
        assert same(plain, _gradients(model, run))


def _gradients(model: nn.Module, run: Callable[[nn.Module, Tensor], Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(run(model, pictures()).square().sum(), model.parameters()))


def test_outer_hooks_see_what_it_is_computed_from() -> None:
    model = linear(nn.SiLU())
    seen: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        seen.append(tensor.untyped_storage().data_ptr())
        return tensor

    with fl.lean(model, at_least_bytes=0), saved_tensors_hooks(pack, lambda t: t):
        hidden: list[Tensor] = []
        model[1].register_forward_hook(lambda _m, given, output: hidden.extend((*given, output)))
        model(torch.randn(5, 8)).sum().backward()
    given, output = (t.untyped_storage().data_ptr() for t in hidden)
    assert seen.count(given) == 2
    assert output not in seen


def test_a_first_layer_that_is_much_of_the_model_is_kept_from_the_second_forward_on() -> None:
    def saved(model: nn.Module) -> list[int]:
        own = [*model.parameters(), *model.buffers(), inputs]
        return [saved_bytes(lambda: model(inputs), besides=own) for _ in range(3)]

    def network(behind: int) -> nn.Module:
        first = nn.Conv2d(3, 8, 3, padding=1).requires_grad_(False)
        rest = nn.Conv2d(8, behind, 3).requires_grad_(False)
        return nn.Sequential(first, nn.BatchNorm2d(8), rest)

    inputs = pictures()
    made = 4 * 3 * 8 * 9 * 7
    for behind, is_kept in ((8, True), (512, False)):
        model = network(behind)
        with fl.lean(model, at_least_bytes=0):
            found = saved(model)
        assert found[1] == found[2] == found[0] + made * is_kept
