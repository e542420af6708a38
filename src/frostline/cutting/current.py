"""Is a cut still one of its model? What its prefix computes with is compared with its key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import reduce
from typing import Any

from torch import Tensor, fx, nn

from frostline.cutting.at_key import At, at_key
from frostline.cutting.tracing import own_name
from frostline.errors import CutError
from frostline.fingerprints import Fingerprint, digest

_SHOWN = 3


def check_current(model: nn.Module, line: fx.GraphModule | At, key: Mapping[str, str]) -> None:
    """Make sure that what a prefix computes now belongs under the key of its cut.

    Args:
        line: the prefix's graph over the model as it is now, or where it ends in the model.
    Raises:
        CutError: as `Cut.check_current`.
    """
    known = _digests(key["tensors"])
    if isinstance(line, At):
        trainable, changed = _of_model(model, line, known, key["prefix"])
    else:
        trainable, changed = _of_graph(model, line, known)
    found = [(trainable, "trainable now"), (changed, "changed since")]
    told = "; ".join(f"{_listed(names)} {what}" for names, what in found if names)
    if told:
        raise CutError(
            f"the frozen part of this {type(model).__name__} is not what was cut: {told}. What it "
            "computes now does not belong to what was kept; cut again: fl.cut(model, example)."
        )


def _of_graph(
    model: nn.Module, graph: fx.GraphModule, known: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """Inner graphs hold no tensor of the model: what they compute with is handed to them."""
    trainable, changed = [], []
    found = (
        (own_name(node.target), _found(graph, str(node.target)))
        for node in graph.graph.find_nodes(op="get_attr", sort=True)
    )
    read = [(name, tensor) for name, tensor in found if isinstance(tensor, Tensor)]
    for (name, tensor), digested in zip(read, known.values(), strict=True):
        now = _found(model, name)
        if isinstance(now, Tensor) and now.requires_grad:
            trainable.append(name)
        elif digest(tensor, name=name) != digested:
            changed.append(name)
    return trainable, changed


def _of_model(
    model: nn.Module, at: At, known: Mapping[str, str], key: str
) -> tuple[list[str], list[str]]:
    wanted = {name for name, p in model.named_parameters() if p.requires_grad}
    trainable = [name for name in known if name in wanted]
    now = at_key(model, at)
    digests = _digests(now["tensors"])
    changed = [n for n in known if n not in wanted and digests.get(n) != known[n]]
    if now["prefix"] != key:
        changed.append("its modules, their attributes or their code")
    return trainable, changed


def _found(owner: nn.Module, name: str) -> Any:
    with suppress(AttributeError):
        return reduce(getattr, name.split("."), owner)
    return None


def _digests(tensors: str) -> Mapping[str, str]:
    assert isinstance(tensors, Fingerprint)
    return tensors.tensors


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more + (" is" if len(names) == 1 else " are")
