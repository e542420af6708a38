"""What a model holds: each parameter once, under every name, with the modules above it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from frostline.errors import SelectorError, a_type
from frostline.selectors.ranges import all_rows, suffix
from frostline.wrappers import reshard, unwrap

# Names that wrappers put between a module and its content; selectors need not know them.
_WRAPPER_SEGMENTS = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})


@dataclass(frozen=True, slots=True)
class Occurrence:
    """One place where a tensor hangs in the module tree."""

    name: str  # dotted, as in `named_parameters()`
    # The name a person would use: without wrapper segments, and with a parametrized or
    # weight-normed tensor under its own name (`conv.weight`).
    plain: str
    owners: tuple[nn.Module, ...]  # the modules above it, the root first, its direct owner last

    @property
    def owner(self) -> nn.Module:
        """The module that holds the tensor directly."""
        return self.owners[-1]

    @property
    def both_names(self) -> set[str]:
        """The name as torch and as a person would write it."""
        return {self.name, self.plain}

    @property
    def above(self) -> nn.Module | None:
        """The module that holds the owner; the root has none."""
        return self.owners[-2] if len(self.owners) > 1 else None

    @property
    def own_name(self) -> str:
        """The tensor's name in its owner: `weight`, `weight_g`, `original0`."""
        return self.name.rpartition(".")[2]

    @property
    def leaf(self) -> str:
        """The last segment of `plain`: `weight`, `bias`."""
        return self.plain.rpartition(".")[2]


@dataclass(frozen=True, slots=True)
class Entry:
    """One parameter, or one buffer of a module that has no parameter, under each of its names."""

    tensor: Tensor
    occurrences: tuple[Occurrence, ...]
    is_parameter: bool
    rows: range | None = None  # of this piece (indices of dimension 0), where the tensor is cut

    @property
    def name(self) -> str:
        """Its first name, the one `named_parameters()` gives; of a piece, with the rows."""
        return self.names[0]

    @property
    def names(self) -> tuple[str, ...]:
        """All its names; of a piece, with the rows, as in `embed.weight[0:100]`."""
        return tuple(place.name + suffix(self.rows) for place in self.occurrences)

    @property
    def span(self) -> range:
        """The rows of this piece; of a whole tensor all, of a single number none."""
        return all_rows(self.tensor) if self.rows is None else self.rows

    @property
    def content(self) -> Tensor:
        """The tensor, or the piece of it as a view, without gradient history."""
        whole = self.tensor.detach()
        return whole if self.rows is None else whole[self.rows.start : self.rows.stop]


@dataclass(frozen=True)
class Inventory:
    """All that selectors can match in one model."""

    model: nn.Module  # itself, without compile or data-parallel wrapper
    # Every parameter once, and the buffers of modules without parameters; in the order of the
    # module tree. A parameter that is cut is there piece by piece, in the order of its rows.
    entries: tuple[Entry, ...]
    # A `kind:` term that matches nothing is fine (for policies such as "no decay on norms", which
    # hold for whatever norms there are).
    kinds_may_miss: bool = False

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """Each dotted module path -> module; the root is `""`."""
        return dict(self.model.named_modules(remove_duplicate=False))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Module paths and parameter names as a person would write them, for near misses."""
        paths = (plain_name(path) for path in self.modules if path)
        leaves = (place.plain for entry in self.entries for place in entry.occurrences)
        return tuple(dict.fromkeys([*paths, *leaves]))

    @cached_property
    def indices_by_name(self) -> dict[str, tuple[int, ...]]:
        """Each full name of a tensor, as torch and as a person would write it -> its entries."""
        found: dict[str, list[int]] = {}
        for index, entry in enumerate(self.entries):
            for name in {n for place in entry.occurrences for n in place.both_names}:
                found.setdefault(name, []).append(index)
        return {name: tuple(indices) for name, indices in found.items()}

    def indices(self, matches: Callable[[Entry], bool]) -> frozenset[int]:
        """Of the entries that match."""
        return frozenset(index for index, entry in enumerate(self.entries) if matches(entry))

    @property
    def title(self) -> str:
        """The model's class name, for messages."""
        return type(self.model).__name__


def inventory(model: nn.Module, *, kinds_may_miss: bool = False) -> Inventory:
    """Take stock; raises SelectorError for what is no module, or is lazy and saw no batch."""
    if not isinstance(model, nn.Module):
        raise SelectorError(
            f"selectors work on a torch.nn.Module, got {type(model).__name__}. Pass the model."
        )
    root = unwrap(model)
    reshard(root)
    entries = tuple(_entries(root))
    lazy = [entry.name for entry in entries if is_lazy(entry.tensor)]
    if lazy:
        raise SelectorError(
            f"{lazy[0]} of {type(root).__name__} has no shape yet: a lazy module gets it in its "
            "first call. Run one batch through the model, then select."
        )
    return Inventory(root, entries, kinds_may_miss)


def not_plain(tensor: Tensor) -> str:
    """What keeps the tensor's numbers from being copied and put back in place; empty if nothing."""
    kind = type(tensor)
    known = kind is Tensor or (issubclass(kind, nn.Parameter) and kind.__name__ != "FlatParameter")
    if not known:
        return a_type(tensor)
    if tensor.is_meta:
        return "without data"
    return "" if tensor.layout is torch.strided else "sparse"


def paths_above(name: str) -> Iterator[str]:
    """The paths of the modules that hold `name`, the nearest first, the root's `""` last."""
    while name:
        name = name.rpartition(".")[0]
        yield name


def unwrapped(name: str) -> str:
    """`name` without what torch.compile and other wrappers put into it, as `_orig_mod`."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPER_SEGMENTS)


def plain_name(name: str) -> str:
    """`name` without wrapper segments, and `parametrizations.weight.original0` as `weight`."""
    segments = unwrapped(name).split(".")
    if "parametrizations" in segments:
        at = segments.index("parametrizations")
        segments = segments[:at] + segments[at + 1 : at + 2]
    return ".".join(segments)


def _entries(root: nn.Module) -> Iterator[Entry]:
    found: dict[int, tuple[Tensor, bool, list[Occurrence]]] = {}
    for prefix, owners in _places(root, "", ()):
        owner = owners[-1]
        parameters = {name: p for name, p in owner._parameters.items() if p is not None}
        for leaf, tensor in (parameters or owner._buffers).items():
            if tensor is not None:
                name = prefix + leaf
                place = Occurrence(name, _reweighted(plain_name(name), owner), owners)
                found.setdefault(id(tensor), (tensor, bool(parameters), []))[2].append(place)
    for tensor, is_parameter, places in found.values():
        yield Entry(tensor, tuple(places), is_parameter)


def _places(
    module: nn.Module, prefix: str, above: tuple[nn.Module, ...]
) -> Iterator[tuple[str, tuple[nn.Module, ...]]]:
    owners = (*above, module)
    yield prefix, owners
    for name, child in module._modules.items():
        if child is not None:
            yield from _places(child, f"{prefix}{name}.", owners)


def _reweighted(plain: str, owner: nn.Module) -> str:
    """Give the halves of hook-style `weight_norm` and `spectral_norm` the tensor's own name."""
    stem, _, ending = plain.rpartition("_")
    if ending not in {"g", "v", "orig"}:
        return plain
    tensor = stem.rpartition(".")[2]
    partners = owner._parameters.keys()
    paired = {f"{tensor}_g", f"{tensor}_v"} <= partners or f"{tensor}_orig" in partners
    return stem if paired and tensor not in partners else plain
