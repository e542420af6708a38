"""Estimates against what a real step keeps, and what they leave alone."""

from __future__ import annotations

import gc
import random
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import MobileNetV2, ResNet
from torchvision.models.resnet import BasicBlock

import frostline as fl
from frostline.backward import saved_bytes
from frostline.errors import ConfigError
from frostline.estimates import calibrating, pricing
from frostline.estimates.ledger import ledger
from frostline.estimates.measuring import StepCost, Stopwatch, measure_step
from frostline.estimates.nested import falling
from frostline.estimates.results import busy_note
from frostline.estimates.steps import Setup, state_bytes
from frostline.estimates.tracing import Call, OpRecorder, Shaped
from small_world import call, write_net, write_pictures

SELECTIONS = ["all", "stage:-1", "stage:0", "kind:norm | kind:bias", "stage:3..-1"]


class Reader(nn.Module):
    """Text through an LSTM, called by name, with dropout and a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 16)
        self.read = nn.LSTM(16, 16, num_layers=2, dropout=0.2, batch_first=True)
        self.drop = nn.Dropout(0.3)
        self.out = nn.Linear(16, 40, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, *, ids: Tensor) -> Tensor:
        return self.out(self.drop(self.read(self.embed(ids))[0]))[:, -1]


class Asking(nn.Module):
    """Its way depends on the numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x if x.sum() > 0 else -x)


def resnet() -> nn.Module:
    """The six stages of ResNet-18 with one block in each of its layers."""
    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5)


# MobileNetV2's, one for each of its kinds.
BLOCKS = [[1, 16, 1, 1], [6, 24, 1, 2], [6, 24, 1, 1], [6, 32, 1, 2]]


def mobilenet() -> nn.Module:
    return MobileNetV2(num_classes=5, inverted_residual_setting=BLOCKS)


def estimated(model: nn.Module, example: Any, **options: Any) -> fl.Estimate:
    """Without real steps, which count for time alone."""
    return fl.estimate(model, example, **{"calibration_seconds": 0, **options})


def calibrated(model: nn.Module, example: Any, **options: Any) -> fl.Estimate:
    return estimated(model, example, calibration_seconds=0.02, **options)


@pytest.mark.parametrize(
    ("make", "selector"),
    [
        *((mobilenet, text) for text in SELECTIONS),
        (resnet, "all"),
        (resnet, "kind:norm | kind:bias"),
    ],
)
def test_bytes_are_those_of_a_real_step(make: Callable[[], nn.Module], selector: str) -> None:
    model = make()
    fl.train_only(model, selector)
    images = torch.randn(6, 3, 64, 64)
    memory = estimated(model, images[:2], batch_size=6).step.memory
    real = measure_step(model, images, torch.zeros(6, dtype=torch.long), repeats=1)
    assert memory.saved == real.saved_bytes
    assert memory.gradients == real.gradient_bytes
    assert memory.state == real.state_bytes


@pytest.mark.parametrize("selector", ["all", "stage:0"])
def test_bytes_with_lean_are_those_of_a_leaned_step(selector: str) -> None:
    model = resnet()
    fl.train_only(model, selector)
    images = torch.randn(6, 3, 64, 64)
    found = estimated(model, images, batch_size=6, lean=True)
    assert found.lean
    model.train()
    besides = [*model.parameters(), *model.buffers(), images]
    targets = torch.zeros(6, dtype=torch.long)
    plain, lean = (
        saved_bytes(lambda: F.cross_entropy(model(images), targets), besides=besides),
        0,
    )
    with fl.lean(model):
        lean = saved_bytes(lambda: F.cross_entropy(model(images), targets), besides=besides)
    assert found.step.memory.saved == lean <= plain


@pytest.mark.parametrize("rows", [3, 21, 100])
def test_an_lstm_with_a_tied_weight_and_a_workspace(rows: int) -> None:
    model = Reader()
    ids = torch.randint(0, 40, (rows, 7))
    memory = estimated(model, {"ids": ids[:2]}, batch_size=rows).step.memory
    real = measure_step(model, {"ids": ids}, torch.zeros(rows, dtype=torch.long), repeats=1)
    assert memory.saved == pytest.approx(real.saved_bytes, rel=0.01)
    assert memory.gradients == real.gradient_bytes
    assert memory.state == real.state_bytes


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_the_state_is_what_the_optimizer_keeps(optimizer: str) -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    inputs = torch.randn(4, 8)
    real = measure_step(
        model, inputs, torch.zeros(4, dtype=torch.long), optimizer=optimizer, repeats=1
    )
    assert estimated(model, inputs, optimizer=optimizer).step.memory.state == real.state_bytes
    assert state_bytes(optimizer, [p.nbytes for p in model.parameters()]) == real.state_bytes


def test_the_model_is_not_touched() -> None:
    model = resnet()
    fl.freeze(model, "stage:0..2")
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    before = fl.fingerprint(model)
    modes = [m.training for m in model.modules()]
    switches = [p.requires_grad for p in model.parameters()]
    images = torch.randn(2, 3, 64, 64)
    random = torch.get_rng_state()
    calibrated(model, images, train="stage:-1", stages=True, budget=10**9, check=True)
    assert fl.fingerprint(model) == before
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == switches
    assert torch.equal(model.fc.weight.grad, torch.ones_like(model.fc.weight))
    assert torch.equal(torch.get_rng_state(), random)


def test_a_traced_step_leaves_nothing_behind() -> None:
    Setup(nn.Linear(4, 2), torch.randn(2, 4)).trace()
    gc.collect()
    assert not [one for one in gc.get_objects() if type(one) is OpRecorder]


class Sleeper(nn.Module):
    """Takes time that no operation tells."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        if type(x) is Tensor:
            time.sleep(0.03)
        return self.layer(x)


@pytest.mark.parametrize("stages", [False, True])
def test_real_steps_tell_what_operations_alone_do_not(stages: bool) -> None:
    found = calibrated(Sleeper(), torch.randn(2, 4), batch_size=6, stages=stages)
    assert found.step.measured_on == 6
    assert found.step.forward_seconds >= 0.03 > found.step.backward_seconds
    assert "scaled by real steps of 6" in str(found)


@pytest.mark.parametrize(("fixed", "expected"), [(1.0, 2.0), (0.0, 1.0), (-0.1, 1.2)])
def test_steps_of_a_few_samples_tell_of_many(
    monkeypatch: pytest.MonkeyPatch, fixed: float, expected: float
) -> None:
    """What is slower by the sample for a few is not multiplied; what is quicker, in proportion."""

    def seconds(rows: int) -> float:
        return fixed + rows / 16

    def replay(call: Call) -> float:
        if "convolution" not in str(call.func):
            return 0.0
        shapes = [leaf.shape for leaf in call.leaves if isinstance(leaf, Shaped)]
        return seconds(16) if any(16 in shape for shape in shapes) else seconds(2)

    def measure(_self: Setup, rows: int, **_options: Any) -> StepCost:
        real = seconds(rows) if fixed >= 0 else 0.15
        return StepCost(real, real, 0.0, 0, 0, 0)

    monkeypatch.setattr(pricing, "_replay", replay)
    monkeypatch.setattr(Setup, "measure", measure)
    model = nn.Sequential(nn.Conv2d(8, 8, 5, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.randn(2, 8, 36, 36)
    step = fl.estimate(model, images, batch_size=16, calibration_seconds=0.5).step
    assert step.measured_on == 2
    found = (step.forward_seconds, step.backward_seconds)
    assert found == pytest.approx((expected, expected), rel=0.05)


def test_without_time_or_memory_no_real_step_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = estimated(Sleeper(), torch.randn(2, 4))
    assert (quick.step.measured_on, quick.step.forward_seconds < 0.03) == (0, True)
    monkeypatch.setattr(calibrating, "_free_bytes", lambda _: 1000)
    small = calibrated(Sleeper(), torch.randn(2, 4))
    assert (small.step.measured_on, small.step.forward_seconds < 0.03) == (0, True)
    assert "scaled by" not in str(small)


def test_a_real_step_takes_any_example_and_precision() -> None:
    ids = torch.randint(0, 40, (3, 7))
    has_half = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # else torch's LSTM refuses bfloat16
    precision = "bf16" if has_half else "fp32"
    found = calibrated(Reader(), {"ids": ids}, batch_size=5, precision=precision, check=True)
    assert found.check is not None
    assert found.check.gradient_bytes == found.step.memory.gradients
    assert found.check.saved_bytes == pytest.approx(found.step.memory.saved, rel=0.05)


class Failing(Sleeper):
    """Runs without numbers, and to be looked at; not to be trained."""

    def forward(self, x: Tensor) -> Tensor:
        if type(x) is Tensor and self.training:
            raise RuntimeError("no such kernel")
        return self.layer(x)


def test_a_real_step_that_does_not_run_is_said() -> None:
    assert calibrated(Failing(), torch.randn(2, 4)).step.measured_on == 0
    with pytest.raises(ConfigError, match=r"a real step of 32 samples does not run .*such kernel"):
        estimated(Failing(), torch.randn(2, 4), check=True)


def test_with_nothing_to_train_a_step_is_a_forward() -> None:
    model = Sleeper()
    fl.freeze(model, "all", leaving="nothing")
    found = calibrated(model, torch.randn(2, 4), check=True)
    assert found.check is not None
    assert (found.check.gradient_bytes, found.step.memory.gradients) == (0, 0)


def test_more_frozen_costs_no_more() -> None:
    model = resnet()
    stages = estimated(model, torch.randn(2, 3, 64, 64), stages=True).stages
    assert [stage.frozen for stage in stages][:2] == ["none", "stage:0"]
    for less, more in pairwise(stages):
        assert more.step.trainable < less.step.trainable
        assert more.step.memory.total <= less.step.memory.total
        assert more.step.memory.saved <= less.step.memory.saved


def noisy(call: Call) -> float:
    """Seconds in no order: as if the machine had been busy now and then."""
    return random.Random(str(call.leaves)).uniform(1e-3, 1.0)


def test_less_that_trains_is_never_slower_whatever_was_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def measure(self: Setup, _rows: int, **_options: Any) -> StepCost:
        busy = 50.0 if not next(self.model.parameters()).requires_grad else 1.0
        return StepCost(busy, busy, busy, 0, 0, 0)

    monkeypatch.setattr(pricing, "_replay", noisy)
    monkeypatch.setattr(Setup, "measure", measure)
    found = calibrated(resnet(), torch.randn(2, 3, 64, 64), train="stage:-1", stages=True)
    assert len({stage.step.measured_on for stage in found.stages}) == 1
    for less, more in pairwise(found.stages):
        assert more.step.seconds <= less.step.seconds * (1 + 1e-9)
        assert more.features_step_seconds <= less.features_step_seconds * (1 + 1e-9)
        assert more.features_step_seconds <= more.step.seconds * (1 + 1e-9)
    assert found.step == found.stages[-1].step  # one selection, one figure


def test_seconds_that_rise_are_pooled_to_their_mean() -> None:
    assert falling([4.0, 1.0, 3.0, 5.0, 2.0]) == [4.0, 3.0, 3.0, 3.0, 2.0]
    assert falling([1.0, 3.0]) == [2.0, 2.0]
    assert falling([]) == []


def test_a_deep_model_has_six_rows_with_both_ends_and_a_budget_that_sees_all() -> None:
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(14)))
    needed = []
    for first in (6, 7):
        fl.train_only(model, f"stage:{first}..-1")
        setup = Setup(model, torch.randn(2, 8))
        needed.append(setup.memory(setup.trace()).total)
    found = estimated(model, torch.randn(2, 8), stages=True, budget=needed[1])
    names = [stage.frozen for stage in found.stages]
    assert (len(names), names[0], names[-1]) == (6, "none", "stage:0..12")
    assert "and 8 stages between" in str(found)
    assert found.budget is not None
    assert needed[1] < needed[0]
    assert (found.budget.thaw, found.budget.thaw_total) == ("stage:7..-1", needed[1])


def test_progress_counts_up_to_all_parts() -> None:
    told: list[tuple[int, int]] = []
    options = {"stages": True, "progress": lambda *parts: told.append(parts)}
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    calibrated(model, torch.randn(2, 4), train="2", **options)
    assert told == [(part, 6) for part in range(1, 7)]
    told.clear()
    ledger(nn.Linear(4, 2), torch.randn(2, 4), calibration_seconds=0, progress=options["progress"])
    assert told == [(part, 10) for part in range(1, 11)]


def test_a_thread_that_waits_has_no_core() -> None:
    watch = Stopwatch()
    time.sleep(0.05)
    watch.stop()
    assert watch.seconds >= 0.05
    assert watch.core_share < 0.5


def test_a_busy_machine_is_said_in_tables_json_and_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert busy_note(0.9) == ""
    assert "25% were free, so seconds are about 4 times too long" in busy_note(0.25)
    monkeypatch.setattr(time, "thread_time", lambda: 0.0)
    words, model = "This machine was too busy to time on", write_net(tmp_path)
    answer = call("estimate", model)
    assert answer.out.startswith(words)
    assert max(map(len, answer.out.splitlines())) <= 80
    assert call("estimate", model, "--json").json["core_share"] == 0.0
    page = call("inspect", model, "--html", tmp_path / "page.html")
    assert words in page.err
    assert words in (tmp_path / "page.html").read_text()


def test_in_a_ledger_who_wants_less_is_never_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pricing, "_replay", noisy)
    found = ledger(mobilenet(), torch.randn(2, 3, 64, 64), batch_size=2, calibration_seconds=0.3)
    for turn in found.turns:
        assert turn["forward"][1] <= turn["forward"][0]
        took = {case: turn["backward"].get(case, 0.0) for case in ("1e", "1", "3", "5", "7")}
        assert took["1e"] <= took["1"] <= min(took["3"], took["5"])
        assert max(took["3"], took["5"]) <= took["7"]


def test_each_phase_of_a_plan_has_its_own_cost() -> None:
    model = resnet()
    plan = fl.Plan(
        [fl.Phase(name="head", train="fc", epochs=3), fl.Phase(train="layer4 | fc", epochs=2)]
    )
    found = estimated(model, torch.randn(2, 3, 64, 64), plan=plan, samples=(1000, 100))
    head, upper = found.phases
    assert (head.name, head.epochs, upper.epochs) == ("head", 3, 2)
    assert head.step.trainable < upper.step.trainable
    assert head.disk_bytes == 512 * 4 * 1100
    assert head.features_seconds < head.plain_seconds
    assert head.plain_seconds == pytest.approx(
        3 * (1000 * head.step.seconds + 100 * head.step.forward_seconds) / 32
    )


@pytest.mark.parametrize(
    ("length", "epochs", "steps"),
    [
        ({"steps": 2}, 1, 2),
        ({"steps": 12}, 2, 12),
        ({"steps": 2, "epochs": 3}, 1, 2),
        ({"steps": 99, "epochs": 3}, 3, 30),
    ],
)
def test_a_phase_may_be_so_many_steps_long(length: dict[str, int], epochs: int, steps: int) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    plan = fl.Plan([fl.Phase(train="2", **length)])
    found = estimated(model, torch.randn(2, 4), plan=plan, samples=(320, 32))
    (course,) = found.phases
    assert course.epochs == epochs
    assert course.plain_seconds == pytest.approx(
        steps * course.step.seconds + epochs * course.step.forward_seconds
    )


def test_a_budget_is_kept_and_used_up() -> None:
    model = mobilenet()
    images = torch.randn(2, 3, 64, 64)
    budget = estimated(model, images, budget=300 * 10**6, batch_size=8).budget
    assert budget is not None
    fits = estimated(model, images, batch_size=budget.batch_size).step.memory.total
    beyond = estimated(model, images, batch_size=budget.batch_size + 1).step.memory.total
    assert fits == budget.total <= 300 * 10**6 < beyond
    thawed = estimated(model, images, train=budget.thaw, batch_size=8).step.memory.total
    assert thawed == budget.thaw_total <= 300 * 10**6


def test_what_fits_nowhere_is_said() -> None:
    found = estimated(nn.Linear(8, 2), torch.randn(2, 8), budget=1000)
    assert found.budget is not None
    assert (found.budget.batch_size, found.budget.thaw) == (0, None)
    assert "not even one sample fits" in str(found)


REAL_STEP = """
import torch, sys
from torchvision.models import MobileNetV2
def resident(field):
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(field)) * 1024
torch.set_num_threads(1)
warm = torch.nn.Conv2d(3, 4, 3); warm(torch.randn(1, 3, 8, 8)).sum().backward()
before = resident("VmRSS")
model = MobileNetV2(num_classes=5, inverted_residual_setting=eval(sys.argv[2]))
rows = int(sys.argv[1])
parameters = list(model.parameters())
optimizer = torch.optim.AdamW(parameters, fused=True)
for _ in range(2):  # the optimizer's state is there from the first step's end
    loss = torch.nn.functional.cross_entropy(
        model(torch.randn(rows, 3, 128, 128)), torch.zeros(rows, dtype=torch.long)
    )
    loss.backward(); optimizer.step(); optimizer.zero_grad()
print(resident("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_a_budget_holds_when_the_step_is_run() -> None:
    example = torch.randn(2, 3, 128, 128)
    budget = estimated(mobilenet(), example, budget=400 * 10**6).budget
    assert budget is not None
    found = subprocess.run(
        [sys.executable, "-c", REAL_STEP, str(budget.batch_size), repr(BLOCKS)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(found.stdout) <= 400 * 10**6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optimizer": "lion"}, "no optimizer 'lion'"),
        ({"precision": "int4"}, "no precision 'int4'"),
        ({"batch_size": 0}, "a batch of 0 samples"),
        ({"freeze": "0", "train": "2"}, "freeze and train together"),
    ],
)
def test_what_cannot_be_asked_is_said(options: dict[str, Any], words: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(fl.ConfigError, match=words):
        estimated(model, torch.randn(2, 4), **options)


def test_outputs_of_no_classification_cost_what_they_do() -> None:
    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(8, 4), nn.Linear(8, 4)

        def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
            return {"a": self.one(a), "b": self.other(b)}

    cost = fl.estimate(
        Towers(), (torch.randn(4, 8), torch.randn(4, 8)), batch_size=4, calibration_seconds=0
    )
    assert cost.step.memory.gradients == 2 * (8 * 4 + 4) * 4  # both towers get some


def test_a_list_with_an_entry_for_each_sample_is_refused() -> None:
    with pytest.raises(fl.ConfigError, match="takes a list with an entry for each sample"):
        fl.estimate(nn.Linear(8, 2), ([torch.randn(8)], [{"labels": torch.tensor([1])}]))


def test_a_forward_that_asks_for_numbers_is_refused_with_the_reason() -> None:
    with pytest.raises(fl.ConfigError, match=r"Asking cannot be estimated.*asks for values"):
        estimated(Asking(), torch.randn(2, 4))


def test_a_refused_estimate_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Asking())
    for options in ({"train": "0"}, {"stages": True}):
        with pytest.raises(fl.ConfigError, match="asks for values"):
            estimated(model, torch.randn(2, 4), **options)
        gc.collect()  # what the error's traceback kept goes after the estimate
        assert all(p.requires_grad for p in model.parameters())
        assert all(module.train().training for module in model.modules())


def test_an_example_without_samples_is_refused() -> None:
    with pytest.raises(fl.ConfigError, match="no tensor with an axis over samples"):
        estimated(nn.Linear(4, 2), {"x": 3})


def test_the_command_line_tells_the_same_in_tables_and_json(tmp_path: Path) -> None:
    model, photos = write_net(tmp_path), write_pictures(tmp_path / "photos")
    answer = call("estimate", model, "--data", photos, "--budget", "1GB", "--calibrate")
    assert answer.status == 0, answer.err
    assert max(map(len, answer.out.splitlines())) <= 80
    for words in ("in all, at the worst moment", "What freezing saves", "Frost line:", "ratio"):
        assert words in answer.out
    assert "Counted 16 and 8 samples; looked at 8 of them." in answer.out
    found = call("estimate", model, "--samples", 50, "--train", "head", "--lean", "--json").json
    assert found["lean"] is True
    assert found["samples"] == {"train": 50, "validation": 0}
    assert found["phases"][0]["step"]["trainable"] == 8 * 10 + 10


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--budget", "lots"], 2, "is no size such as"),
        (["--budget=-1GB"], 2, "'-1GB' is no size such as"),
        (["--freeze", "features", "--train", "head"], 2, "give one of --freeze and --train"),
        (["--train", "heat"], 1, "matches no parameter"),
        (["--batch-size", "0"], 2, "--batch-size"),
    ],
)
def test_mistakes_end_in_one_message(
    tmp_path: Path, arguments: list[str], status: int, words: str
) -> None:
    answer = call("estimate", write_net(tmp_path), *arguments)
    assert answer.status == status
    assert words in " ".join(answer.err.split())
    assert "Traceback" not in answer.err


def test_a_forward_that_writes_into_frozen_weights_is_refused_before_it_does() -> None:
    class Halving(nn.Linear):
        is_half = False

        def forward(self, x: Tensor) -> Tensor:
            if not self.training and not self.is_half:
                with torch.no_grad():
                    self.weight.div_(2)
                self.is_half = True
            return super().forward(x)

    net = nn.Sequential(Halving(8, 8), nn.Linear(8, 2))
    frozen = fl.freeze(net, "0")
    with pytest.raises(fl.ConfigError, match=r"writes into its weights: 0\.weight\. Where"):
        fl.estimate(net, torch.randn(4, 8), calibration_seconds=0)
    frozen.verify()
    net.eval()(torch.randn(4, 8))  # as advised
    fl.freeze(net, "0")
    assert fl.estimate(net, torch.randn(4, 8), calibration_seconds=0).step.trainable == 18
