"""Whether the frozen parts would compute the same function in training as in evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from frostline.checkup.adapters import switched_by_peft
from frostline.checkup.findings import Finding, counted, enumerated, error, listed, warning
from frostline.checkup.live import (
    frozen_parts,
    layers_between,
    moving_layers,
    random_layers,
    replaced_norms,
)
from frostline.checkup.subject import Subject, check
from frostline.freezing.modes import held_though_trainable, modes_kept


@check("replaced-norm")
def replaced_norm(subject: Subject) -> Iterator[Finding]:
    if found := replaced_norms(subject.root):
        shown = [f"{path} ({type(norm).__name__})" for path, norm in found.items()]
        yield error(
            enumerated(shown, "norm", "put into held parts after the freeze"),
            "what held the norm before went with it: the new one has no hold, its statistics move "
            "in training, and parameters of its own train",
            f"fl.freeze(model, {' | '.join(found)!r})  # or convert first, then freeze",
            tuple(found),
        )


@check("held-though-trainable")
def held_and_trainable(subject: Subject) -> Iterator[Finding]:
    new = {p for norm in replaced_norms(subject.root).values() for p in norm.parameters()}
    stray = {
        path: own
        for path, part in held_though_trainable(subject.root)
        if (own := {p for p in part.parameters() if p.requires_grad and p not in new})
    }
    if stray:
        shown = tuple(path or "(model)" for path in stray)
        yield error(
            enumerated(shown, "part", "held in eval though trainable"),
            f"{_behind(subject.root, set().union(*stray.values()))}: they would train with dropout "
            "and statistics off for ever",
            "fl.thaw(model, [p for p in model.parameters() if p.requires_grad])  # gives the modes "
            "back; or freeze again what is not to train",
            shown,
        )


def _behind(root: nn.Module, trainable: set[nn.Parameter]) -> str:
    """What may have made the parameters of held parts want gradients."""
    if trainable.isdisjoint(switched_by_peft(root)):
        return "something set requires_grad behind the freeze, as a trainer's finetuning callback"
    return (
        "something set requires_grad behind the freeze: PEFT switches adapters and its copies of "
        "layers on in get_peft_model(), set_adapter() and behind `with disable_adapter()`"
    )


@check("moving-statistics")
def moving_statistics(subject: Subject) -> Iterator[Finding]:
    replaced = replaced_norms(subject.root)
    found = [(part, n) for part, n in _in_training(subject, moving_layers) if n not in replaced]
    if found:
        names = tuple(name for _, name in found)
        yield error(
            enumerated(
                names, "frozen layer", "with statistics that follow the data after model.train()"
            ),
            "requires_grad=False freezes the weights alone: running statistics move with each "
            "batch, and any later model.train() undoes an eval() of the part",
            _freeze(part for part, _ in found),
            names,
        )


@check("live-dropout")
def live_dropout(subject: Subject) -> Iterator[Finding]:
    if found := _in_training(subject, random_layers):
        names = tuple(name for _, name in found)
        yield warning(
            f"{counted(len(names), 'layer')} in frozen parts draw random numbers after "
            f"model.train(): {listed(names)}",
            "requires_grad=False leaves the mode alone, so one sample has other features in each "
            "pass; they cannot be stored, and differ from those of evaluation",
            _freeze(part for part, _ in found),
            names,
        )
    if parts := subject.facts.random_parts:
        yield warning(
            f"frozen parts that give other numbers in each pass of train mode: {listed(parts)}",
            "some code in them draws random numbers, as F.dropout does; features differ from those "
            "of evaluation",
            _freeze(parts),
            parts,
        )


@check("dropout-between")
def dropout_between(subject: Subject) -> Iterator[Finding]:
    if not subject.trainable:
        return
    with modes_kept(subject.root):
        subject.root.train()
        # Of one that is frozen as a whole another check tells.
        whole = tuple(f"{path}." for path, _ in frozen_parts(subject.root))
        names = tuple(n for n in layers_between(subject.root) if not n.startswith(whole))
    if names:
        yield warning(
            f"between frozen layers, drawing random numbers after model.train(): {listed(names)}",
            "they have no parameters that a freeze could name, and the part around them trains: a "
            "sample has other features in each pass, and the frozen layers behind are computed in "
            "each step",
            "; ".join(f"model.get_submodule({name!r}).p = 0.0" for name in names[:3])
            if len(names) <= 3
            else "Set p = 0.0 on each of them.",
            names,
        )


@check("batch-statistics")
def batch_statistics(subject: Subject) -> Iterator[Finding]:
    names = tuple(
        name
        for path, part in (frozen_parts(subject.root) if subject.trainable else ())
        for name, module in part.named_modules(prefix=path)
        if isinstance(module, _BatchNorm) and module.running_mean is None
    )
    if names:
        yield warning(
            enumerated(names, "frozen batch norm", "without running statistics"),
            "what a sample becomes depends on the others in its batch, in eval mode too; "
            "track_running_stats=False does not freeze a batch norm",
            "Build it with track_running_stats=True, load the statistics, and freeze it with "
            "fl.freeze, which holds them.",
            names,
        )


@check("changes-in-eval")
def changes_in_eval(subject: Subject) -> Iterator[Finding]:
    if names := subject.facts.moved_in_eval:
        yield warning(
            enumerated(names, "tensor", "changed by a pass in eval mode"),
            "the model is another one after each evaluation, and holding a frozen part in eval "
            "does not hold these",
            "Write to them under `if self.training:` only; where the first pass alone does so, run "
            "it before the freeze.",
            names,
        )


@check("random-in-eval")
def random_in_eval(subject: Subject) -> Iterator[Finding]:
    root = subject.root
    with modes_kept(root):
        root.eval()
        names = tuple(random_layers("", root))
        live = tuple(path for path, module in root.named_modules() if path and module.training)
    if names:
        draw = "draws" if len(names) == 1 else "draw"
        seen = enumerated(names, "layer", f"{draw} random numbers after model.eval()")
    elif subject.facts.differs_in_eval:
        seen = "the output in eval mode differs between two passes of one batch"
        seen += f"; in train mode after model.eval(): {listed(live)}" if live else ""
    else:
        return
    around = [
        path
        for path, _ in frozen_parts(root)
        if any(f"{name}.".startswith(f"{path}.") for name in names or live)
    ]
    yield warning(
        seen,
        "the model is evaluated with noise, and what a frozen part gives is never the same twice; "
        "a train() of the model's own may pass parts over, as after a freeze_encoder()",
        _freeze(around)
        if around
        else "Ask the mode where random numbers are drawn: F.dropout(x, training=self.training).",
        names or live,
    )


def _in_training(
    subject: Subject, layers: Callable[[str, nn.Module], Iterator[str]]
) -> list[tuple[str, str]]:
    """A frozen part and a layer of it, for all, as they are after a call of `model.train()`.

    Nothing where the whole model is frozen: then nobody trains, and another finding says so.
    """
    if not subject.trainable:
        return []
    with modes_kept(subject.root):
        subject.root.train()
        parts = frozen_parts(subject.root)
        return [(path, name) for path, part in parts for name in layers(path, part)]


def _freeze(paths: Iterable[str]) -> str:
    parts = list(dict.fromkeys(paths))
    what = repr(" | ".join(parts))
    if len(parts) > 3:
        what = "[p for p in model.parameters() if not p.requires_grad]"
    return f"fl.freeze(model, {what})  # holds their mode too"
