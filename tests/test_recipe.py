"""How to train, as data: ranges, unknown options, learning rate, what is better."""

from __future__ import annotations

import math
from typing import Any

import pytest

import frostline as fl
from frostline.config import DataSettings
from frostline.recipe import Recipe

OUTSIDE = [
    ("epochs", 0),
    ("epochs", 2.5),
    ("lr", 0.0),
    ("lr", math.inf),
    ("lr", math.nan),
    ("optimizer", "adagrad"),
    ("weight_decay", -0.1),
    ("momentum", 1.0),
    ("schedule", "linear"),
    ("warmup", -1),
    ("warmup", math.inf),
    ("layer_decay", 0.0),
    ("layer_decay", 1.1),
    ("clip_norm", 0.0),
    ("clip_norm", math.nan),
    ("label_smoothing", 1.0),
    ("class_weights", "inverse"),
    ("monitor", 1),
    ("patience", 0),
    ("seed", -1),
    ("seed", 2**32),
]


@pytest.mark.parametrize(("name", "value"), OUTSIDE)
def test_a_value_out_of_its_range_is_named(name: str, value: object) -> None:
    with pytest.raises(fl.ConfigError, match=rf"^{name}={value!r}: input should be "):
        Recipe(**{name: value})


@pytest.mark.parametrize("value", ["fp64", "0", "-0.01", "inf", "nan", ""])
def test_a_precision_that_is_none_says_which_there_are(value: str) -> None:
    told = rf"^precision='{value}': use auto, exact, bf16, fp16 or the relative error to allow"
    with pytest.raises(fl.ConfigError, match=told):
        Recipe(precision=value)


def test_a_precision_says_how_the_frozen_part_and_the_steps_compute() -> None:
    asked: list[object] = ["auto", "exact", "fp32", "bf16", "fp16", "0.01", 0.01]
    found = [(r.prefix_precision, r.mixed) for r in (Recipe(precision=p) for p in asked)]
    assert found == [
        ("auto", "fp32"),
        ("exact", "fp32"),
        ("exact", "fp32"),  # as runs before 0.2 wrote it
        ("auto", "bf16"),
        ("auto", "fp16"),
        (0.01, "fp32"),
        (0.01, "fp32"),
    ]


def test_one_error_names_every_option_that_is_wrong() -> None:
    with pytest.raises(fl.ConfigError) as caught:
        Recipe(epochs=0, lr=-1, learning_rate=0.1)
    message = str(caught.value)
    assert "epochs=0: input should be greater than or equal to 1" in message
    assert "lr=-1: input should be greater than 0" in message
    assert "there is no option 'learning_rate'" in message
    assert "\n" not in message


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        fl.Recipe().lr = 1.0


def phase_of(*, epochs: int = 10, **options: Any) -> fl.Phase:
    """A run's only phase, which is as long as its recipe says."""
    return fl.Phase(epochs=epochs).completed(Recipe(**options))


def test_warm_up_rises_in_equal_steps_to_the_peak() -> None:
    phase = phase_of(epochs=4, warmup=1.0)
    factors = [phase.lr_factor(step, 4) for step in range(5)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_without_warm_up_the_first_step_has_the_peak() -> None:
    assert phase_of(warmup=0).lr_factor(0, 10) == 1.0


def test_cosine_is_nearly_zero_at_the_last_step() -> None:
    phase = phase_of(epochs=10, warmup=0.5)
    assert 0 < phase.lr_factor(10 * 50 - 1, 50) < 1e-4


def test_cosine_never_rises_after_the_warm_up() -> None:
    phase = phase_of(epochs=3, warmup=1.0)
    factors = [phase.lr_factor(step, 7) for step in range(7, 21)]
    assert factors == sorted(factors, reverse=True)


def test_constant_stays_at_the_peak() -> None:
    phase = phase_of(schedule="constant", warmup=0, epochs=5)
    assert {phase.lr_factor(step, 3) for step in range(15)} == {1.0}


def test_a_warm_up_longer_than_the_run_never_passes_the_peak() -> None:
    phase = phase_of(epochs=1, warmup=5.0)
    assert all(0 < phase.lr_factor(step, 8) <= 1 for step in range(8))


def test_a_single_step_has_a_learning_rate() -> None:
    assert phase_of(epochs=1).lr_factor(0, 1) > 0


@pytest.mark.parametrize(("name", "near"), [("epoch", "epochs"), ("learning_rate", "lr")])
def test_an_unknown_option_comes_with_the_nearest_one_and_with_all(name: str, near: str) -> None:
    with pytest.raises(
        fl.ConfigError, match=rf"^there is no option '{name}' \(nearest: '{near}'\)"
    ) as caught:
        Recipe(**{name: 1})
    assert str(caught.value).endswith(f". The options are {', '.join(Recipe.model_fields)}.")


def test_settings_out_of_their_range_are_refused_as_options_are() -> None:
    with pytest.raises(fl.ConfigError, match=r"^epochs=0: input should be greater than or equal"):
        fl.Recipe(epochs=0)
    with pytest.raises(fl.ConfigError, match=r"^batch_size=0: input should be greater than or eq"):
        DataSettings(batch_size=0)
