"""Selectors as values: one small class for each term, algebra between them.

Every selector has one job: `pick` gives the indices of the entries it matches. `str()` is its
text, `repr()` reads back as code, equal selectors are equal and hash alike (`a & b` equals
`b & a`).
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from numbers import Integral, Real
from typing import ClassVar, NoReturn, final

from torch import Tensor, nn

from frostline.errors import SelectorError, nearest, shortened
from frostline.selectors.inventory import Inventory, Occurrence, plain_name, unwrapped
from frostline.selectors.kinds import KINDS, class_names
from frostline.selectors.patterns import glob_rule, is_bare_glob, quoted, regex_rule, word
from frostline.selectors.stages import stages
from frostline.wording import either
from frostline.wrappers import unwrap

Picked = frozenset[int]
Predicate = Callable[[str, Tensor, nn.Module], bool]
_COMPARED = 200  # characters of a name that are held against those the model has


class Selector(ABC):
    """Text or value that names parameters; combine with `&`, `|`, `~`.

    Example:
        >>> selector = fl.path("backbone") & ~fl.kind("norm")
        >>> print(selector)
        backbone & ~kind:norm
        >>> fl.select(model, selector).names
        ('backbone.0.weight', 'backbone.0.bias')
    """

    __slots__ = ()

    @abstractmethod
    def pick(self, inventory: Inventory) -> Picked:
        """Indices into `inventory.entries` of what this matches.

        Raises:
            SelectorError: a term matches nothing; names the term and the nearest names.
        """

    def leaves(self) -> Iterator[Selector]:
        """The terms that the operators join."""
        yield self

    def __and__(self, other: Selector) -> Selector:
        return And.of(self, other) if isinstance(other, Selector) else NotImplemented

    def __or__(self, other: Selector) -> Selector:
        return Or.of(self, other) if isinstance(other, Selector) else NotImplemented

    def __invert__(self) -> Selector:
        return Not(self)


@dataclass(frozen=True, slots=True, repr=False)
class _Named(Selector):
    """A term of one text, which is held against each place of a tensor."""

    text: str
    call: ClassVar[str]  # the public function that makes it
    prefix: ClassVar[str] = ""  # what stands before the colon in its text

    def __post_init__(self) -> None:
        if self.prefix and not self.text:
            raise SelectorError(
                f"'{self.prefix}:' names nothing; write what it is to match after the colon."
            )

    @abstractmethod
    def rule(self) -> Callable[[Occurrence], bool]:
        """Which places match."""

    def pick(self, inventory: Inventory) -> Picked:
        return _matching(inventory, self.rule()) or self.refuse(inventory)

    def refuse(self, inventory: Inventory) -> NoReturn:
        """Say that nothing matches, and what is near."""
        _refuse(self, inventory, self.text, inventory.names)

    def __str__(self) -> str:
        return f"{self.prefix}:{word(self.text)}"

    def __repr__(self) -> str:
        return f"fl.{self.call}({self.text!r})"


@final
class Path(_Named):
    """The module at that dotted path and all below it, or the parameter of that full name.

    Example:
        >>> fl.select(model, fl.path("head")).names
        ('head.2.weight', 'head.2.bias')
    """

    __slots__ = ()
    call = "path"

    def rule(self) -> Callable[[Occurrence], bool]:
        path = unwrapped(self.text)
        below = path + "."
        return lambda place: any(n == path or n.startswith(below) for n in place.both_names)

    def __str__(self) -> str:
        return quoted(self.text) if self.text in {"all", "none"} else word(self.text)


@final
class Glob(_Named):
    """Dotted names by pattern: `*`, `?`, `[..]` stay inside a segment, `**` crosses segments.

    It matches a parameter by its full name or by any module above it.

    Example:
        >>> fl.select(model, fl.glob("backbone.*.bias")).names
        ('backbone.0.bias', 'backbone.1.bias')
    """

    __slots__ = ()
    call = prefix = "glob"

    def rule(self) -> Callable[[Occurrence], bool]:
        rule = glob_rule(unwrapped(self.text))
        return lambda place: any(rule.match(name) for name in place.both_names)

    def refuse(self, inventory: Inventory) -> NoReturn:
        wider = re.sub(r"(?<!\*)\*(?!\*)", "**", self.text)
        if _matching(inventory, Glob(wider).rule()):
            raise SelectorError(
                f"'{shortened(self)}' matches no parameter of {inventory.title}: `*` stays inside "
                f"one segment of a dotted name. '{shortened(wider)}' crosses segments and does "
                "match."
            )
        _refuse(self, inventory, self.text, inventory.names)

    def __str__(self) -> str:
        return self.text if is_bare_glob(self.text) else f"glob:{quoted(self.text)}"


@final
class Regex(_Named):
    """Full names in which the regular expression is found.

    Example:
        >>> fl.select(model, fl.regex("[12].bias")).names
        ('backbone.1.bias', 'head.2.bias')
    """

    __slots__ = ()
    call, prefix = "regex", "re"

    def __post_init__(self) -> None:
        _Named.__post_init__(self)
        try:
            regex_rule(self.text)
        except (re.error, OverflowError, RecursionError) as error:
            raise SelectorError(
                f"'{shortened(self)}' is no regular expression: {error}. Correct the pattern; "
                "quote it if it holds spaces: re:'...'."
            ) from error

    def rule(self) -> Callable[[Occurrence], bool]:
        rule = regex_rule(self.text)
        return lambda place: any(rule.search(name) for name in place.both_names)

    def __str__(self) -> str:
        return f"re:{quoted(self.text)}"


@final
class OfType(_Named):
    """At or below a module of that class; any class in its MRO counts, by name."""

    __slots__ = ()
    call, prefix = "of_type", "type"

    def rule(self) -> Callable[[Occurrence], bool]:
        return lambda place: any(self.text in class_names(owner) for owner in place.owners)

    def refuse(self, inventory: Inventory) -> NoReturn:
        owners = {o for entry in inventory.entries for p in entry.occurrences for o in p.owners}
        present = {n for owner in owners for n in class_names(owner) if not n.startswith("_")}
        _refuse(self, inventory, self.text, sorted(present))


@final
class Kind(_Named):
    """What a parameter is: `norm`, `bias`, `conv`, `linear`, `embedding`, `attention`.

    Example:
        >>> fl.select(model, fl.kind("norm")).names
        ('backbone.1.weight', 'backbone.1.bias')
    """

    __slots__ = ()
    call = prefix = "kind"

    def __post_init__(self) -> None:
        if self.text not in KINDS:
            near = nearest(self.text[:_COMPARED], list(KINDS), count=1)
            hint = f" Did you mean kind:{near[0]}?" if near else ""
            raise SelectorError(
                f"there is no 'kind:{shortened(self.text)}'.{hint} Kinds: {', '.join(KINDS)}."
            )

    def rule(self) -> Callable[[Occurrence], bool]:
        return KINDS[self.text]

    def pick(self, inventory: Inventory) -> Picked:
        picked = _matching(inventory, self.rule())
        if picked or inventory.kinds_may_miss:
            return picked
        present = [f"kind:{k}" for k, rule in KINDS.items() if _matching(inventory, rule)]
        raise SelectorError(
            f"'{self}' matches no parameter of {inventory.title}. It has: "
            f"{', '.join(present) or 'none of the kinds'}. Leave the term out."
        )


@final
@dataclass(frozen=True, slots=True, repr=False)
class Stage(Selector):
    """The model's stages `first` to `last` inclusive, in forward order; negative from the end."""

    first: int
    last: int

    def __post_init__(self) -> None:
        for number in (self.first, self.last):
            if not isinstance(number, Integral) or isinstance(number, bool):
                raise SelectorError(
                    f"the stage {number!r} is no whole number. Give the first and the last, as "
                    "fl.stage(1, 3), or text, as 'stage:1..3'."
                )

    def pick(self, inventory: Inventory) -> Picked:
        groups = stages(inventory, by_any_name=True)
        count = len(groups)
        low, high = (n + count if n < 0 else n for n in (self.first, self.last))
        if not 0 <= low <= high < count:
            raise SelectorError(
                f"'{self}' names no stage of {inventory.title}, which has {count}: "
                f"stage:0 to stage:{count - 1}, or stage:-1 for the last."
            )
        picked = frozenset[int]().union(*groups[low : high + 1])
        return picked or _refuse(self, inventory, str(self), inventory.names)

    def __str__(self) -> str:
        return f"stage:{self.first}" + ("" if self.last == self.first else f"..{self.last}")

    def __repr__(self) -> str:
        return f"fl.stage({self.first}{'' if self.last == self.first else f', {self.last}'})"


@final
@dataclass(frozen=True, slots=True, repr=False)
class Depth(Selector):
    """The first `percent` (0 to 100) of the model's stages, rounded to the nearest whole stage.

    Example:
        >>> fl.select(model, fl.depth(50) & fl.kind("bias")).names
        ('backbone.0.bias', 'backbone.1.bias')
    """

    percent: float

    def __post_init__(self) -> None:
        if not isinstance(self.percent, Real):
            raise SelectorError(
                f"the depth {self.percent!r} is no number. Give a percentage, as fl.depth(60), or "
                "text, as 'depth:60%'."
            )
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
    """All parameters.

    Example:
        >>> fl.select(model, fl.everything & fl.kind("norm")).names
        ('backbone.1.weight', 'backbone.1.bias')
    """

    def pick(self, inventory: Inventory) -> Picked:
        return frozenset(range(len(inventory.entries)))

    def __str__(self) -> str:
        return "all"

    def __repr__(self) -> str:
        return "fl.everything"


@final
@dataclass(frozen=True, slots=True, repr=False)
class Nothing(Selector):
    """No parameter; the one selector that may match nothing.

    Example:
        >>> fl.select(model, fl.nothing).names
        ()
    """

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

    Example:
        >>> fl.select(model, fl.where(lambda name, parameter, module: parameter.dim() == 4)).names
        ('backbone.0.weight',)
    """

    predicate: Predicate

    def pick(self, inventory: Inventory) -> Picked:
        ask = self.predicate
        picked = inventory.indices(
            lambda entry: any(ask(p.name, entry.tensor, p.owner) for p in entry.occurrences)
        )
        if picked:
            return picked
        sample = ", ".join(entry.name for entry in inventory.entries[:2]) or "(it has none)"
        raise SelectorError(
            f"the function {self._name} said yes to no parameter of {inventory.title}. It is "
            f"called as predicate(name, parameter, module), names such as {sample}."
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
    """These very modules and parameters, by identity.

    Example:
        >>> fl.select(model, fl.exactly(model.head)).names
        ('head.2.weight', 'head.2.bias')
    """

    __slots__ = ("objects",)

    def __init__(self, *objects: nn.Module | Tensor) -> None:
        self.objects = objects

    def pick(self, inventory: Inventory) -> Picked:
        picked = frozenset[int]().union(*(self._pick_one(one, inventory) for one in self.objects))
        if picked or not self.objects:
            return picked
        names = ", ".join(dict.fromkeys(type(thing).__name__ for thing in self.objects))
        raise SelectorError(
            f"the given {names} of {inventory.title} has no parameter to switch. {_NONE_OF_ITS_OWN}"
        )

    def _pick_one(self, thing: nn.Module | Tensor, inventory: Inventory) -> Picked:
        inner = unwrap(thing) if isinstance(thing, nn.Module) else thing
        picked = inventory.indices(
            lambda e: any(inner is one for p in e.occurrences for one in (e.tensor, *p.owners))
        )
        if picked or any(inner is module for module in inventory.modules.values()):
            return picked
        raise SelectorError(
            f"the given {type(thing).__name__} is no part of {inventory.title}. Pass an object of "
            "this very model, not of a copy."
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

    @classmethod
    def of(cls, *terms: Selector) -> Selector:
        """The terms joined, nested ones flattened; a single one is itself."""
        flat = [one for term in terms for one in (term.terms if isinstance(term, cls) else [term])]
        joined = cls(flat)
        return joined.terms[0] if len(joined.terms) == 1 else joined

    def leaves(self) -> Iterator[Selector]:
        return (leaf for term in self.terms for leaf in term.leaves())

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and frozenset(self.terms) == frozenset(other.terms)

    def __hash__(self) -> int:
        return hash((type(self).__name__, frozenset(self.terms)))

    def __str__(self) -> str:
        return f" {self.operator} ".join(_grouped(term, self, str) for term in self.terms)

    def __repr__(self) -> str:
        return f" {self.operator} ".join(_grouped(term, self, repr) for term in self.terms)


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

    def leaves(self) -> Iterator[Selector]:
        return self.term.leaves()

    def __invert__(self) -> Selector:
        return self.term

    def __str__(self) -> str:
        return f"~{_grouped(self.term, self, str)}"

    def __repr__(self) -> str:
        return f"~{_grouped(self.term, self, repr)}"


# Of a quantised layer, whose weights are packed, or of one that has none, as a dropout.
_NONE_OF_ITS_OWN = (
    "A module without parameters is held with the one that it stands in, where that is frozen "
    "whole. Leave it out; a dropout that shall be off elsewhere takes the rate 0."
)


def _grouped(term: Selector, inside: Selector, show: Callable[[Selector], str]) -> str:
    """The term's text, in parentheses where it binds less tightly than `inside`."""
    looser = isinstance(term, Or) or (isinstance(term, And) and isinstance(inside, Not))
    return f"({show(term)})" if looser else show(term)


def _matching(inventory: Inventory, matches: Callable[[Occurrence], bool]) -> Picked:
    """The entries of which any place matches."""
    return inventory.indices(lambda entry: any(map(matches, entry.occurrences)))


def _refuse(term: Selector, inventory: Inventory, asked: str, known: Sequence[str]) -> NoReturn:
    name = plain_name(asked[:_COMPARED])
    hint = f" Nearest: {', '.join(near)}." if (near := nearest(name, known)) else ""
    if name in known:
        hint = f" {_NONE_OF_ITS_OWN}"
    raise SelectorError(
        f"'{shortened(term)}' matches no parameter of {inventory.title}.{hint} "
        f"See all: {either('print(fl.summary(model))', '`frostline inspect MODEL`')}."
    )
