"""The phases of the ready-made plans; what each is for stands with `Plan`'s own methods."""

from __future__ import annotations

from torch import nn

from frostline.errors import ConfigError
from frostline.plans.phases import Phase
from frostline.selectors import Selector, inventory, select, select_policy
from frostline.selectors import stages as stages_of

Phases = tuple[Phase, ...]
Head = str | Selector
_HEAD = "stage:-1"
_MOST_STAGES = 4


def head_only(model: nn.Module, *, epochs: int, lr: float | None, head: Head) -> Phases:
    """The head alone."""
    select(model, head)
    return (_head(head, epochs, lr=lr),)


def gradual(
    model: nn.Module,
    *,
    stages: int | None,
    epochs_each: int,
    lr: float | None,
    layer_decay: float,
    head: Head,
) -> Phases:
    """The head, then one stage more in each phase."""
    count = _stage_count(model)
    wanted = min(_MOST_STAGES, count) if stages is None else stages
    if not 1 <= wanted <= count:
        raise ConfigError(
            f"stages={wanted} asks for what {type(model).__name__} does not have: it has {count}, "
            f"the head among them. Ask for 1 to {count}; see them: print(fl.summary(model))."
        )
    select(model, head)
    thawed = (
        Phase(
            name=f"top {number}",
            train=_beside(head, f"stage:-{number}..-1"),
            epochs=epochs_each,
            lr=lr,
            layer_decay=layer_decay,
        )
        for number in range(2, wanted + 1)
    )
    return (_head(head, epochs_each), *thawed)


def lp_ft(
    model: nn.Module,
    *,
    probe_epochs: int,
    tune_epochs: int,
    lr: float,
    layer_decay: float | None,
    head: Head,
) -> Phases:
    """The head, then everything from the best of it."""
    select(model, head)
    tune = Phase(
        name="tune", train="all", epochs=tune_epochs, lr=lr, layer_decay=layer_decay, start="best"
    )
    return (_head(head, probe_epochs, name="probe"), tune)


def surgical(
    model: nn.Module, *, stage: int, head_epochs: int, epochs: int, lr: float, head: Head
) -> Phases:
    """The head, then one stage beside it."""
    chosen = f"stage:{stage}"
    if set(select(model, chosen).names) <= set(select(model, head).names):
        below = _stage_count(model) - 2
        others = f"Choose one below it, 0 to {below}" if below >= 0 else "It has no other stage"
        raise ConfigError(
            f"stage={stage} of {type(model).__name__} is the head, which trains in any case. "
            f"{others}; Plan.head_only trains the head alone."
        )
    tune = Phase(name="tune", train=f"{chosen} | {head}", epochs=epochs, lr=lr)
    return (_head(head, head_epochs), tune)


def full(*, epochs: int, lr: float | None, layer_decay: float | None) -> Phases:
    """Everything at once."""
    return (Phase(name="all", train="all", epochs=epochs, lr=lr, layer_decay=layer_decay),)


def norm_and_bias(model: nn.Module, *, epochs: int, lr: float, head: Head) -> Phases:
    """Norms, biases and the head."""
    own = set(select(model, head).names)
    kinds = [k for k in ("kind:norm", "kind:bias") if set(select_policy(model, k).names) - own]
    if not kinds:
        raise ConfigError(
            f"{type(model).__name__} has neither a norm nor a bias below its head, so there is "
            "nothing for this plan to train there. Use Plan.head_only or Plan.lp_ft."
        )
    train = " | ".join([*kinds, str(head)])
    return (Phase(name="norms and biases", train=train, epochs=epochs, lr=lr),)


def _head(head: Head, epochs: int, *, name: str = "head", lr: float | None = None) -> Phase:
    return Phase(name=name, train=head, epochs=epochs, lr=lr)


def _beside(head: Head, chosen: str) -> str:
    """The stages `chosen`, which hold the last one, with the head where that is another."""
    return chosen if str(head) == _HEAD else f"{chosen} | {head}"


def _stage_count(model: nn.Module) -> int:
    return len(stages_of(inventory(model)))
