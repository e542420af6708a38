"""`rows:` - parts of tensors: the text, exact algebra, what is shown, and what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

import frostline as fl
from frostline.selectors import common, inventory, parse, select_whole


class Net(nn.Module):
    """An embedding of ten rows tied to a head, a convolution, and odd names."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 3)
        self.conv = nn.Conv2d(2, 6, 1)
        self.head = nn.Linear(3, 10, bias=False)
        self.head.weight = self.embed.weight
        self.scale = nn.Parameter(torch.ones(()))
        self.extra = nn.ParameterDict({"odd [0]": nn.Parameter(torch.zeros(4))})
        self.norm = nn.BatchNorm1d(3, affine=False)


NET = Net()
REST = ("scale", "conv.weight", "conv.bias", "extra.odd [0]")


def names(selector: fl.Selector | str) -> set[str]:
    return set(fl.select(NET, selector).names)


# Text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[2:5]", "[2:5]"),
        ("[:3]", "[0:3]"),
        ("[7:]", "[7:10]"),
        ("[5]", "[5:6]"),
        ("[-1]", "[9:10]"),
        ("[-3]", "[7:8]"),
        ("[-3:]", "[7:10]"),
        ("[:-8]", "[0:2]"),
        ("[-4:-2]", "[6:8]"),
        ("[ 1 : 3 ]", "[1:3]"),
    ],
)
def test_rows_are_counted_like_a_slice(text: str, shown: str) -> None:
    assert names(f"rows:embed.weight{text}") == {f"embed.weight{shown}"}


def test_a_list_names_rows_apart_and_rows_that_touch_are_one_piece() -> None:
    listed = fl.select(NET, "rows:embed.weight[0:2, 5, 6:8,9]")
    assert listed.names == ("embed.weight[0:2]", "embed.weight[5:8]", "embed.weight[9:10]")
    assert listed.selector == parse("rows:embed.weight[9] | rows:embed.weight[0:2,5,6:8]")


def test_all_rows_of_a_tensor_are_the_tensor() -> None:
    assert names("rows:embed.weight[:]") == {"embed.weight"}
    assert names("rows:embed.weight[:4] | rows:embed.weight[3:]") == {"embed.weight"}


def test_a_quoted_name_may_hold_brackets_and_spaces() -> None:
    assert names("rows:'extra.odd [0]'[1:3]") == {"extra.odd [0][1:3]"}


@pytest.mark.parametrize(
    ("selector", "text", "code"),
    [
        (fl.rows("a.b", 0, 3), "rows:a.b[0:3]", "fl.rows('a.b', 0, 3)"),
        (fl.rows("a.b", 5), "rows:a.b[5:]", "fl.rows('a.b', 5)"),
        (fl.rows("a.b", -5, -1), "rows:a.b[-5:-1]", "fl.rows('a.b', -5, -1)"),
        (fl.rows("a [0]", 2, 3), "rows:'a [0]'[2:3]", "fl.rows('a [0]', 2, 3)"),
    ],
)
def test_text_and_code_read_back(selector: fl.Selector, text: str, code: str) -> None:
    assert (str(selector), repr(selector)) == (text, code)
    assert parse(text) == selector == eval(code)
    assert hash(parse(text)) == hash(selector)


def test_one_row_and_its_span_are_the_same_selector() -> None:
    assert parse("rows:a[5]") == parse("rows:a[5:6]") == fl.rows("a", 5, 6)
    assert parse("rows:a[-1]") == parse("rows:a[-1:]") == fl.rows("a", -1)
    assert parse("rows:a[5]") != parse("rows:a[5:]")


# Algebra


def test_not_is_the_other_rows_and_the_rest_of_the_model() -> None:
    assert names("~rows:embed.weight[4:]") == {"embed.weight[0:4]", *REST}


def test_and_of_overlapping_rows_is_the_overlap() -> None:
    both = names("rows:embed.weight[0:6] & rows:embed.weight[4:9]")
    assert both == {"embed.weight[4:6]"}


def test_a_module_without_some_rows_is_its_other_rows() -> None:
    assert names("conv & ~rows:conv.weight[0:2]") == {"conv.weight[2:6]", "conv.bias"}


def test_rows_that_are_not_in_the_other_term_leave_nothing() -> None:
    assert not names("conv & rows:embed.weight[0:2]")


def test_a_tied_tensor_has_the_same_rows_under_each_of_its_names() -> None:
    assert names("rows:head.weight[0:3]") == names("rows:embed.weight[0:3]")
    assert names("rows:head.weight[0:3] & ~rows:embed.weight[1:]") == {"embed.weight[0:1]"}
    assert "head.weight[0:3]" in fl.select(NET, "rows:embed.weight[0:3]")


def test_rows_join_with_other_kinds_of_terms() -> None:
    chosen = fl.select(NET, "kind:conv & rows:conv.weight[1:3] | re:bias | stage:0")
    assert "conv.weight[1:3]" in chosen.names


span = st.tuples(st.integers(0, 9), st.integers(1, 10)).map(lambda t: (min(t), max(t)))
spans = span.filter(lambda pair: pair[0] < pair[1])
expressions = st.recursive(
    spans.map(lambda pair: (fl.rows("embed.weight", *pair), frozenset(range(*pair)))),
    lambda inner: st.one_of(
        st.builds(lambda a, b: (a[0] & b[0], a[1] & b[1]), inner, inner),
        st.builds(lambda a, b: (a[0] | b[0], a[1] | b[1]), inner, inner),
        st.builds(lambda a: (~a[0], frozenset(range(10)) - a[1]), inner),
    ),
    max_leaves=8,
)


@given(expressions)
@settings(max_examples=150, deadline=None)
def test_the_algebra_is_that_of_sets_of_rows(
    expression: tuple[fl.Selector, frozenset[int]],
) -> None:
    selector, expected = expression
    found: list[int] = []
    for entry in fl.select(NET, selector).entries:
        if entry.tensor is NET.embed.weight:
            found.extend(entry.rows or range(10))
    assert sorted(found) == sorted(expected)


# What is shown


def test_counts_and_bytes_are_of_the_rows_alone() -> None:
    chosen = fl.select(NET, "rows:conv.weight[0:2] | rows:conv.weight[4:5]")
    assert (chosen.numel, chosen.nbytes, len(chosen)) == (6, 24, 2)
    assert len(chosen.parameters) == 1
    assert chosen.parameters[0] is NET.conv.weight


def test_the_report_shows_pieces_and_counts_tensors() -> None:
    report = str(fl.select(NET, "rows:conv.weight[0:2,4] | conv.bias"))
    assert "conv.weight[0:2]   2x2x1x1" in report
    assert "2 of 5 parameters, 12 numbers, 48 B" in report


def test_only_shown_names_are_in_the_selection() -> None:
    chosen = fl.select(NET, "rows:conv.weight[0:2]")
    assert "conv.weight[0:2]" in chosen
    assert "conv.weight" not in chosen


def test_a_module_with_a_row_outside_is_no_whole_module() -> None:
    assert fl.select(NET, "conv").modules == ("conv",)
    assert fl.select(NET, "conv & ~rows:conv.weight[0]").modules == ()
    assert fl.select(NET, "conv | rows:conv.weight[0]").modules == ("conv",)


def test_the_fingerprint_of_rows_is_of_these_rows() -> None:
    net = Net()
    before = fl.fingerprint(net, "rows:conv.weight[0:2]")
    net.conv.weight.data[2] += 1
    assert fl.fingerprint(net, "rows:conv.weight[0:2]") == before
    net.conv.weight.data[1] += 1
    assert fl.fingerprint(net, "rows:conv.weight[0:2]") != before
    assert list(before.tensors) == ["conv.weight[0:2]"]


def test_a_function_is_asked_about_the_whole_tensor() -> None:
    rule = fl.where(lambda name, parameter, _: name == "conv.weight" and parameter.shape[0] == 6)
    assert names(rule & fl.rows("conv.weight", 0, 2)) == {"conv.weight[0:2]"}


def test_what_two_selections_share_is_exact_to_the_row() -> None:
    ours, theirs = fl.select(NET, "rows:conv.weight[0:4] | scale"), fl.select(NET, "all")
    other = fl.select(NET, "rows:conv.weight[2:] | conv.bias | scale")
    assert set(common(ours, theirs).names) == {"conv.weight[0:4]", "scale"}
    assert set(common(ours, other).names) == {"conv.weight[2:4]", "scale"}


# What is refused


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("rows:embed.weight", r"rows: wants rows behind the name, as rows:embed.weight\[0:100\]"),
        ("rows:'embed.weight' [1]", "rows: wants rows behind the name"),
        ("rows:embed.weight[1:2", r"the bracket \[ is never closed"),
        ("rows:embed.weight[0:9:2]", r"rows go by one; write rows:embed.weight\[0:100\], \[5\]"),
        ("rows:embed.weight[a]", "'a' is no span of rows; write rows:embed.weight"),
        ("rows:embed.weight[]", "'' is no span of rows"),
        ("rows:embed.weight[1,]", "'' is no span of rows"),
        ("rows:embed.weight[1.5]", "'1.5' is no span of rows"),
        ("rows:embed.weight[1]x", "'x' was not expected here"),
        ("rows:[0:1]", "'rows:' names nothing"),
    ],
)
def test_a_broken_text_says_what_is_wrong(text: str, reason: str) -> None:
    with pytest.raises(fl.SelectorError, match=reason):
        parse(text)


@pytest.mark.parametrize("text", ["[5:5]", "[5:2]", "[-2:-4]", "[0:0]", "[:0]", "[-3:0]"])
def test_no_row_is_refused_before_any_model_is_seen(text: str) -> None:
    with pytest.raises(fl.SelectorError, match=r"holds no row\. Name the first row and the one"):
        parse(f"rows:a{text}")


def test_a_term_without_a_name_is_refused() -> None:
    with pytest.raises(fl.SelectorError, match=r"'rows:' names nothing; write rows:embed\.weight"):
        fl.rows("", 0, 1)


@pytest.mark.parametrize("text", ["[10]", "[0:11]", "[-11:]", "[10:]", "[7:-5]", "[:-10]"])
def test_rows_that_are_not_there_are_refused_with_those_that_are(text: str) -> None:
    with pytest.raises(
        fl.SelectorError, match=r"but embed\.weight of Net has 10\. Stay within \[0:10\]"
    ):
        fl.select(NET, f"rows:embed.weight{text}")


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("rows:embed.wieght[0:1]", r"Nearest: embed\.weight, "),
        (
            "rows:conv[0:1]",
            r"takes a parameter's full name\. Nearest: conv\.weight, conv\.bias\. See",
        ),
        ("rows:norm.running_mean[0:1]", "names no parameter of Net"),
    ],
)
def test_a_name_of_no_parameter_is_refused_with_the_nearest(text: str, nearest: str) -> None:
    with pytest.raises(fl.SelectorError, match=nearest):
        fl.select(NET, text)


def test_a_term_inside_a_negation_must_match_too() -> None:
    with pytest.raises(fl.SelectorError, match="names no parameter of Net"):
        fl.select(NET, "all & ~(conv | rows:nothing.here[0:1])")


def test_rows_of_a_single_number_are_refused() -> None:
    with pytest.raises(fl.SelectorError, match=r"rows of a single number\. Name it whole: scale"):
        fl.select(NET, "rows:scale[0:1]")


def _weight_norm_by_hook(layer: nn.Module) -> nn.Module:
    with pytest.warns(FutureWarning, match="deprecated"):
        return nn.utils.weight_norm(layer)


@pytest.mark.parametrize(
    ("wrap", "name"),
    [
        (parametrizations.weight_norm, "0.weight"),
        (parametrizations.weight_norm, "0.parametrizations.weight.original1"),
        (parametrizations.orthogonal, "0.weight"),
        (_weight_norm_by_hook, "0.weight"),
        (_weight_norm_by_hook, "0.weight_v"),
    ],
)
def test_rows_of_a_tensor_that_is_computed_are_refused(wrap: object, name: str) -> None:
    assert callable(wrap)
    net = nn.Sequential(wrap(nn.Linear(4, 4)))
    with pytest.raises(fl.SelectorError, match=r"computes from others .weight norm or another"):
        fl.select(net, f"rows:{name}[0:1]")


def test_the_bias_of_a_parametrized_layer_has_rows_of_its_own() -> None:
    net = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)))
    assert fl.select(net, "rows:0.bias[0:1]").names == ("0.bias[0:1]",)


def test_a_policy_for_optimizers_takes_no_rows() -> None:
    with pytest.raises(fl.SelectorError, match=r"one learning rate .* Name the tensor: conv\.weig"):
        select_whole(NET, "kind:bias | ~rows:conv.weight[0:1]", kinds_may_miss=True)


def test_an_inventory_that_is_not_cut_is_refused() -> None:
    with pytest.raises(fl.SelectorError, match=r"the inventory is not cut at 'rows:conv\.weight"):
        fl.rows("conv.weight", 0, 2).pick(inventory(NET))
