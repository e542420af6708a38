"""What freezing and thawing refuse, each with what to do instead.

Among it weights that no gradient moves, as libraries for quantisation put into layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DataParallel, DistributedDataParallel

from frostline.choices import NormPolicy
from frostline.errors import FreezeError
from frostline.freezing.modes import is_held, is_random_in_training
from frostline.selectors import Selection
from frostline.selectors.inventory import not_plain, paths_above
from frostline.units import some_of
from frostline.wrapped import is_wrapped
from frostline.wrappers import strays, wrappers

# Whether what is frozen and thawed now is undone before anybody trains.
_passing: ContextVar[bool] = ContextVar("passing", default=False)


@contextmanager
def passing() -> Iterator[None]:
    """What the block freezes and thaws is undone before anybody trains, so no wrapper minds."""
    outside = _passing.set(True)
    try:
        yield
    finally:
        _passing.reset(outside)


def check_unwrapped(model: nn.Module) -> None:
    for wrapper in wrappers(model):
        if isinstance(wrapper, DistributedDataParallel | DataParallel):
            raise FreezeError(
                f"the model is already wrapped in {type(wrapper).__name__}, which recorded its "
                "trainable parameters. Freeze and thaw first, then wrap."
            )


def check_as_wrapped(selection: Selection) -> None:
    """Refuse what a wrapper that still lives around the model would not follow."""
    if not _passing.get() and (names := strays(selection.inventory.model)):
        raise FreezeError(
            f"{selection.inventory.title} is inside a DistributedDataParallel that still lives and "
            f"recorded what trains when it was made, otherwise than now {some_of(names, most=3)}: "
            "what is thawed is never averaged, and each "
            "process trains a model of its own; what is frozen is waited for. Let go of the "
            "wrapper (inner = model.module; del model), freeze and thaw the inner model, then "
            "wrap anew."
        )


def unholdable(selection: Selection) -> Iterator[tuple[str, str, str]]:
    """Names of selected tensors that no switch keeps as they are, with why and what to do."""
    for place in (place for entry in selection.entries for place in entry.occurrences):
        owner, path = place.owner, place.name.rpartition(".")[0]
        scripted = [isinstance(o, torch.jit.ScriptModule) for o in place.owners]
        if any(scripted):
            outermost = ".".join(place.name.split(".")[: scripted.index(True)])
            yield (
                place.name,
                f"{outermost or 'the model'} is TorchScript, whose modes cannot be held.",
                "Freeze the Python module it was made from, and script it afterwards; or leave it "
                "out.",
            )
        if isinstance(owner, nn.Embedding | nn.EmbeddingBag) and owner.max_norm is not None:
            yield (
                place.name,
                f"{path or 'the model'} is an embedding with max_norm={owner.max_norm:g}: its "
                "forward writes into its weight, in eval mode too.",
                "Scale the rows once, then take it off: "
                f"model.get_submodule({path!r}).max_norm = None.",
            )


def check_words(*, norm: str, leaving: str = "something") -> None:
    if norm not in get_args(NormPolicy):
        raise FreezeError(f"norm={norm!r} is no norm policy. Use norm='hold' or norm='adapt'.")
    if leaving not in ("something", "nothing"):
        raise FreezeError(
            f"leaving={leaving!r} is unknown. Use leaving='something', or leaving='nothing' to "
            "freeze the whole model."
        )


def check_shared(root: nn.Module) -> None:
    """Refuse one dropout object, or one memory, that serves a frozen and a trainable part."""
    _check_memory(root)
    held: dict[nn.Module, str] = {}
    free: dict[nn.Module, str] = {}
    for path, module in root.named_modules(remove_duplicate=False):
        if is_random_in_training(module):
            above = map(root.get_submodule, paths_above(path))
            # The nearest that has parameters is the part which the layer serves.
            part = next((p for p in above if next(p.parameters(), None) is not None), root)
            (held if is_held(part) else free)[module] = path
    for module in held.keys() & free.keys():
        raise FreezeError(
            f"one {type(module).__name__} serves the frozen part as {held[module]} and the "
            f"trainable part as {free[module]}; it cannot be off in one and on in the other. "
            "Give each part its own."
        )


def _check_memory(root: nn.Module) -> None:
    """One that an optimizer writes into under another name is not frozen."""
    frozen: dict[tuple[torch.device, int], str] = {}
    trained: dict[tuple[torch.device, int], str] = {}
    for name, parameter in root.named_parameters():
        if parameter.numel() and not not_plain(parameter):
            memory = (parameter.device, parameter.data_ptr())
            (trained if parameter.requires_grad else frozen)[memory] = name
    for memory in frozen.keys() & trained.keys():
        raise FreezeError(
            f"{frozen[memory]}, which is frozen, and {trained[memory]}, which trains, are two "
            "parameters in one memory: a step of the one would move the other. Tie them as one "
            "parameter, as head.weight = embed.weight, or give one a clone."
        )


def why_inert(places: Iterable[tuple[str, nn.Module]], *, asked: str) -> str:
    """Why the first frozen weight that takes no gradient cannot train, and what to do; or nothing.

    Places are tensors' dotted names with their owners; `asked` is the selector to train them.
    """
    for name, owner in places:
        leaf = name.rpartition(".")[2]
        if (weight := _inert(owner, leaf)) is not None:
            return (
                f"{name} is of class {type(weight).__name__}, a kind of tensor that takes no "
                "gradient: it would want one and never move. Dequantise it first, as "
                "layer.weight = torch.nn.Parameter(layer.weight.dequantize()), or leave it out: "
                f"'({asked}) & ~{name}'."
            )
    return ""


def _inert(owner: nn.Module, leaf: str) -> Tensor | None:
    """The weight, where the layer's function on one sample gives it no part in the graph."""
    # Asked of layers whose function is known. A class does not say: of some quantised weights the
    # library gives a gradient itself, others are wrapped floats.
    is_known = isinstance(owner, nn.Linear | nn.Embedding) and leaf == "weight"
    weight = owner._parameters.get(leaf) if is_known else None
    if weight is None or weight.requires_grad or not is_wrapped(weight):
        return None
    try:
        with torch.inference_mode(False), torch.enable_grad():
            wanting, device = weight.detach().requires_grad_(), weight.device
            if isinstance(owner, nn.Embedding):
                made = F.embedding(torch.zeros(1, dtype=torch.long, device=device), wanting)
            else:
                sample = torch.zeros(1, weight.shape[1], dtype=weight.dtype, device=device)
                made = F.linear(sample, wanting)
    except Exception:
        return None  # it takes another input than this; doctor finds it, with an example
    return None if made.requires_grad else weight
