"""A phase as data: ranges, contradictions, what the recipe fills in, its learning rate."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import frostline as fl
from frostline.recipe import Recipe

OUTSIDE = [
    ("epochs", 0),
    ("epochs", 2.5),
    ("steps", 0),
    ("lr", 0.0),
    ("lr", math.nan),
    ("lr", math.inf),
    ("layer_decay", 0.0),
    ("layer_decay", 1.5),
    ("weight_decay", -0.1),
    ("warmup", -1.0),
    ("warmup", math.inf),
    ("schedule", "linear"),
    ("norm", "thaw"),
    ("start", "first"),
    ("state", "lost"),
    ("name", 3),
]


@pytest.mark.parametrize(("name", "value"), OUTSIDE)
def test_a_value_out_of_its_range_is_named(name: str, value: object) -> None:
    with pytest.raises(fl.ConfigError, match=rf"^{name}={value!r}: input should be "):
        fl.Phase(**{"epochs": 1, name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("patience", 0), ("min_change", -1.0), ("minutes", 0.0), ("monitor", 1)],
)
def test_a_value_of_until_out_of_its_range_is_named(name: str, value: object) -> None:
    options: dict[str, Any] = {"patience": 1, name: value}
    with pytest.raises(fl.ConfigError, match=rf"^{name}={value!r}: input should be "):
        fl.Until(**options)
    with pytest.raises(fl.ConfigError, match=rf"^until\.{name}={value!r}: input should be "):
        fl.Phase(epochs=1, until=options)


def test_an_unknown_option_is_named() -> None:
    told = r"^there is no option 'epoch' \(nearest: 'epochs'\)\. The options are name, train, "
    with pytest.raises(fl.ConfigError, match=told):
        fl.Phase(epochs=1, epoch=2)


def test_every_option_that_is_wrong_is_named_at_once() -> None:
    with pytest.raises(fl.ConfigError, match=r"^epochs=0: .*; lr=-1: .*"):
        fl.Phase(epochs=0, lr=-1)


def test_train_and_freeze_together_are_refused() -> None:
    with pytest.raises(fl.ConfigError, match=r"^give one of train and freeze; the other is the "):
        fl.Phase(epochs=1, train="head", freeze="body")


def test_a_phase_without_length_is_refused() -> None:
    with pytest.raises(fl.ConfigError, match=r"^the phase has no length; give epochs, steps or"):
        fl.Phase(train="head")


def test_a_target_without_cap_is_refused_since_it_may_never_be_met() -> None:
    told = r"^a target of 0.9 may never be reached, .*; give epochs as a cap\.$"
    with pytest.raises(fl.ConfigError, match=told):
        fl.Phase(until=fl.Until(target=0.9))


@pytest.mark.parametrize(
    "length",
    [
        {"epochs": 1},
        {"steps": 1},
        {"until": {"patience": 1}},
        {"until": {"minutes": 1}},
        {"until": {"target": 0.9, "minutes": 1}},
        {"until": {"target": 0.9}, "steps": 5},
    ],
)
def test_a_phase_that_must_end_is_accepted(length: dict[str, Any]) -> None:
    assert fl.Phase(**length).lr is None


def test_a_cosine_over_an_unknown_length_is_refused() -> None:
    told = r"^the cosine falls over a known length, .*; give epochs as a cap, or schedule='constan"
    with pytest.raises(fl.ConfigError, match=told):
        fl.Phase(until=fl.Until(patience=1), schedule="cosine")


def test_until_without_an_ending_is_refused() -> None:
    told = "^nothing here ends a phase; give patience, target or minutes"
    with pytest.raises(fl.ConfigError, match=told):
        fl.Until(monitor="loss")


@pytest.mark.parametrize("target", [95, -0.1])
def test_a_target_that_no_share_can_have_is_refused(target: float) -> None:
    with pytest.raises(fl.ConfigError, match=r"accuracy lies from 0 to 1; write 0.95 for 95 %"):
        fl.Until(monitor="accuracy", target=target)


def test_a_loss_may_have_any_target() -> None:
    assert fl.Until(monitor="loss", target=2.5).target == 2.5


def test_a_target_that_the_recipes_monitor_cannot_have_is_refused_when_it_is_filled_in() -> None:
    phase = fl.Phase(epochs=1, until=fl.Until(target=95))
    with pytest.raises(fl.ConfigError, match="macro_f1 lies from 0 to 1"):
        phase.completed(Recipe(monitor="macro_f1"))


@pytest.mark.parametrize("name", ["two\nlines", " spaced ", "tab\t"])
def test_a_name_is_one_line(name: str) -> None:
    with pytest.raises(fl.ConfigError, match="a name is one line of text without spaces around"):
        fl.Phase(epochs=1, name=name)


# Selectors


def test_a_selector_is_kept_as_text() -> None:
    phase = fl.Phase(epochs=1, train=fl.path("body") & ~fl.kind("norm"), lr_mult={fl.stage(-1): 10})
    assert phase.train == "body & ~kind:norm"
    assert phase.lr_mult == {"stage:-1": 10.0}


def test_a_list_of_selectors_is_any_of_them() -> None:
    assert fl.Phase(epochs=1, freeze=["stem", fl.stage(0)]).freeze == "stem | stage:0"


def test_text_is_kept_as_it_was_written() -> None:
    assert fl.Phase(epochs=1, train="( head|body )").train == "( head|body )"


@pytest.mark.parametrize(
    "value", [fl.where(lambda *_: True), nn.Linear(1, 1), nn.Parameter(torch.zeros(1))]
)
@pytest.mark.parametrize("name", ["train", "freeze"])
def test_a_selector_without_text_is_refused(name: str, value: object) -> None:
    told = f"^{name}=.*a plan keeps selectors as text, and a function, a module or a tensor has no"
    with pytest.raises(fl.ConfigError, match=told):
        fl.Phase(**{"epochs": 1, name: value})


def test_a_module_does_not_fill_the_message_with_its_layers() -> None:
    tower = nn.Sequential(*(nn.Linear(1, 1) for _ in range(50)))
    with pytest.raises(fl.ConfigError, match=r"^train=.{,90}: a plan keeps selectors as text"):
        fl.Phase(epochs=1, train=tower)


def test_a_function_within_a_selector_is_refused_too() -> None:
    with pytest.raises(fl.ConfigError, match="a plan keeps selectors as text"):
        fl.Phase(epochs=1, train=fl.path("a") | fl.where(lambda *_: True))
    with pytest.raises(fl.ConfigError, match=r"^lr_mult=.*: a plan keeps selectors as text"):
        fl.Phase(epochs=1, lr_mult={fl.where(lambda *_: True): 2.0})


def test_a_selector_that_cannot_be_read_is_refused_in_one_line() -> None:
    with pytest.raises(fl.ConfigError, match=r"^train='stage:': cannot read the selector: .*$"):
        fl.Phase(epochs=1, train="stage:")
    with pytest.raises(fl.ConfigError, match=r"^lr_mult=.*: cannot read the selector: .*$"):
        fl.Phase(epochs=1, lr_mult={"a &": 2})


def test_what_is_no_selector_is_refused() -> None:
    with pytest.raises(fl.ConfigError, match=r"^train=3: a selector is text, "):
        fl.Phase(epochs=1, train=3)


@pytest.mark.parametrize("factor", [0, -1, math.nan, math.inf])
def test_a_multiplier_out_of_its_range_is_named(factor: float) -> None:
    with pytest.raises(fl.ConfigError, match=rf"^lr_mult\.head={factor!r}: input should be "):
        fl.Phase(epochs=1, lr_mult={"head": factor})


def test_multipliers_that_are_none_are_refused() -> None:
    with pytest.raises(fl.ConfigError, match=r"^lr_mult=3: input should be a valid dictionary"):
        fl.Phase(epochs=1, lr_mult=3)


# Values


def test_a_phase_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        fl.Phase(epochs=1).lr = 1.0


def test_repr_reads_back_as_code_and_names_only_what_was_chosen() -> None:
    phase = fl.Phase(train="head", epochs=2, until=fl.Until(patience=3, min_change=0.0))
    assert repr(phase) == "fl.Phase(train='head', epochs=2, until=fl.Until(patience=3))"
    assert str(phase) == repr(phase)
    assert eval(repr(phase)) == phase


def test_a_label_is_the_name_or_the_number() -> None:
    assert fl.Phase(epochs=1, name="tune").label(2) == "tune"
    assert fl.Phase(epochs=1).label(2) == "phase 2"


# What the recipe fills in


def test_the_recipe_fills_in_what_the_phase_leaves_open() -> None:
    recipe = Recipe(
        lr=0.5, layer_decay=0.5, weight_decay=0.5, schedule="constant", warmup=2.0, patience=4
    )
    assert fl.Phase(steps=7).completed(recipe) == fl.Phase(
        steps=7,
        lr=0.5,
        layer_decay=0.5,
        weight_decay=0.5,
        schedule="constant",
        warmup=2.0,
        until=fl.Until(patience=4, monitor="auto"),
    )


def test_what_the_phase_says_stands_against_the_recipe() -> None:
    phase = fl.Phase(
        epochs=3,
        lr=0.1,
        layer_decay=0.2,
        weight_decay=0.0,
        schedule="cosine",
        warmup=0.0,
        until=fl.Until(minutes=1, monitor="loss"),
    )
    recipe = Recipe(
        epochs=9, lr=1, layer_decay=1, weight_decay=1, schedule="constant", warmup=1, patience=1
    )
    assert phase.completed(recipe) == phase


def test_the_learning_rate_stays_open_where_both_leave_it() -> None:
    assert fl.Phase(epochs=1).completed(fl.Recipe()).lr is None


def test_the_recipes_epochs_are_not_used() -> None:
    assert fl.Phase(steps=1).completed(Recipe(epochs=7)).epochs is None


def test_the_monitor_is_the_recipes_where_until_names_none() -> None:
    found = fl.Phase(epochs=1, until=fl.Until(target=0.5)).completed(Recipe(monitor="loss"))
    assert found.until == fl.Until(target=0.5, monitor="loss")


def test_without_a_known_length_the_schedule_is_constant_whatever_the_recipe_says() -> None:
    found = fl.Phase(until=fl.Until(minutes=1)).completed(Recipe(schedule="cosine"))
    assert found.schedule == "constant"


def test_completing_twice_changes_nothing_more() -> None:
    once = fl.Phase(epochs=1).completed(Recipe(patience=2))
    assert once.completed(Recipe(warmup=9, patience=7)) == once


# Length and learning rate


@pytest.mark.parametrize(
    ("length", "steps"),
    [
        ({"epochs": 3}, 30),
        ({"steps": 7}, 7),
        ({"epochs": 3, "steps": 7}, 7),
        ({"epochs": 1, "steps": 70}, 10),
        ({"until": {"patience": 1}}, None),
    ],
)
def test_the_steps_of_a_phase_are_the_smaller_of_both(
    length: dict[str, Any], steps: int | None
) -> None:
    assert fl.Phase(**length).total_steps(10) == steps


def run_factor(
    step: int, steps_per_epoch: int, *, epochs: int, warmup: float, schedule: str
) -> float:
    """The share of the peak in a run of one phase, as it was before there were plans."""
    warming = round(warmup * steps_per_epoch)
    if step < warming:
        return (step + 1) / (warming + 1)
    if schedule == "constant":
        return 1.0
    left = max(1, epochs * steps_per_epoch - warming)
    return 0.5 * (1 + math.cos(math.pi * (step - warming) / left))


@given(
    epochs=st.integers(1, 30),
    per_epoch=st.integers(1, 300),
    warmup=st.floats(0, 40),
    schedule=st.sampled_from(["cosine", "constant"]),
    at=st.floats(0, 1),
)
def test_the_learning_rate_is_that_of_a_run_without_phases_bit_for_bit(
    epochs: int, per_epoch: int, warmup: float, schedule: str, at: float
) -> None:
    step = int(at * (epochs * per_epoch - 1))
    phase = fl.Phase(epochs=epochs, warmup=warmup, schedule=schedule)
    assert phase.lr_factor(step, per_epoch) == run_factor(
        step, per_epoch, epochs=epochs, warmup=warmup, schedule=schedule
    )


def test_the_cosine_falls_over_the_steps_of_a_phase() -> None:
    phase = fl.Phase(steps=4, warmup=0, schedule="cosine")
    assert phase.lr_factor(0, 100) == 1.0
    assert phase.lr_factor(2, 100) == pytest.approx(0.5)


def test_an_open_length_stays_at_the_peak_after_the_warm_up() -> None:
    phase = fl.Phase(until=fl.Until(patience=1), warmup=1).completed(fl.Recipe())
    assert [phase.lr_factor(step, 1) for step in (0, 1, 10**6)] == [0.5, 1.0, 1.0]


@pytest.mark.parametrize("name", ["warmup", "schedule"])
def test_a_phase_that_leaves_things_open_has_no_learning_rate_yet(name: str) -> None:
    given_ = {"warmup": 1.0, "schedule": "cosine"}
    del given_[name]
    told = rf"^{name} is left to the recipe and not filled in yet; use what phase\.completed"
    with pytest.raises(fl.ConfigError, match=told):
        fl.Phase(epochs=1, **given_).lr_factor(0, 1)
