"""The optimizer of a session: it holds what the phase trains, at the phase's learning rates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from torch import nn
from torch.optim import Optimizer

from frostline.groups import default_lr, param_groups
from frostline.optimizer_sync import Synced, even_out, load_optimizer_state, optimizer_state, sync
from frostline.optimizer_sync.members import check_optimizer
from frostline.optimizer_sync.placing import (
    BaseAndDecay,
    base_of,
    due_rates,
    has_rate,
    in_kind_of,
    new_group,
)
from frostline.plans import Phase
from frostline.recipe import Recipe
from frostline.selectors import everything
from frostline.sharding import is_distributed

Group = dict[str, Any]
_LISTS = frozenset({"params", "param_names"})
_RATES = ("lr", "weight_decay", "layer_decay")
MakeOptimizer = Callable[[list[Group]], Optimizer]


@final
class PhasedOptimizer:
    """An optimizer over a model, brought to each phase that is entered.

    Args:
        given: one that is kept and synced, or what makes a new one of each phase's groups.
        schedulers: of the one that is kept; where there are any, the learning rates are theirs.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        given: Optimizer | MakeOptimizer | None,
        schedulers: Sequence[Any],
    ) -> None:
        self._model = model
        self._recipe = recipe
        self._schedulers = tuple(schedulers)
        self._make: MakeOptimizer | None = None
        self.present: Optimizer | None = None
        if isinstance(given, Optimizer):
            self.present = given
        else:
            self._make = given or (lambda groups: make_optimizer(groups, recipe))
        self._peaks: list[Any] = []
        self.left: dict[str, int] = {}  # name -> index of the group to which it comes back

    def enter(
        self, phases: Sequence[Phase], known: Mapping[str, Any] | None, *, fresh: bool
    ) -> None:
        """Hold what the last of these phases trains, at its peak rates.

        Args:
            phases: all up to the one that is entered.
            known: optimizer state to take up; None keeps what there is of what stays trainable.
            fresh: whether what stays trainable begins without state instead.
        """
        if self._make is not None:
            if known is None and self.present is not None and not fresh:
                known = self.state()
            self.present = self._make([dict(group) for group in self._groups(phases[-1])])
            if not isinstance(self.present, torch.optim.LBFGS):  # which serves a phase alone
                check_optimizer(self.present)  # a wrapper would be refused by the next phase only
        else:
            assert self.present is not None
            self._sync(self.present, phases)
            if fresh and known is None:
                known = {**self.state(), "parameters": {}}
        if known is not None:
            load_optimizer_state(
                self.present, self._model, known, missing="fresh", hyperparameters="own"
            )
        # What a backward before this phase left behind is no part of its first step.
        self.present.zero_grad(set_to_none=True)
        self._peaks = [group.get("lr") for group in self.present.param_groups]

    def _groups(self, phase: Phase) -> list[dict[str, Any]]:
        """The groups of a new optimizer, by the phase and, for what it leaves open, the recipe."""
        filled = phase.completed(self._recipe)
        return param_groups(
            self._model,
            lr=filled.lr or default_lr(self._model, optimizer=self._recipe.optimizer),
            weight_decay=filled.weight_decay or 0.0,
            layer_decay=filled.layer_decay or 1.0,
            lr_mult=filled.lr_mult,
        )

    def _sync(self, optimizer: Optimizer, phases: Sequence[Phase]) -> None:
        """Bring the optimizer that is kept to the last of these phases.

        Its own rates and decays stay, but for what an option of the session or a phase said last.
        """
        said = {name: getattr(self._recipe, name) for name in self._recipe.model_fields_set}
        for phase in phases:
            said |= {name: value for name, value in phase if value is not None}
        options = {name: said[name] for name in _RATES if name in said}
        if options or any(phase.lr_mult for phase in phases):
            options["lr_mult"] = phases[-1].lr_mult
        if not self._schedulers:
            for group in optimizer.param_groups:
                if has_rate(group):  # of the phase before, which a schedule may have brought down
                    group["lr"] = in_kind_of(group["lr"], base_of(group))
        former = Synced((), (), {}, self.left)
        synced = sync(
            optimizer,
            self._model,
            schedulers=self._schedulers,
            kept=former,
            among=everything,  # without a look for others
            **options,
        )
        self.left |= synced.groups
        if self._schedulers:
            return
        if options:
            _move_to_rates(optimizer, self._model, options)
        for group in optimizer.param_groups:
            if has_rate(group):
                group.setdefault("base_lr", group["lr"])

    def state(self) -> dict[str, Any]:
        """Its state by the names of parameters."""
        assert self.present is not None
        return dict(optimizer_state(self.present, self._model))

    def before_step(self, lr_factor: Callable[[], float | None]) -> None:
        """Put each learning rate to its share of the peak; `lr_factor` is asked where it counts."""
        assert self.present is not None
        factor = None if self._schedulers else lr_factor()
        for group, peak in zip(self.present.param_groups, self._peaks, strict=False):
            if peak is not None and factor is not None:
                group["lr"] = in_kind_of(group["lr"], peak * factor)
            even_out(self.present, group)  # one may get its first gradient later than others


def make_optimizer(groups: list[Group], recipe: Recipe) -> Optimizer:
    """The recipe's optimizer over `groups`, with fused kernels where torch has them."""
    every = [parameter for group in groups for parameter in group["params"]]
    options: Group = {"fused": all(parameter.is_floating_point() for parameter in every) or None}
    if len(set(map(is_distributed, every))) == 2:
        options = {"foreach": False}  # others take sharded or plain ones, not both (torch 2.15)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=recipe.momentum, **options)
    adam = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return adam(groups, **options)


def _move_to_rates(optimizer: Optimizer, model: nn.Module, options: Group) -> None:
    """Give those who stayed the rates that joiners get; a group whose members differ is split."""
    own = {id(parameter) for parameter in model.parameters()}
    rated = [group for group in optimizer.param_groups if has_rate(group)]
    groups = [group for group in rated if any(id(p) in own for p in group["params"])]
    if not groups:
        return
    due = due_rates(model, groups, options)  # type: ignore[arg-type]  # keys of Options
    for group in groups:
        parts: dict[BaseAndDecay | None, set[int]] = {}
        for parameter in group["params"]:
            parts.setdefault(due.get(id(parameter)), set()).add(id(parameter))
        for due_here, members in parts.items():
            if due_here is None or due_here.base is None:
                continue
            moved = new_group(group, due_here, due_here.base)
            if len(members) == len(group["params"]):
                group.update({key: value for key, value in moved.items() if key not in _LISTS})
                continue
            moves = [id(parameter) in members for parameter in group["params"]]
            for key in _LISTS.intersection(group):
                moved[key] = [x for x, goes in zip(group[key], moves, strict=True) if goes]
                group[key][:] = [x for x, goes in zip(group[key], moves, strict=True) if not goes]
            optimizer.add_param_group(moved)
