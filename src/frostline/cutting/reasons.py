"""Why the line runs where it does, why nothing can be kept, and what to do where no line is found.

Where no line can be drawn, only a submodule is offered to cut behind that it really can be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from contextlib import suppress
from itertools import islice
from typing import TypeVar

from torch import fx, nn

from frostline.cutting.cheapest import WIDER
from frostline.cutting.tracing import Traced, module_path, operation, own_name
from frostline.cutting.verdicts import Verdicts
from frostline.errors import CutError
from frostline.freezing.modes import is_held
from frostline.wording import either

# Each is tried on the example, which takes some forwards.
_MOST_TRIED = 4
_LITTLE = 0.5  # of the forward below the line, where a dropout alone keeps it low
_Made = TypeVar("_Made")


def why_there(
    crossing: list[fx.Node], below: frozenset[fx.Node], verdicts: Verdicts, share: float
) -> str:
    """Where the line runs and why there, in one line.

    Args:
        share: of the forward's cost that lies below it.
    """
    computed = [n for n in crossing if n.op != "placeholder"] or crossing
    names = list(dict.fromkeys(module_path(n) or operation(n) for n in reversed(computed)))
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    where = ", ".join(names[:2]) if more else " and ".join(names[:2])
    reason, is_apart = _first_reason(computed, below, verdicts)
    between = "; what lies between costs less to compute again than to read" if is_apart else ""
    if reason.startswith("dropout") and share < _LITTLE and _has_frozen(reason, verdicts):
        reason += " (with its rate at 0 more may lie below)"
    return f"behind {where}{more}, since {reason}{between}"


def _has_frozen(reason: str, verdicts: Verdicts) -> bool:
    """Whether frozen weights are read above the line for that reason, before anything trained."""
    trained = set[fx.Node]()
    for node, why in verdicts.reasons.items():
        if node.op in ("get_attr", "output"):
            continue
        weights = [read for read in node.all_input_nodes if read.op == "get_attr"]
        if not trained.isdisjoint(node.all_input_nodes) or any(
            w in verdicts.reasons for w in weights
        ):
            trained.add(node)
        elif weights and why == reason:
            return True
    return False


def _first_reason(
    crossing: list[fx.Node], below: frozenset[fx.Node], verdicts: Verdicts
) -> tuple[str, bool]:
    """Why the first operation above the line is not frozen, and whether others lie between."""
    nearest = [user for node in crossing for user in node.users if user not in below]
    pending, seen, ends = list(nearest), set[fx.Node](), set[fx.Node]()
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        if node in verdicts.reasons and node.op != "output":
            ends.add(node)
        else:
            pending.extend(node.users)
    for node in crossing[0].graph.nodes:
        if node in ends:
            return verdicts.reasons[node], node not in nearest
    return "what follows is the model's output", False


def nothing_kept(model: nn.Module, traced: Traced, verdicts: Verdicts, kept: Set[fx.Node]) -> str:
    """One sentence of what is in the way, and one of what to do, both true of this model.

    Args:
        kept: nodes whose values have a row for each sample.
    """
    nothing = f"nothing in {type(model).__name__} can be kept"
    computed = [node for node in verdicts.carriers if node.op == "call_function"]
    if not kept.isdisjoint(computed):
        return (
            f"nothing in {type(model).__name__} is worth keeping: what it computes below the "
            f"first trained part would take more than {WIDER} times the room of the sample, as "
            "rows of an embedding may, and costs less to compute again than to read."
        )
    if computed:
        last = operation(computed[-1])
        return f"{nothing}: no frozen value in it, up to {last}, has a row for each sample."
    reached: set[fx.Node] = set()
    for node in traced.nodes:
        if node.op == "placeholder" or not reached.isdisjoint(node.all_input_nodes):
            reached.add(node)
            if node in verdicts.reasons and node.op != "output":
                return f"{nothing}: {verdicts.reasons[node]}. {_advice(model, node, traced)}"
    return f"{nothing}: nothing that it computes of its input is frozen."


def _advice(model: nn.Module, node: fx.Node, traced: Traced) -> str:
    trained = [
        (own_name(read.target), tensor)
        for read in node.all_input_nodes
        if read.op == "get_attr" and (tensor := traced.tensor(read)).requires_grad
    ]
    if not trained:
        return _held(model, module_path(node))
    name, weight = trained[0]
    named = model.named_parameters(remove_duplicate=False)
    if shared := [other for other, p in named if p is weight and other != name]:
        return (
            f"It is one tensor with {shared[0]} (tied), so whoever trains that trains at the "
            "input. Untie them, or train other parts."
        )
    return (
        "It works on the input itself, and nothing below it is frozen. Freeze from the input "
        "upwards, as " + either('fl.train_only(model, "stage:-1").', "--train 'stage:-1'.")
    )


def _held(model: nn.Module, path: str) -> str:
    """What is random or goes by its batch in training, though its parameters may be frozen."""
    root = _frozen_root(model, path)
    if root and not is_held(model.get_submodule(path)):
        return (
            f"The parameters of {root} are frozen, but its mode is not: "
            + either(f'fl.freeze(model, "{root}")', f"--freeze {root}")
            + " holds its dropout and norms in eval."
        )
    return "Nothing below it is frozen; without it, or with it in eval, more may be."


def offer(model: nn.Module, cut_behind: Callable[[str], object]) -> str:
    """A sentence that names a frozen submodule to cut behind; empty where none was found to do.

    Args:
        cut_behind: cuts the model there, checks included, or raises.
    """
    sentence = either(' A frozen submodule to cut behind: fl.cut(model, example, at="{}").', "")
    if not sentence:  # no option of the command line cuts elsewhere, so nothing is tried
        return ""
    for path in islice(_candidates(model), _MOST_TRIED):
        with suppress(Exception):  # whatever a forward raises that was not made for this
            cut_behind(path)
            return sentence.format(path)
    return ""


def behind_one(model: nn.Module, cut_behind: Callable[[str], _Made]) -> _Made:
    """What `cut_behind` gives for the last frozen submodule that it takes: most lies below that.

    Raises:
        CutError: it takes none.
    """
    refused = "none is wholly frozen"
    for path in islice(_candidates(model), _MOST_TRIED):
        try:
            return cut_behind(path)
        except CutError as error:
            refused = str(error)
    raise CutError(
        f"{type(model).__name__} is sharded, so it can only be cut behind a frozen submodule, and "
        f"none was found: {refused} To cut before it is sharded, or elsewhere: "
        'fl.cut(model, example, at="...").'
    )


def _candidates(model: nn.Module) -> Iterator[str]:
    """Frozen submodules that nothing frozen holds, the last first: the most lies below it."""
    paths = [path for path, _ in model.named_modules() if path]
    for path in reversed([path for path in paths if _frozen_root(model, path) == path]):
        module = model.get_submodule(path)
        while isinstance(module, nn.ModuleList) and len(module):  # is not called itself
            path, module = f"{path}.{len(module) - 1}", module[-1]
        yield path


def _frozen_root(model: nn.Module, path: str) -> str:
    """The outermost wholly frozen submodule that holds the one at `path`; "" if there is none."""
    parts = path.split(".") if path else []
    for length in range(1, len(parts) + 1):
        above = ".".join(parts[:length])
        wanted = [p.requires_grad for p in model.get_submodule(above).parameters()]
        if wanted and not any(wanted):
            return above
    return ""
