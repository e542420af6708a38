"""What data-parallel wrappers and sharding took in when they were made, against what trains now."""

from __future__ import annotations

from collections.abc import Iterator

from torch.nn.parallel import DistributedDataParallel

from frostline.checkup.findings import Finding, counted, enumerated, error, listed, note, warning
from frostline.checkup.subject import Subject, check
from frostline.freezing.rows import held_rows
from frostline.sharding import is_distributed, is_shard
from frostline.wrappers import reduced, wrappers

_DDP = "DistributedDataParallel"
_WAITS = "it waits for their gradients: the second step raises, or hangs"


@check("ddp-changed")
def ddp_changed(subject: Subject) -> Iterator[Finding]:
    if (wrapper := subject.wrapper) is None:
        return
    averaged = {subject.names.get(key) for key in reduced(wrapper)}
    fix = "model = torch.nn.parallel.DistributedDataParallel(model)  # dropping the other"
    if any(isinstance(given, DistributedDataParallel) for given in wrappers(subject.model)):
        fix = "model = torch.nn.parallel.DistributedDataParallel(model.module)  # after each freeze"
    if thawed := tuple(name for name in subject.trainable if name not in averaged):
        yield error(
            enumerated(thawed, "parameter", f"thawed after wrapping in {_DDP}"),
            "their gradients are never averaged, so each process trains a model of its own",
            fix,
            thawed,
        )
    if frozen := tuple(name for name in subject.frozen if name in averaged):
        yield error(
            enumerated(frozen, "parameter", f"frozen after wrapping in {_DDP}"),
            _WAITS,
            fix,
            frozen,
        )


@check("ddp-unused")
def ddp_unused(subject: Subject) -> Iterator[Finding]:
    names, wrapper = subject.facts.with_gradient("none"), subject.wrapper
    searches = wrapper is None or wrapper.static_graph or wrapper.find_unused_parameters
    if names and not searches:
        yield error(
            enumerated(names, "trainable parameter", f"without a gradient under {_DDP}"),
            _WAITS,
            f"fl.freeze(model.module, {list(names[:5])!r})  # then wrap; or find_unused_parameters"
            "=True",
            names,
        )


@check("ddp-searching")
def ddp_searching(subject: Subject) -> Iterator[Finding]:
    facts, wrapper = subject.facts, subject.wrapper
    searches = wrapper is not None and wrapper.find_unused_parameters and not wrapper.static_graph
    if searches and facts.gradients and not facts.with_gradient("none"):
        yield note(
            "find_unused_parameters=True, and every trainable parameter gets a gradient",
            "the graph is searched in every step for nothing; frozen parameters do not need it",
            "model = torch.nn.parallel.DistributedDataParallel(model.module)",
        )


@check("ddp-plan")
def ddp_plan(subject: Subject) -> Iterator[Finding]:
    """Phases that train other parameters than those the wrapper was made for."""
    if subject.wrapper is not None and subject.trained_sets > 1:
        yield error(
            f"a plan with {counted(subject.trained_sets, 'set')} of trainable parameters, on a "
            "model already wrapped in DistributedDataParallel",
            "the wrapper keeps the parameters that it was made for: later phases raise, hang or "
            "train apart",
            "model = model.module  # wrap at the start of each phase, after its freeze",
        )


@check("fsdp-flat")
def fsdp_flat(subject: Subject) -> Iterator[Finding]:
    flat = tuple(path for path, unit in subject.sharded_units.items() if not unit._use_orig_params)
    if flat and (subject.asked or subject.plan):
        yield error(
            f"FullyShardedDataParallel with use_orig_params=False at {listed(flat)}",
            "all parameters of a unit are one flat tensor, which is frozen whole or not at all",
            "Freeze before wrapping, a unit for each frozen part; or wrap with "
            "use_orig_params=True; or use fully_shard.",
            flat,
        )


@check("fsdp-mixed")
def fsdp_mixed(subject: Subject) -> Iterator[Finding]:
    mixed = tuple(
        path
        for path, unit in subject.sharded_units.items()
        if unit._use_orig_params
        and unit._handle is not None
        # The switches of what the unit itself flattened.
        and len({parameter.requires_grad for parameter in unit._handle.flat_param._params}) == 2
    )
    if mixed:
        yield warning(
            f"frozen and trainable parameters in one unit of FullyShardedDataParallel at "
            f"{listed(mixed)}",
            "gradients are kept for the whole unit, frozen or not, so freezing saves no memory",
            "Wrap frozen parts as units of their own, by an auto_wrap_policy; or use fully_shard.",
            mixed,
        )


@check("fsdp-left-out")
def fsdp_left_out(subject: Subject) -> Iterator[Finding]:
    tensors = {entry.name: entry.tensor for entry in subject.inventory.entries}
    left = tuple(name for name in subject.trainable if not is_distributed(tensors[name]))
    if left and any(map(is_shard, tensors.values())):
        yield error(
            enumerated(left, "trainable parameter", "in no part that fully_shard was applied to"),
            "their gradients are never averaged, so each process trains a model of its own",
            "torch.distributed.fsdp.fully_shard(model)  # around its parts, before the optimizer",
            left,
        )


@check("fsdp-rows")
def fsdp_rows(subject: Subject) -> Iterator[Finding]:
    held = tuple(
        entry.name
        for entry in subject.inventory.entries
        if is_distributed(entry.tensor) and held_rows(entry.tensor)
    )
    if held:
        yield error(
            enumerated(held, "parameter", "with frozen rows, sharded since"),
            "rows that lie on several processes cannot be put back: the first step raises",
            f"Freeze them whole, fl.freeze(model, {list(held[:5])!r}), or train without sharding.",
            held,
        )
