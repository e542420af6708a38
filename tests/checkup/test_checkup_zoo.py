"""The doctor names what is wrong with each of many broken set-ups, and its fixes work."""

from __future__ import annotations

import pytest
import torch
from checkup_zoo import ZOO, Case, told

import frostline as fl
from frostline.checkup import CODES, Finding

# What the code of a fix may name besides the model and what was given.
NAMES = {"fl": fl, "torch": torch}
FIXED = [name for name, make in ZOO.items() if make().fixed]
LEVELS = {
    "error": {
        *("no-match", "nothing-trainable", "useless-switch", "cannot-freeze", "lazy-module"),
        *("forward-failed", "backward-failed", "not-finite", "other-model", "not-in-optimizer"),
        *("in-two-groups", "other-scheduler", "scheduler-groups", "reentrant-checkpoint"),
        *("moving-statistics", "target-range", "plan-error", "stale-gradient"),
        *("outgrown-state", "held-though-trainable", "replaced-norm"),
    },
    "note": {"log-softmax", "frozen-above-trainable", "not-tried", "everything-trainable"},
}


def found(case: Case, checkup: fl.Checkup) -> Finding:
    """The finding that the case is about."""
    findings = [f for f in checkup if f.code == case.code and case.name in f"{f.seen} {f.names}"]
    assert findings, f"{case.code} with {case.name} is not in:\n{checkup}"
    return findings[0]


@pytest.mark.parametrize("name", ZOO)
def test_the_doctor_names_what_is_wrong(name: str) -> None:
    found(ZOO[name](), told(name))


@pytest.mark.parametrize("name", ZOO)
def test_no_check_crashes_on_it(name: str) -> None:
    assert "check-failed" not in told(name).codes


@pytest.mark.parametrize("name", ZOO)
def test_a_finding_has_the_level_of_its_harm(name: str) -> None:
    finding = found(ZOO[name](), told(name))
    for level, codes in LEVELS.items():
        if finding.code in codes:
            assert finding.level == level


@pytest.mark.parametrize("name", FIXED)
def test_the_fix_makes_the_finding_go_away(name: str) -> None:
    case = ZOO[name]()
    given = dict(case.arguments)
    exec(found(case, fl.doctor(**given)).fix, NAMES, given)
    # What was asked for is what the fix has done.
    asked = {key: value for key, value in given.items() if key in case.arguments}
    left = {key: value for key, value in asked.items() if key not in ("freeze", "train")}
    assert case.code not in fl.doctor(**left).codes


def test_the_zoo_is_of_a_size() -> None:
    assert len(ZOO) >= 30
    assert len(FIXED) >= 10


def test_every_code_but_those_that_need_more_is_in_the_zoo() -> None:
    elsewhere = {"check-failed", "ddp-changed", "ddp-unused", "ddp-searching", "ddp-plan"}
    elsewhere |= {"fsdp-flat", "fsdp-mixed", "fsdp-left-out", "fsdp-rows"}
    elsewhere |= {"merged-adapter", "original-trainable", "idle-adapter", "adapter-dropout"}
    assert set(CODES) == {make().code for make in ZOO.values()} | elsewhere


# A phrase of each finding's reason and of its fix.
SAID = {
    "held-though-trainable": ("set requires_grad behind the freeze", "fl.thaw"),
    "no-match": ("a pattern that matches nothing freezes or trains nothing", "fl."),
    "nothing-trainable": (
        "an optimizer would have nothing to move",
        "fl.train_only(model, 'stage:-1')",
    ),
    "everything-trainable": (
        "pretrained layers take the head's first steps",
        "fl.freeze(model, 'stage:",
    ),
    "useless-switch": ("a module has no such switch", "fl.freeze(model, 'backbone'"),
    "cannot-freeze": ("would", ""),
    "replaced-norm": ("has no hold", "convert first, then freeze"),
    "random-in-eval": ("the model is evaluated", ""),
    "tied-split": ("under one name is so under all of its names", "if each place is to have its"),
    "lazy-module": ("neither be frozen nor given to an optimizer", "model(example)"),
    "forward-failed": ("training would end at its first batch", "Fix the forward, or give the"),
    "backward-failed": ("training would end at its first batch", "Fix the forward, or give the"),
    "not-finite": ("all that is trained", ""),
    "not-tried": ("need a pass on one device", "before it is sharded"),
    "other-model": ("this model would never move", "fl.param_groups(model, lr="),
    "not-in-optimizer": ("they get gradients and never move", "fl.sync(optimizer, model)"),
    "frozen-in-optimizer": ("momentum and weight decay move it", "fl.sync(optimizer, model)"),
    "outgrown-state": ("the next step fails", "fl.sync(optimizer, model"),
    "in-two-groups": ("each step moves them twice", "fl.param_groups(model, lr="),
    "stale-gradient": ("the next step moves them, frozen or not", "zero_grad(set_to_none=True)"),
    "other-scheduler": ("would never change", "StepLR(optimizer, ...)"),
    "scheduler-groups": ("raise on a group that was added later", "schedulers=[scheduler]"),
    "learning-rate": ("", "fl.param_groups(model, lr="),
    "no-gradient": ("no path leads from the loss to them", ""),
    "zero-gradient": ("multiplied by zero: dead ReLUs", "before the first layer that is dead"),
    "reentrant-checkpoint": ("no gradient to anything inside", "use_reentrant=False"),
    "frozen-above-trainable": ("the backward pass must cross them", "train the upper layers"),
    "moving-statistics": ("running statistics move with each batch", "holds their mode too"),
    "live-dropout": ("evaluation", "holds their mode too"),
    "dropout-between": ("the frozen layers behind are computed in each step", ".p = 0.0"),
    "batch-statistics": ("depends on the others in its batch", "track_running_stats=True"),
    "changes-in-eval": ("another one after each evaluation", "`if self.training:`"),
    "softmax-output": ("cross-entropy takes the softmax itself", ""),
    "log-softmax": ("changes nothing but costs time", "torch.nn.Identity()"),
    "stacked-linear": ("make one linear map", "# or leave one out"),
    "logits-width": ("", "replace_classifier(model, classes="),
    "target-range": ("cross-entropy raises on the first such", "targets - 1"),
    "same-data": ("metrics", ""),
    "preprocessing": ("the accuracy is lower", "weights.transforms()"),
    "input-range": ("divided by the deviation", "of pictures in 0..1"),
    "plan-error": ("the phase could not begin", "plan.table(model)"),
    "plan-warning": ("hardly what is meant", "plan.table(model)"),
    "recompiles": ("each set is compiled anew", ""),
}


@pytest.mark.parametrize("name", ZOO)
def test_a_finding_says_why_it_matters_and_what_fixes_it(name: str) -> None:
    finding = found(ZOO[name](), told(name))
    why, fix = SAID[finding.code]
    assert why in finding.why
    assert fix in finding.fix
    assert all(text.strip() == text != "" for text in (finding.seen, finding.why, finding.fix))
