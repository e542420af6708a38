"""Frozen weights kept in half the bits: half the bytes, and nothing changes but their rounding."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.utils import parametrizations

import frostline as fl


class Net(nn.Module):
    """A part to freeze and a head to train."""

    def __init__(self, part: nn.Module, features: int) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 6)
        self.part = part
        self.head = nn.Linear(features, 2)

    def forward(self, x: Tensor) -> Tensor:
        out = self.part(self.stem(x))
        found: Tensor = self.head((out[0] if isinstance(out, tuple) else out).flatten(1))
        return found


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.layers.append(nn.ConvTranspose2d(4, 4, 3))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layers(x.reshape(len(x), 1, 6, 6))
        return found


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x, x, x)[0]
        return found


class ReadsWeight(nn.Module):
    """Computes with a submodule's weight without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.inner[0].weight)


def words() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(9, 6), nn.Flatten(), nn.Linear(36, 2))


def small(part: nn.Module | None = None, features: int = 36) -> Net:
    torch.manual_seed(0)
    return Net(part or nn.Sequential(nn.Linear(6, 6), nn.ReLU()), features)


def batch() -> Tensor:
    return torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(1))


def rounded_by_hand(model: nn.Module, selector: str) -> nn.Module:
    """A copy with the same weights rounded, all in float32, frozen likewise."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for entry in fl.select(other, selector).entries:
            if entry.tensor.dim() > 1:
                entry.tensor.copy_(entry.tensor.bfloat16().float())
    fl.freeze(other, selector)
    return other


PARTS = {
    "linear": (lambda: nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6)), 36),
    "convolutions": (Images, 4 * 36),
    "lstm": (lambda: nn.LSTM(6, 5, num_layers=2, batch_first=True), 30),
    "gru, both ways": (lambda: nn.GRU(6, 5, batch_first=True, bidirectional=True), 60),
    "attention": (SelfAttention, 36),
    "transformer": (
        lambda: nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True),
        36,
    ),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Linear(6, 6)), 36),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(6, 6)), 36),
}


@pytest.mark.parametrize("name", PARTS)
def test_outputs_and_gradients_are_those_of_rounded_weights(name: str) -> None:
    build, features = PARTS[name]
    model = small(build(), features)
    other = rounded_by_hand(model, "part")
    fl.freeze(model, "part", dtype="bfloat16")
    for mode in (True, False):
        model.train(mode)
        other.train(mode)
        for one in (model, other):
            one.zero_grad()
            one(batch()).square().sum().backward()
        assert torch.equal(model(batch()), other(batch()))
        assert torch.equal(model.stem.weight.grad, other.stem.weight.grad)


def test_an_embedding_gives_its_own_dtype() -> None:
    model = words()
    other = rounded_by_hand(model, "0")
    fl.freeze(model, "0", dtype="bfloat16")
    ids = torch.arange(6).repeat(2, 1)
    assert torch.equal(model(ids), other(ids))


def test_an_embedding_that_computes_is_rounded_once() -> None:
    class Scaled(nn.Embedding):
        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids) * 22.627417

    torch.manual_seed(0)
    model = nn.Sequential(Scaled(9, 6), nn.Flatten(), nn.Linear(36, 2))
    other = rounded_by_hand(model, "0")
    fl.freeze(model, "0", dtype="bfloat16")
    ids = torch.arange(6).repeat(2, 1)
    assert torch.equal(model(ids), other(ids))


def test_frozen_weights_take_half_the_bytes() -> None:
    model = small()
    frozen = fl.freeze(model, "part", dtype="bfloat16")
    assert model.part[0].weight.dtype == torch.bfloat16
    assert model.part[0].bias.dtype == torch.float32
    assert frozen.kept is not None
    assert (frozen.kept.nbytes, frozen.kept.former_nbytes) == (72, 144)
    assert fl.summary(model).total.nbytes == sum(p.nbytes for p in model.parameters())


def test_a_wide_copy_is_gone_after_the_call_though_a_backward_will_come() -> None:
    model = small()
    fl.freeze(model, "part", dtype="bfloat16")
    seen: list[StorageWeakRef] = []

    def look(module: nn.Module, _: object) -> None:
        seen.append(StorageWeakRef(module.weight.untyped_storage()))

    model.part[0].register_forward_pre_hook(look)
    loss = model(batch()).sum()
    assert seen[0].expired()
    loss.backward()
    assert model.stem.weight.grad is not None


def test_hooks_on_saved_tensors_see_all_of_them() -> None:
    model = small()
    fl.freeze(model, "part", dtype="bfloat16")
    seen: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t) or t, lambda t: t):
        model(batch()).sum().backward()
    assert any(tensor.shape == (6, 6) and tensor.dtype == torch.float32 for tensor in seen)
    assert model.stem.weight.grad is not None


def test_names_objects_and_keys_stay_as_they_were() -> None:
    model = small()
    before = dict(model.named_parameters()), list(model.state_dict()), type(model.part[0])
    fl.freeze(model, "part", dtype="bfloat16")
    model(batch())
    after = dict(model.named_parameters()), list(model.state_dict()), type(model.part[0])
    assert all(after[0][name] is parameter for name, parameter in before[0].items())
    assert after[1:] == before[1:]


def test_a_thaw_gives_the_dtype_back_and_leaves_no_trace() -> None:
    model = small()
    rounded = model.part[0].weight.detach().bfloat16().float()
    names = set(model.part[0].__dict__)
    fl.freeze(model, "part", dtype="bfloat16")
    fl.thaw(model, "part")
    assert torch.equal(model.part[0].weight, rounded)
    assert set(model.part[0].__dict__) == names
    assert not model.part[0]._forward_hooks
    assert not model.part[0]._forward_pre_hooks


def test_thawed_rows_are_trained_in_the_former_dtype() -> None:
    model = small()
    fl.freeze(model, "part", dtype="bfloat16")
    fl.thaw(model, "rows:part.0.weight[0:2]")
    assert model.part[0].weight.dtype == torch.float32
    model(batch()).sum().backward()
    assert model.part[0].weight.grad is not None
    assert not model.part[0].weight.grad[2:].any()


def test_freezing_twice_is_the_same_as_once() -> None:
    model = small()
    fl.freeze(model, "part", dtype="bfloat16")
    output = model(batch())
    again = fl.freeze(model, "part", dtype="bfloat16")
    assert torch.equal(model(batch()), output)
    assert str(again.kept) == "no weight was left to be kept in bfloat16"
    assert len(model.part[0]._forward_hooks) == 1


@pytest.mark.parametrize("way", ["deepcopy", "torch.save"])
def test_a_copy_computes_the_same_and_thaws_alone(way: str) -> None:
    model = small(SelfAttention())
    fl.freeze(model, "part", dtype="bfloat16")
    if way == "deepcopy":
        other = copy.deepcopy(model)
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    assert torch.equal(other(batch()), model(batch()))
    fl.thaw(other, "part")
    torch.testing.assert_close(other(batch()), model(batch()))  # attention has two ways to compute
    assert other.part.layer.in_proj_weight.dtype == torch.float32
    assert model.part.layer.in_proj_weight.dtype == torch.bfloat16


def test_a_call_that_fails_puts_the_narrow_weights_back() -> None:
    model = small()
    fl.freeze(model, "part", dtype="bfloat16")
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model.part(torch.randn(3, 5))
    assert model.part[0].weight.dtype == torch.bfloat16
    assert isinstance(model.part[0].weight, nn.Parameter)


def test_a_context_gives_the_dtype_back_of_what_was_frozen_in_it() -> None:
    model = small()
    with fl.frozen(model, "stem"):
        fl.freeze(model, "stem", leaving="nothing", dtype="bfloat16")
        assert model.stem.weight.dtype == torch.bfloat16
    assert model.stem.weight.dtype == torch.float32
    model(batch()).sum().backward()


def test_a_context_that_thaws_keeps_it_narrow_afterwards() -> None:
    model = small()
    fl.freeze(model, "part", dtype="bfloat16")
    output = model(batch())
    with fl.frozen(model, "part"):
        fl.thaw(model, "part")
    assert model.part[0].weight.dtype == torch.bfloat16
    assert torch.equal(model(batch()), output)


def test_training_moves_no_bit_of_narrow_weights() -> None:
    model = small()
    frozen = fl.freeze(model, "part", dtype="bfloat16")
    optimizer = torch.optim.AdamW(fl.param_groups(model, lr=0.1))
    for _ in range(3):
        optimizer.zero_grad()
        model(batch()).square().sum().backward()
        optimizer.step()
    assert frozen.verify().tensors == 2


def test_an_earlier_handle_tells_that_the_dtype_changed() -> None:
    model = small()
    earlier = fl.freeze(model, "part")
    fl.freeze(model, "part", dtype="bfloat16")
    with pytest.raises(fl.DriftError, match=r"dtype changed from torch.float32 to torch.bfloat16"):
        earlier.verify()


def test_thawed_weights_join_the_optimizer_and_train() -> None:
    model = small()
    fl.freeze(model, "part", dtype="bfloat16")
    optimizer = torch.optim.AdamW(fl.param_groups(model, lr=0.1))
    fl.thaw(model, "part")
    fl.sync(optimizer, model)
    before = model.part[0].weight.detach().clone()
    model(batch()).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model.part[0].weight, before)


def test_the_effect_on_weights_and_output_is_measured() -> None:
    model = small()
    wanted = copy.deepcopy(model).eval()(batch()).detach()
    weight = model.part[0].weight.detach().clone()
    frozen = fl.freeze(model, "part", dtype="bfloat16", example=batch())
    assert model.training
    assert model.head.training
    assert frozen.kept is not None
    moved = (weight.bfloat16().float() - weight).norm() / weight.norm()
    output = (model.eval()(batch()).detach() - wanted).norm() / wanted.norm()
    assert frozen.kept.weight_error == pytest.approx(float(moved))
    assert frozen.kept.output_error == pytest.approx(float(output))
    assert 0 < frozen.kept.weight_error < 2**-8
    last = str(frozen).splitlines()[-1]
    assert last.startswith("1 weights kept in bfloat16: 72 B instead of 144 B; rounding moved them")
    assert "(part.0.weight), the output by" in last


def test_a_delta_belongs_to_the_rounded_base(tmp_path: Path) -> None:
    model = small()
    original = copy.deepcopy(model)
    fl.freeze(model, "stem | part", dtype="bfloat16")
    with torch.no_grad():
        model.head.weight.add_(1)
    fl.save_delta(model, tmp_path / "delta.safetensors")

    wide = copy.deepcopy(original)
    fl.freeze(wide, "stem | part")
    asked = r"2 frozen weights kept in bfloat16, and here they are not.*dtype='bfloat16'"
    with pytest.raises(fl.DeltaError, match=asked):
        fl.load_delta(wide, tmp_path / "delta.safetensors")

    fl.freeze(wide, "stem | part", dtype="bfloat16")
    fl.load_delta(wide, tmp_path / "delta.safetensors", freeze="as saved")
    assert torch.equal(wide(batch()), model(batch()))
    assert wide.part[0].weight.dtype == torch.bfloat16


def test_a_merge_gives_the_rounded_weights_in_their_own_dtype(tmp_path: Path) -> None:
    from frostline.deltas import merge_tensors, read_delta

    model = small()
    original = copy.deepcopy(model)
    fl.freeze(model, "stem | part", dtype="bfloat16")
    fl.save_delta(model, tmp_path / "delta.safetensors")
    delta = read_delta(tmp_path / "delta.safetensors")
    original.load_state_dict(merge_tensors(delta, original.state_dict(), where="the base"))
    assert torch.equal(original(batch()), model(batch()))


def test_a_cut_computes_with_narrow_weights() -> None:
    model = small()
    fl.freeze(model, "stem | part", dtype="bfloat16")
    cut = fl.cut(model, batch())
    assert torch.equal(cut.suffix(*cut.prefix(batch())), model(batch()))


def test_a_tied_weight_is_widened_in_each_of_its_modules() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 2))
    model[2].weight = model[0].weight
    other = rounded_by_hand(model, "0 | 2")
    fl.freeze(model, "0 | 2", dtype="bfloat16")
    assert torch.equal(model(batch()), other(batch()))
    fl.thaw(model, "0.weight")
    assert torch.equal(model(batch()), other(batch()))


def test_a_part_frozen_but_for_its_biases_is_kept_narrow() -> None:
    model = small()
    other = rounded_by_hand(model, "part & ~kind:bias")
    fl.freeze(model, "part & ~kind:bias", dtype="bfloat16")
    for one in (model, other):
        one(batch()).square().sum().backward()
    assert torch.equal(model.part[0].bias.grad, other.part[0].bias.grad)


def test_checkpointing_goes_with_narrow_weights() -> None:
    from torch.utils.checkpoint import checkpoint

    model = small()
    fl.freeze(model, "part", dtype="bfloat16")
    model(batch()).sum().backward()
    wanted = model.stem.weight.grad.clone()
    model.zero_grad()
    hidden = checkpoint(model.part, model.stem(batch()), use_reentrant=False)
    model.head(hidden.flatten(1)).sum().backward()
    assert torch.equal(model.stem.weight.grad, wanted)


def test_a_weight_read_without_a_call_is_refused_with_an_example() -> None:
    model = small(ReadsWeight())
    weight = model.part.inner[0].weight.detach().clone()
    with pytest.raises(fl.FreezeError, match="reads the weight of a submodule itself"):
        fl.freeze(model, "part", dtype="bfloat16", example=batch())
    assert torch.equal(model.part.inner[0].weight, weight)
    assert model.part.inner[0].weight.requires_grad
    model(batch()).sum().backward()


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(fl.FreezeError, match="Use dtype='bfloat16' or dtype='float16'"):
        fl.freeze(small(), "part", dtype="int8")  # type: ignore[arg-type]  # what is refused


def test_an_example_without_dtype_is_refused() -> None:
    with pytest.raises(fl.FreezeError, match="there is no dtype"):
        fl.freeze(small(), "part", example=batch())


def test_a_freeze_refused_for_its_wrapper_leaves_every_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise fl.FreezeError("inside a wrapper")

    monkeypatch.setattr("frostline.freezing.check_as_wrapped", refuse)
    model = small()
    before = fl.fingerprint(model)
    with pytest.raises(fl.FreezeError, match="inside a wrapper"):
        fl.freeze(model, "part", dtype="bfloat16")
    assert fl.fingerprint(model) == before


def test_measuring_on_an_example_leaves_each_module_in_its_mode() -> None:
    model = small().train()
    model.head.eval()
    fl.freeze(model, "part", dtype="bfloat16", example=batch())
    assert [model.training, model.head.training] == [True, False]
    fl.thaw(model, "part")
    assert model.part.training


def test_rows_are_not_kept_in_another_dtype() -> None:
    model = small()
    with pytest.raises(fl.FreezeError, match=r"rows of part\.0\.weight cannot be kept"):
        fl.freeze(model, "rows:part.0.weight[0:2]", dtype="bfloat16")
    assert model.part[0].weight.dtype == torch.float32


def test_numbers_too_large_for_float16_are_refused() -> None:
    model = small()
    with torch.no_grad():
        model.part[0].weight[0, 0] = 1e6
    with pytest.raises(fl.FreezeError, match="too large for float16"):
        fl.freeze(model, "part", dtype="float16")
    assert model.part[0].weight.requires_grad


def test_weights_without_data_are_refused() -> None:
    model = small()
    model.part.to("meta")
    with pytest.raises(fl.FreezeError, match="without data"):
        fl.freeze(model, "part", dtype="bfloat16")


def _pictures() -> torch.utils.data.TensorDataset:
    return torch.utils.data.TensorDataset(torch.randn(16, 6, 6), torch.arange(16) % 2)


@pytest.mark.parametrize("features", ["off", "stored"])
def test_a_run_trains_above_narrow_weights_and_proves_them(tmp_path: Path, features: str) -> None:
    model = small()
    fl.freeze(model, "stem | part", dtype="bfloat16")
    store = features if features == "off" else tmp_path / "features"
    run = fl.fit(
        model,
        _pictures(),
        _pictures(),
        out=tmp_path / "run",
        features=store,
        batch_size=8,
        device="cpu",
        epochs=2,
        precision="exact",
    )
    assert run.proof.tensors == 4
    other = small()
    fl.freeze(other, "stem | part", dtype="bfloat16")
    fl.load_delta(other, tmp_path / "run" / "best" / "delta.safetensors")
    assert torch.equal(other(batch()), model(batch()))


def test_a_plan_that_thaws_narrow_weights_is_refused(tmp_path: Path) -> None:
    model = small()
    fl.freeze(model, "stem | part", dtype="bfloat16")
    plan = fl.Plan([fl.Phase(train="head", epochs=1), fl.Phase(train="part | head", epochs=1)])
    with pytest.raises(fl.ConfigError, match=r"trains part\.0\.weight, kept in bfloat16"):
        fl.fit(model, _pictures(), _pictures(), plan=plan, out=tmp_path / "run", features="off")
    assert model.part[0].weight.dtype == torch.bfloat16
