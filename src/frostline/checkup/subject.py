"""What a checkup looks at: what was given, facts that are made once when asked for, and a check."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from frostline.checkup.findings import Finding
from frostline.checkup.trial import Facts, run_trial
from frostline.errors import ConfigError, SelectorError, one_line
from frostline.plans import Plan
from frostline.plans.parts import Part, parts
from frostline.recipe import Recipe
from frostline.selectors import Inventory, Selector, inventory, stages
from frostline.sharding import is_distributed
from frostline.tasks import Classification, Task
from frostline.wrappers import live_wrappers, unwrap, wrappers

Preprocess = Callable[[Any], Tensor]


@final
@dataclass(frozen=True)
class Subject:
    """A set-up: a model as it would be trained, and whatever belongs to it; see `fl.doctor`."""

    model: nn.Module
    example: Any = None
    targets: Tensor | None = None
    task: Task = field(default_factory=Classification)
    optimizers: tuple[torch.optim.Optimizer, ...] = ()
    schedulers: tuple[Any, ...] = ()
    classes: int | None = None
    freeze: Selector | None = None
    train: Selector | None = None
    plan: Plan | None = None
    train_data: object = None
    val_data: object = None
    preprocessing: Preprocess | None = None
    weights_preprocessing: Preprocess | None = None

    @property
    def asked(self) -> Selector | None:
        """The selector of what to freeze or to train, where one was given."""
        return self.train if self.freeze is None else self.freeze

    @cached_property
    def root(self) -> nn.Module:
        """The model inside its wrappers; frozen as asked while the checks run."""
        return unwrap(self.model)

    @cached_property
    def inventory(self) -> Inventory:
        """All parameters, each once, under each of its names."""
        return inventory(self.root)

    @cached_property
    def parameters(self) -> Mapping[str, Tensor]:
        """First name -> parameter, a tied one once."""
        return {e.name: e.tensor for e in self.inventory.entries if e.is_parameter}

    @cached_property
    def names(self) -> Mapping[int, str]:
        """`id()` of each parameter -> its first name."""
        return {id(parameter): name for name, parameter in self.parameters.items()}

    @cached_property
    def trainable(self) -> tuple[str, ...]:
        """Names of the parameters that want gradients."""
        return tuple(name for name, p in self.parameters.items() if p.requires_grad)

    @cached_property
    def frozen(self) -> tuple[str, ...]:
        """Names of the others."""
        return tuple(name for name, p in self.parameters.items() if not p.requires_grad)

    @cached_property
    def held(self) -> Counter[str]:
        """How often each parameter of the model stands in a group of an optimizer, by its name."""
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        found = (self.names.get(id(p)) for group in groups for p in group["params"])
        return Counter(name for name in found if name is not None)

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """What each phase of the plan trains; nothing without a plan, or one that does not fit."""
        try:
            return () if self.plan is None else parts(self.root, self.plan.phases, Recipe())
        except (SelectorError, ConfigError):
            return ()  # the check of the plan says why

    @property
    def trained_sets(self) -> int:
        """How many sets of trainable parameters the phases of the plan have."""
        return len({part.selection.names for part in self.parts})

    @cached_property
    def in_last_stage(self) -> frozenset[str]:
        """Names of the parameters of the model's last stage, the head."""
        entries = self.inventory.entries
        return frozenset(entries[index].name for index in stages(self.inventory)[-1])

    @cached_property
    def wrapper(self) -> DistributedDataParallel | None:
        """The wrapper that was given, or one that lives around the model."""
        given = [w for w in wrappers(self.model) if isinstance(w, DistributedDataParallel)]
        return next(iter(given or live_wrappers(self.root)), None)

    @cached_property
    def sharded_units(self) -> Mapping[str, Any]:
        """Path -> unit of FullyShardedDataParallel, known by name to spare its import."""
        return {
            path or "(model)": module
            for path, module in self.model.named_modules()
            if any(base.__name__ == "FullyShardedDataParallel" for base in type(module).__mro__)
        }

    @cached_property
    def why_not_tried(self) -> str:
        """Why the example cannot be run through the model here; empty where it can."""
        if self.sharded_units:
            return "the model is sharded by FullyShardedDataParallel"
        for tensor in self.root.parameters():
            if is_distributed(tensor):
                return "the model's parameters are sharded"
            if tensor.is_meta:
                return "the model's parameters are on the meta device and have no data"
        return ""

    @cached_property
    def facts(self) -> Facts:
        """What a pass of the example through the model showed, if there can be one."""
        if self.example is None or self.why_not_tried:
            return Facts()
        return run_trial(self.root, self.example, self.targets, self.task)


Find = Callable[[Subject], Iterator[Finding]]
CRASHED = "check-failed"


@final
@dataclass(frozen=True, slots=True)
class Check:
    """One thing to look for.

    Attributes:
        code: of its findings.
        find: gives them; none where what it needs was not given.
    """

    code: str
    find: Find

    def findings(self, subject: Subject) -> Iterator[Finding]:
        """What it finds; its crash is a finding too, since models of strangers do strange."""
        try:
            for found in self.find(subject):
                yield replace(found, code=self.code)
        except Exception as failure:
            yield Finding(
                CRASHED,
                "note",
                f"the check for {self.code} ended with {one_line(failure)}",
                "nothing is known of what it looks for; the other checks were made",
                "Look for what is unusual in the model or the optimizer at that place, or report "
                "it.",
                (self.code,),
            )


def check(code: str) -> Callable[[Find], Check]:
    """Make a check of a function. In a file they stand in their order, the most harmful first."""
    return partial(Check, code)
