"""`fl.doctor`: what is wrong with a set-up, found before training runs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from frostline.calling import in_turn
from frostline.checkup import (
    adapters,
    data,
    distributed,
    gradients,
    modes,
    passes,
    selection,
    structure,
)
from frostline.checkup import optimizer as optimizers
from frostline.checkup.findings import LEVELS, Checkup, Finding, Level, enumerated
from frostline.checkup.subject import CRASHED, Check, Preprocess, Subject
from frostline.errors import ConfigError, FreezeError, SelectorError
from frostline.freezing import freeze as freeze_part
from frostline.freezing import freezes_kept, train_only
from frostline.plans import Plan
from frostline.recipe import check_alone
from frostline.selectors import SelectorLike, as_selector
from frostline.tasks import Task, task_of
from frostline.wording import either

__all__ = ["CODES", "Checkup", "Finding", "Level", "doctor"]

# The most harmful first: what stops training, what trains the wrong thing, what trains badly.
_UNDER_WAY = (passes, optimizers, adapters, gradients, modes, distributed)
_FILES = (selection, *_UNDER_WAY, data, structure)
_CHECKS = [one for file in _FILES for one in vars(file).values() if isinstance(one, Check)]

CODES = ("lazy-module", *(one.code for one in _CHECKS), CRASHED)
"""Every code that a finding may have."""


# Long by its arguments, each of which goes on to the checks.
@in_turn
def doctor(
    model: nn.Module,
    example: Any = None,
    *,
    targets: Tensor | None = None,
    task: Task | str | None = None,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
    schedulers: Sequence[object] = (),
    classes: int | Sequence[str] | None = None,
    freeze: SelectorLike | None = None,
    train: SelectorLike | None = None,
    plan: Plan | None = None,
    train_data: object = None,
    val_data: object = None,
    preprocessing: Preprocess | None = None,
    weights_preprocessing: Preprocess | None = None,
) -> Checkup:
    """Say what is wrong with a set-up, the worst first, without training.

    Only `model` is needed; a check that needs more than was given says nothing. The example goes
    forwards and backwards through the model once, again where parameters get no gradient, and
    once in eval mode. Afterwards everything is as it was: every bit, gradient, mode, hook and
    random number. It takes a copy of the weights meanwhile.

    Args:
        model: as it would be trained, wrapped or not. The passes go through the model inside.
        example: one batch as the model takes it, on its device: a tensor, a tuple of arguments, or
            a mapping of named ones; real data where possible, four samples or more.
        targets: of the example: class indices, or as the task takes them.
        task: whose loss is taken, as for `fl.fit`; by default classification.
        optimizer: one or several that would step.
        schedulers: of the learning rates.
        classes: their names, or how many.
        freeze, train: a selector, checked as `fl.freeze` or `fl.train_only` would apply it.
        plan: its first phase is what the model is checked in; the others are checked with it.
        train_data, val_data: data sets or loaders. Image files are read once for their content.
        preprocessing: what makes a tensor of a picture, a `Preprocessing` or any function.
        weights_preprocessing: the one that the weights were trained with.

    Raises:
        ConfigError: two of freeze, train and plan are given, or an optimizer is none.
        SelectorError: `model` is no module, or a selector cannot be read; one that matches
            nothing is a finding.

    Example:
        >>> optimizer = torch.optim.SGD(model.backbone.parameters(), lr=0.1)
        >>> print(fl.doctor(model, images, targets=labels, optimizer=optimizer))
        error: not-in-optimizer
          2 trainable parameters in no optimizer: head.2.weight, head.2.bias
        ...
    """
    check_alone(freeze=freeze, train=train, plan=plan)
    if not isinstance(model, nn.Module):
        raise SelectorError(f"the doctor looks at a torch.nn.Module, got {type(model).__name__}.")
    return _checkup(
        Subject(
            model=model,
            example=example,
            targets=targets,
            task=task_of(task),
            optimizers=_optimizers(optimizer),
            schedulers=tuple(schedulers),
            classes=classes if classes is None or isinstance(classes, int) else len(classes),
            freeze=None if freeze is None else as_selector(freeze),
            train=None if train is None else as_selector(train),
            plan=plan,
            train_data=train_data,
            val_data=val_data,
            preprocessing=preprocessing,
            weights_preprocessing=weights_preprocessing,
        )
    )


def _checkup(subject: Subject) -> Checkup:
    """What all checks find, in a model that is frozen as asked meanwhile."""
    found: list[Finding] = []
    named = subject.model.named_parameters()
    if shapeless := tuple(name for name, parameter in named if is_lazy(parameter)):
        fix = "model(example)  # one batch gives lazy modules their shapes"
        why = "they can neither be frozen nor given to an optimizer before the first call"
        seen = enumerated(shapeless, "parameter", "without a shape yet")
        return Checkup((Finding("lazy-module", "error", seen, why, fix, shapeless),))
    with freezes_kept(subject.root) if subject.asked or subject.plan else nullcontext():
        try:
            _freeze_as_asked(subject)
        except FreezeError as refusal:
            why = "what was asked for would be refused; the other checks saw the model as it is"
            shows = either("fl.select(model, ...)", "`frostline inspect MODEL --train SEL`")
            fix = f"Choose another selector; {shows} shows what one matches."
            found.append(Finding("cannot-freeze", "error", str(refusal), why, fix))
        except SelectorError:
            pass  # the checks of selection and plan say why
        for check in _CHECKS:
            found += check.findings(subject)
    needed = {
        "example": subject.example is not None,
        "optimizer": subject.optimizers,
        "train_data": subject.train_data is not None,
    }
    missing = tuple(name for name, is_given in needed.items() if not is_given)
    return Checkup(tuple(sorted(found, key=lambda one: LEVELS.index(one.level))), missing)


def _freeze_as_asked(subject: Subject) -> None:
    train, freeze = subject.train, subject.freeze
    if subject.plan is not None:
        first = subject.plan[0]
        train = None if first.train is None else as_selector(first.train)
        if first.freeze is not None:
            train = ~as_selector(first.freeze)  # a phase trains all that it does not freeze
    if train is not None:
        train_only(subject.root, train)
    elif freeze is not None:
        freeze_part(subject.root, freeze, leaving="nothing")


def _optimizers(
    given: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None,
) -> tuple[torch.optim.Optimizer, ...]:
    found = given if isinstance(given, list | tuple) else [] if given is None else [given]
    for one in found:
        if not isinstance(one, torch.optim.Optimizer):
            raise ConfigError(
                f"the optimizer is {type(one).__name__}, no torch.optim.Optimizer. Give the torch "
                "optimizer, or a list of them."
            )
    return tuple(found)
