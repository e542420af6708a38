"""Optimizer parameter groups: what is trainable, with learning rate and decay by name."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict, cast, final

from torch import nn

from frostline.errors import ConfigError, FreezeError, SelectorError
from frostline.selectors import (
    Entry,
    Inventory,
    Selection,
    SelectorLike,
    as_selector,
    inventory,
    parse,
    select_whole,
    stages,
)
from frostline.wording import either

DEFAULT_NO_DECAY = "kind:bias | kind:norm"


class Rule(TypedDict):
    """What `param_groups` was asked, as text and numbers, so that any `torch.load` reads it.

    `lr_mult` or `no_decay` is None where a selector in it has no text that reads back.
    """

    lr: float
    weight_decay: float
    layer_decay: float
    lr_mult: dict[str, float] | None
    no_decay: str | None


@final
@dataclass(frozen=True, slots=True)
class Rate:
    """The learning rate and weight decay that a rule gives one trainable parameter."""

    name: str
    parameter: nn.Parameter = field(compare=False)
    lr: float
    weight_decay: float


def param_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.01,
    layer_decay: float = 1.0,
    lr_mult: Mapping[str, float] | None = None,
    no_decay: SelectorLike = DEFAULT_NO_DECAY,
) -> list[dict[str, Any]]:
    """Groups of the trainable parameters, for any torch optimizer; frozen ones are in none.

    A parameter's learning rate is `lr`, times `layer_decay` for each stage between its own and
    the last, times the multiplier of each selector in `lr_mult` that matches it. Its weight
    decay is `weight_decay`, or 0 where `no_decay` matches it; a `kind:` there that the model
    does not have is fine.

    Beside `params` a group has their `param_names`, `lr`, `weight_decay`, `base_lr`, which stays
    where schedules move `lr`, and `rule`, by which `fl.sync` finds the group of a parameter that is
    thawed later.

    Args:
        lr: learning rate of the last stage, above 0.
        layer_decay: factor in (0, 1] for each stage below the last.

    Raises:
        FreezeError: nothing is trainable.
        ConfigError: a number is out of its range.
        SelectorError: a selector cannot be read or a term matches nothing.

    Example:
        >>> optimizer = torch.optim.AdamW(fl.param_groups(model, lr=1e-3))
        >>> [(group["param_names"], group["weight_decay"]) for group in optimizer.param_groups]
        [(['head.2.weight'], 0.01), (['head.2.bias'], 0.0)]
    """
    factors = dict(lr_mult or {})
    rates = rates_by_rule(
        model,
        lr=lr,
        weight_decay=weight_decay,
        layer_decay=layer_decay,
        lr_mult=factors,
        no_decay=no_decay,
    )
    texts = {_text(selector): float(factor) for selector, factor in factors.items()}
    rule = Rule(
        lr=float(lr),
        weight_decay=float(weight_decay),
        layer_decay=float(layer_decay),
        lr_mult={text: factor for text, factor in texts.items() if text is not None},
        no_decay=_text(no_decay),
    )
    if len(rule["lr_mult"] or {}) < len(factors):
        rule["lr_mult"] = None
    return _grouped(rates, rule)


def _grouped(rates: Iterable[Rate], rule: Rule) -> list[dict[str, Any]]:
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for rate in rates:
        group = groups.setdefault(
            (rate.lr, rate.weight_decay),
            {
                "params": [],
                "param_names": [],
                "lr": rate.lr,
                "weight_decay": rate.weight_decay,
                "base_lr": float(rate.lr),
                "rule": copy.deepcopy(rule),  # each group's is its own, as its other options are
            },
        )
        group["params"].append(rate.parameter)
        group["param_names"].append(rate.name)
    return list(groups.values())


def rates_by_rule(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    layer_decay: float,
    lr_mult: Mapping[str, float],
    no_decay: SelectorLike,
    trained: Selection | None = None,
) -> tuple[Rate, ...]:
    """What each trainable parameter gets, in the model's order; the same call, the same numbers.

    Args:
        trained: what is to train, where that is not what trains now.

    Raises: as `param_groups`.
    """
    _check(lr, weight_decay, layer_decay, lr_mult)
    stock = inventory(model)
    exempt = select_whole(model, no_decay, kinds_may_miss=True).whole
    factors = [(select_whole(model, s).whole, factor) for s, factor in lr_mult.items()]
    depth, last = _depths(stock)
    rates = []
    for entry in _trained(stock, trained):
        key = id(entry.tensor)
        rate = lr * layer_decay ** (last - depth[key])
        for chosen, factor in factors:
            rate *= factor if key in chosen else 1.0
        decay = 0.0 if key in exempt else weight_decay
        rates.append(Rate(entry.name, cast("nn.Parameter", entry.tensor), rate, decay))
    if not rates:
        raise FreezeError(
            f"nothing in {stock.title} is trainable, so an optimizer would have nothing to do. "
            "Thaw something: "
            + either("fl.thaw(model, ...) or fl.train_only(model, ...).", "--train SEL.")
        )
    return tuple(rates)


def default_lr(model: nn.Module, *, optimizer: str, trained: Selection | None = None) -> float:
    """A learning rate to start from: 3e-3 where only the last stage is trainable, else 3e-4.

    Ten times that for SGD. A new head on a frozen network can take larger steps than pretrained
    layers can; found on frozen MobileNetV2 and SqueezeNet over eight seeds.

    Args:
        trained: as for `rates_by_rule`.
    """
    stock = inventory(model)
    depth, last = _depths(stock)
    head_alone = all(depth[id(entry.tensor)] == last for entry in _trained(stock, trained))
    return (3e-3 if head_alone else 3e-4) * (10 if optimizer == "sgd" else 1)


def _depths(stock: Inventory) -> tuple[dict[int, int], int]:
    """The stage of each tensor, by `id()`, and the last stage."""
    groups = stages(stock)
    depth = {id(stock.entries[i].tensor): n for n, own in enumerate(groups) for i in own}
    return depth, len(groups) - 1


def _trained(stock: Inventory, trained: Selection | None) -> Iterator[Entry]:
    """Parameters that are to train, or that train now."""
    for entry in stock.entries if trained is None else trained.entries:
        if entry.is_parameter and (trained is not None or entry.tensor.requires_grad):
            yield entry


def _text(selector: SelectorLike) -> str | None:
    """The selector's text if it reads back as the same; functions and objects have none."""
    normal = as_selector(selector)
    try:
        return str(normal) if parse(str(normal)) == normal else None
    except SelectorError:
        return None


def _check(
    lr: float, weight_decay: float, layer_decay: float, lr_mult: Mapping[str, float]
) -> None:
    if not 0 < lr < math.inf:
        raise ConfigError(f"lr is {lr}; a learning rate is above 0, as lr=1e-3.")
    for selector, factor in lr_mult.items():
        if not 0 < factor < math.inf:
            raise ConfigError(
                f"lr_mult[{selector!r}] is {factor}; a multiplier is above 0, as 10. To train "
                f"nothing there, freeze it: fl.freeze(model, {selector!r})."
            )
    if not 0 <= weight_decay < math.inf:
        raise ConfigError(f"weight_decay is {weight_decay}; it is 0 or above, as 0.01.")
    if not 0 < layer_decay <= 1:
        raise ConfigError(f"layer_decay is {layer_decay}; it lies above 0 and up to 1, as 0.75.")
