"""What a store takes in it gives back: rows by id, in order, in shape and dtype."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from made_rows import (
    KEY,
    VALUES,
    assert_holds,
    assert_rows,
    batch,
    files_of,
    fill,
    opened,
    row,
    row_id,
    row_ids,
)

from frostline import StoreError
from frostline.store import FeatureKey, FeatureStore, Pads, ValueSpec


def test_rows_come_back_as_they_were_put(tmp_path: Path) -> None:
    fill(opened(tmp_path), range(20))
    assert_holds(opened(tmp_path), range(20))


def test_rows_come_back_in_the_order_asked_for_and_as_often(tmp_path: Path) -> None:
    fill(opened(tmp_path), range(6))
    wanted = [5, 0, 0, 3, 5]
    assert_rows(opened(tmp_path).read(row_ids(wanted)), wanted)


def test_gathered_rows_are_fresh_memory(tmp_path: Path) -> None:
    fill(opened(tmp_path), range(3))
    rows = opened(tmp_path).read(row_ids(range(3)))
    for value in rows.gather(torch.arange(3)):
        value.zero_()
    assert_rows(rows, range(3))


def test_no_rows_can_be_read_and_gathered(tmp_path: Path) -> None:
    features = opened(tmp_path)
    rows = features.read([])
    assert len(rows) == 0
    found = rows.gather(torch.empty(0, dtype=torch.int64))
    assert [tuple(value.shape) for value in found] == [(0, 2, 3), (0, 0, 4), (0, 8), (0,)]


def test_an_empty_batch_of_stored_rows_has_no_rows(tmp_path: Path) -> None:
    fill(opened(tmp_path), range(3))
    found = opened(tmp_path).read(row_ids(range(3))).gather(torch.empty(0, dtype=torch.int64))
    assert [len(value) for value in found] == [0, 0, 0, 0]


@pytest.mark.parametrize("index", [-1, 3])
def test_an_index_outside_the_rows_is_an_error(tmp_path: Path, index: int) -> None:
    fill(opened(tmp_path), range(3))
    with pytest.raises(IndexError):
        opened(tmp_path).read(row_ids(range(3))).gather(torch.tensor([index]))


def test_opening_and_asking_writes_nothing(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "store")
    assert store.open(KEY, VALUES).missing(row_ids([1])) == [0]
    assert (store.ls(), store.verify(), store.prune(max_bytes=0)) == ((), (), ())
    assert list(tmp_path.iterdir()) == []


def test_each_missing_row_is_named_once(tmp_path: Path) -> None:
    fill(opened(tmp_path), [1, 2])
    assert opened(tmp_path).missing(row_ids([7, 1, 8, 7, 2, 8])) == [0, 2]


def test_ten_new_rows_among_many_are_all_that_is_missing(tmp_path: Path) -> None:
    fill(opened(tmp_path), range(100), batch_size=50)
    assert opened(tmp_path).missing(row_ids(range(110))) == list(range(100, 110))


def test_rows_that_are_complete_are_not_written_again(tmp_path: Path) -> None:
    fill(opened(tmp_path), range(8))
    before = opened(tmp_path).nbytes
    fill(opened(tmp_path), range(8))
    assert opened(tmp_path).nbytes == before


def test_a_row_twice_in_a_batch_is_stored_once(tmp_path: Path) -> None:
    with opened(tmp_path).writer() as writer:
        writer.put(row_ids([1, 2, 1]), batch([1, 2, 1]))
    assert FeatureStore(tmp_path).ls()[0].rows == 2
    assert_holds(opened(tmp_path), [1, 2])


def test_a_later_writer_goes_on_in_the_same_segment(tmp_path: Path) -> None:
    for start in (0, 5, 10):
        fill(opened(tmp_path), range(start, start + 5))
    assert len(list(opened(tmp_path).path.glob("segment-*"))) == 1
    assert_holds(opened(tmp_path), range(15))


def test_two_writers_at_once_have_segments_of_their_own_and_rows_span_both(tmp_path: Path) -> None:
    with opened(tmp_path).writer() as one, opened(tmp_path).writer() as two:
        one.put(row_ids([0, 2, 4]), batch([0, 2, 4]))
        two.put(row_ids([1, 3, 5]), batch([1, 3, 5]))
    assert len(list(opened(tmp_path).path.glob("segment-*"))) == 2
    assert_holds(opened(tmp_path), [5, 4, 3, 2, 1, 0])
    assert_rows(opened(tmp_path).read(row_ids([3, 1])), [3, 1])


def test_rows_are_complete_when_put_returns(tmp_path: Path) -> None:
    with opened(tmp_path).writer() as writer:
        writer.put(row_ids([1]), batch([1]))
        assert_holds(opened(tmp_path), [1])


def test_rows_already_read_stay_while_others_are_written(tmp_path: Path) -> None:
    fill(opened(tmp_path), range(4))
    rows = opened(tmp_path).read(row_ids(range(4)))
    fill(opened(tmp_path), range(4, 40))
    assert_rows(rows, range(4))


def test_a_writer_that_stored_nothing_leaves_no_segment(tmp_path: Path) -> None:
    with opened(tmp_path).writer() as writer:
        writer.claim(row_ids([1]), 1)
    assert list(opened(tmp_path).path.glob("segment-*")) == []


def test_a_ragged_batch_is_padded_with_zeros_to_its_own_longest_row(tmp_path: Path) -> None:
    fill(opened(tmp_path), range(4))  # of 0, 1, 2 and 3 tokens
    rows = opened(tmp_path).read(row_ids(range(4)))
    assert rows.gather(torch.tensor([0, 2]))[1].shape == (2, 2, 4)
    assert rows.gather(torch.tensor([0, 0]))[1].shape == (2, 0, 4)
    assert rows.shapes(1).tolist() == [[0, 4], [1, 4], [2, 4], [3, 4]]
    assert rows.shapes(0).tolist() == [[2, 3]] * 4
    assert rows.shapes(3).shape == (4, 0)


RAGGED_SHAPES = [
    ((None,), [(0,), (5,), (2,)]),
    ((3, None), [(3, 1), (3, 4), (3, 0)]),
    ((None, None), [(2, 3), (3, 2), (1, 1)]),
    ((2, None, 2, None, 3), [(2, 1, 2, 4, 3), (2, 3, 2, 1, 3), (2, 0, 2, 2, 3)]),
]


@pytest.mark.parametrize(("shape", "sizes"), RAGGED_SHAPES)
@pytest.mark.parametrize("storage", ["same", "int8"])
def test_dimensions_may_be_ragged_anywhere(
    tmp_path: Path,
    shape: tuple[int | None, ...],
    sizes: list[tuple[int, ...]],
    storage: str,
) -> None:
    features = FeatureStore(tmp_path).open(KEY, [ValueSpec("x", shape, torch.float32, storage)])
    tensors = [torch.randint(-127, 128, size).float() for size in sizes]
    for tensor in tensors:
        tensor.flatten()[:1] = 127.0  # so that int8 loses nothing
    with features.writer() as writer:
        writer.put(row_ids(range(3)), [tensors])
    (found,) = features.read(row_ids(range(3))).gather(torch.tensor([2, 0, 1, 0]))
    longest = [max(column) for column in zip(*sizes, strict=True)]
    for at, number in enumerate([2, 0, 1, 0]):
        wanted = torch.zeros(longest)
        wanted[tuple(slice(0, size) for size in sizes[number])] = tensors[number]
        assert torch.equal(found[at], wanted)


def test_a_batch_of_equal_length_may_be_one_tensor_though_the_value_is_ragged(
    tmp_path: Path,
) -> None:
    features = FeatureStore(tmp_path).open(KEY, [ValueSpec("x", (None,), torch.int32)])
    numbers = torch.arange(6, dtype=torch.int32).view(2, 3)
    with features.writer() as writer:
        writer.put(row_ids([0, 1]), [numbers])
    assert torch.equal(features.read(row_ids([0, 1])).gather(torch.arange(2))[0], numbers)


def test_a_value_may_have_no_numbers(tmp_path: Path) -> None:
    values = [ValueSpec("none", (3, 0), torch.float32), ValueSpec("x", (), torch.float32)]
    features = FeatureStore(tmp_path).open(KEY, values)
    with features.writer() as writer:
        writer.put(row_ids([0, 1]), [torch.empty(2, 3, 0), torch.tensor([1.0, 2.0])])
    none, x = features.read(row_ids([1, 0])).gather(torch.arange(2))
    assert none.shape == (2, 3, 0)
    assert x.tolist() == [2.0, 1.0]


def test_strided_and_graded_tensors_are_stored_by_value(tmp_path: Path) -> None:
    features = FeatureStore(tmp_path).open(KEY, [ValueSpec("x", (3, 2), torch.float32)])
    x = torch.randn(4, 2, 3, requires_grad=True).transpose(1, 2)
    with features.writer() as writer:
        writer.put(row_ids(range(4)), [x])
    found = features.read(row_ids(range(4))).gather(torch.arange(4))[0]
    assert torch.equal(found, x.detach())
    assert not found.requires_grad


def test_keys_with_equal_parts_in_another_order_share_their_rows(tmp_path: Path) -> None:
    fill(opened(tmp_path), [1])
    turned = FeatureKey(dict(reversed(KEY.parts.items())))
    assert turned.digest == KEY.digest
    assert hash(turned) == hash(KEY)
    assert_holds(FeatureStore(tmp_path).open(turned, VALUES), [1])


def test_another_key_has_no_rows_of_the_first(tmp_path: Path) -> None:
    fill(opened(tmp_path), [1])
    other = FeatureKey({**KEY.parts, "tensors": "abd"})
    assert FeatureStore(tmp_path).open(other, VALUES).missing(row_ids([1])) == [0]


def test_a_segment_of_another_key_put_into_the_folder_is_not_believed(tmp_path: Path) -> None:
    other = FeatureStore(tmp_path).open(FeatureKey({"other": "key"}), VALUES)
    fill(other, [1])
    fill(opened(tmp_path), [2])
    (segment,) = other.path.glob("segment-*")
    segment.rename(opened(tmp_path).path / segment.name)
    assert opened(tmp_path).missing(row_ids([1, 2])) == [0]


def test_reading_rows_that_are_not_stored_says_how_many_and_what_to_do(tmp_path: Path) -> None:
    fill(opened(tmp_path), [1])
    with pytest.raises(StoreError, match=r"2 of 3 rows are not in .*Compute them first: `missing`"):
        opened(tmp_path).read(row_ids([1, 2, 3]))


def test_opening_a_key_with_other_values_says_both(tmp_path: Path) -> None:
    fill(opened(tmp_path), [1])
    with pytest.raises(
        StoreError, match=r"holds 'map' \[2, 3\] float32 .*opened for 'x' \[7\] flo"
    ):
        FeatureStore(tmp_path).open(KEY, [ValueSpec("x", (7,), torch.float16)])


def test_same_storage_and_the_dtype_by_name_are_one(tmp_path: Path) -> None:
    fill(opened(tmp_path), [1])
    spelt = [ValueSpec("map", (2, 3), torch.float32, "float32"), *VALUES[1:]]
    assert_holds(FeatureStore(tmp_path).open(KEY, spelt), [1])


def test_values_without_a_name_of_their_own_are_refused(tmp_path: Path) -> None:
    twice = [ValueSpec("x", (), torch.bool), ValueSpec("x", (2,), torch.bool)]
    with pytest.raises(StoreError, match=r"distinct names, and \['x', 'x'\] were given"):
        FeatureStore(tmp_path).open(KEY, twice)
    with pytest.raises(StoreError, match="distinct names"):
        FeatureStore(tmp_path).open(KEY, [])


def test_a_value_of_another_shape_or_dtype_is_refused_and_nothing_stored(tmp_path: Path) -> None:
    features = FeatureStore(tmp_path).open(KEY, [ValueSpec("x", (2, None), torch.float32)])
    with features.writer() as writer:
        with pytest.raises(StoreError, match=r"'x' is to be torch.float32 of shape \(2, None\)"):
            writer.put(row_ids([0]), [torch.zeros(1, 3, 4)])
        with pytest.raises(StoreError, match=r"torch.float64 of shape \(2, 4\) was given"):
            writer.put(row_ids([0]), [torch.zeros(1, 2, 4, dtype=torch.float64)])
    assert features.missing(row_ids([0])) == [0]


def test_a_batch_with_a_row_too_few_is_refused(tmp_path: Path) -> None:
    with (
        opened(tmp_path).writer() as writer,
        pytest.raises(StoreError, match=r"2 row ids, and 4 values with \[1, 1, 1, 1\] rows"),
    ):
        writer.put(row_ids([1, 2]), batch([1]))


def test_a_row_id_of_another_length_is_refused(tmp_path: Path) -> None:
    features = opened(tmp_path)
    with pytest.raises(StoreError, match=r"a row id is 16 bytes, and one of 3 was given: b'abc'"):
        features.missing([b"abc"])
    with pytest.raises(StoreError, match="a row id is 16 bytes"):
        features.read([b"abc"])
    with features.writer() as writer:
        with pytest.raises(StoreError, match="a row id is 16 bytes"):
            writer.put([b"abc"], batch([1]))
        with pytest.raises(StoreError, match="a row id is 16 bytes"):
            writer.claim([b"abc"], 1)


def test_row_ids_may_hold_any_bytes(tmp_path: Path) -> None:
    ids = [bytes(16), b"\xff" * 16, b"a" + bytes(15), bytes(15) + b"a"]
    with opened(tmp_path).writer() as writer:
        writer.put(ids, batch(range(4)))
    assert opened(tmp_path).missing(ids) == []
    assert_rows(opened(tmp_path).read(ids), range(4))


def test_a_writer_refuses_to_work_in_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path).writer() as writer:
        writer.put(row_ids([1]), batch([1]))
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: -1)
            with pytest.raises(StoreError, match=r"is used in process -1\. Open a writer of its"):
                writer.put(row_ids([2]), batch([2]))


def test_closing_a_writer_twice_does_nothing(tmp_path: Path) -> None:
    with opened(tmp_path).writer() as writer:
        writer.put([row_id(1)], [value[None] for value in row(1)])
        writer.close()
    assert_holds(opened(tmp_path), [1])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"storage": "float8"},
            r"storage 'float8' of value 'x' is not known\. Use one of: same, fl",
        ),
        ({"dtype": torch.complex32}, r"value 'x' is torch\.complex32, which cannot be stored"),
        ({"shape": (1,) * 6}, r"takes up to 5 dimensions, none negative\. Flatten"),
        ({"shape": (-1,)}, r"shape \(-1,\) per sample"),
    ],
)
def test_a_value_that_cannot_be_stored_is_refused(options: dict[str, object], words: str) -> None:
    given = {"name": "x", "shape": (2,), "dtype": torch.float32, **options}
    with pytest.raises(StoreError, match=words):
        ValueSpec(**given)  # type: ignore[arg-type]  # of the right types but for what is wrong


def test_a_key_without_parts_is_refused() -> None:
    with pytest.raises(StoreError, match="at least one part"):
        FeatureKey({})


def test_a_stores_repr_is_code_that_makes_it() -> None:
    store = FeatureStore("features", budget_bytes=7)
    assert repr(store) == "FeatureStore('features', budget_bytes=7)"


def test_the_bytes_of_features_are_those_of_their_files(tmp_path: Path) -> None:
    fill(opened(tmp_path), range(3))
    features = opened(tmp_path)
    assert features.nbytes == sum(path.stat().st_size for path in files_of(features.path))


@pytest.mark.parametrize("at_start", [False, True])
def test_short_rows_are_padded_at_either_end_with_the_number_that_is_asked_for(
    tmp_path: Path, at_start: bool
) -> None:
    rows = [torch.arange(2 * n * 3.0).view(2, n, 3) for n in (2, 0, 4)]
    masks = [torch.zeros(n, dtype=torch.bool) for n in (2, 0, 4)]
    values = [ValueSpec("x", (2, None, 3), torch.float32), ValueSpec("m", (None,), torch.bool)]
    features = FeatureStore(tmp_path).open(FeatureKey({"of": "padding"}), values)
    with features.writer() as writer:
        writer.put(row_ids(range(3)), [rows, masks])
    pads = Pads(fills=(-1.0, 1.0), at_start=at_start)
    x, m = features.read(row_ids(range(3))).gather(torch.tensor([2, 0, 1]), pads=pads)
    for place, given in enumerate((rows[2], rows[0], rows[1])):
        n = given.shape[1]
        own, blank = (slice(4 - n, 4), slice(4 - n)) if at_start else (slice(n), slice(n, 4))
        assert torch.equal(x[place][:, own], given)
        assert bool((x[place][:, blank] == -1).all())
        assert not m[place][own].any()
        assert m[place][blank].all()
