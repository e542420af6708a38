"""Selectors as values: one small class for each term, algebra between them.

Every selector has one job: `pick` gives the indices of the entries it matches. `str()` is its
text, `repr()` reads back as code, equal selectors are equal and hash alike (`a & b` equals
`b & a`).
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import final

from torch import Tensor, nn

from frostline.errors import SelectorError, nearest, shortened
from frostline.selectors.inventory import Inventory, Occurrence, plain_name
from frostline.selectors.kinds import KINDS
from frostline.selectors.norms import class_names
from frostline.selectors.patterns import glob_rule, is_bare_glob, quoted, regex_rule, word
from frostline.selectors.stages import stages, stages_by_any_name
from frostline.wrappers import unwrap

Picked = frozenset[int]
Predicate = Callable[[str, Tensor, nn.Module], bool]
_COMPARED = 200  # characters of a name that are held against those the model has


class Selector(ABC):
    """Text or value that names parameters; combine with `&`, `|`, `~`."""

    __slots__ = ()

    @abstractmethod
    def pick(self, inventory: Inventory) -> Picked:
        """Indices into `inventory.entries` of what this matches.

        Raises:
            SelectorError: a term matches nothing; names the term and the nearest names.
        """

    def __and__(self, other: Selector) -> Selector:
        return all_of(self, other) if isinstance(other, Selector) else NotImplemented

    def __or__(self, other: Selector) -> Selector:
        return any_of(self, other) if isinstance(other, Selector) else NotImplemented

    def __invert__(self) -> Selector:
        return Not(self)


@final
@dataclass(frozen=True, slots=True, repr=False)
class Path(Selector):
    """A module path and all below it, or a parameter's own full name."""

    path: str

    def pick(self, inventory: Inventory) -> Picked:
        below = self.path + "."

        def matches(place: Occurrence) -> bool:
            return any(n == self.path or n.startswith(below) for n in (place.name, place.plain))

        return _matching(inventory, matches) or _refuse(self, inventory, self.path)

    def __str__(self) -> str:
        return quoted(self.path) if self.path in {"all", "none"} else word(self.path)

    def __repr__(self) -> str:
        return f"fl.path({self.path!r})"


@final
@dataclass(frozen=True, slots=True, repr=False)
class Glob(Selector):
    """A pattern over dotted names: `*`, `?`, `[..]` stay inside a segment, `**` crosses segments.

    It matches a parameter by its full name or by any module above it.
    """

    pattern: str

    def __post_init__(self) -> None:
        _refuse_empty("glob", self.pattern)

    def pick(self, inventory: Inventory) -> Picked:
        rule = glob_rule(self.pattern)

        def matches(place: Occurrence) -> bool:
            return any(rule.match(name) for name in {place.name, place.plain})

        return _matching(inventory, matches) or self._refuse(inventory)

    def _refuse(self, inventory: Inventory) -> Picked:
        wider = re.sub(r"(?<!\*)\*(?!\*)", "**", self.pattern)
        rule = glob_rule(wider)
        if any(rule.match(p.name) for e in inventory.entries for p in e.occurrences):
            raise SelectorError(
                f"'{shortened(self)}' matches no parameter of {inventory.title}: `*` stays inside "
                f"one segment of a dotted name. '{shortened(wider)}' crosses segments and does "
                "match."
            )
        return _refuse(self, inventory, self.pattern)

    def __str__(self) -> str:
        return self.pattern if is_bare_glob(self.pattern) else f"glob:{quoted(self.pattern)}"

    def __repr__(self) -> str:
        return f"fl.glob({self.pattern!r})"


@final
@dataclass(frozen=True, slots=True, repr=False)
class Regex(Selector):
    """A regular expression, searched in the full name."""

    pattern: str

    def __post_init__(self) -> None:
        _refuse_empty("re", self.pattern)
        try:
            regex_rule(self.pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise SelectorError(
                f"'{shortened(self)}' is no regular expression: {error}. Mend the pattern; quote "
                "it if it holds spaces: re:'...'."
            ) from error

    def pick(self, inventory: Inventory) -> Picked:
        rule = regex_rule(self.pattern)

        def matches(place: Occurrence) -> bool:
            return any(rule.search(name) for name in {place.name, place.plain})

        return _matching(inventory, matches) or _refuse(self, inventory, self.pattern)

    def __str__(self) -> str:
        return f"re:{quoted(self.pattern)}"

    def __repr__(self) -> str:
        return f"fl.regex({self.pattern!r})"


@final
@dataclass(frozen=True, slots=True, repr=False)
class OfType(Selector):
    """At or below a module of that class; any class in its MRO counts, by name."""

    name: str

    def __post_init__(self) -> None:
        _refuse_empty("type", self.name)

    def pick(self, inventory: Inventory) -> Picked:
        def matches(place: Occurrence) -> bool:
            return any(self.name in class_names(owner) for owner in place.owners)

        if picked := _matching(inventory, matches):
            return picked
        owners = {o for entry in inventory.entries for p in entry.occurrences for o in p.owners}
        present = {n for owner in owners for n in class_names(owner) if not n.startswith("_")}
        return _refuse(self, inventory, self.name, known=sorted(present))

    def __str__(self) -> str:
        return f"type:{word(self.name)}"

    def __repr__(self) -> str:
        return f"fl.of_type({self.name!r})"


@final
@dataclass(frozen=True, slots=True, repr=False)
class Kind(Selector):
    """What a parameter is: norm, bias, conv, linear, embedding or attention."""

    name: str

    def __post_init__(self) -> None:
        if self.name not in KINDS:
            near = nearest(self.name[:_COMPARED], list(KINDS), count=1)
            hint = f" Did you mean kind:{near[0]}?" if near else ""
            raise SelectorError(
                f"there is no 'kind:{shortened(self.name)}'.{hint} Kinds: {', '.join(KINDS)}."
            )

    def pick(self, inventory: Inventory) -> Picked:
        picked = _matching(inventory, KINDS[self.name])
        if picked or inventory.kinds_may_miss:
            return picked
        present = [k for k, rule in KINDS.items() if _matching(inventory, rule)]
        raise SelectorError(
            f"'{self}' matches no parameter of {inventory.title}. It has: "
            f"{', '.join(f'kind:{k}' for k in present) or 'none of the kinds'}. Leave the term out."
        )

    def __str__(self) -> str:
        return f"kind:{self.name}"

    def __repr__(self) -> str:
        return f"fl.kind({self.name!r})"


@final
@dataclass(frozen=True, slots=True, repr=False)
class Stage(Selector):
    """The model's stages `first` to `last` inclusive, in forward order; negative from the end."""

    first: int
    last: int

    def pick(self, inventory: Inventory) -> Picked:
        groups = stages_by_any_name(inventory)
        count = len(groups)
        low, high = (n + count if n < 0 else n for n in (self.first, self.last))
        if not 0 <= low <= high < count:
            raise SelectorError(
                f"'{self}' names no stage of {inventory.title}, which has {count}: "
                f"stage:0 to stage:{count - 1}, or stage:-1 for the last."
            )
        picked = frozenset[int]().union(*groups[low : high + 1])
        return picked or _refuse(self, inventory, str(self))

    def __str__(self) -> str:
        return f"stage:{self.first}" + ("" if self.last == self.first else f"..{self.last}")

    def __repr__(self) -> str:
        return (
            f"fl.stage({self.first}" + ("" if self.last == self.first else f", {self.last}") + ")"
        )


@final
@dataclass(frozen=True, slots=True, repr=False)
class Depth(Selector):
    """The first `percent` of the model's stages, rounded to the nearest whole stage."""

    percent: float

    def __post_init__(self) -> None:
        if not 0 < self.percent <= 100:
            asked = f"depth:{self.percent:g}%" if abs(self.percent) < 1e300 else "that depth"
            raise SelectorError(f"{asked} is out of range: depth goes above 0% and up to 100%.")

    def pick(self, inventory: Inventory) -> Picked:
        groups = stages(inventory)
        count = int(self.percent / 100 * len(groups) + 0.5)
        if count == 0:
            raise SelectorError(
                f"'{self}' is less than half a stage of {inventory.title}, which has "
                f"{len(groups)} stages. Ask for depth:{100 / len(groups):.0f}%, or name stage:0."
            )
        return frozenset().union(*groups[:count])

    def __str__(self) -> str:
        return f"depth:{self._digits}%"

    def __repr__(self) -> str:
        return f"fl.depth({self._digits})"

    @property
    def _digits(self) -> str:
        """All digits and no exponent, so that the text reads back as the same number."""
        return f"{Decimal(repr(float(self.percent))).normalize():f}"


@final
@dataclass(frozen=True, slots=True, repr=False)
class Everything(Selector):
    """All parameters."""

    def pick(self, inventory: Inventory) -> Picked:
        return frozenset(range(len(inventory.entries)))

    def __str__(self) -> str:
        return "all"

    def __repr__(self) -> str:
        return "fl.everything"


@final
@dataclass(frozen=True, slots=True, repr=False)
class Nothing(Selector):
    """No parameter; the one selector that may match nothing."""

    def pick(self, inventory: Inventory) -> Picked:  # noqa: ARG002 - the seam's signature
        return frozenset()

    def __str__(self) -> str:
        return "none"

    def __repr__(self) -> str:
        return "fl.nothing"


@final
@dataclass(frozen=True, slots=True, repr=False)
class Where(Selector):
    """What a function says yes to: `predicate(name, parameter, module) -> bool`.

    Asked for each name of each parameter, and for the buffers of modules without parameters; of a
    parameter that is cut into rows by another term, it gets the whole.
    """

    predicate: Predicate

    def pick(self, inventory: Inventory) -> Picked:
        picked = frozenset(
            index
            for index, entry in enumerate(inventory.entries)
            if any(self.predicate(p.name, entry.tensor, p.owner) for p in entry.occurrences)
        )
        if picked:
            return picked
        raise SelectorError(
            f"the function {self._name} said yes to no parameter of {inventory.title}. It is "
            f"called as predicate(name, parameter, module), names such as {_sample(inventory)}."
        )

    @property
    def _name(self) -> str:
        return str(getattr(self.predicate, "__qualname__", repr(self.predicate)))

    def __str__(self) -> str:
        return f"<function {self._name}>"

    def __repr__(self) -> str:
        return f"fl.where({self._name})"


@final
class Exactly(Selector):
    """These very modules and parameters, by identity."""

    __slots__ = ("objects",)

    def __init__(self, objects: Iterable[nn.Module | Tensor]) -> None:
        self.objects = tuple(objects)

    def pick(self, inventory: Inventory) -> Picked:
        return frozenset().union(*(self._pick_one(thing, inventory) for thing in self.objects))

    def _pick_one(self, thing: nn.Module | Tensor, inventory: Inventory) -> Picked:
        inner = unwrap(thing) if isinstance(thing, nn.Module) else thing
        picked = frozenset(
            index
            for index, entry in enumerate(inventory.entries)
            if entry.tensor is thing or any(inner is o for p in entry.occurrences for o in p.owners)
        )
        if picked:
            return picked
        raise SelectorError(
            f"the given {type(thing).__name__} is no part of {inventory.title}, or holds no "
            "parameter. Pass an object of this very model, not of a copy."
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Exactly) and self._identities == other._identities

    def __hash__(self) -> int:
        return hash(self._identities)

    @property
    def _identities(self) -> frozenset[int]:
        return frozenset(map(id, self.objects))

    def __str__(self) -> str:
        return f"<{', '.join(type(thing).__name__ for thing in self.objects)}>"

    def __repr__(self) -> str:
        return f"fl.exactly({', '.join(f'<{type(t).__name__}>' for t in self.objects)})"


class _Many(Selector):
    """Terms joined by one commutative operator; order counts for reading, not for equality."""

    __slots__ = ("terms",)
    operator: str

    def __init__(self, terms: Iterable[Selector]) -> None:
        self.terms = tuple(dict.fromkeys(terms))

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and frozenset(self.terms) == frozenset(other.terms)

    def __hash__(self) -> int:
        return hash((type(self).__name__, frozenset(self.terms)))

    def __str__(self) -> str:
        return f" {self.operator} ".join(_grouped(t, self, str(t)) for t in self.terms)

    def __repr__(self) -> str:
        return f" {self.operator} ".join(_grouped(t, self, repr(t)) for t in self.terms)


@final
class And(_Many):
    """What every term matches."""

    __slots__ = ()
    operator = "&"

    def pick(self, inventory: Inventory) -> Picked:
        return frozenset.intersection(*(term.pick(inventory) for term in self.terms))


@final
class Or(_Many):
    """What any term matches."""

    __slots__ = ()
    operator = "|"

    def pick(self, inventory: Inventory) -> Picked:
        return frozenset().union(*(term.pick(inventory) for term in self.terms))


@final
@dataclass(frozen=True, slots=True, repr=False)
class Not(Selector):
    """What the term does not match."""

    term: Selector

    def pick(self, inventory: Inventory) -> Picked:
        return frozenset(range(len(inventory.entries))) - self.term.pick(inventory)

    def __invert__(self) -> Selector:
        return self.term

    def __str__(self) -> str:
        return f"~{_grouped(self.term, self, str(self.term))}"

    def __repr__(self) -> str:
        return f"~{_grouped(self.term, self, repr(self.term))}"


def all_of(*terms: Selector) -> Selector:
    """The terms joined by `&`, nested ones flattened."""
    return _joined(And, terms)


def any_of(*terms: Selector) -> Selector:
    """The terms joined by `|`, nested ones flattened."""
    return _joined(Or, terms)


def _joined(operator: type[And] | type[Or], terms: Iterable[Selector]) -> Selector:
    flat: list[Selector] = []
    for term in terms:
        flat.extend(term.terms if isinstance(term, operator) else [term])
    joined = operator(flat)
    return joined.terms[0] if len(joined.terms) == 1 else joined


def _grouped(term: Selector, inside: Selector, text: str) -> str:
    """`text` in parentheses where `term` binds less tightly than `inside`."""
    looser = isinstance(term, Or) or (isinstance(term, And) and isinstance(inside, Not))
    return f"({text})" if looser else text


def _matching(inventory: Inventory, matches: Callable[[Occurrence], bool]) -> Picked:
    return frozenset(
        index
        for index, entry in enumerate(inventory.entries)
        if any(matches(place) for place in entry.occurrences)
    )


def _refuse_empty(prefix: str, text: str) -> None:
    if not text:
        raise SelectorError(
            f"'{prefix}:' names nothing; write what it is to match after the colon."
        )


def _sample(inventory: Inventory) -> str:
    return ", ".join(entry.name for entry in inventory.entries[:2]) or "(it has none)"


def _refuse(
    term: Selector, inventory: Inventory, asked: str, *, known: list[str] | None = None
) -> Picked:
    names = known if known is not None else list(inventory.names)
    name = plain_name(asked[:_COMPARED])
    hint = f" Nearest: {', '.join(near)}." if (near := nearest(name, names)) else ""
    if name in names:  # as quantised layers, whose weights are packed
        hint = " That module has none, so there is nothing to switch; leave it out."
    raise SelectorError(
        f"'{shortened(term)}' matches no parameter of {inventory.title}.{hint} "
        "See all: print(fl.summary(model)) or `frostline inspect MODEL`."
    )
