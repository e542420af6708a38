"""Which group a joining parameter goes to: by the rule of `param_groups`, or by what is visible.

A group's *base* is its learning rate before any schedule: `max_lr` under a one-cycle schedule,
else `initial_lr` where a scheduler stands, else the `base_lr` that `param_groups` wrote, else
`lr`. Groups are compared by base and weight decay, never by where the schedule stands.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict, final

import torch
from torch import Tensor, nn

from frostline.errors import ConfigError
from frostline.groups import DEFAULT_NO_DECAY, Rule, rates_by_rule
from frostline.optimizer_sync.members import Group, Member, same
from frostline.selectors import SelectorLike

_ANCHORS = ("max_lr", "initial_lr", "base_lr")
_OWN_KEYS = frozenset({*_ANCHORS, "lr", "min_lr", "weight_decay", "params", "param_names", "rule"})


class Options(TypedDict, total=False):
    """What the caller of `sync` said about the joiners; the keys of a `Rule`, as values."""

    lr: float
    weight_decay: float
    layer_decay: float
    lr_mult: Mapping[str, float]
    no_decay: SelectorLike


@final
@dataclass(frozen=True, slots=True)
class Place:
    """What a joiner is to have: the base of its group and its weight decay.

    Attributes:
        base: None where the optimizer finds its learning rate itself (see `has_rate`).
        decay: None where the optimizer knows no weight decay.
    """

    base: float | None
    decay: float | None


def anchor(group: Group) -> str:
    """The key under which the group's base stands."""
    return next((key for key in _ANCHORS if key in group), "lr")


def has_rate(group: Group) -> bool:
    """Whether the group has a learning rate at all.

    transformers' Adafactor has `lr=None` where it finds the rate itself; others have no `lr`.
    """
    return group.get(anchor(group)) is not None


def base_of(group: Group) -> float:
    """The learning rate before any schedule of a group that has one."""
    return float(group[anchor(group)])


def places(
    model: nn.Module, groups: list[Group], reference: Group, options: Options
) -> dict[int, Place]:
    """What each trainable parameter of `model` is to have, by identity.

    Args:
        groups: those that hold parameters of the model.
        reference: the one of them whose base is the highest; any where none has a rate.

    Raises:
        ConfigError: a number is out of its range, or the rule holds a selector without text.
        SelectorError: a selector cannot be read or matches nothing.
    """
    carried = _carried(groups, reference)
    rule = _with(options, carried or _visible(groups, reference))
    rates = rates_by_rule(model, **rule)
    if not has_rate(reference):
        _check_no_rate_asked(options)
    to_base = _to_base(groups, reference, rescaled=carried is not None and "lr" not in options)
    decays = "weight_decay" in reference
    if not decays and options.get("weight_decay"):
        raise ConfigError(
            f"weight_decay={options['weight_decay']:g} was asked for, but the optimizer's groups "
            "know no weight decay. Leave it out."
        )
    return {
        id(rate.parameter): Place(to_base(rate.lr), rate.weight_decay if decays else None)
        for rate in rates
    }


def find(
    optimizer: torch.optim.Optimizer, candidates: list[int], reference: Group, place: Place
) -> int | None:
    """Index of the first candidate that offers `place` and is otherwise as `reference`."""
    groups = optimizer.param_groups
    return next(
        (
            index
            for index in candidates
            if _same_place(_place_of(groups[index]), place)
            and _alike(groups[index], reference, optimizer.defaults)
        ),
        None,
    )


def has_rule(group: Group) -> bool:
    """Whether the group carries the rule of `param_groups`."""
    return _is_rule(group.get("rule"))


def same_rule(one: Group, other: Group) -> bool:
    """Whether both groups carry the same rule, or both none."""
    return bool(one.get("rule") == other.get("rule"))


def new_group(reference: Group, place: Place, lr: float | None) -> Group:
    """A group without parameters at `place`, in everything else as `reference`.

    Args:
        lr: the learning rate at which the schedule stands for that base; None without a base.
    """
    scale = scale_of(reference, place)
    group = {key: copy.deepcopy(v) for key, v in reference.items() if key != "params"}
    for key in ("max_lr", "initial_lr", "min_lr", "base_lr"):
        if key in group:
            group[key] = like(group[key], float(group[key]) * scale)
    if place.base is not None and lr is not None:
        group[anchor(reference)] = like(group[anchor(reference)], place.base)
        group["lr"] = like(group["lr"], lr)
    if place.decay is not None:
        group["weight_decay"] = place.decay
    if "param_names" in group:
        group["param_names"] = []
    return {"params": [], **group}


def scale_of(reference: Group, place: Place) -> float:
    """How many times the reference's base the place's is.

    Raises:
        ConfigError: the reference's base is 0.
    """
    if place.base is None:
        return 1.0
    base = base_of(reference)
    if base == 0 != place.base:
        raise ConfigError(
            "every group that holds the model has the learning rate 0, so it cannot be seen how "
            "far a schedule has come. Give one of them its rate first: "
            "optimizer.param_groups[0]['lr'] = 1e-3."
        )
    return 1.0 if base == place.base else place.base / base


def like(former: Any, number: float) -> Any:
    """`number` as what `former` is: a tensor of the same kind, or a plain number."""
    return torch.full_like(former, number) if isinstance(former, Tensor) else number


def join(group: Group, member: Member) -> None:
    """Append the parameter to the group, and its name where the group keeps names."""
    group["params"].append(member.parameter)
    if "param_names" in group:
        group["param_names"].append(member.name)


def close_up(group: Group, gone: set[int]) -> None:
    """Take the parameters with these identities out; the lists stay the same objects."""
    stays = [id(parameter) not in gone for parameter in group["params"]]
    for key in ("params", "param_names"):
        if key in group:
            kept = [thing for thing, stay in zip(group[key], stays, strict=True) if stay]
            group[key][:] = kept


def _carried(groups: list[Group], reference: Group) -> Rule | None:
    rules = (group.get("rule") for group in [reference, *groups])
    return next((rule for rule in rules if _is_rule(rule)), None)


def _is_rule(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == Rule.__required_keys__


def _visible(groups: list[Group], reference: Group) -> Rule:
    """The rule that a hand-made optimizer seems to follow: the reference's rate for all, and no
    decay on biases and norms if some of its groups decay and others do not."""
    decays = [group.get("weight_decay", 0.0) for group in groups]
    is_split = any(decays) and not all(decays)
    decaying = [group for group in groups if group.get("weight_decay")]
    source = reference
    if is_split:
        source = max(decaying, key=lambda group: base_of(group) if has_rate(group) else 0.0)
    return Rule(
        lr=base_of(reference) if has_rate(reference) else 1.0,
        weight_decay=float(source.get("weight_decay", 0.0)),
        layer_decay=1.0,
        lr_mult={},
        no_decay=DEFAULT_NO_DECAY if is_split else "none",
    )


def _with(options: Options, rule: Rule) -> dict[str, Any]:
    """The rule as arguments, with what the options say in its stead."""
    found = {**rule, **options}
    for name, value in found.items():
        if value is None:
            raise ConfigError(
                f"the groups were made with a function or object in {name}, which has no text "
                f"that an optimizer can carry. Say it again: fl.sync(optimizer, model, {name}=...)."
            )
    return found


def _to_base(
    groups: list[Group], reference: Group, *, rescaled: bool
) -> Callable[[float], float | None]:
    """A function from the rule's learning rate to a group's base; None where it has none.

    They differ where the user, or a one-cycle schedule, set other rates than `param_groups` did.
    """
    if not has_rate(reference):
        return lambda _: None
    if not rescaled or "base_lr" not in reference:
        return float
    told = {float(group["base_lr"]) for group in groups if "base_lr" in group}
    found = {base_of(group) for group in groups if has_rate(group)}
    if len(found) == 1 and len(told) > 1:  # one rate was given to all groups
        return lambda _: base_of(reference)
    if base_of(reference) == float(reference["base_lr"]):
        return float
    scale = base_of(reference) / float(reference["base_lr"])
    return lambda lr: lr * scale


def _check_no_rate_asked(options: Options) -> None:
    asked = [name for name in ("lr", "layer_decay", "lr_mult") if name in options]
    if asked:
        raise ConfigError(
            f"{asked[0]} was asked for, but the optimizer's groups have no learning rate: it finds "
            "its own. Leave it out, or make the optimizer with a rate, as lr=1e-3."
        )


def _place_of(group: Group) -> Place:
    decay = group.get("weight_decay")
    base = base_of(group) if has_rate(group) else None
    return Place(base, None if decay is None else float(decay))


def _same_place(one: Place, other: Place) -> bool:
    if one.base is None or other.base is None:
        return one == other
    return math.isclose(one.base, other.base, rel_tol=1e-6) and one.decay == other.decay


def _alike(one: Group, other: Group, defaults: Mapping[str, Any]) -> bool:
    """Whether every hyperparameter but those of a place is the same; a label is none."""
    keys = (one.keys() | other.keys()) - _OWN_KEYS
    hyper = [k for k in keys if k in defaults or not isinstance(one.get(k, other.get(k)), str)]
    return all(k in one and k in other and same(one[k], other[k]) for k in hyper)
