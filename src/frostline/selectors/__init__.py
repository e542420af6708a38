"""Selecting parameters: text, Python values and their algebra become one selection.

`select` is the single way in; `as_selector` is the one place where sugar becomes a `Selector`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor, nn

from frostline.errors import SelectorError
from frostline.selectors import terms
from frostline.selectors.grammar import parse as parse
from frostline.selectors.inventory import Entry as Entry
from frostline.selectors.inventory import Inventory as Inventory
from frostline.selectors.inventory import inventory as inventory
from frostline.selectors.inventory import paths_above
from frostline.selectors.pieces import Rows, cut_at, joined, refined, row_terms
from frostline.selectors.ranges import common as common_rows
from frostline.selectors.stages import stages as stages
from frostline.selectors.terms import Selector as Selector
from frostline.tables import Displayed, Table, columns
from frostline.units import format_bytes, format_count
from frostline.wrapped import stored_bytes

SelectorLike = (
    Selector
    | str
    | nn.Module
    | Tensor
    | terms.Predicate
    | Iterable["str | Selector | nn.Module | Tensor"]
)

path, glob, regex, kind, depth = terms.Path, terms.Glob, terms.Regex, terms.Kind, terms.Depth
rows, where, exactly = Rows, terms.Where, terms.Exactly
everything: Selector = terms.Everything()
nothing: Selector = terms.Nothing()


def of_type(name: str | type[nn.Module]) -> Selector:
    """At or below a module of that class, by name; base classes count.

    Example:
        >>> fl.select(model, fl.of_type("Conv2d")).names
        ('backbone.0.weight', 'backbone.0.bias')
    """
    return terms.OfType(name if isinstance(name, str) else name.__name__)


def stage(first: int, last: int | None = None) -> Selector:
    """The model's stages `first` to `last` inclusive, in forward order; negative from the end.

    Example:
        >>> fl.select(model, fl.stage(-1)).names
        ('head.2.weight', 'head.2.bias')
    """
    return terms.Stage(first, first if last is None else last)


def as_selector(value: SelectorLike) -> Selector:
    """Normalise what a user may pass; raises SelectorError for anything else, or unread text."""
    if isinstance(value, Selector):
        return value
    if isinstance(value, str):
        return parse(value)
    if isinstance(value, nn.Module | Tensor):
        return terms.Exactly(value)
    if isinstance(value, type):
        raise SelectorError(
            f"the class {value.__name__} is no selector. To select the layers of a class, write "
            f"fl.of_type({value.__name__})."
        )
    if callable(value):
        return terms.Where(value)
    if isinstance(value, Iterable) and not isinstance(value, bytes):
        given = list(value)
        # Together, as layers without parameters are often among them: model.children().
        objects = [item for item in given if isinstance(item, nn.Module | Tensor)]
        others = [as_selector(item) for item in given if not isinstance(item, nn.Module | Tensor)]
        if given:
            return terms.Or.of(*([terms.Exactly(*objects)] if objects else []), *others)
        raise SelectorError("the list of selectors is empty. To select nothing, write 'none'.")
    raise SelectorError(
        f"a selector is text, fl.path(...) and the like, a module, a parameter, a function or a "
        f"list of these; got {type(value).__name__}."
    )


@dataclass(frozen=True)
class Selection(Displayed):
    """What a selector matched in one model.

    Rows that were matched of a tensor are shown as `embed.weight[0:100]`, rows that touch as one
    piece, and all of a tensor's rows as the tensor.

    Attributes:
        selector: what was asked, in normal form.
        inventory: everything that could have matched, cut at the rows that the selector names.
        picked: indices into `inventory.entries`.

    Example:
        >>> print(fl.select(model, "kind:norm"))
        kind:norm in Sequential
        parameter           shape   numbers
        ───────────────────────────────────
        backbone.1.weight   8             8
        backbone.1.bias     8             8
        2 of 6 parameters, 16 numbers, 64 B
    """

    selector: Selector
    inventory: Inventory = field(repr=False)
    picked: frozenset[int] = field(repr=False)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The matched entries in the model's order; pieces of a tensor that touch are one."""
        return tuple(joined(self.inventory.entries[index] for index in sorted(self.picked)))

    @property
    def by_tensor(self) -> dict[int, list[Entry]]:
        """`id()` of each matched tensor -> its entries: itself, or pieces of it."""
        found: dict[int, list[Entry]] = {}
        for entry in self.entries:
            found.setdefault(id(entry.tensor), []).append(entry)
        return found

    @property
    def whole(self) -> set[int]:
        """`id()` of each tensor that is matched whole."""
        return {id(entry.tensor) for entry in self.entries if entry.rows is None}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the matched parameters, as in `named_parameters()`; a tied one once."""
        return tuple(entry.name for entry in self.entries if entry.is_parameter)

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """The parameters matched whole or in some rows, each once."""
        found = {id(e.tensor): e.tensor for e in self.entries}.values()
        return tuple(tensor for tensor in found if isinstance(tensor, nn.Parameter))

    @property
    def modules(self) -> tuple[str, ...]:
        """Paths of the largest modules all of whose parameters are matched; `""` is the model."""
        is_whole: dict[str, bool] = {}
        for index, entry in enumerate(self.inventory.entries):
            for place in entry.occurrences:
                for path in paths_above(place.name):
                    is_whole[path] = is_whole.get(path, True) and index in self.picked
        whole = {path for path in self.inventory.modules if is_whole.get(path)}
        return tuple(
            path
            for path in self.inventory.modules
            if path in whole and not (path and path.rpartition(".")[0] in whole)
        )

    @property
    def numel(self) -> int:
        """How many numbers the matched parameters hold."""
        return sum(entry.content.numel() for entry in self.entries if entry.is_parameter)

    @property
    def nbytes(self) -> int:
        """How many bytes the matched parameters hold."""
        return sum(stored_bytes(entry.content) for entry in self.entries if entry.is_parameter)

    def report(self) -> Table:
        """A table of the matched parameters, with names, shapes and sizes."""
        shown = ((e.name, e.content) for e in self.entries if e.is_parameter)
        rows = tuple(
            (name, "x".join(map(str, held.shape)) or "scalar", format_count(held.numel()))
            for name, held in shown
        )
        total = len({id(entry.tensor) for entry in self.inventory.entries if entry.is_parameter})
        return Table(
            title=f"{self.selector} in {self.inventory.title}",
            columns=columns("parameter", "shape", "numbers", left=2),
            rows=rows,
            notes=(
                f"{len(self.parameters)} of {total} parameters, {format_count(self.numel)} "
                f"numbers, {format_bytes(self.nbytes)}",
            ),
        )

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return any(name in entry.names for entry in self.entries)

    def _parts(self) -> tuple[Table]:
        return (self.report(),)

    def __str__(self) -> str:
        return str(self.report())


def select(model: nn.Module, selector: SelectorLike) -> Selection:
    """Match `selector` in `model`.

    Every term must match something; a tied parameter is matched under each of its names and
    counted once.

    Raises:
        SelectorError: the text cannot be read, or a term matches nothing (names the nearest).

    Example:
        >>> fl.select(model, "backbone & ~kind:norm").names
        ('backbone.0.weight', 'backbone.0.bias')
    """
    return _select(inventory(model), as_selector(selector))


def select_whole(
    model: nn.Module, selector: SelectorLike, *, kinds_may_miss: bool = False
) -> Selection:
    """As `select`, for what holds for whole tensors only; raises SelectorError for rows too."""
    # With `kinds_may_miss` a `kind:` that the model lacks is fine, as in a rule for what there is.
    normal = as_selector(selector)
    if term := next(row_terms(normal), None):
        raise SelectorError(
            f"'{term}' names rows, but an optimizer has one learning rate and one weight decay "
            f"for a whole tensor. Name the tensor: {term.name}."
        )
    return _select(inventory(model, kinds_may_miss=kinds_may_miss), normal)


def common(selection: Selection, other: Selection) -> Selection:
    """What both hold, by identity of the tensors: the model may have changed between the two."""
    theirs = other.by_tensor
    both = {
        key: common_rows((one.span for one in ours), (one.span for one in theirs[key]))
        for key, ours in selection.by_tensor.items()
        if key in theirs
    }
    finer = cut_at(selection.inventory, both)

    def is_in_both(entry: Entry) -> bool:
        rows = both.get(id(entry.tensor))
        # A single number has no rows to share.
        return rows is not None and (not entry.span or bool(common_rows([entry.span], rows)))

    return Selection(other.selector, finer, finer.indices(is_in_both))


def _select(stock: Inventory, selector: Selector) -> Selection:
    finer = refined(stock, selector)
    return Selection(selector, finer, selector.pick(finer))
