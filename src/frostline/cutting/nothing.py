"""Why nothing of a model can be kept, and what to do about it."""

from __future__ import annotations

from torch import fx, nn

from frostline.cutting.offering import frozen_root
from frostline.cutting.sweep import Swept
from frostline.cutting.tracing import Traced, module_path, operation, own_name
from frostline.freezing.modes import is_held


def nothing_kept(model: nn.Module, traced: Traced, swept: Swept) -> str:
    """One sentence of what is in the way, and one of what to do, both true of this model."""
    name = type(model).__name__
    computed = [
        node
        for node in traced.nodes
        if node.op == "call_function" and swept.is_frozen(node) and node not in swept.free
    ]
    if computed:
        return (
            f"nothing in {name} can be kept: no frozen value in it, up to "
            f"{operation(computed[-1])}, has a row for each sample."
        )
    first = _first_in_the_way(traced, swept)
    if first is None:
        return f"nothing in {name} can be kept: nothing that it computes of its input is frozen."
    return f"nothing in {name} can be kept: {swept.reasons[first]}. {_advice(model, first, traced)}"


def _first_in_the_way(traced: Traced, swept: Swept) -> fx.Node | None:
    """The first operation on the samples that is not frozen."""
    reached: set[fx.Node] = set()
    for node in traced.nodes:
        if node.op == "placeholder" or any(a in reached for a in node.all_input_nodes):
            reached.add(node)
            if node in swept.reasons and node.op != "output":
                return node
    return None


def _advice(model: nn.Module, node: fx.Node, traced: Traced) -> str:
    trained = [
        own_name(argument.target)
        for argument in node.all_input_nodes
        if argument.op == "get_attr"
        and (tensor := traced.tensor(argument)) is not None
        and tensor.requires_grad
    ]
    if not trained:
        return _held(model, module_path(node))
    shared = _names_of(model, trained[0])
    if len(shared) > 1:
        return (
            f"It is one tensor with {shared[1]} (tied), so whoever trains that trains at the "
            "input. Untie them, or train other parts."
        )
    return (
        "It works on the input itself, and nothing below it is frozen. Freeze from the input "
        'upwards, as fl.train_only(model, "stage:-1").'
    )


def _held(model: nn.Module, path: str) -> str:
    """What is random or goes by its batch in training, though its parameters may be frozen."""
    root = frozen_root(model, path)
    if root and not is_held(model.get_submodule(path)):
        return (
            f'The parameters of {root} are frozen, but its mode is not: fl.freeze(model, "{root}") '
            "holds its dropout and norms in eval."
        )
    return "Nothing below it is frozen; without it, or with it in eval, more may be."


def _names_of(model: nn.Module, name: str) -> list[str]:
    """All names of the parameter that has this one, it first."""
    named = dict(model.named_parameters(remove_duplicate=False))
    found = [other for other, parameter in named.items() if parameter is named.get(name)]
    return [name, *(other for other in found if other != name)]
