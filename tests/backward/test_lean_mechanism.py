"""How lean is entered and left, and that it stays out of the way of everything else."""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import weakref
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lean_world import check, is_on, same, step
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

import frostline as fl
from frostline.backward import is_lean, saved_bytes, unlean

lean_all = partial(fl.lean, at_least_bytes=0)


class Net(nn.Module):
    """Modules, bare functionals and methods, in place and not; only the stem trains."""

    def __init__(self, checkpointed: str = "no") -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8).eval()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)
        self.checkpointed = checkpointed
        for module in (self.norm, self.conv, self.head):
            module.requires_grad_(False)

    def middle(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(x))
        x = torch.relu_(F.conv2d(x, self.conv.weight, self.conv.bias, padding=1))
        return F.dropout(F.max_pool2d(F.hardtanh(self.conv(x)), 2), 0.2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.checkpointed == "no":
            x = self.middle(x)
        else:
            x = checkpoint(self.middle, x, use_reentrant=self.checkpointed == "reentrant")
        return self.head(x.relu().mean((2, 3)))


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 12, 12)


def test_functionals_and_methods_are_covered(x: Tensor) -> None:
    plain, leaned = check(Net(), x)
    assert leaned < plain / 2


@pytest.mark.parametrize("kind", ["non-reentrant", "reentrant"])
def test_checkpointed_functions_may_mix_modules_and_functionals(kind: str, x: Tensor) -> None:
    check(Net(kind), x)


def test_state_dict_types_and_copies(x: Tensor) -> None:
    model = Net()
    keys, kinds = list(model.state_dict()), [type(m) for m in model.modules()]
    with lean_all(model):
        assert list(model.state_dict()) == keys
        assert [type(m) for m in model.modules()] == kinds
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
        copied = copy.deepcopy(model)
    assert not is_lean(model)
    for other in (loaded, copied):
        assert is_lean(other)
        assert same(step(other, x).gradients, step(model, x).gradients)
        unlean(other)
        assert not is_lean(other)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in other.modules())


def test_a_model_leaned_twice_is_lean_until_both_are_gone() -> None:
    model = nn.Linear(2, 2)
    first, second = fl.lean(model), fl.lean(model)
    first.remove()
    assert is_lean(model)
    second.remove()
    assert not is_lean(model)
    assert "removed" in repr(first)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_forward_that_fails_leaves_nothing_on(error: type[BaseException], x: Tensor) -> None:
    class Fails(Net):
        fails = True

        def middle(self, x: Tensor) -> Tensor:
            if self.fails:
                raise error
            return super().middle(x)

    model = Fails()
    with lean_all(model):
        with pytest.raises(error):
            model(x)
        model.fails = False
        model(x)  # PyTorch tells of no interrupt: the next call of the model clears up after it
    assert not is_on()
    assert torch._C._len_torch_function_stack() == 0


def test_without_gradients_nothing_is_entered(x: Tensor) -> None:
    model = Net().eval()
    seen = []
    model.conv.register_forward_hook(lambda *_: seen.append(is_on()))
    with lean_all(model), torch.no_grad():
        model(x)
    assert seen == [False]


def test_two_leaned_models_may_call_each_other(x: Tensor) -> None:
    class Outer(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 3, 1)
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(F.relu(self.first(x)))

    inner = Net()
    with lean_all(inner):
        check(Outer(inner), x)
    assert not is_on()


def test_freezing_and_thawing_later_just_works(x: Tensor) -> None:
    model = Net()
    plain = copy.deepcopy(model)
    with lean_all(model):
        for selector in ("stem", "conv", "norm", "head", "all", "stem & kind:bias"):
            for one in (model, plain):
                fl.train_only(one, selector)
            assert same(step(model, x).gradients, step(plain, x).gradients)


def test_nothing_is_kept_once_the_backward_is_done(x: Tensor) -> None:
    model = Net()
    gone: list[weakref.ref[Tensor]] = []

    def pack(tensor: Tensor) -> Tensor:
        if tensor.grad_fn is None and not isinstance(tensor, nn.Parameter):
            gone.append(weakref.ref(tensor))
        return tensor

    gc.disable()
    try:
        with lean_all(model):
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
                output = model(x * 1).sum()
            output.backward()
        left = [t for r in gone if (t := r()) is not None]
        left = [t for t in left if not any(t is b for b in (*model.buffers(), x))]
    finally:
        gc.enable()
    assert not left


def test_an_output_changed_in_place_is_an_error_as_in_pytorch() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    with lean_all(model):
        output = model(torch.randn(2, 3, 8, 8))
    output.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("outside", [contextlib.nullcontext, torch.autograd.graph.save_on_cpu])
def test_autocast_gives_the_same_bits(outside: Any, training: bool, x: Tensor) -> None:
    def run(model: nn.Module, inputs: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16), outside():
            return model(inputs).float()

    check(Net().train(training), x, run)


def test_channels_last_and_double(x: Tensor) -> None:
    check(
        Net().to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    )
    check(Net().double(), x.double())


def test_vmap_and_forward_mode_stay_pytorchs(x: Tensor) -> None:
    model = Net().eval()
    parameters = dict(model.named_parameters())

    def loss(values: dict[str, Tensor], one: Tensor) -> Tensor:
        return torch.func.functional_call(model, values, one[None]).sum()

    model.middle = lambda x: F.relu(model.norm(x))  # type: ignore[method-assign]  # no random draw
    each = torch.func.vmap(torch.func.grad(loss), (None, 0))
    plain = each(parameters, x)
    with lean_all(model):
        leaned = each(parameters, x)
    assert same(plain.values(), leaned.values())


def test_exported_and_cut_as_the_plain_model(x: Tensor) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten()
    )
    plain = torch.export.export(model, (x,)).graph_module.code
    with lean_all(model):
        assert torch.export.export(model, (x,)).graph_module.code == plain
        fl.train_only(model, "2")
        cut = fl.cut(model, x)
    suffix: Any = cut.suffix
    features = cut.prefix(x)
    graph = suffix if isinstance(suffix, nn.Module) else suffix.module
    with lean_all(graph):
        leaned = suffix(*features)
        leaned.sum().backward()
    grad = model[2].weight.grad
    model[2].weight.grad = None
    model(x).sum().backward()
    assert torch.equal(grad, model[2].weight.grad)


def test_compiled_as_the_plain_model(x: Tensor) -> None:
    model = Net().eval()
    expected = step(model, x)
    with lean_all(model):
        compiled = step(model, x, lambda m, i: torch.compile(m, backend="aot_eager")(i))
    assert torch.allclose(expected.output, compiled.output, atol=1e-6)
    for a, b in zip(expected.gradients, compiled.gradients, strict=True):
        assert a is not None
        assert b is not None
        assert torch.allclose(a, b, atol=1e-5)


def test_foretold_on_fake_tensors(x: Tensor) -> None:
    model = Net()
    own = [*model.parameters(), *model.buffers()]
    with lean_all(model):
        measured = saved_bytes(lambda: model(x).sum(), besides=own)
        with FakeTensorMode() as mode:
            named = (*model.named_parameters(), *model.named_buffers())
            fakes = {name: mode.from_tensor(tensor) for name, tensor in named}
            inputs = mode.from_tensor(x)

            def forward() -> Tensor:
                return torch.func.functional_call(model, fakes, inputs).sum()

            foretold = saved_bytes(forward, besides=fakes.values())
    assert foretold == measured


def test_counting_what_is_saved_lets_go_of_it() -> None:
    made: list[weakref.ref[torch.Tensor]] = []

    def forward() -> torch.Tensor:
        output = torch.randn(5, requires_grad=True).exp()  # which keeps its output
        made.append(weakref.ref(output))
        return output

    assert saved_bytes(forward) == 5 * 4
    gc.collect()
    assert made[0]() is None
