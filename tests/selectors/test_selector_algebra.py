"""Algebra, precedence and quoting; text and code that read back as the same selector."""

from __future__ import annotations

import string

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

import frostline as fl
from frostline.selectors import parse
from frostline.selectors.kinds import KINDS

A, B, C = (fl.path(name) for name in "abc")
NET = nn.ModuleDict({name: nn.Linear(1, 1, bias=False) for name in "abcd"})

odd_text = st.text(min_size=1, max_size=12)
plain_text = st.text(
    string.ascii_letters + string.digits + "._*?[]'\"&|~() :", min_size=1, max_size=12
)


def _is_regex(pattern: str) -> bool:
    try:
        fl.regex(pattern)
    except fl.SelectorError:
        return False
    return True


terms = st.one_of(
    st.builds(fl.path, odd_text | plain_text | st.just("")),
    st.builds(fl.glob, odd_text | plain_text),
    st.builds(fl.of_type, odd_text | plain_text),
    st.builds(fl.regex, (odd_text | plain_text).filter(_is_regex)),
    st.builds(fl.kind, st.sampled_from(sorted(KINDS))),
    st.builds(fl.stage, st.integers(-99, 99), st.none() | st.integers(-99, 99)),
    st.builds(fl.depth, st.floats(0, 100, exclude_min=True) | st.integers(1, 100)),
    st.builds(
        lambda name, start, length: fl.rows(name, start, start + length or None),
        odd_text | plain_text,
        st.integers(-99, 99),
        st.integers(1, 99),
    ).filter(lambda term: term.stop is None or (term.start < 0) == (term.stop < 0)),
    st.just(fl.everything),
    st.just(fl.nothing),
)
selectors = st.recursive(
    terms,
    lambda inner: st.one_of(
        st.builds(lambda a, b: a & b, inner, inner),
        st.builds(lambda a, b: a | b, inner, inner),
        st.builds(lambda a: ~a, inner),
    ),
    max_leaves=8,
)


@given(selectors)
@settings(max_examples=150, deadline=None)
@example(fl.regex("['\"]"))
@example(fl.path('it\'s "odd"'))
@example(fl.glob("no magic"))
@example(fl.depth(1e-7))
def test_text_reads_back_as_an_equal_selector(selector: fl.Selector) -> None:
    assert parse(str(selector)) == selector


@given(selectors)
@settings(max_examples=150, deadline=None)
@example(fl.depth(100 / 3))
def test_repr_reads_back_as_an_equal_selector(selector: fl.Selector) -> None:
    assert eval(repr(selector), {"fl": fl}) == selector


@given(selectors, selectors)
@settings(max_examples=100, deadline=None)
def test_joined_selectors_are_equal_and_hash_alike_in_either_order(
    one: fl.Selector, other: fl.Selector
) -> None:
    assert one & other == other & one
    assert hash(one & other) == hash(other & one)
    assert one | other == other | one
    assert hash(one | other) == hash(other | one)


@given(selectors)
@settings(max_examples=100, deadline=None)
def test_twice_negated_is_the_selector_itself(selector: fl.Selector) -> None:
    assert ~~selector == selector


@given(selectors)
@settings(max_examples=100, deadline=None)
def test_joined_with_itself_is_the_selector_itself(selector: fl.Selector) -> None:
    assert selector & selector == selector | selector == selector


def test_and_binds_tighter_than_or() -> None:
    assert parse("a | b & c") == A | (B & C)


def test_not_binds_tighter_than_and() -> None:
    assert parse("~a & b") == (~A) & B


def test_parentheses_bind_tightest() -> None:
    assert parse("~(a | b) & c") == ~(A | B) & C


def test_text_keeps_the_parentheses_that_count() -> None:
    assert str((A | B) & ~(A & C)) == "(a | b) & ~(a & c)"


def test_nested_joins_are_flat() -> None:
    assert (A & B) & C == A & (B & C)


def test_and_is_not_or() -> None:
    assert (A & B) != (A | B)


def test_a_path_is_not_the_glob_of_the_same_text() -> None:
    assert fl.path("a") != fl.glob("a")


def test_operators_need_no_spaces() -> None:
    assert parse("a|b&~c") == A | (B & ~C)


def test_double_quotes_quote_too() -> None:
    assert parse('"a b"') == fl.path("a b")


def test_a_doubled_quote_stands_for_itself() -> None:
    assert parse("'it''s'") == fl.path("it's")


def test_a_quoted_word_is_no_prefix() -> None:
    assert parse("'kind:bias'") == fl.path("kind:bias")


def test_a_quoted_star_is_no_pattern() -> None:
    assert parse("'a*'") == fl.path("a*")


def test_a_space_between_prefix_and_name_is_an_error() -> None:
    with pytest.raises(fl.SelectorError, match="'kind:' names nothing"):
        parse("kind: bias")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a & ~b", "a"),
        ("a | b", "ab"),
        ("~a", "bcd"),
        ("~(a | b)", "cd"),
        ("~a & ~b", "cd"),
        ("(a | b) & (b | c)", "b"),
        ("all & ~d", "abc"),
        ("none | d", "d"),
        ("~none", "abcd"),
    ],
)
def test_algebra_is_that_of_sets(text: str, wanted: str) -> None:
    assert fl.select(NET, text).names == tuple(f"{name}.weight" for name in wanted)


def test_the_same_algebra_works_on_values() -> None:
    assert fl.select(NET, fl.path("a") | ~fl.glob("[abc]")).names == ("a.weight", "d.weight")


def test_a_selector_joined_with_text_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="unsupported operand"):
        fl.path("a") & "b"  # type: ignore[operator]


def test_a_deep_but_sane_nesting_is_read() -> None:
    assert parse("(" * 40 + "a" + ")" * 40) == A
