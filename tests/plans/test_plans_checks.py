"""A plan against a model: what cannot be is an error, what is hardly meant a sentence."""

from __future__ import annotations

import pytest
from plan_nets import Tower, whole_state
from torch import nn

import frostline as fl
from frostline.groups import default_lr, param_groups
from frostline.plans.parts import parts
from frostline.recipe import Recipe

HEAD = fl.Phase(name="head", train="head", epochs=1)


def warnings_of(*phases: fl.Phase, model: nn.Module | None = None, **recipe: object) -> list[str]:
    return list(fl.Plan(phases).check(model or Tower(), recipe=Recipe(**recipe)))


def test_a_sound_plan_has_no_warnings() -> None:
    assert warnings_of(HEAD, fl.Phase(train="all", epochs=1)) == []


def test_a_check_changes_nothing() -> None:
    model = Tower()
    fl.freeze(model, "floor0")
    model.head.weight.grad = model.head.weight.detach().clone()
    before = whole_state(model)
    fl.Plan([HEAD, fl.Phase(freeze="head", epochs=1), fl.Phase(epochs=1)]).check(model)
    with pytest.raises(fl.SelectorError):
        fl.Plan([HEAD, fl.Phase(freeze="hed", epochs=1)]).check(model)
    assert whole_state(model) == before


# What cannot be


def test_a_selector_that_misses_names_the_phase() -> None:
    told = r"^phase 2 \(tune\): 'flor0' matches no parameter of Tower\. Nearest: floor0"
    with pytest.raises(fl.SelectorError, match=told):
        warnings_of(HEAD, fl.Phase(name="tune", train="flor0", epochs=1))
    with pytest.raises(fl.SelectorError, match=r"^phase 1: 'flor0' matches no parameter"):
        warnings_of(fl.Phase(freeze="flor0", epochs=1))


def test_a_multiplier_that_misses_names_the_phase() -> None:
    told = "^phase 1: lr_mult: 'stage:9' names no stage of Tower"
    with pytest.raises(fl.SelectorError, match=told):
        warnings_of(fl.Phase(train="head", epochs=1, lr_mult={"stage:9": 2}))


@pytest.mark.parametrize(("field", "selector"), [("train", "none"), ("freeze", "all")])
def test_a_phase_that_trains_nothing_is_refused(field: str, selector: str) -> None:
    told = rf"^phase 2 \(idle\): {field}='{selector}' leaves nothing to train in Tower\. Train so"
    with pytest.raises(fl.ConfigError, match=told):
        warnings_of(HEAD, fl.Phase(**{"name": "idle", field: selector, "epochs": 1}))


def test_a_frozen_model_is_refused_where_the_phase_takes_it_as_it_is() -> None:
    model = Tower().requires_grad_(False)
    told = "^phase 1: going on with what trains already leaves nothing to train in Tower"
    with pytest.raises(fl.ConfigError, match=told):
        warnings_of(fl.Phase(epochs=1), model=model)


def test_a_target_that_the_recipes_monitor_cannot_have_names_the_phase() -> None:
    with pytest.raises(fl.ConfigError, match=r"^phase 1: a target of 90 .*accuracy lies from 0"):
        warnings_of(fl.Phase(epochs=1, until=fl.Until(target=90)))


# What trains, and how fast


def test_a_phase_without_selector_goes_on_with_what_trained_before() -> None:
    plan = fl.Plan([HEAD, fl.Phase(epochs=1)])
    first, second = parts(Tower(), plan.phases, Recipe())
    assert second.selection.names == first.selection.names == ("head.weight", "head.bias")


def test_the_first_phase_without_selector_takes_the_model_as_it_is() -> None:
    model = Tower()
    fl.train_only(model, "floor1")
    (part,) = parts(model, [fl.Phase(epochs=1)], Recipe())
    assert (
        set(part.selection.names)
        == {n for n, p in model.named_parameters() if p.requires_grad}
        != set()
    )


@pytest.mark.parametrize("train", ["head", "floor2 | head", "all", "floor0"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_rates_are_those_of_the_optimizers_groups(train: str, optimizer: str) -> None:
    model = Tower()
    phase = fl.Phase(train=train, epochs=1, layer_decay=0.5, lr_mult={train: 3, "all": 2})
    (part,) = parts(model, [phase], Recipe(optimizer=optimizer))
    fl.train_only(model, train)
    groups = param_groups(
        model,
        lr=default_lr(model, optimizer=optimizer),
        layer_decay=0.5,
        lr_mult={train: 3, "all": 2},
    )
    expected = {name: g["lr"] for g in groups for name in g["param_names"]}
    assert {rate.name: rate.lr for rate in part.rates.values()} == expected


def test_the_table_counts_what_trains_in_the_model() -> None:
    model = Tower(1)
    plan = fl.Plan([HEAD, fl.Phase(name="all", train="all", epochs=1)])
    assert [row[:4] for row in plan.table(model).rows] == [
        ("head", "head", "10", "26.3%"),
        ("all", "all", "38", "100.0%"),
    ]


def test_a_share_too_small_for_its_digits_is_not_shown_as_nothing() -> None:
    model = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 1))
    plan = fl.Plan([fl.Phase(train="1.bias", epochs=1)])
    assert plan.table(model).rows[0][3] == "<0.1%"


# What is hardly meant


@pytest.mark.parametrize(
    ("monitor", "first", "second", "met"),
    [
        ("accuracy", 0.9, 0.9, True),
        ("accuracy", 0.9, 0.8, True),
        ("accuracy", 0.8, 0.9, False),
        ("loss", 0.1, 0.2, True),
        ("loss", 0.2, 0.1, False),
    ],
)
def test_a_target_that_an_earlier_phase_meets_is_told(
    monitor: str, first: float, second: float, met: bool
) -> None:
    found = warnings_of(
        fl.Phase(train="head", epochs=5, until=fl.Until(target=first)),
        fl.Phase(train="all", epochs=5, until=fl.Until(target=second)),
        monitor=monitor,
    )
    assert len(found) == met
    for message in found:
        assert message.startswith("phase 2 would end after its first epoch: its target, ")
        assert f"{monitor} {second:g}, is met where phase 1 meets its own, {first:g}" in message


def test_targets_of_two_monitors_are_not_compared() -> None:
    first = fl.Phase(train="head", epochs=5, until=fl.Until(target=0.9, monitor="macro_f1"))
    second = fl.Phase(train="all", epochs=5, until=fl.Until(target=0.8, monitor="accuracy"))
    assert warnings_of(first, second) == []


def test_a_phase_that_repeats_the_one_before_is_told() -> None:
    (found,) = warnings_of(HEAD, fl.Phase(name="more", train="stage:-1", epochs=4, warmup=0.5))
    assert found.startswith("phase 2 (more) trains the same as phase 1 (head) with the same set")


@pytest.mark.parametrize(
    "other", [{"lr": 1e-4}, {"warmup": 2}, {"start": "best"}, {"state": "fresh"}, {"norm": "adapt"}]
)
def test_a_phase_that_differs_in_a_setting_is_not_told(other: dict[str, object]) -> None:
    assert warnings_of(HEAD, fl.Phase(**{"train": "head", "epochs": 1, **other})) == []


def test_other_rows_of_the_same_tensor_are_no_repetition() -> None:
    rows = [fl.Phase(train=f"rows:head.weight[{n}]", epochs=1) for n in (0, 1)]
    assert warnings_of(*rows) == []
    assert len(warnings_of(rows[0], rows[0])) == 1


def test_the_table_counts_single_rows() -> None:
    plan = fl.Plan([fl.Phase(train="rows:head.weight[0]", epochs=1)])
    assert plan.table(Tower(1)).rows[0][2] == "4"


def test_a_multiplier_on_what_is_frozen_is_told() -> None:
    (found,) = warnings_of(fl.Phase(train="head", epochs=1, lr_mult={"floor0": 2}))
    assert found.startswith("phase 1: lr_mult for 'floor0' changes nothing, as all that it match")


def test_a_rate_that_jumps_between_phases_is_told_once_with_its_worst_parameter() -> None:
    found = warnings_of(
        HEAD,
        fl.Phase(name="body", train="floor0", epochs=1),
        fl.Phase(name="tune", train="head | floor0", epochs=1, lr=1e-5),
    )
    (message,) = found
    assert message.startswith(
        "the learning rate of head.weight goes from 0.003 in phase 1 (head) to 1e-05 in phase 3 "
        "(tune), by a factor of 300."
    )


def test_a_factor_of_a_hundred_between_phases_is_still_meant() -> None:
    assert warnings_of(HEAD, fl.Phase(train="all", epochs=1, lr=3.1e-5)) == []


def test_rates_that_span_too_far_within_a_phase_are_told() -> None:
    (found,) = warnings_of(fl.Phase(train="all", epochs=1, layer_decay=0.05))
    assert found.startswith("phase 1: learning rates span a factor of 8,000, from 3.8e-08 for fl")
    (found,) = warnings_of(fl.Phase(train="all", epochs=1, lr_mult={"head": 2000}, lr=1e-5))
    assert "to 0.02 for head.weight" in found


def test_stages_that_are_frozen_do_not_count_for_the_span() -> None:
    assert warnings_of(fl.Phase(train="head | floor2", epochs=1, layer_decay=0.05)) == []


def test_a_rate_too_high_for_adam_is_told_and_not_for_sgd() -> None:
    phase = fl.Phase(train="head", epochs=1, lr=0.5)
    (found,) = warnings_of(phase)
    assert found.startswith("phase 1: a learning rate of 0.5 for head.weight is far above what ad")
    assert warnings_of(phase, optimizer="sgd") == []


def test_the_recipe_fills_in_before_the_check() -> None:
    (found,) = warnings_of(fl.Phase(train="all", epochs=1), layer_decay=0.05)
    assert "learning rates span a factor of 8,000" in found
