"""Is a cut still one of its model? What its prefix computes with is compared with its key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from frostline.cutting.at_key import At, at_key
from frostline.errors import CutError
from frostline.fingerprints import Fingerprint, digest
from frostline.units import some_of

_SHOWN = 3


def check_current(
    model: nn.Module, line: Sequence[tuple[str, Tensor]] | At, key: Mapping[str, str]
) -> None:
    """Make sure that what a prefix computes now belongs under the key of its cut.

    Args:
        line: the tensors that the prefix reads, as the model has them now, or where it ends in it.
    Raises:
        CutError: as `Cut.check_current`.
    """
    known = _digests(key["tensors"])
    if isinstance(line, At):
        trainable, changed = _of_model(model, line, known, key["prefix"])
    else:
        trainable, changed = _of_tensors(line, known)
    found = [(trainable, "trainable now"), (changed, "changed since")]
    reasons = "; ".join(f"{_listed(names)} {what}" for names, what in found if names)
    if reasons:
        raise CutError(
            f"the frozen part of this {type(model).__name__} is not what was cut: {reasons}. What "
            "it computes now does not belong to what was kept; cut again: fl.cut(model, example)."
        )


def _of_tensors(
    read: Sequence[tuple[str, Tensor]], known: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    trainable = [name for name, tensor in read if tensor.requires_grad]
    frozen = zip(read, known.values(), strict=True)
    changed = [
        name
        for (name, tensor), digested in frozen
        if not tensor.requires_grad and digest(tensor, name=name) != digested
    ]
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


def _digests(tensors: str) -> Mapping[str, str]:
    assert isinstance(tensors, Fingerprint)
    return tensors.tensors


def _listed(names: Sequence[str]) -> str:
    return some_of(names, most=_SHOWN) + (" is" if len(names) == 1 else " are")
