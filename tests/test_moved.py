"""Whole models and handles that version 0.1 pickled find their classes where these are now."""

from __future__ import annotations

import pickle

import pytest

from frostline._moved import _MOVED


@pytest.mark.parametrize("old", sorted(_MOVED))
def test_a_class_is_found_under_its_old_module(old: str) -> None:
    module, _, name = old.partition(":")
    found = pickle.loads(f"cfrostline.{module}\n{name}\n.".encode())
    place, _, current = _MOVED[old].partition(":")
    assert (found.__module__, found.__qualname__) == (f"frostline.{place}", current)
