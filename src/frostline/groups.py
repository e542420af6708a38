"""Optimizer parameter groups: what is trainable, with learning rate and decay by name."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypedDict, final

from torch import nn

from frostline.errors import ConfigError, FreezeError, SelectorError
from frostline.selectors import (
    Entry,
    SelectorLike,
    as_selector,
    inventory,
    parse,
    select_policy,
    select_whole,
    stages,
)

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


class ParamGroup(TypedDict):
    """One group as torch's optimizers take it; `param_names` stand beside `params`.

    `base_lr` stays where schedules move `lr`; by `rule`, `fl.sync` finds the group of a parameter
    that is thawed later.
    """

    params: list[nn.Parameter]
    param_names: list[str]
    lr: float
    weight_decay: float
    base_lr: float
    rule: Rule


@final
@dataclass(frozen=True, slots=True, eq=False)
class Rate:
    """The learning rate and weight decay that a rule gives one trainable parameter."""

    name: str
    parameter: nn.Parameter
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
) -> list[ParamGroup]:
    """Groups of the trainable parameters, for any torch optimizer; frozen ones are in none.

    A parameter's learning rate is `lr`, times `layer_decay` for each stage between its own and
    the last, times the multiplier of each selector in `lr_mult` that matches it. Its weight
    decay is `weight_decay`, or 0 where `no_decay` matches it; a `kind:` there that the model
    does not have is fine.

    Args:
        lr: learning rate of the last stage, above 0.
        layer_decay: factor in (0, 1] for each stage below the last.

    Raises:
        FreezeError: nothing is trainable.
        ConfigError: a number is out of its range.
        SelectorError: a selector cannot be read or a term matches nothing.
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
    groups: dict[tuple[float, float], ParamGroup] = {}
    for rate in rates:
        group = groups.setdefault(
            (rate.lr, rate.weight_decay),
            ParamGroup(
                params=[],
                param_names=[],
                lr=rate.lr,
                weight_decay=rate.weight_decay,
                base_lr=float(rate.lr),
                rule=_rule(lr, weight_decay, layer_decay, factors, no_decay),
            ),
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
    no_decay: SelectorLike = DEFAULT_NO_DECAY,
    trained: Collection[int] | None = None,
) -> tuple[Rate, ...]:
    """What each trainable parameter gets, in the model's order; the same call, the same numbers.

    Args:
        trained: `id()` of those that are to train, by default of those that do.

    Raises: as `param_groups`.
    """
    _check(lr, weight_decay, layer_decay, lr_mult)
    stock = inventory(model)
    exempt = select_policy(model, no_decay).picked
    factors = [(select_whole(model, s).picked, factor) for s, factor in lr_mult.items()]
    depth = {index: n for n, members in enumerate(stages(stock)) for index in members}
    last = max(depth.values(), default=0)
    rates = []
    for index, entry in enumerate(stock.entries):
        if not isinstance(entry.tensor, nn.Parameter) or not _trains(entry, trained):
            continue
        rate = lr * layer_decay ** (last - depth[index])
        for picked, factor in factors:
            rate *= factor if index in picked else 1.0
        decay = 0.0 if index in exempt else weight_decay
        rates.append(Rate(entry.name, entry.tensor, rate, decay))
    if not rates:
        raise FreezeError(
            f"nothing in {stock.title} is trainable, so an optimizer would have nothing to do. "
            "Thaw something: fl.thaw(model, ...) or fl.train_only(model, ...)."
        )
    return tuple(rates)


def default_lr(
    model: nn.Module, *, optimizer: str, trained: Collection[int] | None = None
) -> float:
    """A learning rate to start from: 3e-3 where only the last stage is trainable, else 3e-4.

    Ten times that for SGD. A new head on a frozen network can take larger steps than pretrained
    layers can; found on frozen MobileNetV2 and SqueezeNet over eight seeds.

    Args:
        trained: as for `rates_by_rule`.
    """
    stock = inventory(model)
    trainable = {i for i, entry in enumerate(stock.entries) if _trains(entry, trained)}
    rate = 3e-3 if trainable <= stages(stock)[-1] else 3e-4
    return rate * (10 if optimizer == "sgd" else 1)


def _trains(entry: Entry, trained: Collection[int] | None) -> bool:
    return entry.tensor.requires_grad if trained is None else id(entry.tensor) in trained


def _rule(
    lr: float,
    weight_decay: float,
    layer_decay: float,
    lr_mult: Mapping[str, float],
    no_decay: SelectorLike,
) -> Rule:
    factors = {_text(selector): float(factor) for selector, factor in lr_mult.items()}
    texts = {text: factor for text, factor in factors.items() if text is not None}
    return Rule(
        lr=float(lr),
        weight_decay=float(weight_decay),
        layer_decay=float(layer_decay),
        lr_mult=texts if len(texts) == len(lr_mult) else None,
        no_decay=_text(no_decay),
    )


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
