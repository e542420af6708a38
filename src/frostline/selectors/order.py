"""The order in which a module's forward uses its children, as its source code has it.

Read, not run: it needs no example, and gives the same order wherever the model is loaded. Whatever
the source does not show leaves children where they were registered.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Hashable, Iterator
from functools import cache

from torch import nn

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def used_order(module: nn.Module) -> tuple[str, ...]:
    """Names of the children, first used first; those not seen to be used keep their place."""
    # A child whose layers stand inside another one too comes before that where it is used earlier.
    children = dict(module.named_children())
    names = tuple(children)
    if isinstance(module, CONTAINERS) or len(names) < 2:
        return names
    used: dict[str, float] = {}
    for name in _uses(type(module), "forward", frozenset(names)):
        used.setdefault(name, len(used))
    inside = {name: {id(m) for m in child.modules()} for name, child in children.items()}
    places: dict[str, float] = {}
    before = -1.0
    for name in names:
        found = [used[o] - 0.5 for o in used if o != name and inside[name] <= inside[o]]
        found += [used[name]] if name in used else []
        before = places[name] = min(found, default=before)
    return tuple(sorted(names, key=places.__getitem__))


def _uses(
    kind: type, method: str, names: frozenset[str], above: tuple[object, ...] = ()
) -> Iterator[str]:
    """What `kind`'s method uses of its children, with what the methods that it calls use."""
    found = next((base for base in kind.__mro__ if method in vars(base)), None)
    own = None if found is None else vars(found)[method]
    # An attribute of a class may be a list, as those of adapters are.
    code = _source(own) if callable(own) and isinstance(own, Hashable) else None
    if found is None or code is None or (found, method) in above:
        return
    above = (*above, (found, method))
    for name, follows_super in _visit(code.body, code.args.args[0].arg):
        if follows_super:
            rest = kind.__mro__[kind.__mro__.index(found) + 1 :]
            if (base := next((base for base in rest if name in vars(base)), None)) is not None:
                yield from _uses(base, name, names, above)
        elif name in names:
            yield name
        else:
            yield from _uses(kind, name, names, above)


@cache
def _source(function: Callable[..., object]) -> ast.FunctionDef | None:
    try:
        lines = textwrap.dedent(inspect.getsource(inspect.unwrap(function)))
        (found,) = ast.parse(lines).body
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    return found if isinstance(found, ast.FunctionDef) and found.args.args else None


def _visit(node: object, this: str) -> Iterator[tuple[str, bool]]:
    """Attributes of `self` in the order in which the code comes to them; whether of `super()`."""
    match node:
        case list():
            for one in node:
                yield from _visit(one, this)
        case ast.If(test=test) | ast.IfExp(test=test):
            # What a condition calls; that it only asks whether a child is there uses none.
            calls = (part for part in ast.walk(test) if isinstance(part, ast.Call))
            yield from _visit(list(calls), this)
            yield from _visit(list(ast.iter_child_nodes(node))[1:], this)
        case ast.Call(func=func, args=args, keywords=keywords):
            if not (isinstance(func, ast.Name) and func.id in {"hasattr", "isinstance", "len"}):
                yield from _visit([*args, *(keyword.value for keyword in keywords)], this)
            yield from _visit(func, this)
        case ast.Attribute(value=ast.Name(id=owner), attr=name) if owner == this:
            yield name, False
        case ast.Attribute(value=ast.Call(func=ast.Name(id="super")), attr=name):
            yield name, True
        case ast.Assign(targets=targets, value=value):
            yield from _visit([value, *targets], this)
        case ast.ListComp() | ast.GeneratorExp():
            yield from _visit([*node.generators, node.elt], this)
        case ast.AST():
            yield from _visit(list(ast.iter_child_nodes(node)), this)
