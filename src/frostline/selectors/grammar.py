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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

from frostline.errors import SelectorError, nearest, shortened
from frostline.selectors.patterns import is_pattern
from frostline.selectors.pieces import Rows
from frostline.selectors.terms import (
    And,
    Depth,
    Everything,
    Glob,
    Kind,
    Nothing,
    OfType,
    Or,
    Path,
    Regex,
    Selector,
    Stage,
)

_PREFIXES = ("re", "type", "kind", "stage", "depth", "glob", "rows")
_STAGE = re.compile(r"(-?\d{1,9})(?:\.\.(-?\d{1,9}))?")
_DEPTH = re.compile(r"(\d+(?:\.\d+)?)%")
_SPAN = re.compile(r"\s*(?:(-?\d{1,18})|(-?\d{1,18})?\s*:\s*(-?\d{1,18})?)\s*")
_OPERATORS = "&|~()"
_LONGEST = 1_000_000  # characters
_SHOWN = 70  # characters of the text that a message shows, the mark among them
_DEEPEST = 50  # nested parentheses and negations; far from Python's own limit


@dataclass(frozen=True, slots=True)
class _Token:
    """A piece of the text; `quoted` pieces are never operators, words or patterns.

    `spans` is what stood in the brackets behind a `rows:` term's name.
    """

    text: str
    start: int
    prefix: str = ""
    quoted: bool = False
    spans: str = ""


def parse(text: str) -> Selector:
    """Read a selector's text.

    Raises:
        SelectorError: the text cannot be read; shows where.
    """
    if len(text) > _LONGEST:
        raise SelectorError(
            f"a selector may have {_LONGEST:,} characters, and this one has {len(text):,}. Name "
            "modules instead of each of their parameters, or pass a list."
        )
    tokens = _Tokens(text)
    selector = _either(tokens)
    if (rest := tokens.peek()) is not None:
        tokens.refuse(
            rest, f"'{shortened(rest.text)}' was not expected here; join terms with & or |"
        )
    return selector


class _Tokens:
    """The text's tokens and how far they have been read."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._tokens = _tokenize(text)
        self._at = 0
        self._depth = 0

    def peek(self) -> _Token | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def next_is(self, operator: str) -> bool:
        token = self.peek()
        if token is None or token.quoted or token.prefix or token.text != operator:
            return False
        self._at += 1
        return True

    def take(self) -> _Token:
        token = self.peek()
        if token is None:
            self.refuse(None, "it ends where a term was expected")
        self._at += 1
        return token

    @contextmanager
    def nested(self) -> Iterator[None]:
        self._depth += 1
        if self._depth > _DEEPEST:
            self.refuse(self.peek(), f"terms are nested more than {_DEEPEST} deep")
        yield
        self._depth -= 1

    def refuse(self, token: _Token | None, reason: str) -> NoReturn:
        _refuse(self.text, token.start if token else len(self.text), reason)


def _either(tokens: _Tokens) -> Selector:
    terms = [_both(tokens)]
    while tokens.next_is("|"):
        terms.append(_both(tokens))
    return Or.of(*terms)


def _both(tokens: _Tokens) -> Selector:
    terms = [_negated(tokens)]
    while tokens.next_is("&"):
        terms.append(_negated(tokens))
    return And.of(*terms)


def _negated(tokens: _Tokens) -> Selector:
    if tokens.next_is("~"):
        with tokens.nested():
            return ~_negated(tokens)
    if tokens.next_is("("):
        with tokens.nested():
            inner = _either(tokens)
        if not tokens.next_is(")"):
            tokens.refuse(tokens.peek(), "a ')' is missing")
        return inner
    return _term(tokens)


def _term(tokens: _Tokens) -> Selector:
    token = tokens.take()
    if not token.quoted and not token.prefix and token.text in _OPERATORS:
        tokens.refuse(token, f"'{token.text}' stands where a term was expected")
    if token.prefix:
        return _prefixed(tokens, token)
    if token.quoted:
        return Path(token.text)
    if token.text in {"all", "none"}:
        return Everything() if token.text == "all" else Nothing()
    if ":" in token.text:
        _refuse_prefix(tokens, token)
    return Glob(token.text) if is_pattern(token.text) else Path(token.text)


def _prefixed(tokens: _Tokens, token: _Token) -> Selector:
    if not token.text:
        tokens.refuse(token, f"'{token.prefix}:' names nothing")
    match token.prefix:
        case "re":
            return Regex(token.text)
        case "type":
            return OfType(token.text)
        case "kind":
            return Kind(token.text)
        case "glob":
            return Glob(token.text)
        case "stage":
            return _stage(tokens, token)
        case "rows":
            return Or.of(*(_rows(tokens, token, span) for span in token.spans.split(",")))
        case _:
            return _depth(tokens, token)


def _stage(tokens: _Tokens, token: _Token) -> Selector:
    found = _STAGE.fullmatch(token.text)
    if found is None:
        tokens.refuse(token, "a stage is a number or a range, as stage:0, stage:-1, stage:1..3")
    first = int(found[1])
    return Stage(first, first if found[2] is None else int(found[2]))


def _depth(tokens: _Tokens, token: _Token) -> Selector:
    found = _DEPTH.fullmatch(token.text)
    if found is None:
        tokens.refuse(token, "a depth is a percentage, as depth:60%")
    return Depth(float(found[1]))


def _rows(tokens: _Tokens, token: _Token, span: str) -> Selector:
    found = _SPAN.fullmatch(span)
    if found is None:
        reason = (
            "rows go by one"
            if span.count(":") > 1
            else f"'{shortened(span.strip())}' is no span of rows"
        )
        tokens.refuse(
            token, f"{reason}; write rows:{shortened(token.text)}[0:100], [5], [-10:] or [0:10,20]"
        )
    single, first, stop = (None if text is None else int(text) for text in found.groups())
    if single is None:
        return Rows(token.text, first or 0, stop)
    return Rows(token.text, single, None if single == -1 else single + 1)


def _refuse_prefix(tokens: _Tokens, token: _Token) -> NoReturn:
    prefix = token.text.partition(":")[0]
    near = nearest(prefix[:_SHOWN], _PREFIXES, count=1)
    hint = f"; did you mean '{near[0]}:'?" if near else ""
    known = ", ".join(f"{p}:" for p in _PREFIXES)
    tokens.refuse(token, f"there is no '{shortened(prefix)}:'{hint} (there are {known})")


def _tokenize(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
        elif text[at] in _OPERATORS:
            tokens.append(_Token(text[at], at))
            at += 1
        else:
            token, at = _read_term(text, at)
            tokens.append(token)
    return tokens


def _read_term(text: str, start: int) -> tuple[_Token, int]:
    prefix = next((p for p in _PREFIXES if text.startswith(f"{p}:", start)), "")
    at = start + len(prefix) + 1 if prefix else start
    if prefix == "rows":
        return _read_rows(text, start, at)
    if text[at : at + 1] in {"'", '"'}:
        content, end = _read_quoted(text, at)
        return _Token(content, start, prefix, quoted=True), end
    end = _regex_end(text, at) if prefix == "re" else _word_end(text, at)
    return _Token(text[at:end], start, prefix), end


def _read_rows(text: str, start: int, at: int) -> tuple[_Token, int]:
    """A name, bare or quoted, and what stands in the brackets behind it."""
    if text[at : at + 1] in {"'", '"'}:
        name, end = _read_quoted(text, at)
    else:
        name = text[at : _word_end(text, at)].partition("[")[0]
        end = at + len(name)
    if text[end : end + 1] != "[":
        _refuse(text, end, "rows: wants rows behind the name, as rows:embed.weight[0:100]")
    close = text.find("]", end)
    if close < 0:
        _refuse(text, end, "the bracket [ is never closed")
    return _Token(name, start, "rows", spans=text[end + 1 : close]), close + 1


def _read_quoted(text: str, at: int) -> tuple[str, int]:
    quote = text[at]
    found = re.compile(f"{quote}((?:[^{quote}]|{quote}{quote})*+){quote}").match(text, at)
    if found is None:
        _refuse(text, at, f"the quote {quote} is never closed")
    return found[1].replace(quote * 2, quote), found.end()


def _word_end(text: str, at: int) -> int:
    while at < len(text) and not text[at].isspace() and text[at] not in _OPERATORS:
        at += 1
    return at


def _regex_end(text: str, at: int) -> int:
    """Where a bare regular expression ends: at a space or operator outside its own brackets."""
    open_groups, in_class = 0, False
    while at < len(text):
        sign = text[at]
        inside = in_class or open_groups > 0
        if sign == "\\":
            at += 1
        elif in_class:
            in_class = sign != "]"
        elif sign == "[":
            in_class = True
        elif sign == "(":
            open_groups += 1
        elif sign == ")" and open_groups > 0:
            open_groups -= 1
        elif not inside and (sign.isspace() or sign in _OPERATORS):
            break
        at += 1
    return min(at, len(text))


def _refuse(text: str, at: int, reason: str) -> NoReturn:
    # On one line, and as wide as it is long, or the mark would point elsewhere.
    line = "".join(sign if sign.isprintable() else " " for sign in text)
    if len(line) > _SHOWN:
        start = max(0, at - _SHOWN // 2)
        end = start + _SHOWN
        line = f"{'...' if start else ''}{line[start:end]}{'...' if end < len(line) else ''}"
        at += (3 if start else 0) - start
    raise SelectorError(f"cannot read the selector at the mark: {reason}.\n  {line}\n  {' ' * at}^")
