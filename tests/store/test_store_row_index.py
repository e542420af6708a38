"""Places of ids in arrays are those of a dictionary, whatever the ids are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frostline import StoreError
from frostline.store.row_index import NOWHERE, RowIndex, first_places, key_bytes, row_keys

# Ids that differ in one half only, and ids of which the codes are the same.
SAME_CODE = [(0).to_bytes(8, "little") * 2, (1 << 63).to_bytes(8, "little") * 2]
IDS = st.one_of(
    st.integers(0, 40).map(lambda number: number.to_bytes(16, "little")),
    st.integers(0, 40).map(lambda number: number.to_bytes(16, "big")),
    st.sampled_from(SAME_CODE),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.lists(IDS, max_size=12), st.lists(IDS, max_size=3)), max_size=12))
def test_an_index_finds_what_a_dictionary_of_lists_has(
    steps: list[tuple[list[bytes], list[bytes]]],
) -> None:
    index, wanted, place = RowIndex(), dict[bytes, list[int]](), 0
    for added, gone in steps:
        places = np.arange(place, place + len(added))
        index.add(row_keys(added), places)
        for row_id, at in zip(added, places.tolist(), strict=True):
            wanted.setdefault(row_id, []).append(at)
        index.forget(row_keys(gone))
        for row_id in set(gone):
            if wanted.get(row_id):
                wanted[row_id].pop()
        place += len(added)
        there = {row_id for row_id, kept in wanted.items() if kept}
        asked = [*wanted, *SAME_CODE, b"x" * 16]
        found = index.find(row_keys(asked)).tolist()
        assert found == [[NOWHERE, *wanted.get(i, [])][-1] for i in asked]
        assert len(index) == len(there)
        assert set(key_bytes(index.keys())) == there


def test_the_ids_of_the_test_have_one_code() -> None:
    from frostline.store.row_index import _codes

    assert len(set(_codes(row_keys(SAME_CODE)).tolist())) == 1


@given(st.lists(IDS, max_size=30))
def test_each_distinct_id_is_found_where_it_stands_first(ids: list[bytes]) -> None:
    assert first_places(row_keys(ids)).tolist() == sorted({i: ids.index(i) for i in ids}.values())


def test_an_id_of_another_length_is_refused_though_all_together_fit() -> None:
    with pytest.raises(StoreError, match="a row id is 16 bytes, and one of 15 was given"):
        row_keys([b"a" * 15, b"b" * 17])
