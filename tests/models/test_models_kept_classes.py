"""A kept classifier and the data's classes: in the order of its own names, else of the data's."""

from __future__ import annotations

import pytest

from frostline.errors import ModelError
from frostline.models.classifiers import mapping_words, own_order


def test_classes_go_in_the_order_of_the_classifiers_own_names() -> None:
    own = ("tench", "Bee", "ant_lion")
    order = own_order(("ant lion", "bee", "tench"), own)
    assert order == ("tench", "bee", "ant lion")
    told = "of the kept classifier by its own names: logit 0 is tench, 1 is bee, 2 is ant lion"
    assert mapping_words(order, own) == told


@pytest.mark.parametrize("own", [None, ("tench", "bee")])
def test_other_names_keep_their_order_and_it_is_said(own: tuple[str, ...] | None) -> None:
    assert own_order(("0", "1"), own) == ("0", "1")
    first = "0 (tench) is 0, 1 (bee) is 1" if own else "0 is 0, 1 is 1"
    told = f"of the kept classifier in the order of the data's names: logit {first}"
    assert mapping_words(("0", "1"), own) == told


def test_names_of_which_some_are_the_classifiers_are_refused() -> None:
    told = r"1 of the data's 2 classes are named like .* others are not: wasp\. Name all like the"
    with pytest.raises(ModelError, match=told):
        own_order(("bee", "wasp"), ("tench", "bee"))


def test_two_spellings_of_one_class_are_refused() -> None:
    with pytest.raises(ModelError, match="others are not: twice"):
        own_order(("Bee", "bee"), ("tench", "bee"))


def test_many_classes_are_shown_in_part() -> None:
    assert mapping_words([str(n) for n in range(12)], None).endswith("7 is 7, ...")
