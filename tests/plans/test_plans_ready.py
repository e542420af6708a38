"""Ready-made plans: what they train in a tower of known stages, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from plan_nets import Tower, whole_state
from torch import nn

import frostline as fl

MAKERS: list[Callable[[nn.Module], fl.Plan]] = [
    fl.Plan.head_only,
    fl.Plan.gradual,
    fl.Plan.lp_ft,
    lambda model: fl.Plan.surgical(model, stage=1),
    fl.Plan.full,
    fl.Plan.norm_and_bias,
]


def trained(plan: fl.Plan, model: nn.Module) -> list[set[str]]:
    """The children that each phase trains."""
    names = (fl.select(model, str(phase.train)).names for phase in plan)
    return [{name.partition(".")[0] for name in own} for own in names]


@pytest.mark.parametrize("make", MAKERS)
def test_a_ready_made_plan_is_sound_and_leaves_the_model_as_it_was(
    make: Callable[[nn.Module], fl.Plan],
) -> None:
    model = Tower(12)
    before = whole_state(model)
    plan = make(model)
    assert plan.check(model) == ()
    assert whole_state(model) == before
    assert fl.Plan.loads(plan.dumps()) == plan


def test_head_only_trains_the_head() -> None:
    model = Tower()
    plan = fl.Plan.head_only(model, epochs=3, lr=0.1)
    assert trained(plan, model) == [{"head"}]
    assert (plan[0].epochs, plan[0].lr) == (3, 0.1)


def test_gradual_adds_one_stage_in_each_phase_from_the_top() -> None:
    model = Tower(2)
    plan = fl.Plan.gradual(model, epochs_each=2, lr=0.01, layer_decay=0.5)
    assert trained(plan, model) == [{"head"}, {"floor1", "head"}, {"floor0", "floor1", "head"}]
    assert [(phase.epochs, phase.lr) for phase in plan] == [(2, None), (2, 0.01), (2, 0.01)]
    assert [phase.layer_decay for phase in plan] == [None, 0.5, 0.5]


def test_gradual_stops_at_four_stages_unless_told() -> None:
    model = Tower(9)
    assert len(fl.Plan.gradual(model)) == 4
    assert len(fl.Plan.gradual(model, stages=10)) == 10
    assert len(fl.Plan.gradual(model, stages=1)) == 1


@pytest.mark.parametrize("stages", [0, 5])
def test_gradual_refuses_stages_that_are_not_there(stages: int) -> None:
    told = rf"^stages={stages} asks for what Tower does not have: it has 4, .*Ask for 1 to 4"
    with pytest.raises(fl.ConfigError, match=told):
        fl.Plan.gradual(Tower(3), stages=stages)


def test_lp_ft_trains_all_from_the_best_of_the_probe_at_a_lower_rate() -> None:
    model = Tower(1)
    plan = fl.Plan.lp_ft(model, probe_epochs=2, tune_epochs=3)
    assert trained(plan, model) == [{"head"}, {"floor0", "head"}]
    assert [(phase.epochs, phase.start) for phase in plan] == [(2, "last"), (3, "best")]
    assert plan[1].lr == 1e-4


@pytest.mark.parametrize("stage", [1, -3])
def test_surgical_trains_one_stage_once_the_head_is_there(stage: int) -> None:
    model = Tower(3)
    plan = fl.Plan.surgical(model, stage=stage, head_epochs=2, epochs=3, lr=0.1)
    assert trained(plan, model) == [{"head"}, {"floor1", "head"}]
    assert [(phase.epochs, phase.lr) for phase in plan] == [(2, None), (3, 0.1)]


@pytest.mark.parametrize("stage", [3, -1])
def test_surgical_on_the_head_is_refused(stage: int) -> None:
    told = rf"^stage={stage} of Tower is the head, which trains in any case\. Choose .* 0 to 2;"
    with pytest.raises(fl.ConfigError, match=told):
        fl.Plan.surgical(Tower(3), stage=stage)


def test_surgical_on_a_model_of_one_stage_is_refused() -> None:
    with pytest.raises(fl.ConfigError, match=r"It has no other stage; Plan\.head_only trains the"):
        fl.Plan.surgical(nn.Linear(2, 2), stage=0)


def test_surgical_on_a_stage_that_is_not_there_is_refused() -> None:
    with pytest.raises(fl.SelectorError, match="'stage:7' names no stage of Tower, which has 4"):
        fl.Plan.surgical(Tower(3), stage=7)


def test_full_trains_everything() -> None:
    model = Tower(1)
    assert trained(fl.Plan.full(model), model) == [{"floor0", "head"}]


def test_norm_and_bias_trains_norms_biases_and_the_head() -> None:
    model = Tower(1)
    (phase,) = fl.Plan.norm_and_bias(model)
    assert phase.train == "kind:norm | kind:bias | stage:-1"
    assert set(fl.select(model, str(phase.train)).names) == {
        "floor0.0.bias",
        "floor0.1.weight",
        "floor0.1.bias",
        "head.weight",
        "head.bias",
    }


def test_a_kind_that_the_model_has_not_below_its_head_is_left_out() -> None:
    (phase,) = fl.Plan.norm_and_bias(Tower(2, norms=False))
    assert phase.train == "kind:bias | stage:-1"


def test_without_norms_and_biases_the_plan_is_refused() -> None:
    told = "^Tower has neither a norm nor a bias below its head, .*Plan.head_only or Plan.lp_ft"
    with pytest.raises(fl.ConfigError, match=told):
        fl.Plan.norm_and_bias(Tower(2, norms=False, bias=False))


def test_the_head_may_be_another_part() -> None:
    model = Tower(2)
    plan = fl.Plan.gradual(model, head=fl.path("head") | fl.path("floor0"), stages=2)
    assert trained(plan, model) == [{"head", "floor0"}, {"head", "floor0", "floor1"}]
    assert plan[1].train == "stage:-2..-1 | head | floor0"


@pytest.mark.parametrize("name", ["head_only", "gradual", "lp_ft", "norm_and_bias"])
def test_a_head_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(fl.SelectorError, match=r"'haed' matches no parameter of Tower.*head"):
        {"head_only": fl.Plan.head_only, "gradual": fl.Plan.gradual, "lp_ft": fl.Plan.lp_ft}.get(
            name, fl.Plan.norm_and_bias
        )(Tower(), head="haed")


def test_a_length_out_of_its_range_is_refused() -> None:
    with pytest.raises(fl.ConfigError, match=r"^epochs=0: input should be greater"):
        fl.Plan.head_only(Tower(), epochs=0)
