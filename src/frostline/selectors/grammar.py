r"""Text -> selector. The whole language:

    selector := and ("|" and)*         a | b     either
    and      := not ("&" not)*         a & b     both
    not      := "~" not | atom         ~a        the others
    atom     := "(" selector ")" | term
    term     := "all" | "none"
              | "re:" regex | "type:" class | "kind:" kind
              | "stage:" n [".." n] | "depth:" number "%"
              | "rows:" name "[" span ("," span)* "]"
              | path | glob | "glob:" pattern
    span     := n | [n] ":" [n]        rows as in a slice; negative from the end

A term ends at a space or an operator. Inside a `re:` term, parentheses and brackets belong to
the regular expression while they are open; quotes (`re:'a|b'`, `'odd name.weight'`) keep all,
and a doubled quote inside them (`'it''s'`) is that quote. `glob:` is for patterns that cannot
stand bare. A name before the brackets of `rows:` may be quoted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NoReturn

from frostline.errors import SelectorError, nearest, shortened
from frostline.selectors import terms
from frostline.selectors.patterns import is_pattern
from frostline.selectors.pieces import Rows
from frostline.selectors.terms import Selector

_MAKERS = (terms.Regex, terms.OfType, terms.Kind, terms.Glob)
_NAMED: dict[str, Callable[[str], Selector]] = {make.prefix: make for make in _MAKERS}
_PREFIXES = ("re", "type", "kind", "stage", "depth", "glob", "rows")
_STAGE = re.compile(r"(-?\d{1,9})(?:\.\.(-?\d{1,9}))?")
_DEPTH = re.compile(r"(\d+(?:\.\d+)?)%")
_SPAN = re.compile(r"\s*(?:(-?\d{1,18})|(-?\d{1,18})?\s*:\s*(-?\d{1,18})?)\s*")
_OPERATORS = "&|~()"
_REGEX_PART = re.compile(r"\\.?|\[(?:\\.|[^\\\]])*\]?|.", re.DOTALL)  # a sign or a class
_WORD = re.compile(r"[^\s&|~()]+")
_QUOTES = ("'", '"')
_LONGEST = 1_000_000  # characters
_SHOWN = 70  # characters of the text that a message shows, the mark among them
_DEEPEST = 50  # nested parentheses and negations; far from Python's own limit


def parse(text: str) -> Selector:
    """Read a selector's text; where it cannot be read, a SelectorError shows the place."""
    if len(text) > _LONGEST:
        raise SelectorError(
            f"a selector may have {_LONGEST:,} characters, and this one has {len(text):,}. Name "
            "modules instead of each of their parameters, or pass a list."
        )
    reader = _Reader(text)
    selector = reader.either()
    if rest := reader.peek():
        start = reader.at
        rest = rest if rest in _OPERATORS else reader.content()
        reader.refuse(start, f"'{shortened(rest)}' was not expected here; join terms with & or |")
    return selector


class _Reader:
    """The text and how far it has been read; a method for each rule of the grammar."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self._depth = -1

    def peek(self) -> str:
        """The next sign that is no space; empty at the end."""
        while self.text[self.at : self.at + 1].isspace():
            self.at += 1
        return self.text[self.at : self.at + 1]

    def either(self) -> Selector:
        return terms.Or.of(*self._joined("|", self._both))

    def _both(self) -> Selector:
        return terms.And.of(*self._joined("&", self._negated))

    def content(self, *, is_regex: bool = False) -> str:
        """What stands in quotes, or up to the next space or operator."""
        start, quote = self.at, self.text[self.at : self.at + 1]
        if quote in _QUOTES:
            whole = re.compile(f"{quote}((?:[^{quote}]|{quote}{quote})*+){quote}")
            if (found := whole.match(self.text, start)) is None:
                self.refuse(start, f"the quote {quote} is never closed")
            self.at = found.end()
            return found[1].replace(quote * 2, quote)
        if is_regex:
            self.at = _regex_end(self.text, start)
        elif found := _WORD.match(self.text, start):
            self.at = found.end()
        return self.text[start : self.at]

    def refuse(self, at: int, reason: str) -> NoReturn:
        # On one line, and as wide as it is long, or the mark would point elsewhere.
        line = "".join(sign if sign.isprintable() else " " for sign in self.text)
        if len(line) > _SHOWN:
            start = max(0, at - _SHOWN // 2)
            end = start + _SHOWN
            line = f"{'...' if start else ''}{line[start:end]}{'...' if end < len(line) else ''}"
            at += (3 if start else 0) - start
        raise SelectorError(
            f"cannot read the selector at the mark: {reason}.\n  {line}\n  {' ' * at}^"
        )

    def _next_is(self, operator: str) -> bool:
        found = self.peek() == operator
        self.at += found
        return found

    def _joined(self, operator: str, part: Callable[[], Selector]) -> Iterator[Selector]:
        yield part()
        while self._next_is(operator):
            yield part()

    def _negated(self) -> Selector:
        self.peek()
        self._depth += 1
        if self._depth > _DEEPEST:
            self.refuse(self.at, f"terms are nested more than {_DEEPEST} deep")
        if self._next_is("~"):
            found = ~self._negated()
        elif self._next_is("("):
            found = self.either()
            if not self._next_is(")"):
                self.refuse(self.at, "a ')' is missing")
        else:
            found = self._term()
        self._depth -= 1
        return found

    def _term(self) -> Selector:
        sign, start = self.peek(), self.at
        if not sign:
            self.refuse(start, "it ends where a term was expected")
        if sign in _OPERATORS:
            self.refuse(start, f"'{sign}' stands where a term was expected")
        for prefix in _PREFIXES:
            if self.text.startswith(f"{prefix}:", start):
                self.at += len(prefix) + 1
                return self._prefixed(prefix, start)
        text = self.content()
        if sign in _QUOTES:
            return terms.Path(text)
        if text in {"all", "none"}:
            return terms.Everything() if text == "all" else terms.Nothing()
        if ":" in text:
            prefix, known = text.partition(":")[0], ", ".join(f"{p}:" for p in _PREFIXES)
            near = nearest(prefix[:_SHOWN], _PREFIXES, count=1)
            hint = f"; did you mean '{near[0]}:'?" if near else ""
            self.refuse(start, f"there is no '{shortened(prefix)}:'{hint} (there are {known})")
        return terms.Glob(text) if is_pattern(text) else terms.Path(text)

    def _prefixed(self, prefix: str, start: int) -> Selector:
        if prefix == "rows":
            return self._rows(start)
        text = self.content(is_regex=prefix == "re")
        if not text:
            self.refuse(start, f"'{prefix}:' names nothing")
        if prefix in _NAMED:
            return _NAMED[prefix](text)
        if prefix == "stage":
            if (found := _STAGE.fullmatch(text)) is None:
                self.refuse(
                    start, "a stage is a number or a range, as stage:0, stage:-1, stage:1..3"
                )
            return terms.Stage(int(found[1]), int(found[2] or found[1]))
        if (found := _DEPTH.fullmatch(text)) is None:
            self.refuse(start, "a depth is a percentage, as depth:60%")
        return terms.Depth(float(found[1]))

    def _rows(self, start: int) -> Selector:
        """A name, bare or quoted, and spans in the brackets behind it."""
        begin = self.at
        name = self.content()
        if self.text[begin : begin + 1] not in _QUOTES:
            name = name.partition("[")[0]
            self.at = begin + len(name)
        if self.text[self.at : self.at + 1] != "[":
            self.refuse(self.at, "rows: wants rows behind the name, as rows:embed.weight[0:100]")
        close = self.text.find("]", self.at)
        if close < 0:
            self.refuse(self.at, "the bracket [ is never closed")
        spans = self.text[self.at + 1 : close].split(",")
        self.at = close + 1
        if not name:
            self.refuse(start, "'rows:' names nothing")
        return terms.Or.of(*(self._span(name, span, start) for span in spans))

    def _span(self, name: str, span: str, start: int) -> Selector:
        found = _SPAN.fullmatch(span)
        if found is None:
            by_one = span.count(":") > 1
            why = "rows go by one" if by_one else f"'{shortened(span.strip())}' is no span of rows"
            self.refuse(
                start, f"{why}; write rows:{shortened(name)}[0:100], [5], [-10:] or [0:10,20]"
            )
        single, first, stop = (None if text is None else int(text) for text in found.groups())
        if single is None:
            return Rows(name, first or 0, stop)
        return Rows(name, single, None if single == -1 else single + 1)


def _regex_end(text: str, at: int) -> int:
    """Where a bare regular expression ends: at a space or operator outside its own brackets."""
    open_groups = 0
    for found in _REGEX_PART.finditer(text, at):
        part = found[0]
        if part == "(":
            open_groups += 1
        elif part == ")" and open_groups:
            open_groups -= 1
        elif not open_groups and (part.isspace() or part in _OPERATORS):
            return found.start()
    return len(text)
