"""Frozen weights that torchao keeps in eight and four bits: proved, cut, stored, resumed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from interrupted import stopped_and_resumed
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torchao.quantization import (
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    PerGroup,
    quantize_,
)

import frostline as fl

WIDTH = 64
CONFIGS: dict[str, Callable[[], Any]] = {
    "int8": Int8WeightOnlyConfig,
    # Of torchao's formats of four bits the one that computes on any processor.
    "int4": lambda: IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32)),
}
kinds = pytest.mark.parametrize("kind", CONFIGS)


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    lower = (nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh())
    return nn.Sequential(*lower, nn.Dropout(0.2), nn.Linear(WIDTH, 2))


def quantised(kind: str) -> nn.Sequential:
    """The two lower layers in few bits; nothing is frozen by us yet."""
    model = plain()
    quantize_(model, CONFIGS[kind](), filter_fn=lambda _, name: name in ("0", "2"))
    return model


def frozen(kind: str) -> nn.Sequential:
    model = quantised(kind)
    fl.freeze(model, "0 | 2")
    return model


def batch() -> Tensor:
    return torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(1))


def data(count: int, seed: int) -> TensorDataset:
    x = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, (x[:, 0] > 0).long())


@kinds
@pytest.mark.parametrize("part", ["qdata", "scale"])
def test_one_number_of_a_quantised_weight_that_moved_is_named(kind: str, part: str) -> None:
    model = quantised(kind)
    handle = fl.freeze(model, "0 | 2")
    assert handle.verify().tensors == 4
    getattr(model[2].weight, part).view(-1)[3] += 1
    with pytest.raises(fl.DriftError) as raised:
        handle.verify()
    (drift,) = raised.value.drifts
    said = {"qdata": "moved by up to 1 (1 of 4096 numbers)", "scale": "scaled by may have moved"}
    assert drift.name == "2.weight"
    assert said[part] in drift.what


@kinds
def test_a_fingerprint_goes_by_the_bits_that_are_kept(kind: str) -> None:
    model = frozen(kind)
    before = fl.fingerprint(model)
    assert fl.fingerprint(copy.deepcopy(model)) == fl.fingerprint(frozen(kind)) == before
    assert before.tensors["0.weight"] != fl.fingerprint(plain()).tensors["0.weight"]
    model[0].weight.scale.view(-1)[0] *= 2
    assert fl.fingerprint(model).tensors["0.weight"] != before.tensors["0.weight"]


@kinds
def test_a_table_tells_the_bytes_that_are_kept_and_not_those_of_float32(kind: str) -> None:
    model, number = frozen(kind), WIDTH * WIDTH
    wide = fl.summary(plain()).total.nbytes
    kept = fl.select(model, "0.weight").nbytes
    assert number < kept < 1.7 * number  # and scales; int4 in a byte each
    assert fl.summary(model).total.nbytes == wide - 2 * (4 * number - kept)


def test_quantising_behind_the_freeze_is_told_for_what_it_is() -> None:
    model = plain()
    handle = fl.freeze(model, "0 | 2")
    quantize_(model, CONFIGS["int8"](), filter_fn=lambda _, name: name == "0")
    with pytest.raises(fl.DriftError, match=r"0\.weight: is kept otherwise now, as Int8Tensor"):
        handle.verify()


@kinds
def test_a_cut_through_quantised_weights_gives_the_bits_of_the_model(kind: str) -> None:
    model = frozen(kind)
    cut = fl.cut(model, batch())
    assert cut.error == 0.0
    model.eval()
    assert torch.equal(cut.suffix(*cut.prefix(batch())), model(batch()))
    model.train()
    key = dict(cut.key)
    model[0].weight.qdata[0, 0] += 1
    with pytest.raises(fl.CutError, match=r"0\.weight is changed since"):
        cut.check_current()
    assert dict(fl.cut(model, batch()).key) != key
    assert dict(fl.cut(frozen(kind), batch()).key) == key


@kinds
def test_a_head_trains_on_features_of_quantised_weights_to_the_bits_of_the_plain_loop(
    kind: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"epochs": 2, "lr": 0.01, "batch_size": 8, "precision": "exact"}
    found = []
    for features in ("off", tmp_path):
        model = frozen(kind)
        run = fl.fit(model, data(20, 1), data(8, 2), features=features, **options)
        found.append((fl.fingerprint(model), [r.validation.loss for r in run.history]))
    assert found[0] == found[1]
    assert run.computed == 28
    assert fl.fingerprint(model, "0 | 2") == fl.fingerprint(frozen(kind), "0 | 2")


def test_no_features_of_other_bits_are_taken_from_the_store(tmp_path: Path) -> None:
    computed = []
    for make in (lambda: frozen("int8"), lambda: frozen("int4"), lambda: frozen("int8")):
        run = fl.fit(
            make(), data(20, 1), data(8, 2), features=tmp_path, precision="exact", epochs=1, lr=0.01
        )
        computed.append(run.computed)
    assert computed == [28, 28, 0]


def _wide() -> nn.Module:
    model = plain()
    fl.freeze(model, "0 | 2")
    return model


@kinds
def test_a_stopped_run_over_quantised_weights_goes_on_to_the_same_bits(
    kind: str, tmp_path: Path
) -> None:
    stopped_and_resumed(lambda: frozen(kind), data(20, 1), data(8, 2), tmp_path / "run")


@pytest.mark.filterwarnings("ignore:TorchaoLoraLinear was instantiated without:UserWarning")
def test_adapters_train_over_quantised_weights_to_the_bits_of_the_plain_loop(
    tmp_path: Path,
) -> None:
    peft = pytest.importorskip("peft")
    options: dict[str, Any] = {"epochs": 1, "lr": 0.01, "batch_size": 8, "precision": "exact"}
    found = []
    for features in ("off", tmp_path):
        torch.manual_seed(1)
        lora = peft.LoraConfig(r=4, target_modules=["2"], modules_to_save=["5"], lora_dropout=0.1)
        model = peft.get_peft_model(quantised("int8"), lora)
        fl.freeze(model, [p for p in model.parameters() if not p.requires_grad])
        base = fl.fingerprint(model, "**.0 | **.base_layer")
        run = fl.fit(model, data(20, 1), data(8, 2), features=features, **options)
        assert fl.fingerprint(model, "**.0 | **.base_layer") == base
        found.append(fl.fingerprint(model))
    assert found[0] == found[1]
    assert run.computed == 28


@kinds
def test_a_delta_fits_the_quantised_base_it_was_trained_on_alone(kind: str, tmp_path: Path) -> None:
    model, file = frozen(kind), tmp_path / "delta.safetensors"
    with torch.no_grad():
        model[5].weight.add_(1)
    fl.save_delta(model, file)
    assert set(fl.load_delta(frozen(kind), file).tensors) == {"5.weight", "5.bias"}
    other = frozen("int4" if kind == "int8" else "int8")
    for base in (other, _wide()):
        with pytest.raises(fl.DeltaError, match=r"trained on another base.*0\.weight, 2\.weight"):
            fl.load_delta(base, file)


@kinds
def test_what_quantised_weights_cannot_be_is_refused_with_what_to_do(kind: str) -> None:
    model, dropped = frozen(kind), "Dequantise it first"
    with pytest.raises(fl.FreezeError, match=rf"0\.weight is of class \w+, .*{dropped}"):
        fl.thaw(model, "0")
    with pytest.raises(fl.FreezeError, match=r"0\.weight cannot be kept in bfloat16: it is"):
        fl.freeze(model, "0", dtype="bfloat16")
    with pytest.raises(fl.ConfigError, match=r"0\.weight is of class .* before its weights are q"):
        fl.estimate(model, batch())


@kinds
@pytest.mark.parametrize("lean", [False, True])
def test_gradients_cross_a_quantised_layer_to_what_trains_below(kind: str, lean: bool) -> None:
    model = plain()
    quantize_(model, CONFIGS[kind](), filter_fn=lambda _, name: name == "2")
    fl.freeze(model, "2", lean=lean)
    wanted = plain()
    wanted[2].weight = nn.Parameter(model[2].weight.dequantize())
    for net in (model, wanted):
        net.eval()(batch()).sum().backward()
    assert torch.allclose(model[0].weight.grad, wanted[0].weight.grad, atol=1e-5)
