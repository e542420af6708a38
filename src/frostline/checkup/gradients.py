"""Whether gradients reach what is to train, and what they have to cross on their way."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from frostline.checkup.findings import Finding, enumerated, error, listed, note, warning
from frostline.checkup.subject import Subject, check
from frostline.checkup.trial import Gradient
from frostline.units import format_count
from frostline.wording import either
from frostline.wrapped import is_wrapped

_WORTH_TELLING = 0.05  # of the model's numbers, in frozen layers that the backward pass crosses


@check("reentrant-checkpoint")
def reentrant_checkpoint(subject: Subject) -> Iterator[Finding]:
    names = tuple(path or "(model)" for path in dict.fromkeys(subject.facts.watch.reentrant))
    if names:
        yield error(
            f"reentrant gradient checkpointing in {listed(names)} over inputs that want no "
            "gradient",
            "it then gives no gradient to anything inside, trainable or not, with no more than a "
            "warning",
            "Pass use_reentrant=False to torch.utils.checkpoint.checkpoint; in transformers, "
            "gradient_checkpointing_kwargs={'use_reentrant': False}.",
            names,
        )


@check("no-gradient")
def no_gradient(subject: Subject) -> Iterator[Finding]:
    names = _unexplained(subject, "none")
    if not names:
        return
    cut = {path: subject.root.get_submodule(path) for path in subject.facts.watch.cut}
    inside = {path: _wrapped_in(module) for path, module in cut.items()}
    kinds = {path: ", ".join([type(cut[path]).__name__, *inside[path]]) for path in cut}
    ends = [f"{path or '(model)'} ({kind})" for path, kind in kinds.items()]
    quantised = [path for path in cut if inside[path]]
    wrapped = [name for name in names if is_wrapped(subject.parameters[name])]
    why = (
        "no path leads from the loss to them: they are not used in the forward, or something cuts "
        "it (no_grad, detach, argmax, .data, numpy, a layer that quantises its input)"
    )
    way = "use them in the forward"  # where they are to train after all
    if wrapped:
        kind = type(subject.parameters[wrapped[0]]).__name__
        why = (
            f"{listed(wrapped)} {'is' if len(wrapped) == 1 else 'are'} of class {kind}, a kind of "
            "tensor that takes no gradient: what is computed with it never moves it"
        )
        way = "dequantise them first: layer.weight = torch.nn.Parameter(weight.dequantize())"
    elif quantised:
        way = (
            f"quantise the weights of {listed(quantised)} only, not what goes in, or dequantise "
            "them"
        )
    fix = f"fl.freeze(model, {' | '.join(names)!r})  # or {way}"
    if len(names) > 3:
        fix = f"Freeze them so that no optimizer carries them; where they are to train, {way}."
    all_of_them = len(names) == len(subject.facts.gradients)
    yield (error if all_of_them else warning)(
        enumerated(names, "trainable parameter", "got no gradient on the example")
        + (f"; it ends at {listed(ends)}" if ends else ""),
        why,
        fix,
        names,
    )


def _wrapped_in(module: nn.Module) -> list[str]:
    """The module's own parameters of a quantised or other wrapping kind, with their classes."""
    own = module.named_parameters(recurse=False)
    return [f"its {name} of class {type(p).__name__}" for name, p in own if is_wrapped(p)]


@check("zero-gradient")
def zero_gradient(subject: Subject) -> Iterator[Finding]:
    gradients, dead = subject.facts.gradients, subject.facts.watch.dead
    # A bias whose weight gets a gradient has none where what follows takes it away, as a norm or
    # a softmax does.
    names = tuple(
        name
        for name in _unexplained(subject, "zero")
        if not name.endswith("bias")
        or gradients.get(f"{name.removesuffix('bias')}weight") != "some"
    )
    if names:
        yield (error if len(names) == len(gradients) else warning)(
            enumerated(names, "trainable parameter", "got a gradient of zero on the example")
            + (f"; the ReLU at {listed(dead)} gave nothing but zeros" if dead else ""),
            "a path leads to them, but everything on it is multiplied by zero: dead ReLUs, a "
            "frozen zero, or an output that has reached its limit",
            "Look at the values before the first layer that is dead: at its bias, the scale of the "
            "input and the learning rate of a run before.",
            names,
        )


def _unexplained(subject: Subject, gradient: Gradient) -> tuple[str, ...]:
    """Who got such a gradient, but for what reentrant checkpointing explains."""
    inside = tuple(f"{path}." if path else "" for path in subject.facts.watch.reentrant)
    return tuple(n for n in subject.facts.with_gradient(gradient) if not n.startswith(inside))


@check("frozen-above-trainable")
def frozen_above_trainable(subject: Subject) -> Iterator[Finding]:
    crossed = subject.facts.watch.crossed
    own = [subject.root.get_submodule(path).parameters(recurse=False) for path in crossed]
    numbers = sum(p.numel() for parameters in own for p in parameters if not p.requires_grad)
    total = sum(p.numel() for p in subject.parameters.values())
    if not crossed or numbers < _WORTH_TELLING * total:
        return
    what = f"{format_count(numbers)} frozen numbers ({numbers / total:.0%})"
    where = listed(_largest(subject, crossed))
    if wanting := _made_to_want(subject):
        yield note(
            f"{what} are crossed by the backward pass, in {where}: a hook makes the output of "
            f"{listed(wanting)}, which is frozen, want a gradient",
            "transformers hangs it there for gradient checkpointing (enable_input_require_grads); "
            "nothing below trains, so the way down is for nothing",
            "model.disable_input_require_grads()  # after enabling checkpointing, with "
            "use_reentrant=False",
            tuple(crossed),
        )
        return
    yield note(
        f"{what} lie above trainable layers, in {where}; the lowest that trains is "
        f"{subject.trainable[0]}",
        "the backward pass must cross them: freezing them saves their own gradients and optimizer "
        "state, but neither the time nor the activations of going through, and no feature above "
        "can be stored",
        either("fl.train_only(model, 'stage:-1')  # or train", "--train 'stage:-1', or train")
        + " the upper layers and freeze the lower ones; where it must be so, "
        + either("fl.lean(model)", "--lean")
        + " saves the activations",
        tuple(crossed),
    )


def _made_to_want(subject: Subject) -> list[str]:
    """Frozen modules whose output wants a gradient by a hook of transformers or PEFT."""
    return [
        path
        for path, module in subject.root.named_modules()
        for hook in module._forward_hooks.values()
        if getattr(hook, "__name__", "") == "make_inputs_require_grads"
        and not any(parameter.requires_grad for parameter in module.parameters())
    ]


def _largest(subject: Subject, paths: list[str]) -> list[str]:
    """Modules all of whose owners of parameters are among `paths`, the largest of them."""
    found = []
    for path in paths:
        best = path
        while best and _owners(subject, above := best.rpartition(".")[0]) <= set(paths):
            best = above
        found.append(best)
    return list(dict.fromkeys(found))


def _owners(subject: Subject, path: str) -> set[str]:
    modules = subject.root.get_submodule(path).named_modules(prefix=path)
    return {name for name, m in modules if next(m.parameters(recurse=False), None) is not None}
