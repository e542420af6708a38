"""What a checkup looks at: what was given, and facts that are made once when a check asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from frostline.checkup.findings import Finding
from frostline.checkup.trial import Facts, Failure, run_trial
from frostline.errors import ConfigError, SelectorError
from frostline.plans import Plan
from frostline.plans.parts import Part, parts
from frostline.recipe import Recipe
from frostline.selectors import Inventory, Selector, inventory, stages
from frostline.tasks import Classification, Task
from frostline.wrappers import live_wrappers, unwrap, wrappers

Preprocess = Callable[[Any], Tensor]


@final
@dataclass(frozen=True)
class Subject:
    """A set-up: a model as it would be trained, and whatever belongs to it.

    Attributes:
        model: as it was given, perhaps wrapped.
        example: one batch as the model takes it.
        targets: of the example, for the loss of the task.
        asked: the selector of what to freeze or train, where one was given.
        verb: which of the two.
        classes: how many there are.
    """

    model: nn.Module
    example: Any = None
    targets: Tensor | None = None
    task: Task = field(default_factory=Classification)
    optimizers: tuple[torch.optim.Optimizer, ...] = ()
    schedulers: tuple[Any, ...] = ()
    classes: int | None = None
    asked: Selector | None = None
    verb: str = "freeze"
    plan: Plan | None = None
    train_data: object = None
    val_data: object = None
    preprocessing: Preprocess | None = None
    weights_preprocessing: Preprocess | None = None

    @cached_property
    def root(self) -> nn.Module:
        """The model inside its wrappers; frozen as asked while the checks run."""
        return unwrap(self.model)

    @cached_property
    def inventory(self) -> Inventory:
        """All parameters, each once, under each of its names."""
        return inventory(self.root)

    @cached_property
    def names(self) -> Mapping[int, str]:
        """`id()` of each parameter -> its first name."""
        return {id(e.tensor): e.name for e in self.inventory.entries if e.is_parameter}

    @cached_property
    def parameters(self) -> Mapping[str, Tensor]:
        """First name -> parameter, a tied one once."""
        return {e.name: e.tensor for e in self.inventory.entries if e.is_parameter}

    @cached_property
    def trainable(self) -> tuple[str, ...]:
        """Names of the parameters that want gradients."""
        return tuple(name for name, p in self.parameters.items() if p.requires_grad)

    @cached_property
    def trainable_later(self) -> frozenset[int]:
        """`id()` of what any phase of the plan trains."""
        return frozenset(id(p) for part in self.parts for p in part.selection.parameters)

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """What each phase of the plan trains; nothing without a plan, or one that does not fit."""
        try:
            return () if self.plan is None else parts(self.root, self.plan.phases, Recipe())
        except (SelectorError, ConfigError):
            return ()  # the check of the plan says why

    @cached_property
    def in_last_stage(self) -> frozenset[int]:
        """`id()` of the parameters of the model's last stage, the head."""
        entries = self.inventory.entries
        return frozenset(id(entries[index].tensor) for index in stages(self.inventory)[-1])

    @cached_property
    def wrapper(self) -> DistributedDataParallel | None:
        """The wrapper that was given, or one that lives around the model."""
        given = [w for w in wrappers(self.model) if isinstance(w, DistributedDataParallel)]
        return next(iter(given or live_wrappers(self.root)), None)

    @cached_property
    def why_not_tried(self) -> str:
        """Why the example cannot be run through the model here; empty where it can."""
        if any(is_called(module, "FullyShardedDataParallel") for module in self.model.modules()):
            return "the model is sharded by FullyShardedDataParallel"
        for tensor in self.root.parameters():
            if is_called(tensor, "DTensor"):
                return "the model's parameters are sharded"
            if tensor.is_meta:
                return "the model's parameters are on the meta device and have no data"
        return ""

    @cached_property
    def trial(self) -> Facts | Failure | None:
        """What a pass of the example through the model showed; None where there can be none."""
        if self.example is None or self.why_not_tried:
            return None
        return run_trial(self.root, self.example, self.targets, self.task)

    @property
    def facts(self) -> Facts | None:
        """What the pass showed, if it came to its end."""
        return self.trial if isinstance(self.trial, Facts) else None


@final
@dataclass(frozen=True, slots=True)
class Check:
    """One thing to look for.

    Attributes:
        find: gives the findings; none where what it needs was not given.
        codes: all that it may give.
    """

    find: Callable[[Subject], Iterator[Finding]]
    codes: tuple[str, ...]


def is_called(thing: object, name: str) -> bool:
    """Whether its class or a base goes by that name: spares the import of what defines it."""
    return any(base.__name__ == name for base in type(thing).__mro__)
