"""Selectors that cannot be read or match nothing: each message says where and what is nearest."""

from __future__ import annotations

import contextlib
import re
import time
import warnings
from typing import Any

import pytest
import torchvision
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

import frostline as fl
from frostline.selectors import parse
from frostline.selectors.patterns import glob_rule

NET = torchvision.models.resnet18(weights=None)


def mark(text: str) -> int:
    """The place that the message of the error points to."""
    with pytest.raises(fl.SelectorError, match="cannot read the selector at the mark") as caught:
        parse(text)
    *_, echo, pointer = str(caught.value).split("\n")
    assert len(echo) - 2 == len(text)
    return pointer.index("^") - 2


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", 0),
        ("a &", 3),
        ("a & & b", 4),
        ("a b", 2),
        ("(a | b", 6),
        ("a | b)", 5),
        ("a & stage:x", 4),
        ("a & depth:60", 4),
        ("a | 'b", 4),
        ("a | knd:bias", 4),
        ("a\nb", 2),
        ("| a", 0),
    ],
)
def test_a_broken_text_is_marked_at_its_place(text: str, place: int) -> None:
    assert mark(text) == place


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a &", "it ends where a term was expected"),
        ("a b", "'b' was not expected here; join terms with & or |"),
        ("(a", r"a '\)' is missing"),
        ("a | | b", r"'\|' stands where a term was expected"),
        ("'a", "the quote ' is never closed"),
        ("stage:one", "a stage is a number or a range, as stage:0, stage:-1, stage:1..3"),
        ("stage:" + "1" * 5000, "a stage is a number or a range"),
        ("depth:60", "a depth is a percentage, as depth:60%"),
        ("type:", "'type:' names nothing"),
        ("typ:Linear", r"there is no 'typ:'; did you mean 'type:'\? \(there are re:, type:"),
        ("(" * 5000 + "a", "terms are nested more than 50 deep"),
        ("~" * 5000 + "a", "terms are nested more than 50 deep"),
    ],
)
def test_a_broken_text_says_what_is_wrong(text: str, reason: str) -> None:
    with pytest.raises(fl.SelectorError, match=reason):
        parse(text)


@pytest.mark.parametrize("pattern", ["(a", "[a", "*a", "a{99999999999}", "(" * 3000 + ")" * 3000])
def test_a_broken_regular_expression_is_named(pattern: str) -> None:
    with pytest.raises(fl.SelectorError, match=r"is no regular expression: .*Correct the pattern"):
        fl.regex(pattern)


@pytest.mark.parametrize("make", [fl.regex, fl.glob, fl.of_type])
def test_an_empty_pattern_is_refused(make: Any) -> None:
    with pytest.raises(fl.SelectorError, match="names nothing; write what it is to match after"):
        make("")


def test_an_ambiguous_regular_expression_warns_nobody() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(fl.select(NET, "re:[[f]c")) == 2


def test_an_unknown_kind_names_the_nearest_and_all() -> None:
    with pytest.raises(fl.SelectorError, match=r"Did you mean kind:norm\? Kinds: norm, bias, conv"):
        fl.kind("norms")


def test_a_depth_outside_its_range_is_said() -> None:
    with pytest.raises(fl.SelectorError, match=r"depth:900% is out of range"):
        fl.depth(900)


def test_a_module_without_parameters_is_not_called_its_own_nearest_name() -> None:
    with pytest.raises(fl.SelectorError) as caught:
        fl.select(NET, "relu")
    assert "'relu' matches no parameter of ResNet. A module without parameters is held" in str(
        caught.value
    )
    assert "Nearest" not in str(caught.value)


@pytest.mark.parametrize("percent", [0, -5, 100.5, float("nan"), float("inf")])
def test_a_depth_outside_its_range_is_refused(percent: float) -> None:
    with pytest.raises(fl.SelectorError, match="depth goes above 0% and up to 100%"):
        fl.depth(percent)


def test_a_depth_of_less_than_half_a_stage_says_what_to_ask() -> None:
    with pytest.raises(fl.SelectorError, match=r"less than half a stage of ResNet.*6 stages.*17%"):
        fl.select(NET, "depth:5%")


@pytest.mark.parametrize("text", ["stage:6", "stage:-7", "stage:3..1", "stage:0..6"])
def test_a_stage_that_is_not_there_names_those_that_are(text: str) -> None:
    with pytest.raises(fl.SelectorError, match=r"which has 6: stage:0 to stage:5, or stage:-1"):
        fl.select(NET, text)


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("layer5", "layer4"),
        ("layer4.0.conv", "layer4.0.conv1"),
        ("Layer4", "layer4"),
        ("type:BatchNorm", "_BatchNorm|BatchNorm2d"),
        ("type:Conv", "Conv2d"),
        ("re:layer9", "layer"),
        ("layer4.0.cnv*", "layer4.0.conv"),
    ],
)
def test_a_term_that_matches_nothing_names_the_nearest(text: str, nearest: str) -> None:
    title = rf"'{re.escape(text.partition(':')[0])}.*' matches no parameter of ResNet\."
    with pytest.raises(fl.SelectorError, match=rf"{title} Nearest: .*({nearest})"):
        fl.select(NET, text)


def test_a_term_that_matches_nothing_says_how_to_see_all() -> None:
    with pytest.raises(fl.SelectorError, match=r"See all: print\(fl\.summary\(model\)\)"):
        fl.select(NET, "layer5")


@pytest.mark.parametrize("text", ["fc | layer5", "fc & layer5", "~layer5", "all & ~(fc | layer5)"])
def test_every_term_must_match_even_where_the_whole_does(text: str) -> None:
    with pytest.raises(fl.SelectorError, match="'layer5' matches no parameter"):
        fl.select(NET, text)


def test_a_glob_that_needs_two_stars_says_so() -> None:
    with pytest.raises(fl.SelectorError, match=r"stays inside one segment.*'\*\*\.conv1' crosses"):
        fl.select(NET, "*.conv1")


def test_a_kind_the_model_lacks_names_those_it_has() -> None:
    with pytest.raises(fl.SelectorError, match=r"has: kind:norm, kind:bias, .*Leave the term out"):
        fl.select(NET, "kind:embedding")


def test_a_kind_in_a_model_of_no_kind_says_so() -> None:
    net = nn.ParameterDict({"a": nn.Parameter(NET.fc.bias.detach())})
    with pytest.raises(fl.SelectorError, match="It has: none of the kinds"):
        fl.select(net, "kind:conv")


def test_a_function_that_says_no_to_all_is_named() -> None:
    with pytest.raises(fl.SelectorError, match=r"<lambda> said yes to no parameter.*conv1\.weight"):
        fl.select(NET, lambda _name, _parameter, _module: False)


def test_a_module_of_another_model_is_refused() -> None:
    with pytest.raises(fl.SelectorError, match="the given Linear is no part of ResNet"):
        fl.select(NET, nn.Linear(1, 1))


def test_a_module_without_parameters_is_told_from_one_of_another_model() -> None:
    with pytest.raises(fl.SelectorError, match="the given ReLU of ResNet has no parameter"):
        fl.select(NET, NET.relu)
    with pytest.raises(fl.SelectorError, match="the given ReLU is no part of ResNet"):
        fl.select(NET, [NET.conv1, nn.ReLU()])


def test_a_list_of_children_may_hold_some_without_parameters() -> None:
    names = fl.select(NET, list(NET.children())[:5]).names
    assert {name.partition(".")[0] for name in names} == {"conv1", "bn1", "layer1"}


def test_a_class_is_refused_with_the_way_to_write_it() -> None:
    with pytest.raises(fl.SelectorError, match=r"write fl\.of_type\(Linear\)"):
        fl.select(NET, nn.Linear)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [5, None, b"fc"])
def test_a_value_that_is_no_selector_is_refused_by_type(value: Any) -> None:
    with pytest.raises(fl.SelectorError, match=rf"got {type(value).__name__}\."):
        fl.select(NET, value)


def test_an_empty_list_is_refused_since_it_would_freeze_nothing_silently() -> None:
    with pytest.raises(fl.SelectorError, match=r"list of selectors is empty.*write 'none'"):
        fl.select(NET, [])


def test_selecting_in_something_else_than_a_model_is_refused() -> None:
    with pytest.raises(fl.SelectorError, match=r"work on a torch\.nn\.Module, got dict"):
        fl.select({}, "all")  # type: ignore[arg-type]


@given(st.text(max_size=40) | st.text("ab.*[](){}'\"&|~: re:typkindsage0123%-\\", max_size=40))
@settings(max_examples=400, deadline=None)
@example("re:(?i)a(?i)b")
@example("re:a{99999999999}")
@example("stage:٣")
@example("depth:²%")
@example("re:\\")
@example("glob:")
def test_random_text_raises_nothing_but_selector_errors(text: str) -> None:
    with contextlib.suppress(fl.SelectorError):
        fl.select(NET, text)


@pytest.mark.parametrize("pattern", ["*" * 16 + "zz", "a*" * 30 + "zz", "**a*" * 30 + "zz"])
def test_a_glob_of_many_stars_is_answered_at_once(pattern: str) -> None:
    rule = glob_rule(pattern)
    start = time.process_time()
    assert rule.match("a" * 300 + ".a" * 100) is None
    assert rule.match(("a" * 60 + ".") * 2 + "zz" + "a" * 400) is None
    assert time.process_time() - start < 1


def matches(pattern: str, name: str) -> bool:
    """What a glob says, by its definition: tries each length of each star."""
    if not pattern:
        return not name or name[0] == "."
    if pattern.startswith("**"):
        return any(matches(pattern[2:], name[end:]) for end in range(len(name) + 1))
    if pattern[0] == "*":
        segment = name.partition(".")[0]
        return any(matches(pattern[1:], name[end:]) for end in range(len(segment) + 1))
    same = bool(name) and (name[0] == pattern[0] or (pattern[0] == "?" and name[0] != "."))
    return same and matches(pattern[1:], name[1:])


@given(st.text("ab.*?", min_size=1, max_size=8), st.text("ab.", min_size=1, max_size=8))
@settings(max_examples=300, deadline=None)
@example("**a*b", "a.ab")
@example("*a*b.a", "aab.a")
@example("**.a.*b", "a.a.ab.b")
@example("***b", "a.b")
def test_a_glob_matches_what_its_definition_says(pattern: str, name: str) -> None:
    assert (glob_rule(pattern).match(name) is not None) is matches(pattern, name)


@pytest.mark.parametrize("prefix", ["", "kind:", "type:", "stage:", "glob:*", "re:", "no:", "a b"])
def test_a_message_about_endless_text_is_short(prefix: str) -> None:
    for length in (10_000, 1_000_000):
        with pytest.raises(fl.SelectorError) as error:
            fl.select(NET, prefix + "9" * length)
        assert len(str(error.value)) < 600


def test_the_mark_in_a_long_text_stands_under_what_is_wrong() -> None:
    with pytest.raises(fl.SelectorError) as error:
        parse(f"{'a | ' * 100}!! nope | {'b | ' * 100}c".replace("!! nope", "x:y"))
    _, line, mark = str(error.value).splitlines()
    assert line[mark.index("^") :].startswith("x:y")
    assert len(line) < 80


def test_text_of_more_than_a_million_characters_is_refused() -> None:
    with pytest.raises(fl.SelectorError, match=r"may have 1,000,000 characters.*has 1,000,001"):
        parse("a" * 1_000_001)


@pytest.mark.parametrize("digits", [400, 5000])
def test_a_depth_of_endless_digits_is_refused(digits: int) -> None:
    with pytest.raises(fl.SelectorError, match="goes above 0% and up to 100%"):
        fl.depth(10**digits)
