"""Quantised weights of other libraries: the doctor sees through them, and says what they cut."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import frostline as fl
from frostline.fingerprints.parts import is_finite
from quantised_weights import Int8Weight, quantise


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def batch() -> Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


def frozen_net(place: int, kind: str) -> nn.Sequential:
    model = net()
    quantise(model[place], kind)  # type: ignore[arg-type]
    model[place].requires_grad_(False)
    return model


def test_every_check_sees_a_model_with_quantised_weights() -> None:
    model = frozen_net(0, "opaque")
    assert fl.doctor(model, batch()).codes == ()


def test_a_number_that_is_not_finite_is_found_in_a_quantised_weight() -> None:
    model = frozen_net(0, "opaque")
    weight = model[0].weight
    assert isinstance(weight, Int8Weight)
    weight.scale[2] = torch.inf
    finding = next(iter(fl.doctor(model, batch())))
    assert (finding.code, finding.names) == ("not-finite", ("0.weight",))


def test_numbers_of_eight_and_four_bits_are_looked_at_too() -> None:
    eight = torch.tensor([1.0, torch.nan]).to(torch.float8_e4m3fn)
    assert is_finite(eight[:1], "it")
    assert not is_finite(eight, "it")
    assert is_finite(torch.zeros(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2), "it")


def test_a_quantised_weight_that_a_forward_writes_into_is_put_back() -> None:
    model = frozen_net(0, "opaque")
    weight = model[0].weight
    assert isinstance(weight, Int8Weight)
    before = weight.numbers.clone()
    hook = model[2].register_forward_hook(lambda *_: weight.numbers.add_(1) and None)
    fl.doctor(model, batch())
    hook.remove()
    assert torch.equal(weight.numbers, before)


def test_a_weight_that_was_switched_on_by_hand_and_gets_no_gradient_is_told_with_its_kind() -> None:
    model = frozen_net(2, "opaque")
    model[2].weight.requires_grad_(True)
    finding = next(f for f in fl.doctor(model, batch()) if f.code == "no-gradient")
    assert finding.names == ("2.weight",)
    assert "2.weight is of class Int8Weight, a kind of tensor that takes no gradient" in finding.why
    assert "dequantise" in finding.fix


def test_a_frozen_layer_that_cuts_the_gradient_for_those_below_is_named() -> None:
    model = frozen_net(2, "cutting")
    finding = next(f for f in fl.doctor(model, batch()) if f.code == "no-gradient")
    assert (finding.level, finding.names) == ("warning", ("0.weight", "0.bias"))
    assert "it ends at 2 (Linear, its weight of class Int8Weight)" in finding.seen
    assert finding.fix == (
        "fl.freeze(model, '0.weight | 0.bias')  # or quantise the weights of 2 only, not what goes "
        "in, or dequantise them"
    )


def test_the_fix_for_what_is_cut_off_leaves_nothing_without_a_gradient() -> None:
    model = frozen_net(2, "cutting")
    finding = next(f for f in fl.doctor(model, batch()) if f.code == "no-gradient")
    exec(finding.fix, {"fl": fl}, {"model": model})
    assert fl.doctor(model, batch()).codes == ()


def test_a_plan_that_would_thaw_such_a_weight_is_told_before_it_begins() -> None:
    model = frozen_net(0, "opaque")
    plan = fl.Plan([fl.Phase(train="4", epochs=1), fl.Phase(train="0 | 4", epochs=1)])
    finding = next(f for f in fl.doctor(model, plan=plan) if f.code == "plan-error")
    assert finding.seen.startswith("phase 2: 0.weight is of class Int8Weight, a kind of tensor")


def test_a_layer_that_computes_without_a_graph_is_named_too() -> None:
    class Cutting(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                return super().forward(x)

    model = net()
    model[2] = Cutting(8, 8).requires_grad_(False)
    finding = next(f for f in fl.doctor(model, batch()) if f.code == "no-gradient")
    assert "it ends at 2 (Cutting)" in finding.seen


def test_the_doctor_works_with_the_weights_of_torchao() -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model = nn.Sequential(
        nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4)
    )
    only, both = "Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"
    for place, config in (("0", only), ("2", both)):
        quantization.quantize_(
            model, getattr(quantization, config)(), filter_fn=lambda _, n, p=place: n == p
        )
    fl.train_only(model, "4")
    assert fl.doctor(model, torch.randn(8, 32)).codes == ()
    with pytest.raises(fl.FreezeError, match=r"0\.weight is of class Int8Tensor"):
        fl.thaw(model, "0")
    model[0].bias.requires_grad_(True)
    finding = next(f for f in fl.doctor(model, torch.randn(8, 32)) if f.code == "no-gradient")
    assert "it ends at 2 (Linear, its weight of class Int8Tensor)" in finding.seen
