"""`fl.doctor`: what is wrong with a set-up, found before training runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from frostline.calling import in_turn
from frostline.checkup import data, distributed, gradients, modes, passes, selection, structure
from frostline.checkup import optimizer as optimizers
from frostline.checkup.findings import Checkup, Finding, Level, sorted_findings
from frostline.checkup.subject import Check, Preprocess, Subject
from frostline.errors import ConfigError, FreezeError, SelectorError, one_line
from frostline.freezing import freeze as freeze_part
from frostline.freezing import freezes_kept, train_only
from frostline.plans import Plan
from frostline.recipe import check_alone
from frostline.selectors import Selector, SelectorLike, as_selector
from frostline.tasks import Task, task_of

__all__ = ["CODES", "Check", "Checkup", "Finding", "Level", "doctor"]

# The most harmful first: what stops training, what trains the wrong thing, what trains badly.
_CHECKS: tuple[Check, ...] = (
    *selection.CHECKS,
    *passes.CHECKS,
    *optimizers.CHECKS,
    *gradients.CHECKS,
    *modes.CHECKS,
    *distributed.CHECKS,
    *data.CHECKS,
    *structure.CHECKS,
)
_CRASHED = "check-failed"

CODES = (*selection.CODES, *chain.from_iterable(check.codes for check in _CHECKS), _CRASHED)
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
    """
    asked, verb = _asked(freeze, train, plan)
    given = {"example": example, "optimizer": optimizer, "train_data": train_data}
    missing = tuple(name for name, value in given.items() if value is None)
    if not isinstance(model, nn.Module):
        raise SelectorError(f"the doctor looks at a torch.nn.Module, got {type(model).__name__}.")
    if lazy := selection.lazy_finding(model):
        return Checkup((lazy,))
    subject = Subject(
        model=model,
        example=example,
        targets=targets,
        task=task_of(task),
        optimizers=_optimizers(optimizer),
        schedulers=tuple(schedulers),
        classes=classes if classes is None or isinstance(classes, int) else len(classes),
        asked=asked,
        verb=verb,
        plan=plan,
        train_data=train_data,
        val_data=val_data,
        preprocessing=preprocessing,
        weights_preprocessing=weights_preprocessing,
    )
    return Checkup(sorted_findings(_findings(subject)), missing)


def _findings(subject: Subject) -> list[Finding]:
    """What all checks find, in a model that is frozen as asked meanwhile."""
    found: list[Finding] = []
    with ExitStack() as kept:
        if subject.asked is not None or subject.plan is not None:
            kept.enter_context(freezes_kept(subject.root))
            try:
                _apply(subject)
            except FreezeError as error:
                found.append(selection.refused_finding(error))
            except SelectorError:
                pass  # the checks of selection and plan say why
        for check in _CHECKS:
            found += _checked(check, subject)
    return found


def _apply(subject: Subject) -> None:
    root, asked, verb = subject.root, subject.asked, subject.verb
    if subject.plan is not None:
        first = subject.plan[0]
        wanted = first.train if first.freeze is None else first.freeze
        if wanted is None:
            return
        asked, verb = as_selector(wanted), "train" if first.freeze is None else "freeze"
        if verb == "freeze":
            asked, verb = ~asked, "train"  # a phase trains all that it does not freeze
    assert asked is not None
    if verb == "train":
        train_only(root, asked)
    else:
        freeze_part(root, asked, leaving="nothing")


def _checked(check: Check, subject: Subject) -> Iterator[Finding]:
    """A check's findings; its crash is one of its own, since models of strangers do strange."""
    try:
        yield from check.find(subject)
    except Exception as error:
        yield Finding(
            _CRASHED,
            "note",
            f"the check for {', '.join(check.codes)} ended with {one_line(error)}",
            "nothing is known of what it looks for; the other checks were made",
            "Look for what is unusual in the model or the optimizer at that place, or report it.",
            check.codes,
        )


def _asked(
    freeze: SelectorLike | None, train: SelectorLike | None, plan: Plan | None
) -> tuple[Selector | None, str]:
    check_alone(freeze=freeze, train=train, plan=plan)
    wanted = freeze if freeze is not None else train
    return None if wanted is None else as_selector(
        wanted
    ), "train" if train is not None else "freeze"


def _optimizers(
    given: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None,
) -> tuple[torch.optim.Optimizer, ...]:
    if given is None:
        return ()
    found = tuple(given) if isinstance(given, list | tuple) else (given,)
    for one in found:
        if not isinstance(one, torch.optim.Optimizer):
            raise ConfigError(
                f"the optimizer is {type(one).__name__}, no torch.optim.Optimizer. Give the torch "
                "optimizer, or a list of them."
            )
    return found
