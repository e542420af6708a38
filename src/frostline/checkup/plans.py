"""Whether a plan fits the model, and how often it would have the model compiled anew."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from torch import nn

from frostline.checkup.findings import Finding, counted
from frostline.checkup.subject import Check, Subject
from frostline.errors import ConfigError, SelectorError
from frostline.wrappers import wrappers


def _plan(subject: Subject) -> Iterator[Finding]:
    if subject.plan is None:
        return
    try:
        warnings = subject.plan.check(subject.root)
    except (SelectorError, ConfigError) as error:
        yield Finding(
            "plan-error",
            "error",
            " ".join(str(error).split()),
            "the phase could not begin",
            "Change the phase; plan.table(model) shows what each trains.",
        )
        return
    for warning in warnings:
        yield Finding(
            "plan-warning",
            "warning",
            warning,
            "the plan would do what it says, which is hardly what is meant",
            "Change the phase, then print(plan.table(model)).",
        )


def _recompiles(subject: Subject) -> Iterator[Finding]:
    if subject.plan is None or not _is_compiled(subject.model):
        return
    phases = len({part.selection.names for part in subject.parts})
    if phases < 2:
        return
    limit = _limit()
    beyond = phases > limit
    yield Finding(
        "recompiles",
        "warning" if beyond else "note",
        f"the model is compiled, and the plan has {counted(phases, 'set')} of trainable "
        f"parameters; torch's limit is {limit}",
        "each set is compiled anew, and beyond the limit the model runs uncompiled without a word"
        if beyond
        else "each set is compiled anew, at the first step of its phase",
        f"torch._dynamo.config.recompile_limit = {2 * phases}"
        if beyond
        else "Nothing, if the phases are long; else compile the model of the last phase only.",
    )


def _is_compiled(model: nn.Module) -> bool:
    """By `torch.compile(model)` around it, or by `model.compile()` in it or in a part of it."""
    around = any(type(wrapper).__name__ == "OptimizedModule" for wrapper in wrappers(model))
    return around or any(module._compiled_call_impl is not None for module in model.modules())


def _limit() -> int:
    # The compiler takes a second to import, and is there if a compiled model is.
    dynamo: Any = sys.modules.get("torch._dynamo")
    return int(dynamo.config.recompile_limit) if dynamo is not None else 8


CHECKS = (
    Check(_plan, ("plan-error", "plan-warning")),
    Check(_recompiles, ("recompiles",)),
)
