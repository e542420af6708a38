"""Whether the frozen parts would compute the same function in training as in evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import nn

from frostline.checkup.findings import Finding, counted, listed
from frostline.checkup.live import (
    batch_bound_layers,
    frozen_parts,
    moving_layers,
    random_layers,
)
from frostline.checkup.subject import Check, Subject
from frostline.modes import held_though_trainable, modes_kept

_ALL_FROZEN = "[p for p in model.parameters() if not p.requires_grad]"


def _live_dropout(subject: Subject) -> Iterator[Finding]:
    found = _in_training(subject, random_layers)
    if found:
        names = tuple(name for layers in found.values() for name in layers)
        yield Finding(
            "live-dropout",
            "warning",
            f"{counted(len(names), 'layer')} in frozen parts draw random numbers after "
            f"model.train(): {listed(names)}",
            "requires_grad=False leaves the mode alone, so one sample has other features in each "
            "pass; they cannot be stored, and differ from those of evaluation",
            _freeze(tuple(found)),
            names,
        )
    facts = subject.facts
    if facts is not None and facts.random_parts:
        yield Finding(
            "live-dropout",
            "warning",
            f"frozen parts that give other numbers in each pass of train mode: "
            f"{listed(facts.random_parts)}",
            "some code in them draws random numbers, as F.dropout does; features differ from those "
            "of evaluation",
            _freeze(facts.random_parts),
            facts.random_parts,
        )


def _moving_statistics(subject: Subject) -> Iterator[Finding]:
    found = _in_training(subject, moving_layers)
    if not found:
        return
    names = tuple(name for layers in found.values() for name in layers)
    yield Finding(
        "moving-statistics",
        "error",
        f"{counted(len(names), 'frozen layer')} with statistics that follow the data after "
        f"model.train(): {listed(names)}",
        "requires_grad=False freezes the weights alone: running statistics move with each batch, "
        "and any later model.train() undoes an eval() of the part",
        _freeze(tuple(found)),
        names,
    )


def _held_though_trainable(subject: Subject) -> Iterator[Finding]:
    names = tuple(path for path, _ in held_though_trainable(subject.root))
    if names:
        shown = tuple(name or "(model)" for name in names)
        yield Finding(
            "held-though-trainable",
            "error",
            f"{counted(len(names), 'part')} held in eval though trainable: {listed(shown)}",
            "something set requires_grad behind the freeze, as a trainer's finetuning callback: "
            "they would train with dropout and statistics off for ever",
            f"fl.thaw(model, {' | '.join(name or 'all' for name in names)!r})  # gives the modes "
            "back; what is to stay frozen in there, freeze again",
            shown,
        )


def _batch_statistics(subject: Subject) -> Iterator[Finding]:
    parts = frozen_parts(subject.root) if subject.trainable else ()
    names = tuple(name for path, part in parts for name in batch_bound_layers(path, part))
    if names:
        yield Finding(
            "batch-statistics",
            "warning",
            f"{counted(len(names), 'frozen batch norm')} without running statistics: "
            f"{listed(names)}",
            "what a sample becomes depends on the others in its batch, in eval mode too; "
            "track_running_stats=False does not freeze a batch norm",
            "Build it with track_running_stats=True, load the statistics, and freeze it with "
            "fl.freeze, which holds them.",
            names,
        )


def _changes_in_eval(subject: Subject) -> Iterator[Finding]:
    facts = subject.facts
    if facts is None or not facts.moved_in_eval:
        return
    names = facts.moved_in_eval
    yield Finding(
        "changes-in-eval",
        "warning",
        f"{counted(len(names), 'buffer')} changed by a pass in eval mode: {listed(names)}",
        "the model is another one after each evaluation, and holding a frozen part in eval does "
        "not hold these",
        "Write to them under `if self.training:` only.",
        names,
    )


def _moving_embeddings(subject: Subject) -> Iterator[Finding]:
    names = tuple(
        path
        for path, module in subject.root.named_modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
        and module.max_norm is not None
        and not module.weight.requires_grad
    )
    if names:
        yield Finding(
            "moving-embedding",
            "error",
            f"{counted(len(names), 'frozen embedding')} with max_norm: {listed(names)}",
            "its forward scales the rows that it reads, in its own weight and in eval mode too, so "
            "what is frozen moves",
            f"model.get_submodule({names[0]!r}).max_norm = None  # of each of them, once its rows "
            "are scaled",
            names,
        )


def _in_training(
    subject: Subject, layers: Callable[[str, nn.Module], Iterator[str]]
) -> dict[str, tuple[str, ...]]:
    """Frozen part -> layers of it, as they are after a call of `model.train()`.

    Nothing where the whole model is frozen: then nobody trains, and another finding says so.
    """
    if not subject.trainable:
        return {}
    with modes_kept(subject.root):
        subject.root.train()
        found = {path: tuple(layers(path, part)) for path, part in frozen_parts(subject.root)}
    return {path: names for path, names in found.items() if names}


def _freeze(paths: tuple[str, ...]) -> str:
    if len(paths) > 3:
        return f"fl.freeze(model, {_ALL_FROZEN})  # holds their mode too"
    return f"fl.freeze(model, {' | '.join(paths)!r})  # holds their mode too"


CHECKS = (
    Check(_held_though_trainable, ("held-though-trainable",)),
    Check(_moving_statistics, ("moving-statistics",)),
    Check(_live_dropout, ("live-dropout",)),
    Check(_batch_statistics, ("batch-statistics",)),
    Check(_changes_in_eval, ("changes-in-eval",)),
    Check(_moving_embeddings, ("moving-embedding",)),
)
