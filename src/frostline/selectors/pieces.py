"""`rows:` - some rows of one tensor; an inventory is cut into pieces at the rows that are named.

Once a tensor's entry is cut at every boundary that the terms of an expression name, each term
matches whole entries, and the algebra is that of all other terms.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import final

from frostline.errors import SelectorError, nearest
from frostline.selectors.inventory import Entry, Inventory
from frostline.selectors.patterns import word
from frostline.selectors.ranges import covers, union
from frostline.selectors.terms import Picked, Selector
from frostline.wording import either


@final
@dataclass(frozen=True, slots=True, repr=False)
class Rows(Selector):
    """Rows `start` to before `stop` of the parameter of that full name; negative from the end.

    Example:
        >>> fl.select(model, fl.rows("head.2.weight", 0, 1)).names
        ('head.2.weight[0:1]',)
    """

    name: str
    start: int = 0
    stop: int | None = None

    def __post_init__(self) -> None:
        ends = (self.start, 0 if self.stop is None else self.stop)
        if not all(isinstance(end, int) and not isinstance(end, bool) for end in ends):
            raise SelectorError(
                f"rows of {self.name} are named by their first and the one after the last, as "
                f"fl.rows({self.name!r}, 0, 100), not by {self.start!r}. Join several with |."
            )
        if not self.name:
            raise SelectorError("'rows:' names nothing; write rows:embed.weight[0:100].")
        from_one_end = self.stop is not None and (self.start < 0) == (self.stop < 0)
        if self.stop == 0 or (from_one_end and self.start >= (self.stop or 0)):
            raise SelectorError(
                f"'{self}' holds no row. Name the first row and the one after the last, as [0:100]."
            )

    def pick(self, inventory: Inventory) -> Picked:
        rows = self.rows_in(inventory)
        spans = {i: inventory.entries[i].span for i in inventory.indices_by_name[self.name]}
        picked = [i for i, s in spans.items() if rows.start <= s.start and s.stop <= rows.stop]
        if union(spans[i] for i in picked) != (rows,):
            raise SelectorError(
                f"the inventory is not cut at '{self}', so other rows would be selected too. "
                "Select with fl.select(model, ...), which cuts it."
            )
        return frozenset(picked)

    def entry_in(self, inventory: Inventory) -> Entry:
        """The entry of the tensor, the first where it is cut; raises SelectorError without one."""
        indices = inventory.indices_by_name.get(self.name, ())
        entries = [inventory.entries[index] for index in indices]
        if not any(entry.is_parameter for entry in entries):
            names = [p.plain for e in inventory.entries if e.is_parameter for p in e.occurrences]
            below = [name for name in names if name.startswith(f"{self.name}.")]
            near = below[:3] or nearest(self.name, names)
            hint = f" Nearest: {', '.join(near)}." if near else ""
            raise SelectorError(
                f"'{self}' names no parameter of {inventory.title}; rows: takes a parameter's full "
                f"name.{hint} See all: "
                + either("print(fl.select(model, 'all')).", "`frostline inspect MODEL`.")
            )
        if any(place.own_name != place.leaf for place in entries[0].occurrences):
            raise SelectorError(
                f"'{self}' names rows of a tensor that {inventory.title} computes from others "
                "(weight norm or another parametrization), which move it as a whole. Remove the "
                "parametrization, or freeze the whole tensor."
            )
        if entries[0].tensor.dim() == 0:
            raise SelectorError(
                f"'{self}' names rows of a single number. Name it whole: {word(self.name)}."
            )
        return entries[0]

    def rows_in(self, inventory: Inventory) -> range:
        """The rows, counted from the start; raises SelectorError where the tensor lacks them."""
        count = self.entry_in(inventory).tensor.shape[0]
        start = self.start + count if self.start < 0 else self.start
        last = count if self.stop is None else self.stop
        stop = last + count if last < 0 else last
        if 0 <= start < stop <= count:
            return range(start, stop)
        raise SelectorError(
            f"'{self}' asks for rows from {start} to before {stop}, but {self.name} of "
            f"{inventory.title} has {count}. Stay within [0:{count}], the lower end first."
        )

    def __str__(self) -> str:
        return f"rows:{word(self.name)}[{self.start}:{'' if self.stop is None else self.stop}]"

    def __repr__(self) -> str:
        stop = "" if self.stop is None else f", {self.stop}"
        return f"fl.rows({self.name!r}, {self.start}{stop})"


def row_terms(selector: Selector) -> Iterator[Rows]:
    """The `rows:` terms of an expression."""
    return (leaf for leaf in selector.leaves() if isinstance(leaf, Rows))


def refined(stock: Inventory, selector: Selector) -> Inventory:
    """The inventory, cut where the expression's `rows:` terms begin and end."""
    found: dict[int, list[range]] = {}
    for term in row_terms(selector):
        found.setdefault(id(term.entry_in(stock).tensor), []).append(term.rows_in(stock))
    return cut_at(stock, found)


def cut_at(stock: Inventory, rows: Mapping[int, Iterable[range]]) -> Inventory:
    """The inventory, the tensors whose ids are keys cut where the rows begin and end."""
    if not rows:
        return stock
    cuts = {key: {e for r in ranges for e in (r.start, r.stop)} for key, ranges in rows.items()}
    entries = [p for e in stock.entries for p in _pieces(e, cuts.get(id(e.tensor), set()))]
    return replace(stock, entries=tuple(entries))


def joined(entries: Iterable[Entry]) -> Iterator[Entry]:
    """The entries, pieces that touch joined; a tensor of which all pieces are there is whole."""
    runs: list[list[Entry]] = []
    for entry in entries:
        last = runs[-1][-1] if runs else None
        if last and last.tensor is entry.tensor and last.span.stop == entry.span.start:
            runs[-1].append(entry)
        else:
            runs.append([entry])
    for run in runs:
        rows = range(run[0].span.start, run[-1].span.stop)
        whole = covers([rows], run[0].tensor)
        yield run[0] if len(run) == 1 else replace(run[0], rows=None if whole else rows)


def _pieces(entry: Entry, cuts: set[int]) -> Iterator[Entry]:
    own = entry.span
    edges = [own.start, *sorted(e for e in cuts if own.start < e < own.stop), own.stop]
    if len(edges) == 2:
        yield entry
        return
    for start, stop in pairwise(edges):
        yield replace(entry, rows=range(start, stop))
