"""The heads and dropout of members: as chains with their first weights, or put on a model."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from frostline.cutting.chains import Chain, with_dropout, with_head
from frostline.errors import ConfigError, ModelError
from frostline.models import Stacked, find_classifier, put_head, seeded, set_dropout
from frostline.models.classifiers import logit_layer, widths
from frostline.models.heads import build_head
from frostline.sweeps.settings import Setting
from frostline.wording import option


def head_path(model: nn.Module) -> str:
    """Where a member's head is put: in place of the classifier, or of a stacked head.

    Raises:
        ModelError: there is no one classifier.
    """
    if isinstance(model, Stacked):
        return "head"
    found = find_classifier(model)
    if len(found) > 1:
        raise ModelError(
            f"{type(model).__name__} has {len(found)} classifiers ({', '.join(found)}), so no one "
            f"head can be put in their place. Leave out {option('heads')}."
        )
    return found[0]


def chain_for(model: nn.Module, chain: Chain, setting: Setting) -> Chain | str:
    """The member's chain; where its head cannot be put into this one, why, for people."""
    made = chain
    if setting.head is not None:
        path = head_path(model)
        put = with_head(chain, path, setting.head, setting.dropout)
        if put is None:
            return f"the head at {path} is no linear layer"
        made = put
    return made if setting.dropout is None else with_dropout(made, setting.dropout)


def first_tensors(
    model: nn.Module, chain: Chain, setting: Setting, classes: int
) -> dict[str, Tensor]:
    """What the member's training begins with: the model's own tensors, and those of a new head."""
    new: Mapping[str, Tensor] = {}
    if setting.head is not None:
        path = head_path(model)
        width = _width(model, path)
        with seeded(setting.seed):
            head = build_head(width, classes, setting.head, dropout=setting.dropout)
        new = {f"{path}.{name}": tensor for name, tensor in head.state_dict().items()}
    own = dict(model.named_parameters())
    return {name: (new[name] if name in new else own[name]).detach() for name in chain.tensors}


def _width(model: nn.Module, path: str) -> int:
    """Values that the head takes."""
    module = model.get_submodule(path)
    first = next((m for m in module.modules() if isinstance(m, nn.Linear)), None)
    return first.in_features if first is not None else widths(logit_layer(model, path))[0]


def put_setting(model: nn.Module, setting: Setting, classes: int) -> None:
    """Give `model` the member's head and dropout; what is frozen stays so."""
    if setting.head is not None:
        if isinstance(model, Stacked):
            model.head = put_head(
                model.backbone,
                classes=classes,
                hidden=setting.head,
                on="logits",
                seed=setting.seed,
                dropout=setting.dropout,
            ).model.get_submodule("head")
        else:
            put_head(
                model,
                classes=classes,
                hidden=setting.head,
                seed=setting.seed,
                dropout=setting.dropout,
            )
    if setting.dropout is not None:
        set_dropout(model, setting.dropout)


def copied(model: nn.Module) -> nn.Module:
    """A copy with tensors of its own for what trains or moves; it shares frozen parameters."""
    shared = {id(p): p for p in model.parameters() if not p.requires_grad}
    found: nn.Module = copy.deepcopy(model, dict(shared))
    return found


def check_dropout(chains: Sequence[Chain | str], asked: Sequence[float | None]) -> None:
    """Refuse values of a dropout that is nowhere.

    Raises:
        ConfigError: no member has any.
    """
    if set(asked) == {None} or any(isinstance(chain, str) for chain in chains):
        return
    if not any(chain.has_dropout for chain in chains if isinstance(chain, Chain)):
        raise ConfigError(
            "there is no dropout above the frost line to give another probability. Leave out "
            f"{option('dropout')}, or try heads with hidden layers, which have it behind each: "
            f"{option('heads')}."
        )


def trainable(model: nn.Module, chain: Chain) -> str:
    """Why the chain's tensors cannot all be trained; empty if they can, or will be new."""
    own = dict(model.named_parameters())
    for name in chain.tensors:
        if name in own and not own[name].requires_grad:
            return f"{name} is frozen above the line"
    return ""
