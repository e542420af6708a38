"""`stage:` and `depth:` - a model's own stages in forward order: stem, blocks, head.

The order is that in which the source of each forward uses a module's children (see `order`), and
registration order where the source does not show it. The rules, each for a family of models:

1. Go down while a module has a single child with parameters (a bare wrapper).
2. The last child is the head; of two used at the end, the one registered last. A plain
   `Sequential` of several layers that stands beside the
   feature layers (AlexNet's and VGG's `classifier`) is opened, so that its last layer is the
   head; a child named `head` is not, nor is one that stands beside a whole network.
3. Of the rest, a child that holds most of the layers is opened (`features`, `encoder`,
   `backbone`), again and again, until the layers are spread; but not where three or more
   siblings of one class already make a series (ResNet's `layer1` to `layer4`).
4. A norm, with parameters or without, joins the stage before it, an embedding the embedding
   before it; parameters that hang between (class token, position embedding) join the first
   stage of their module.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from frostline.selectors.inventory import Inventory, paths_above
from frostline.selectors.kinds import EMBEDDINGS, is_norm_layer, keeps_running_statistics
from frostline.selectors.order import CONTAINERS, used_order

_DOMINANT_SHARE = 0.5
_SERIES_LENGTH = 3


@dataclass(frozen=True, slots=True)
class _Unit:
    """A part of the model in forward order; `path` is its dotted path."""

    path: str
    module: nn.Module

    @property
    def name(self) -> str:
        """The path's last segment."""
        return self.path.rpartition(".")[2]


def stages(inventory: Inventory, *, by_any_name: bool = False) -> tuple[frozenset[int], ...]:
    """The entries of each stage, as indices into `inventory.entries`; every entry is in one."""
    # A tied parameter is in the stage of its first name, or in that of each of its names.
    paths = stage_paths(inventory.model)
    stage_of = {path: number for number, group in enumerate(paths) for path in group}
    members: list[set[int]] = [set() for _ in paths] or [set()]
    for index, entry in enumerate(inventory.entries):
        first, *further = entry.occurrences
        members[_stage_of_name(first.name, stage_of)].add(index)
        for place in further if by_any_name else ():
            # A module that stands twice beside its siblings is a stage at its first place alone.
            if (number := _stage_holding(place.name, stage_of)) is not None:
                members[number].add(index)
    return tuple(frozenset(group) for group in members)


def stage_paths(model: nn.Module) -> tuple[tuple[str, ...], ...]:
    """The module paths that make up each stage; `("",)` alone where the model is one layer."""
    top = _Unit("", model)
    while len(children := _children(top)) == 1:
        top = children[0]
    if not children:
        return ((top.path,),)
    *body, head = _head_last(top, children)
    body = _opened(body)
    if _is_layer_stack(head, children):
        body, head = [*body, *(opened := _children(head))[:-1]], opened[-1]
    if _joins(head, body):
        return _merged([*body, head])
    return (*_merged(body), (head.path,))


def _head_last(top: _Unit, children: list[_Unit]) -> list[_Unit]:
    """The children with the one registered last at the end, if small ones alone are used later."""
    # An auxiliary head may be used behind the head.
    last = next(u for name in reversed(top.module._modules) for u in children if u.name == name)
    place = children.index(last)
    size = _layer_count(last.module)
    if any(_layer_count(later.module) > size for later in children[place + 1 :]):
        return children
    return [*children[:place], *children[place + 1 :], last]


def _stage_holding(name: str, stage_of: dict[str, int]) -> int | None:
    """The stage whose path holds `name`."""
    return next((stage_of[path] for path in paths_above(name) if path in stage_of), None)


def _stage_of_name(name: str, stage_of: dict[str, int]) -> int:
    """The stage whose path holds `name`; else the first stage below the module that holds it."""
    if (number := _stage_holding(name, stage_of)) is not None:
        return number
    for prefix in paths_above(name):
        below = [
            at for path, at in stage_of.items() if path.startswith(f"{prefix}." if prefix else "")
        ]
        if below:
            return min(below)
    return 0


def _children(unit: _Unit) -> list[_Unit]:
    """Children with parameters or running statistics, in the order of their use, each once."""
    found: dict[int, _Unit] = {}
    children = dict(unit.module.named_children())  # a scripted module knows no get_submodule
    for name in used_order(unit.module):
        child = children[name]
        has_parameters = next(child.parameters(), None) is not None
        has_layers = has_parameters or any(map(keeps_running_statistics, child.modules()))
        if has_layers and name != "parametrizations":
            path = f"{unit.path}.{name}" if unit.path else name
            found.setdefault(id(child), _Unit(path, child))
    return list(found.values())


def _opened(units: list[_Unit]) -> list[_Unit]:
    """The units, one that holds most of the layers opened, unless a series already stands there."""
    composite = Counter(type(unit.module) for unit in units if _children(unit))
    if not units or max(composite.values(), default=0) >= _SERIES_LENGTH:
        return units
    sizes = [_layer_count(unit.module) for unit in units]
    largest = max(range(len(units)), key=sizes.__getitem__)
    inner = _children(units[largest])
    if sizes[largest] <= _DOMINANT_SHARE * sum(sizes) or not inner:
        return units
    return _opened([*units[:largest], *inner, *units[largest + 1 :]])


def _layer_count(module: nn.Module) -> int:
    """How many layers there are but norms; a parametrization is part of the layer it computes."""
    parts = (m for m in module.modules() if not isinstance(m, ParametrizationList))
    layers = (part for part in parts if part._parameters or is_parametrized(part))
    return sum(1 for layer in layers if not is_norm_layer(layer))


def _is_layer_stack(head: _Unit, siblings: list[_Unit]) -> bool:
    if type(head.module) is not nn.Sequential or head.name == "head":
        return False
    beside_network = len(siblings) == 2 and not isinstance(siblings[0].module, CONTAINERS)
    return not beside_network and len(_children(head)) > 1


def _joins(unit: _Unit, before: list[_Unit]) -> bool:
    if not before:
        return False
    both_embed = isinstance(unit.module, EMBEDDINGS) and isinstance(before[-1].module, EMBEDDINGS)
    return is_norm_layer(unit.module) or both_embed


def _merged(units: list[_Unit]) -> tuple[tuple[str, ...], ...]:
    groups: list[list[_Unit]] = []
    for unit in units:
        if groups and _joins(unit, groups[-1]):
            groups[-1].append(unit)
        else:
            groups.append([unit])
    return tuple(tuple(unit.path for unit in group) for group in groups)
