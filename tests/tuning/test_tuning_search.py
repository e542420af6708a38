"""Which form wins: only one that was measured faster, and is as exact as was asked."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from tuning_prefixes import Known, prefix_of, tensors_of

from frostline.errors import ConfigError
from frostline.tuning import (
    PLAIN,
    Form,
    FormTrial,
    Realised,
    Tuned,
    machine,
    realising,
    search,
    tune_and_realise,
)
from frostline.tuning.search import candidates

CPU = torch.device("cpu")
REDUCED = Form("bfloat16", channels_last=True, folded=True)
FLOAT32 = Form(channels_last=True, folded=True)
FORMS = (REDUCED, FLOAT32, Form("bfloat16"), Form(folded=True))


def tune(prefix: GraphModule, samples: Sequence[Tensor], **options: Any) -> Tuned:
    """The decision alone."""
    return tune_and_realise(prefix, samples, **options)[0]


class Clock:
    """Gives each form its seconds per sample, however long it really takes."""

    def __init__(self, seconds: dict[Form, float]) -> None:
        self.seconds = seconds
        self.runs: list[tuple[Form, int]] = []

    def seconds_of(self, run: Realised, inputs: Sequence[Tensor]) -> float:
        assert isinstance(run, realising._Function)
        self.runs.append((run.form, len(inputs[0])))
        return self.seconds.get(run.form, 0.5) * len(inputs[0])

    def count(self, form: Form) -> int:
        return sum(form == run for run, _ in self.runs)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Plain float32 takes a second per sample; the four forms to try, half of one."""
    clock = Clock({PLAIN: 1.0})
    monkeypatch.setattr(search, "seconds_of", clock.seconds_of)
    monkeypatch.setattr(search, "candidates", lambda *_, **__: FORMS)
    return clock


def trial_of(tuned: Tuned, form: Form) -> FormTrial:
    (trial,) = (trial for trial in tuned.trials if trial.form == form)
    return trial


def test_exact_is_plain_float32_and_nothing_is_timed(small: Known, clock: Clock) -> None:
    _, prefix, inputs = small
    assert tune(prefix, inputs, precision="exact", batch_size=7) == Tuned(PLAIN, 0.0, 7)
    assert clock.runs == []


def test_the_first_form_within_tolerance_wins(small: Known, clock: Clock) -> None:
    _, prefix, inputs = small
    clock.seconds |= {REDUCED: 0.55, FLOAT32: 0.1}
    tuned = tune(prefix, inputs)
    assert tuned.form == REDUCED
    assert tuned.speedup == pytest.approx(1 / 0.55)
    assert 1e-4 < tuned.error < 0.02
    assert clock.count(FLOAT32) == 0


@pytest.mark.parametrize("seed", range(3))
def test_a_busy_machine_chooses_the_same_form(
    small: Known, clock: Clock, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Each run takes up to three times as long as it would alone."""
    _, prefix, inputs = small
    draw = random.Random(seed)
    slow = Form("bfloat16", channels_last=True, folded=True)
    monkeypatch.setattr(search, "candidates", lambda *_, **__: (slow, FLOAT32))

    def seconds_of(run: Realised, given: Sequence[Tensor]) -> float:
        return clock.seconds_of(run, given) * draw.uniform(1, 3)

    monkeypatch.setattr(search, "seconds_of", seconds_of)
    clock.seconds |= {slow: 0.6, FLOAT32: 0.5}
    assert tune(prefix, inputs).form == slow
    clock.seconds |= {slow: 8.0}
    assert tune(prefix, inputs).form == FLOAT32


def test_forms_that_the_machine_is_slow_at_are_put_aside(small: Known, clock: Clock) -> None:
    _, prefix, inputs = small
    clock.seconds |= dict.fromkeys(FORMS, 4.0)
    tuned = tune(prefix, inputs)
    assert (tuned.form, tuned.error) == (PLAIN, 0.0)
    assert {trial.refused for trial in tuned.trials} == {"4.0 times as slow as plain float32"}
    assert [trial.form for trial in tuned.trials] == [REDUCED, FLOAT32]  # one of each dtype


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5])
def test_a_tolerance_below_bfloat16_is_kept(small: Known, clock: Clock, tolerance: float) -> None:
    _, prefix, inputs = small
    clock.seconds |= {REDUCED: 0.01, FLOAT32: 0.5}
    tuned = tune(prefix, inputs, precision=tolerance)
    assert tuned.form == FLOAT32
    assert 0 < tuned.error < tolerance
    refused = trial_of(tuned, REDUCED).refused
    assert refused.startswith("relative error 0.")
    assert refused.endswith(f"where {tolerance * 100:.2g} % is allowed")


@pytest.mark.usefixtures("clock")
def test_a_dtype_that_is_far_from_exact_is_tried_once(
    small: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, prefix, inputs = small
    every = (REDUCED, Form("bfloat16", folded=True), Form("bfloat16"), FLOAT32)
    monkeypatch.setattr(search, "candidates", lambda *_, **__: every)
    tuned = tune(prefix, inputs, precision=1e-5)
    assert [trial.form for trial in tuned.trials] == [REDUCED, FLOAT32]
    near = (trial_of(tuned, REDUCED).error or 0) * 0.9  # another layout may be within
    tried = [trial.form for trial in tune(prefix, inputs, precision=near).trials]
    assert tried[:2] == [*every[:2]]


def test_a_tolerance_below_any_rounding_leaves_plain_float32(small: Known, clock: Clock) -> None:
    _, prefix, inputs = small
    tuned = tune(prefix, inputs, precision=1e-9)
    assert (tuned.form, clock.runs) == (PLAIN, [])
    assert all(trial.refused.endswith("1.0e-09 is allowed") for trial in tuned.trials)


@pytest.mark.parametrize(
    ("tolerance", "left"),
    [
        (0.02, {"bfloat16", "float16", "float32"}),
        (5e-4, {"float16", "float32"}),
        (1e-5, {"float32"}),
    ],
)
def test_dtypes_that_round_more_than_is_allowed_are_not_even_tried(
    small: Known, monkeypatch: pytest.MonkeyPatch, tolerance: float, left: set[str]
) -> None:
    monkeypatch.setattr(search, "fast_dtypes", lambda _: ("bfloat16", "float16"))
    forms = candidates(small[1], CPU, tolerance=tolerance)
    assert {form.dtype for form in forms} == left


def test_compiling_is_never_tried(small: Known) -> None:
    forms = candidates(small[1], CPU, tolerance=0.02)
    assert not any(form.compiled for form in forms)


def test_a_network_without_convolutions_or_norms_is_tried_in_other_dtypes_only(
    words: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "fast_dtypes", lambda _: ("bfloat16",))
    forms = candidates(words[1], CPU, tolerance=0.02)
    assert forms == (Form("bfloat16"),)


@pytest.mark.usefixtures("clock")
def test_a_form_that_fails_is_refused_with_the_reason(
    small: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no kernel for this\nand a long traceback")

    monkeypatch.setattr(realising, "cast", broken)
    _, prefix, inputs = small
    tuned = tune(prefix, inputs)
    assert tuned.form == FLOAT32
    assert trial_of(tuned, REDUCED).refused == "failed with RuntimeError: no kernel for this"
    assert trial_of(tuned, REDUCED).error is None


class Overflowing(nn.Module):
    """In float16 beyond its range, in float32 within it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x * 300) * 300
        return y


@pytest.mark.usefixtures("clock")
def test_a_form_that_overflows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "candidates", lambda *_, **__: (Form("float16"),))
    x = torch.rand(8, 4) + 1
    tuned = tune(prefix_of(Overflowing(), x), [x])
    assert tuned.form == PLAIN
    assert tuned.trials[0].refused == "NaN or infinity where plain float32 has none"


def test_samples_that_are_not_timed_are_compared_too(clock: Clock) -> None:
    """Small numbers first, which bfloat16 keeps; then such as it cannot tell apart."""

    class Parity(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.floor() + 1e-3

    x = torch.full((40, 4), 0.5)
    x[20:] = 1000.5
    clock.seconds |= {REDUCED: 0.01, FLOAT32: 0.5}
    tuned = tune(prefix_of(Parity(), x), [x])
    assert trial_of(tuned, REDUCED).refused.endswith("where 2 % is allowed")
    assert tuned.form == FLOAT32
    assert tune(prefix_of(Parity(), x[:20]), [x[:20]]).form == REDUCED


@pytest.mark.usefixtures("clock")
def test_few_planned_samples_are_not_worth_a_search(small: Known) -> None:
    _, prefix, inputs = small
    assert tune(prefix, inputs, planned_samples=10).trials == ()
    assert tune(prefix, inputs, planned_samples=10_000).trials != ()


def test_passes_have_the_size_that_was_asked_for(small: Known, clock: Clock) -> None:
    _, prefix, inputs = small
    assert tune(prefix, inputs, batch_size=3).batch_size == 3
    assert clock.runs


def test_a_real_search_ends_with_a_form_it_measured(network: Known) -> None:
    model, prefix, inputs = network
    before = tensors_of(model)
    tuned = tune(prefix, inputs)
    assert tuned.error <= 0.02
    if tuned.form != PLAIN:
        assert tuned.seconds_per_sample == trial_of(tuned, tuned.form).seconds_per_sample
        assert tuned.speedup > 0.5
    assert all(torch.equal(before[name], now) for name, now in tensors_of(model).items())


@pytest.mark.parametrize("precision", [0, 0.0, -1.0, float("nan"), float("inf"), True, "fast"])
def test_a_precision_that_is_none_is_refused(words: Known, precision: float) -> None:
    with pytest.raises(ConfigError, match="'exact', 'auto' or the relative error to allow"):
        tune(words[1], words[2], precision=precision)


def test_no_samples_and_no_batch_are_refused(words: Known) -> None:
    _, prefix, (ids, mask) = words
    with pytest.raises(ConfigError, match=r"was given none\. Give it 16 or so"):
        tune(prefix, [])
    with pytest.raises(ConfigError, match="was given none"):
        tune(prefix, [ids[:0], mask[:0]])
    with pytest.raises(ConfigError, match=r"hold 4, 3 samples\. Give each the same number"):
        tune(prefix, [ids, mask[:3]])
    with pytest.raises(ConfigError, match="batch size is at least 1; got 0"):
        tune(prefix, [ids, mask], batch_size=0)


def test_a_machine_is_named_by_what_decides() -> None:
    text = machine()
    assert f"torch {torch.__version__}" in text
    assert f"{torch.get_num_threads()} threads" in text
    assert machine("cpu") == text
