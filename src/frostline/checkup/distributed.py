"""What data-parallel wrappers recorded when they were made, against what trains now."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from frostline.checkup.findings import Finding, counted, listed
from frostline.checkup.subject import Check, Subject, is_called
from frostline.wrappers import reduced, wrappers

_WRAP = "model = torch.nn.parallel.DistributedDataParallel(model.module)  # after each freeze"
_WRAP_INNER = "model = torch.nn.parallel.DistributedDataParallel(model)  # dropping the other"


def _ddp_changed(subject: Subject) -> Iterator[Finding]:
    if (wrapper := subject.wrapper) is None:
        return
    averaged = reduced(wrapper)
    wanted = {key for key, name in subject.names.items() if name in subject.trainable}
    thawed = tuple(subject.names[key] for key in subject.names if key in wanted - averaged)
    frozen = tuple(subject.names[key] for key in subject.names if key in averaged - wanted)
    if thawed:
        yield Finding(
            "ddp-changed",
            "error",
            f"{counted(len(thawed), 'parameter')} thawed after wrapping in "
            f"DistributedDataParallel: {listed(thawed)}",
            "their gradients are never averaged, so each process trains a model of its own",
            _fix(subject),
            thawed,
        )
    if frozen:
        yield Finding(
            "ddp-changed",
            "error",
            f"{counted(len(frozen), 'parameter')} frozen after wrapping in "
            f"DistributedDataParallel: {listed(frozen)}",
            "it waits for their gradients: the second step raises, or hangs",
            _fix(subject),
            frozen,
        )


def _fix(subject: Subject) -> str:
    given = any(isinstance(w, DistributedDataParallel) for w in wrappers(subject.model))
    return _WRAP if given else _WRAP_INNER


def _ddp_unused(subject: Subject) -> Iterator[Finding]:
    wrapper, facts = subject.wrapper, subject.facts
    if wrapper is None or facts is None or wrapper.static_graph:
        return
    names = tuple(name for name, kind in facts.gradients.items() if kind == "none")
    if names and not wrapper.find_unused_parameters:
        yield Finding(
            "ddp-unused",
            "error",
            f"{counted(len(names), 'trainable parameter')} without a gradient under "
            f"DistributedDataParallel: {listed(names)}",
            "it waits for their gradients: the second step raises, or hangs",
            f"fl.freeze(model.module, {list(names[:5])!r})  # then wrap; or find_unused_parameters"
            "=True",
            names,
        )
    if not names and facts.gradients and wrapper.find_unused_parameters:
        yield Finding(
            "ddp-searching",
            "note",
            "find_unused_parameters=True, and every trainable parameter gets a gradient",
            "the graph is searched in every step for nothing; frozen parameters do not need it",
            "model = torch.nn.parallel.DistributedDataParallel(model.module)",
        )


def _ddp_plan(subject: Subject) -> Iterator[Finding]:
    """Phases that train other parameters than those the wrapper was made for."""
    if subject.wrapper is None or subject.plan is None:
        return
    trained = {part.selection.names for part in subject.parts}
    if len(trained) > 1:
        yield Finding(
            "ddp-plan",
            "error",
            f"a plan with {counted(len(trained), 'set')} of trainable parameters, on a model "
            "already wrapped in DistributedDataParallel",
            "the wrapper keeps the parameters that it was made for: later phases raise, hang or "
            "train apart",
            "model = model.module  # wrap at the start of each phase, after its freeze",
        )


def _fsdp(subject: Subject) -> Iterator[Finding]:
    units = [
        (path, module)
        for path, module in subject.model.named_modules()
        if is_called(module, "FullyShardedDataParallel")
    ]
    if not units:
        return
    asked = subject.asked is not None or subject.plan is not None
    flat = tuple(path or "(model)" for path, unit in units if not _keeps_parameters(unit))
    if flat and asked:
        yield Finding(
            "fsdp-flat",
            "error",
            f"FullyShardedDataParallel with use_orig_params=False at {listed(flat)}",
            "all parameters of a unit are one flat tensor, which is frozen whole or not at all",
            "Freeze before wrapping, a unit for each frozen part; or wrap with "
            "use_orig_params=True; or use fully_shard.",
            flat,
        )
    mixed = tuple(path or "(model)" for path, unit in units if len(_switches(unit)) == 2)
    if mixed:
        yield Finding(
            "fsdp-mixed",
            "warning",
            f"frozen and trainable parameters in one unit of FullyShardedDataParallel at "
            f"{listed(mixed)}",
            "gradients are kept for the whole unit, frozen or not, so freezing saves no memory",
            "Wrap frozen parts as units of their own, by an auto_wrap_policy; or use fully_shard.",
            mixed,
        )


def _keeps_parameters(unit: nn.Module) -> bool:
    return bool(unit._use_orig_params)


def _switches(unit: Any) -> set[bool]:
    """The gradient switches of what the unit itself flattened."""
    if unit._handle is None or not _keeps_parameters(unit):
        return set()
    return {parameter.requires_grad for parameter in unit._handle.flat_param._params}


CHECKS = (
    Check(_ddp_changed, ("ddp-changed",)),
    Check(_ddp_unused, ("ddp-unused", "ddp-searching")),
    Check(_ddp_plan, ("ddp-plan",)),
    Check(_fsdp, ("fsdp-flat", "fsdp-mixed")),
)
