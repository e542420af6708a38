"""One tree of errors, its exit statuses, near misses; and numbers as people read them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable

import pytest
import torch

import frostline as fl
from frostline import errors
from frostline.errors import nearest
from frostline.units import format_bytes, format_count, format_seconds

CLASSES = [
    found
    for _, found in inspect.getmembers(errors, inspect.isclass)
    if found.__module__ == errors.__name__
]


@pytest.mark.parametrize("error", CLASSES)
def test_every_error_is_a_frostline_error(error: type[Exception]) -> None:
    assert issubclass(error, fl.FrostlineError)


@pytest.mark.parametrize("error", CLASSES)
def test_only_a_broken_promise_exits_with_3(error: type[fl.FrostlineError]) -> None:
    assert error.exit_status == (3 if issubclass(error, fl.BrokenPromise) else 1)


@pytest.mark.parametrize("error", CLASSES)
def test_every_error_is_public(error: type[Exception]) -> None:
    assert getattr(fl, error.__name__) is error


def test_the_tree_drawn_in_the_docstring_is_the_tree() -> None:
    drawn: list[tuple[str, str]] = []
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"([│├└─ ]*)(\w+) {2,}\S", line)
        if found is None:
            continue
        indent = len(found[1])
        above = [(depth, name) for depth, name in above if depth < indent]
        drawn.append((found[2], above[-1][1] if above else "Exception"))
        above.append((indent, found[2]))
    real = [(error.__name__, error.__mro__[1].__name__) for error in CLASSES]
    assert sorted(drawn) == sorted(real)


@pytest.mark.parametrize("error", [fl.SelectorError, fl.FreezeError, fl.ConfigError])
def test_errors_of_wrong_arguments_are_value_errors(error: type[Exception]) -> None:
    assert issubclass(error, ValueError)


@pytest.mark.parametrize(
    "call",
    [
        lambda given: fl.select(given, "all"),
        lambda given: fl.freeze(given, "all"),
        fl.summary,
        fl.fingerprint,
        fl.doctor,
        lambda given: fl.estimate(given, torch.zeros(2, 3)),
        lambda given: fl.cut(given, torch.zeros(2, 3)),
        lambda given: fl.extract(given, [], "features"),
        lambda given: fl.fit(given, [], []),
        lambda given: fl.probe(given, [], []),
        lambda given: fl.sweep(given, [], [], lr=[0.1]),
        lambda given: fl.Session(given, fl.Plan([fl.Phase(train="head", epochs=1)])),
        lambda given: fl.param_groups(given, lr=0.1),
        lambda given: fl.sync(torch.optim.SGD([torch.zeros(2)]), given),
        lambda given: fl.save_delta(given, "delta.safetensors"),
        fl.lean,
    ],
)
def test_a_name_in_place_of_a_model_is_said(call: Callable[[object], object]) -> None:
    with pytest.raises(fl.FrostlineError, match=r"got (a )?str"):
        call("resnet18")


def test_a_drift_error_keeps_its_drifts() -> None:
    assert fl.DriftError("moved", ["a", "b"]).drifts == ("a", "b")


@pytest.mark.parametrize(
    ("word", "wanted"),
    [("layer5", "layer4"), ("LAYER1", "layer1"), ("haed", "head"), ("layer", "layer1")],
)
def test_the_nearest_name_comes_first(word: str, wanted: str) -> None:
    assert nearest(word, ["layer1", "layer2", "layer4", "head"])[0] == wanted


def test_nothing_alike_gives_no_hint() -> None:
    assert nearest("xyz", ["layer1", "head"]) == []


def test_a_name_known_twice_is_given_once() -> None:
    assert nearest("head", ["head", "head"]) == ["head"]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1536, "1.54 KB"),
        (999_499, "999 KB"),
        (999_999, "1 MB"),
        (244_403_360, "244 MB"),
        (3_200_000_000, "3.2 GB"),
        (1.5e15, "1,500 TB"),
        (-1536, "-1.54 KB"),
    ],
)
def test_bytes_are_decimal_and_never_in_powers_of_ten(count: float, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0042, "4.2 ms"),
        (0.9999, "1 s"),
        (1.5, "1.5 s"),
        (59.99, "1 min 00 s"),
        (75, "1 min 15 s"),
        (3599.9, "1 h 00 min"),
        (3700, "1 h 01 min"),
    ],
)
def test_seconds_are_rounded_into_the_next_unit(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_counts_are_grouped_by_thousands() -> None:
    assert format_count(61100840) == "61,100,840"
