"""Learning rate schedulers take in a new group as if it had been there from their first step.

At any given step, what each of torch's schedulers makes of a base learning rate is a line
through a fixed point: `lr = fixed + (base - fixed) * share`, where `fixed` is `eta_min` of the
two cosine schedules and 0 elsewhere, and `share` is the same for all groups. So the present rate
of one group gives that of any other (down to the floor of ReduceLROnPlateau); nothing is
replayed, and no existing group is touched.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any, TypeGuard

from torch.optim import Optimizer
from torch.optim import lr_scheduler as torch_schedulers

from frostline.errors import ConfigError, a_type
from frostline.optimizer_sync.members import Group
from frostline.optimizer_sync.placing import (
    BaseAndDecay,
    Options,
    base_key,
    base_of,
    has_rate,
    in_kind_of,
    new_group,
    scale_of,
)

Scheduler = torch_schedulers.LRScheduler
NewValues = tuple[Scheduler, dict[str, Any]]  # of a scheduler's own attributes

_COSINES = (torch_schedulers.CosineAnnealingLR, torch_schedulers.CosineAnnealingWarmRestarts)
_CONTAINERS = (torch_schedulers.SequentialLR, torch_schedulers.ChainedScheduler)
_KNOWN = (
    *(torch_schedulers.LambdaLR, torch_schedulers.MultiplicativeLR),
    *(torch_schedulers.StepLR, torch_schedulers.MultiStepLR),
    *(torch_schedulers.ConstantLR, torch_schedulers.LinearLR),
    *(torch_schedulers.ExponentialLR, torch_schedulers.PolynomialLR),
    *(torch_schedulers.OneCycleLR, torch_schedulers.ReduceLROnPlateau),
    *_COSINES,
    *_CONTAINERS,
)
_WAY_OUT = (
    "Let the joiners share an existing group, fl.sync(optimizer, model, lr=..., "
    "weight_decay=...) with its numbers; or thaw and sync before the schedule begins."
)


def new_groups(
    optimizer: Optimizer,
    schedulers: Sequence[Scheduler],
    like: Group,
    fresh: list[BaseAndDecay],
    options: Options,
) -> tuple[list[Group], list[NewValues]]:
    """Groups that have these and are else as `like`, and what the schedulers are to know of them.

    Raises ConfigError where a scheduler cannot take them in, or their rate now is not known.
    """
    if not fresh:
        return [], []
    _check_can_take_in(optimizer, schedulers)
    if "lr" in options:
        _check_plateaus(schedulers, like)
    index = next(at for at, group in enumerate(optimizer.param_groups) if group is like)
    scales = [scale_of(like, due) for due in fresh]
    lrs = [_present_lr(schedulers, like, index, scale) for scale in scales]
    known: list[NewValues] = []
    for scheduler in _all(schedulers):
        own = vars(scheduler)
        last = [in_kind_of(like["lr"], lr) for lr in lrs if lr is not None]
        values = {"_last_lr": [*own["_last_lr"], *last]}
        if "base_lrs" in own:
            base = own["base_lrs"][index]
            bases = [in_kind_of(base, float(base) * scale) for scale in scales]
            values["base_lrs"] = [*own["base_lrs"], *bases]
        for name in own.keys() & {"lr_lambdas", "min_lrs"}:
            missing = len(optimizer.param_groups) + len(fresh) - len(own[name])
            values[name] = [*own[name], *([own[name][0]] * missing)]
        known.append((scheduler, values))
    return [new_group(like, due, lr) for due, lr in zip(fresh, lrs, strict=True)], known


def _present_lr(
    schedulers: Sequence[Scheduler], like: Group, index: int, scale: float
) -> float | None:
    """Where a group with `scale` times the base of `like` stands now; None without a rate."""
    if not has_rate(like):
        return None
    lr, fixed, base = float(like["lr"]), 0.0, base_of(like)
    if scale == 1.0:
        return lr
    for leaf in map(_leaf, schedulers):
        if not fixed and _fixed_point(leaf):
            fixed, base = _fixed_point(leaf), float(leaf.base_lrs[index])
    floor = min((float(s.min_lrs[0]) for s in schedulers if _is_plateau(s)), default=0.0)
    if (fixed and base == fixed) or (scale > 1.0 and lr <= floor < base):
        raise ConfigError(
            f"the group to go by stands at {lr:g}, the lowest rate of its schedule, and does "
            f"not show where a group with another base stands. {_WAY_OUT}"
        )
    if fixed:
        return fixed + (lr - fixed) * ((base * scale - fixed) / (base - fixed))
    # A reduction stops at the floor, but never lifts what began below it.
    return max(lr * scale, min(base * scale, floor))


def _check_can_take_in(optimizer: Optimizer, schedulers: Sequence[Scheduler]) -> None:
    for scheduler in _all(schedulers):
        if type(scheduler) not in _KNOWN:
            raise ConfigError(
                f"{type(scheduler).__name__} cannot take in a new group: what it makes of another "
                f"base learning rate is not known. {_WAY_OUT}"
            )
        _check_groups_alike(scheduler, len(optimizer.param_groups))
        if isinstance(scheduler, torch_schedulers.ChainedScheduler):
            _check_together(scheduler._schedulers)
        if isinstance(scheduler, torch_schedulers.SequentialLR):
            # Each of a row begins at the base, but for MultiplicativeLR: it goes on.
            until_now = scheduler._schedulers[: _active(scheduler) + 1]
            if isinstance(until_now[-1], torch_schedulers.MultiplicativeLR):
                _check_together(until_now)
    _check_together(schedulers)
    marked = any("initial_lr" in group for group in optimizer.param_groups)
    if marked and all(_is_plateau(scheduler) for scheduler in schedulers):
        raise ConfigError(
            "a scheduler was made for this optimizer (its groups hold 'initial_lr'), and a new "
            "group has to join it. Hand it over: fl.sync(optimizer, model, schedulers=[...]); "
            "leave out lr, and joiners share the present groups, as a scheduler that is not "
            "torch's needs it; if it is no longer used: for group in optimizer.param_groups: "
            "group.pop('initial_lr')."
        )


def _check_plateaus(schedulers: Sequence[Scheduler], reference: Group) -> None:
    """Raises ConfigError where a plateau may have lowered a rate that has no base beside it."""
    # ReduceLROnPlateau lowers `lr` and keeps no note of what it was.
    for scheduler in _all(schedulers):
        may_have = _is_plateau(scheduler) and scheduler.last_epoch > scheduler.patience
        if may_have and base_key(reference) == "lr":
            raise ConfigError(
                "ReduceLROnPlateau does not keep the rate that it began with, so how far it has "
                "come cannot be seen, nor where a group that began with lr=... stands now. Write "
                "it once: group['base_lr'] = ... in each group, its rate before the first "
                "reduction, or make the groups by fl.param_groups; or leave lr out, and the "
                "joiners share the present rate."
            )


def check_schedulers(optimizer: Optimizer, schedulers: Sequence[Scheduler]) -> None:
    """Raises ConfigError unless these are schedulers of this optimizer."""
    if not isinstance(schedulers, Sequence):
        raise ConfigError(
            f"schedulers is {a_type(schedulers)}. Give a list: schedulers=[scheduler]."
        )
    for scheduler in schedulers:
        if not isinstance(scheduler, Scheduler):
            raise ConfigError(
                f"schedulers holds what is no scheduler of torch.optim.lr_scheduler: "
                f"{type(scheduler).__name__}. Pass the torch scheduler inside it, often "
                "`scheduler.scheduler`."
            )
        # By the groups: Accelerate puts a wrapper between, which has those of the one inside.
        if scheduler.optimizer.param_groups is not optimizer.param_groups:
            raise ConfigError(
                f"the {type(scheduler).__name__} handed over moves another optimizer. Pass the "
                "schedulers that were made for this one."
            )


def lengthen(schedulers: Sequence[Scheduler], count: int) -> None:
    """Give each scheduler what it keeps for each group and saves in no state, for `count` groups.

    Of more groups than it was made for, which `new_groups` let in, all have the first one's.
    """
    for own in map(vars, _all(schedulers)):
        if "lr_lambdas" in own:
            own["lr_lambdas"] = (own["lr_lambdas"] + [own["lr_lambdas"][0]] * count)[:count]


def _all(schedulers: Sequence[Scheduler]) -> Iterator[Scheduler]:
    for scheduler in schedulers:
        yield scheduler
        if isinstance(scheduler, _CONTAINERS):
            yield from _all(scheduler._schedulers)


def _leaf(scheduler: Scheduler) -> Scheduler:
    """The scheduler that decides now: of a sequence the active one, of a chain the first."""
    if isinstance(scheduler, torch_schedulers.ChainedScheduler):
        return _leaf(scheduler._schedulers[0])
    if isinstance(scheduler, torch_schedulers.SequentialLR):
        return _leaf(scheduler._schedulers[_active(scheduler)])
    return scheduler


def _active(scheduler: torch_schedulers.SequentialLR) -> int:
    return bisect_right(scheduler._milestones, scheduler.last_epoch)


def _fixed_point(scheduler: Scheduler) -> float:
    return float(scheduler.eta_min) if isinstance(scheduler, _COSINES) else 0.0


def _is_plateau(scheduler: Scheduler) -> TypeGuard[torch_schedulers.ReduceLROnPlateau]:
    return isinstance(scheduler, torch_schedulers.ReduceLROnPlateau)


def _bend(scheduler: Scheduler) -> str:
    """What keeps the rate from being proportional to the base; empty where nothing does."""
    if fixed := _fixed_point(scheduler):
        return f"eta_min={fixed:g}"
    if _is_plateau(scheduler) and any(scheduler.min_lrs):
        return f"min_lr={float(scheduler.min_lrs[0]):g}"
    return ""


def _check_groups_alike(scheduler: Scheduler, count: int) -> None:
    own = vars(scheduler)
    for name, what in (("lr_lambdas", "functions"), ("min_lrs", "min_lr")):
        values = own.get(name, ())
        if any(value is not values[0] and value != values[0] for value in values):
            raise ConfigError(
                f"{type(scheduler).__name__} has different {what} for its groups, so it is not "
                f"known which of them a new group is to follow. {_WAY_OUT}"
            )
    known = len(own.get("base_lrs", own["_last_lr"]))
    if known != count and not _is_plateau(scheduler):
        raise ConfigError(
            f"{type(scheduler).__name__} knows {known} of the optimizer's {count} groups. "
            "Groups were added past it; make it anew and let fl.sync add groups from then on."
        )


def _check_together(schedulers: Sequence[Scheduler]) -> None:
    """Schedulers that act on one another's rates must all be proportional to the base."""
    bent = [s for part in schedulers for s in _all([part]) if _bend(s)]
    if len(schedulers) > 1 and bent:
        raise ConfigError(
            f"{type(bent[0]).__name__} with {_bend(bent[0])} acts together with other schedulers, "
            "so the present rates do not show where a group with another base stands. "
            f"Put them in a row with SequentialLR, or set it to 0. {_WAY_OUT}"
        )
