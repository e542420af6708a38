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
    replaced_norms,
)
from frostline.checkup.subject import Check, Subject
from frostline.freezing.modes import held_though_trainable, modes_kept

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
    replaced = dict(replaced_norms(subject.root))
    found = {
        path: left
        for path, names in _in_training(subject, moving_layers).items()
        if (left := tuple(name for name in names if name not in replaced))
    }
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


def _replaced_norm(subject: Subject) -> Iterator[Finding]:
    found = dict(replaced_norms(subject.root))
    if found:
        shown = [f"{path} ({type(norm).__name__})" for path, norm in found.items()]
        yield Finding(
            "replaced-norm",
            "error",
            f"{counted(len(found), 'norm')} put into held parts after the freeze: {listed(shown)}",
            "what held the norm before went with it: the new one has no hold, its statistics move "
            "in training, and parameters of its own train",
            f"fl.freeze(model, {' | '.join(found)!r})  # or convert first, then freeze",
            tuple(found),
        )


def _held_though_trainable(subject: Subject) -> Iterator[Finding]:
    new = {p for _, norm in replaced_norms(subject.root) for p in norm.parameters()}
    names = tuple(
        path
        for path, part in held_though_trainable(subject.root)
        if any(p.requires_grad and p not in new for p in part.parameters())
    )
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


def _random_in_eval(subject: Subject) -> Iterator[Finding]:
    root, facts = subject.root, subject.facts
    with modes_kept(root):
        root.eval()
        names = tuple(random_layers("", root))
        live = tuple(path for path, module in root.named_modules() if path and module.training)
    if names:
        draw = "draws" if len(names) == 1 else "draw"
        seen = f"{counted(len(names), 'layer')} {draw} random numbers after model.eval(): "
        seen += listed(names)
    elif facts is not None and facts.differs_in_eval:
        seen = "the output in eval mode differs between two passes of one batch"
        seen += f"; in train mode after model.eval(): {listed(live)}" if live else ""
    else:
        return
    frozen = [path for path, part in frozen_parts(root) if _is_around(path, names or live)]
    yield Finding(
        "random-in-eval",
        "warning",
        seen,
        "the model is evaluated with noise, and what a frozen part gives is never the same twice; "
        "a train() of the model's own may pass parts over, as after a freeze_encoder()",
        _freeze(tuple(frozen))
        if frozen
        else "Ask the mode where random numbers are drawn: F.dropout(x, training=self.training).",
        names or live,
    )


def _is_around(path: str, names: tuple[str, ...]) -> bool:
    return any(name == path or name.startswith(f"{path}.") for name in names)


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
    Check(_replaced_norm, ("replaced-norm",)),
    Check(_held_though_trainable, ("held-though-trainable",)),
    Check(_moving_statistics, ("moving-statistics",)),
    Check(_live_dropout, ("live-dropout",)),
    Check(_batch_statistics, ("batch-statistics",)),
    Check(_changes_in_eval, ("changes-in-eval",)),
    Check(_random_in_eval, ("random-in-eval",)),
)
