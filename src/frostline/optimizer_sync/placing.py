"""Which group a joining parameter goes to: by the rule of `param_groups`, or by what is visible.

A group's *base* is its learning rate before any schedule: `max_lr` under a one-cycle schedule,
else `initial_lr` where a scheduler stands, else the `base_lr` that `param_groups` wrote, else
`lr`. Groups are compared by base and weight decay, never by where the schedule stands.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, final

import torch
from torch import Tensor, nn

from frostline.errors import ConfigError
from frostline.groups import DEFAULT_NO_DECAY, Rule, rates_by_rule
from frostline.optimizer_sync.members import Group, same
from frostline.selectors import SelectorLike

_BASE_KEYS = ("max_lr", "initial_lr", "base_lr")
_OWN_KEYS = frozenset(
    {*_BASE_KEYS, "lr", "min_lr", "weight_decay", "params", "param_names", "rule"}
)


class Options(TypedDict, total=False):
    """What the caller of `sync` said about the joiners; the keys of a `Rule`, as values."""

    lr: float
    weight_decay: float
    layer_decay: float
    lr_mult: Mapping[str, float]
    no_decay: SelectorLike


@final
@dataclass(frozen=True, slots=True)
class BaseAndDecay:
    """What the group of a joiner is to have."""

    base: float | None  # None where the optimizer finds its learning rate itself: see `has_rate`
    decay: float | None  # None where the optimizer knows no weight decay


def base_key(group: Group) -> str:
    """The key under which the group's base stands."""
    return next((key for key in _BASE_KEYS if key in group), "lr")


def has_rate(group: Group) -> bool:
    """Whether the group has a learning rate at all."""
    # transformers' Adafactor has `lr=None` where it finds the rate itself; others have no `lr`.
    return group.get(base_key(group)) is not None


def base_of(group: Group) -> float:
    """The learning rate before any schedule of a group that has one."""
    return float(group[base_key(group)])


def highest(groups: Sequence[Group]) -> Group:
    """The group whose base is the highest; any where none has a rate."""
    return max(groups, key=lambda group: base_of(group) if has_rate(group) else -math.inf)


def due_rates(
    model: nn.Module, groups: Sequence[Group], options: Options
) -> dict[int, BaseAndDecay]:
    """What each trainable parameter is to have, by `id()`; raises as `param_groups`.

    `groups` are those that hold parameters of the model.
    """
    reference = highest(groups)
    rules = (group["rule"] for group in [reference, *groups] if has_rule(group))
    carried = next(rules, None)
    rule: dict[str, Any] = {**(carried or _visible(groups, reference)), **options}
    for name, value in rule.items():
        if value is None:
            raise ConfigError(
                f"the groups were made with a function or object in {name}, which has no text "
                f"that an optimizer can carry. Say it again: fl.sync(optimizer, model, {name}=...)."
            )
    rates = rates_by_rule(model, **rule)
    decays = "weight_decay" in reference
    if not has_rate(reference) and (asked := options.keys() & {"lr", "layer_decay", "lr_mult"}):
        raise ConfigError(
            f"{min(asked)} was asked for, but the optimizer's groups have no learning rate: it "
            "finds its own. Leave it out, or make the optimizer with a rate, as lr=1e-3."
        )
    if not decays and options.get("weight_decay"):
        raise ConfigError(
            f"weight_decay={options['weight_decay']:g} was asked for, but the optimizer's groups "
            "know no weight decay. Leave it out."
        )
    to_base = _to_base(groups, reference, rescaled=carried is not None and "lr" not in options)
    return {
        id(rate.parameter): BaseAndDecay(to_base(rate.lr), rate.weight_decay if decays else None)
        for rate in rates
    }


def fits(group: Group, wanted: BaseAndDecay, like: Group, defaults: Mapping[str, Any]) -> bool:
    """Whether the group has what is wanted and is otherwise as `like`; labels do not count."""
    decay = group.get("weight_decay")
    if (None if decay is None else float(decay)) != wanted.decay:
        return False
    if has_rate(group) != (wanted.base is not None):
        return False
    if wanted.base is not None and not math.isclose(base_of(group), wanted.base, rel_tol=1e-6):
        return False
    keys = (group.keys() | like.keys()) - _OWN_KEYS
    hyper = [k for k in keys if k in defaults or not isinstance(group.get(k, like.get(k)), str)]
    return all(k in group and k in like and same(group[k], like[k]) for k in hyper)


def has_rule(group: Group) -> bool:
    """Whether the group carries the rule of `param_groups`."""
    rule = group.get("rule")
    return isinstance(rule, dict) and rule.keys() == Rule.__required_keys__


def new_group(like: Group, wanted: BaseAndDecay, lr: float | None) -> Group:
    """A group without parameters that has what is wanted, now at `lr`, and is else as `like`."""
    scale = scale_of(like, wanted)
    group = {key: copy.deepcopy(v) for key, v in like.items() if key != "params"}
    for key in (*_BASE_KEYS, "min_lr"):
        if key in group:
            group[key] = in_kind_of(group[key], float(group[key]) * scale)
    if wanted.base is not None and lr is not None:
        key = base_key(like)
        group[key] = in_kind_of(group[key], wanted.base)
        group["lr"] = in_kind_of(group["lr"], lr)
    if wanted.decay is not None:
        group["weight_decay"] = wanted.decay
    if "param_names" in group:
        group["param_names"] = []
    return {"params": [], **group}


def scale_of(reference: Group, wanted: BaseAndDecay) -> float:
    """How many times the reference's base the wanted one is; raises ConfigError if that is 0."""
    if wanted.base is None:
        return 1.0
    base = base_of(reference)
    if base == 0 != wanted.base:
        raise ConfigError(
            "every group that holds the model has the learning rate 0, so it cannot be seen how "
            "far a schedule has come. Give one of them its rate first: "
            "optimizer.param_groups[0]['lr'] = 1e-3."
        )
    return 1.0 if base == wanted.base else wanted.base / base


def in_kind_of(former: Any, number: float) -> Any:
    """`number` as what `former` is: a tensor of the same kind, or a plain number."""
    return torch.full_like(former, number) if isinstance(former, Tensor) else number


def _visible(groups: Sequence[Group], reference: Group) -> Rule:
    """The rule that a hand-made optimizer seems to follow: the reference's rate for all, and no
    decay on biases and norms if some of its groups decay and others do not."""
    decaying = [group for group in groups if group.get("weight_decay")]
    is_split = 0 < len(decaying) < len(groups)
    source = highest(decaying) if is_split else reference
    return Rule(
        lr=base_of(reference) if has_rate(reference) else 1.0,
        weight_decay=float(source.get("weight_decay", 0.0)),
        layer_decay=1.0,
        lr_mult={},
        no_decay=DEFAULT_NO_DECAY if is_split else "none",
    )


def _to_base(
    groups: Sequence[Group], reference: Group, *, rescaled: bool
) -> Callable[[float], float | None]:
    """A function from the rule's learning rate to a group's base; None where it has none."""
    # They differ where the user, or a one-cycle schedule, set other rates than `param_groups` did.
    if not has_rate(reference):
        return lambda _: None
    if not rescaled or "base_lr" not in reference:
        return float
    by_rule = {float(group["base_lr"]) for group in groups if "base_lr" in group}
    present = {base_of(group) for group in groups if has_rate(group)}
    if len(present) == 1 and len(by_rule) > 1:  # one rate was given to all groups
        return lambda _: base_of(reference)
    if base_of(reference) == float(reference["base_lr"]):
        return float
    scale = base_of(reference) / float(reference["base_lr"])
    return lambda lr: lr * scale
