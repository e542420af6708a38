"""Whether gradients reach what is to train, and what they have to cross on their way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from frostline.checkup.findings import Finding, counted, listed
from frostline.checkup.subject import Check, Subject
from frostline.checkup.trial import Facts, Gradient
from frostline.fingerprints.parts import is_wrapped
from frostline.units import format_count

_WORTH_TELLING = 0.05  # of the model's numbers, in frozen layers that the backward pass crosses


def _reentrant(subject: Subject) -> Iterator[Finding]:
    if (facts := subject.facts) is None or not facts.watch.reentrant:
        return
    names = tuple(path or "(model)" for path in dict.fromkeys(facts.watch.reentrant))
    yield Finding(
        "reentrant-checkpoint",
        "error",
        f"reentrant gradient checkpointing in {listed(names)} over inputs that want no gradient",
        "it then gives no gradient to anything inside, trainable or not, with no more than a "
        "warning",
        "Pass use_reentrant=False to torch.utils.checkpoint.checkpoint; in transformers, "
        "gradient_checkpointing_kwargs={'use_reentrant': False}.",
        names,
    )


def _no_gradient(subject: Subject) -> Iterator[Finding]:
    facts = subject.facts
    names = _with(facts, "none")
    if facts is None or not names:
        return
    ends = [f"{path or '(model)'} ({_kind(subject, path)})" for path in facts.watch.cut]
    yield Finding(
        "no-gradient",
        "error" if len(names) == len(facts.gradients) else "warning",
        f"{counted(len(names), 'trainable parameter')} got no gradient on the example: "
        f"{listed(names)}{f'; it ends at {listed(ends)}' if ends else ''}",
        _why_none(subject, names),
        _frozen_fix(names, _way_down(subject, names)),
        names,
    )


def _why_none(subject: Subject, names: tuple[str, ...]) -> str:
    wrapped = [n for n in names if is_wrapped(subject.parameters[n])]
    if wrapped:
        kind = type(subject.parameters[wrapped[0]]).__name__
        return (
            f"{listed(wrapped)} {'is' if len(wrapped) == 1 else 'are'} of class {kind}, a kind of "
            "tensor that takes no gradient: what is computed with it never moves it"
        )
    return (
        "no path leads from the loss to them: they are not used in the forward, or something cuts "
        "it (no_grad, detach, argmax, .data, numpy, a layer that quantises its input)"
    )


def _way_down(subject: Subject, names: tuple[str, ...]) -> str:
    """What to do where they are to train after all."""
    if any(is_wrapped(subject.parameters[n]) for n in names):
        return "dequantise them first: layer.weight = torch.nn.Parameter(weight.dequantize())"
    quantised = (
        [p for p in subject.facts.watch.cut if _wrapped_of(subject, p)] if subject.facts else []
    )
    if quantised:
        return (
            f"quantise the weights of {listed(quantised)} only, not what goes in, or dequantise "
            "them"
        )
    return "use them in the forward"


def _kind(subject: Subject, path: str) -> str:
    parts = (f"its {name} of class {kind}" for name, kind in _wrapped_of(subject, path).items())
    return ", ".join([type(subject.root.get_submodule(path)).__name__, *parts])


def _wrapped_of(subject: Subject, path: str) -> dict[str, str]:
    """The module's own parameters of a quantised or other wrapping kind, with their classes."""
    own = subject.root.get_submodule(path).named_parameters(recurse=False)
    return {name: type(p).__name__ for name, p in own if is_wrapped(p)}


def _zero_gradient(subject: Subject) -> Iterator[Finding]:
    facts = subject.facts
    names = _with(facts, "zero")
    if facts is None or not names:
        return
    quiet = facts.watch.dead
    dead = f"; the ReLU at {listed(quiet)} gave nothing but zeros" if quiet else ""
    yield Finding(
        "zero-gradient",
        "error" if len(names) == len(facts.gradients) else "warning",
        f"{counted(len(names), 'trainable parameter')} got a gradient of zero on the example: "
        f"{listed(names)}{dead}",
        "a path leads to them, but everything on it is multiplied by zero: dead ReLUs, a frozen "
        "zero, or an output that has reached its limit",
        "Look at the values before the first layer that is dead: at its bias, the scale of the "
        "input and the learning rate of a run before.",
        names,
    )


def _with(facts: Facts | None, wanted: Gradient) -> tuple[str, ...]:
    """Names with that gradient, without those that another finding explains.

    A bias whose weight gets a gradient has none where what follows takes it away, as a norm or a
    softmax does.
    """
    if facts is None or "" in facts.watch.reentrant:
        return ()
    gradients = facts.gradients
    found = [name for name, kind in gradients.items() if kind == wanted]
    inside = tuple(f"{path}." for path in facts.watch.reentrant)
    return tuple(
        name
        for name in found
        if not name.startswith(inside)
        and not (wanted == "zero" and gradients.get(_weight_of(name)) == "some")
    )


def _weight_of(name: str) -> str:
    stem = name.removesuffix("bias")
    return f"{stem}weight" if stem != name else ""


def _frozen_fix(names: tuple[str, ...], otherwise: str) -> str:
    if len(names) > 3:
        return (
            f"Freeze them so that no optimizer carries them; where they are to train, {otherwise}."
        )
    return f"fl.freeze(model, {' | '.join(names)!r})  # or {otherwise}"


def _crossed(subject: Subject) -> Iterator[Finding]:
    facts = subject.facts
    if facts is None or not facts.watch.crossed:
        return
    numbers = sum(_frozen_numbers(subject, path) for path in facts.watch.crossed)
    total = sum(p.numel() for p in subject.parameters.values())
    if numbers < _WORTH_TELLING * total:
        return
    names = _largest(subject, facts.watch.crossed)
    if wanting := _made_to_want(subject):
        yield Finding(
            "frozen-above-trainable",
            "note",
            f"{format_count(numbers)} frozen numbers ({numbers / total:.0%}) are crossed by the "
            f"backward pass, in {listed(names)}: a hook makes the output of {listed(wanting)}, "
            "which is frozen, want a gradient",
            "transformers hangs it there for gradient checkpointing (enable_input_require_grads); "
            "nothing below trains, so the way down is for nothing",
            "model.disable_input_require_grads()  # after enabling checkpointing, with "
            "use_reentrant=False",
            tuple(facts.watch.crossed),
        )
        return
    yield Finding(
        "frozen-above-trainable",
        "note",
        f"{format_count(numbers)} frozen numbers ({numbers / total:.0%}) lie above trainable "
        f"layers, in {listed(names)}; the lowest that trains is {subject.trainable[0]}",
        "the backward pass must cross them: freezing them saves their own gradients and optimizer "
        "state, but neither the time nor the activations of going through, and no feature above "
        "can be stored",
        "fl.train_only(model, 'stage:-1')  # or train the upper layers and freeze the lower ones; "
        "where it must be so, fl.lean(model) (--lean) saves the activations",
        tuple(facts.watch.crossed),
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


def _frozen_numbers(subject: Subject, path: str) -> int:
    own = subject.root.get_submodule(path).parameters(recurse=False)
    return sum(p.numel() for p in own if not p.requires_grad)


def _largest(subject: Subject, paths: Sequence[str]) -> list[str]:
    """Modules all of whose owners of parameters are among `paths`, the largest of them."""
    found: list[str] = []
    for path in paths:
        best = path
        while best and _owners(subject, above := best.rpartition(".")[0]) <= set(paths):
            best = above
        if best not in found:
            found.append(best)
    return found


def _owners(subject: Subject, path: str) -> set[str]:
    modules = subject.root.get_submodule(path).named_modules(prefix=path)
    return {name for name, m in modules if next(m.parameters(recurse=False), None) is not None}


CHECKS = (
    Check(_reentrant, ("reentrant-checkpoint",)),
    Check(_no_gradient, ("no-gradient",)),
    Check(_zero_gradient, ("zero-gradient",)),
    Check(_crossed, ("frozen-above-trainable",)),
)
