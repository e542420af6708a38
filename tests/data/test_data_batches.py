from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
)

from frostline.data import (
    Augment,
    Batch,
    Batches,
    ImageDataset,
    Order,
    epoch_order,
    first_batch,
    make_batches,
    open_data,
    read_splits,
)
from frostline.data.ordered import ordered_map
from frostline.errors import ConfigError, DataError, ImageError
from frostline.preprocessing import Preprocessing

SMALL = Preprocessing(resize=12, crop=(8, 8))


@pytest.fixture
def image_data(make_folder: Callable[..., Path]) -> ImageDataset:
    return ImageDataset(
        read_splits(make_folder({"a": 14, "b": 9})).train, SMALL, augment=Augment("live")
    )


class Items(Dataset[Any]):
    """Any values as a map-style dataset."""

    def __init__(self, *items: object) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> object:
        return self.items[index]


def tensors(count: int = 23) -> TensorDataset:
    return TensorDataset(torch.arange(count * 2.0).view(count, 2), torch.arange(count) % 3)


def items(count: int = 23) -> Items:
    return Items(*(tensors(count)[index] for index in range(count)))


def batches_of(data: object, **options: Any) -> Batches:
    return make_batches(data, **{"batch_size": 5, "shuffle": True, "seed": 0, **options})


@pytest.fixture(params=["images", "tensors", "items"])
def data(request: pytest.FixtureRequest) -> object:
    if request.param == "images":
        return request.getfixturevalue("image_data")
    return tensors(18) if request.param == "tensors" else items(18)


def test_every_sample_comes_once_an_epoch_and_none_is_dropped(data: object) -> None:
    batches = batches_of(data)
    found = list(batches.epoch(0))
    assert len(batches) == len(found) == 4
    assert batches.samples == 18
    assert [len(batch.names) for batch in found] == [5, 5, 5, 3]
    assert len({name for batch in found for name in batch.names}) == 18
    for batch in found:
        assert batch.targets.dtype == torch.int64
        assert batch.targets.shape == (len(batch.inputs),) == (len(batch.names),)


def test_last_batch_of_one_sample_is_kept() -> None:
    assert [len(batch.targets) for batch in batches_of(tensors(11)).epoch(0)] == [5, 5, 1]


def test_any_epoch_can_be_replayed_alone(data: object) -> None:
    def flat(batches: Iterator[Batch]) -> Tensor:
        return torch.cat([batch.inputs.flatten(1) for batch in batches])

    first = batches_of(data)
    for epoch in range(3):
        list(first.epoch(epoch))
    third = flat(first.epoch(3))
    torch.manual_seed(9)
    assert torch.equal(flat(batches_of(data).epoch(3)), third)
    assert not torch.equal(flat(batches_of(data).epoch(2)), third)
    assert not torch.equal(flat(batches_of(data, seed=1).epoch(3)), third)


def test_all_kinds_of_data_share_one_order() -> None:
    order = epoch_order(18, shuffle=True, seed=4, epoch=2).tolist()
    expected = [f"sample {index}" for index in order]
    for data in (tensors(18), items(18)):
        found = batches_of(data, seed=4).epoch(2)
        assert [name for batch in found for name in batch.names] == expected


def test_order_without_shuffling_is_the_order_of_the_data(data: object) -> None:
    batches = batches_of(data, shuffle=False)
    assert [b.names for b in batches.epoch(0)] == [b.names for b in batches.epoch(1)]
    first = next(iter(batches.epoch(0)))
    names = data.names if isinstance(data, ImageDataset) else [f"sample {i}" for i in range(18)]
    assert list(first.names) == list(names[:5])


def test_order_moves_no_global_generator() -> None:
    state = torch.get_rng_state()
    epoch_order(100, shuffle=True, seed=-3, epoch=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_images_come_in_the_view_of_their_epoch(image_data: ImageDataset) -> None:
    order = epoch_order(18, shuffle=True, seed=0, epoch=2).tolist()
    batch = next(iter(batches_of(image_data, threads=3).epoch(2)))
    for place, index in enumerate(order[:5]):
        tensor, label = image_data.load(index, 2)
        assert torch.equal(batch.inputs[place], tensor)
        assert batch.targets[place] == label
        assert batch.names[place] == image_data.names[index]


def settled_threads() -> int:
    gc.collect()
    return threading.active_count()


def test_no_thread_outlives_an_iterator_closed_early(image_data: ImageDataset) -> None:
    before = settled_threads()
    for _ in batches_of(image_data, threads=4).epoch(0):
        break
    assert settled_threads() == before


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_no_thread_outlives_an_error_in_the_loop(
    image_data: ImageDataset, error: type[BaseException]
) -> None:
    before = settled_threads()
    try:
        for _ in batches_of(image_data, threads=4).epoch(0):
            raise error
    except error:
        pass
    assert settled_threads() == before


def test_broken_image_surfaces_in_the_loop_and_ends_the_threads(image_data: ImageDataset) -> None:
    before = settled_threads()
    Path(image_data.names[7]).write_bytes(b"")
    batches = batches_of(image_data, threads=4, shuffle=False).epoch(0)
    assert len(next(batches).names) == 5
    with pytest.raises(ImageError, match=r"it has zero bytes"):
        list(batches)
    assert settled_threads() == before


def test_threads_stay_at_most_so_far_ahead() -> None:
    begun: list[int] = []

    def note(item: int) -> int:
        begun.append(item)
        return item

    results = ordered_map(note, range(100), threads=4, ahead=6)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    results.close()
    assert max(begun) <= 2 + 6


def test_results_keep_the_order_of_their_items() -> None:
    def slow_first(item: int) -> int:
        time.sleep(0.002 * (item % 3 == 0))
        return item

    assert list(ordered_map(slow_first, range(30), threads=4, ahead=8)) == list(range(30))


def test_dictionaries_as_inputs_are_collated() -> None:
    data = Items(*(({"ids": torch.tensor([n, n]), "len": n}, n % 2) for n in range(4)))
    batch = next(iter(batches_of(data, batch_size=4, shuffle=False).epoch(0)))
    assert batch.inputs["ids"].shape == (4, 2)
    assert batch.inputs["len"].tolist() == [0, 1, 2, 3]
    assert batch.targets.tolist() == [0, 1, 0, 1]


def test_plain_list_of_samples_is_a_dataset() -> None:
    batches = batches_of([(torch.zeros(2), n % 2) for n in range(7)])
    assert [len(batch.targets) for batch in batches.epoch(0)] == [5, 2]


def test_subset_is_a_dataset() -> None:
    assert batches_of(Subset(tensors(20), range(8))).samples == 8


def test_list_of_batches_is_gone_through_as_it_is() -> None:
    given = [(torch.zeros(3, 2), torch.tensor([0, 1, 2])), (torch.ones(1, 2), [1])]
    batches = batches_of(given)
    assert (len(batches), batches.samples) == (2, 4)
    for _ in range(2):
        found = list(batches.epoch(0))
        assert [batch.targets.tolist() for batch in found] == [[0, 1, 2], [1]]
        assert found[0].names[2] == "sample 2 of batch 0"


@pytest.mark.parametrize(("drop_last", "samples", "count"), [(False, 23, 6), (True, 20, 5)])
def test_loader_keeps_its_own_batches(drop_last: bool, samples: int, count: int) -> None:
    loader = DataLoader(tensors(), batch_size=4, drop_last=drop_last)
    batches = batches_of(loader)
    found = list(batches.epoch(0))
    assert (batches.samples, len(batches), len(found)) == (samples, count, count)
    assert found[0].targets.tolist() == [0, 1, 2, 0]


def test_loader_with_batches_of_its_own_is_counted() -> None:
    loader = DataLoader(tensors(), batch_sampler=[[0, 1, 2], [3], [4, 5]])
    assert (batches_of(loader).samples, len(batches_of(loader))) == (6, 3)


def test_sampler_is_told_the_epoch() -> None:
    class Told(RandomSampler):
        epochs: list[int] = []  # noqa: RUF012 - read by the test below

        def set_epoch(self, epoch: int) -> None:
            self.epochs.append(epoch)

    batches = batches_of(DataLoader(tensors(), batch_size=4, sampler=Told(tensors())))
    list(batches.epoch(3))
    list(batches.epoch(5))
    assert Told.epochs == [3, 5]


class OneEmpty:
    """Looks re-iterable, but gives its batches once."""

    def __init__(self) -> None:
        self.batches = iter([(torch.zeros(1, 2), torch.tensor([0]))])

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.batches


def test_data_that_run_dry_are_noticed_in_the_second_epoch() -> None:
    batches = batches_of(OneEmpty())
    assert len(list(batches.epoch(0))) == 1
    with pytest.raises(DataError, match=r"the OneEmpty gave no batches in epoch 1; it may be good"):
        list(batches.epoch(1))


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(tensors())


class Unsized(Dataset[Any]):
    def __getitem__(self, index: int) -> object:
        raise AssertionError


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: iter([1]), r"list_iterator can be gone through once only.*Give a Dataset"),
        (lambda: (n for n in "ab"), "the generator can be gone through once only"),
        (lambda: zip([1], [2], strict=True), "the zip can be gone through once only"),
        (lambda: 5, r"an int is no data set\. Give a Dataset, a DataLoader or a list"),
        (lambda: None, "a NoneType is no data set"),
        (Stream, r"the Stream gives single samples\. Wrap it: DataLoader"),
        (lambda: DataLoader(Stream(), batch_size=2), "does not say how many batches an epoch has"),
        (Unsized, "the Unsized does not say how many samples it holds"),
        (Items, "the Items holds no samples"),
        (list, "the list holds no samples"),
        (dict, "the dict holds no samples"),
        (lambda: Items(torch.zeros(2)), "item 0 of the Items is a Tensor, not a pair"),
        (
            lambda: (torch.zeros(2, 3), torch.zeros(2)),
            r"tuple holds two Tensors.*TensorDataset\(X, y",
        ),
        (lambda: "photos/train", r"photos/train is a path, and .*ImageFolder\(path, transform\)"),
        (lambda: Path("photos.csv"), r"photos\.csv is a path"),
        (
            lambda: torch.zeros(4, 3),
            r"one Tensor holds inputs or targets alone. Give .*TensorDataset\(inputs, targets\)",
        ),
        (lambda: [np.zeros((2, 3)), np.zeros(2)], r"two ndarrays.*TensorDataset\(torch.from_numpy"),
        (lambda: Items((1, 2, 3)), "item 0 of the Items is a tuple of 3, not a pair"),
        (lambda: Items({"x": 1, "y": 2}), r"is a mapping with x, y, not a pair\. Return \(inputs"),
        (lambda: TensorDataset(torch.zeros(3)), "the TensorDataset has 1 tensors. Give it two"),
        (
            lambda: TensorDataset(torch.zeros(3), torch.zeros(3)),
            r"targets of the TensorDataset are torch.float32\. Give one class index",
        ),
        (
            lambda: TensorDataset(torch.zeros(3), torch.zeros(3, 4, dtype=torch.int64)),
            r"have the shape \(3, 4\) for 3 samples",
        ),
    ],
)
def test_unusable_data_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        batches_of(make())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Items((torch.zeros(2), 0), 5), "item 1 of the Items is an int, not a pair"),
        (
            Items((torch.zeros(2), 0), (torch.zeros(3), 0)),
            r"sample 0 to sample 1 of this batch do not fit together: .*own collate_fn",
        ),
        (Items((torch.zeros(2), "ant"), (torch.zeros(2), "bee")), "are .*, not numbers"),
        (Items((torch.zeros(2), 0.5)), "the targets of the Items are torch.float64"),
        ([(torch.zeros(2, 1), torch.tensor([0, 1])), 7], "batch 1 of the list is an int, not a"),
        ({"a": 1}, "batch 0 of the dict is a str, not a pair"),
    ],
)
def test_unusable_item_is_named_when_it_comes(data: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(batches_of(data, shuffle=False).epoch(0))


def test_first_samples_of_several_sizes_are_named_as_well() -> None:
    samples = open_data(Items((torch.zeros(2), 0), (torch.zeros(3), 0)))
    with pytest.raises(DataError, match="sample 0 to sample 1 of this batch do not fit together"):
        first_batch(samples, 2)


def test_targets_in_a_column_are_taken() -> None:
    data = TensorDataset(torch.zeros(3, 2), torch.tensor([[0], [1], [2]]))
    assert next(iter(batches_of(data, shuffle=False).epoch(0))).targets.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, r"asked for batches of 0 samples\. Use 1 or more"),
        ({"threads": 0}, r"asked for 0 threads\. Use 1 or more"),
    ],
)
def test_impossible_numbers_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        batches_of(tensors(), **options)


def test_real_photos_come_in_batches(photos: Path) -> None:
    splits = read_splits(photos)
    data = ImageDataset(splits.val, Preprocessing(resize=32, crop=(28, 28)))
    batch = next(iter(batches_of(data, batch_size=12, threads=2).epoch(0)))
    assert batch.inputs.shape == (12, 3, 28, 28)
    assert set(batch.targets.tolist()) == {0, 1}


# Pairs of a list: samples, or batches


def pairs_of(*shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> list[tuple[Tensor, Tensor]]:
    return [(torch.zeros(inputs), torch.zeros(targets)) for inputs, targets in shapes]


def as_numbers(targets: object, count: int, what: str) -> Tensor:
    """What a task takes whose targets are vectors."""
    del count, what
    return torch.as_tensor(targets)


PICTURE, LABELS = (3, 8, 8), (10,)
SAMPLES = {
    "pictures with vectors": pairs_of(*[(PICTURE, LABELS)] * 4),
    "pictures with masks": pairs_of(*[(PICTURE, (8, 8))] * 4),
    "vectors with vectors": pairs_of(*[((5,), (2,))] * 4),
    "vectors, one as long as its targets": pairs_of(((2,), (2,)), ((3,), (2,))),
    "two inputs": [((torch.zeros(4), torch.zeros(5)), torch.zeros(4)) for _ in range(3)],
    "named inputs": [({"ids": torch.zeros(6), "n": 3}, torch.zeros(2)) for _ in range(3)],
    "arrays": [(torch.zeros(PICTURE).numpy(), torch.zeros(10).numpy()) for _ in range(3)],
}
BATCHES = {
    "pictures with classes": pairs_of(*[((8, *PICTURE), (8,))] * 3),
    "pictures, a rest of one": pairs_of(((8, *PICTURE), (8,)), ((1, *PICTURE), (1,))),
    "three pictures": pairs_of(*[((3, *PICTURE), (3,))] * 3),
    "pictures with vectors": pairs_of(*[((8, *PICTURE), (8, 10))] * 3),
    "vectors with classes": pairs_of(*[((8, 5), (8,))] * 3),
    "vectors as targets of themselves, a rest": pairs_of(((8, 5), (8, 5)), ((2, 5), (2, 5))),
    "series with classes, a rest": pairs_of(
        ((3, 9, 5), (3,)), ((3, 9, 5), (3,)), ((2, 9, 5), (2,))
    ),
    "all at once": pairs_of(((3, 8, 8), (3,))),
    "two inputs": [((torch.zeros(4, 2), torch.zeros(4)), torch.zeros(4)) for _ in range(3)],
    "named inputs": [({"ids": torch.zeros(6, 4), "on": True}, torch.zeros(6)) for _ in range(3)],
    "texts": [(["one", "two"], [0, 1]), (["three", "four"], [1, 0])],
}


@pytest.mark.parametrize("pairs", SAMPLES.values(), ids=SAMPLES)
def test_pairs_whose_first_axes_differ_are_samples(pairs: list[Any]) -> None:
    batches = batches_of(pairs, batch_size=2, shuffle=False, as_targets=as_numbers)
    assert batches.samples == len(pairs)
    if pairs[0][0] is not pairs[1][0] and len(pairs) == 4:
        first = next(batches.epoch(0))
        assert first.inputs.shape == (2, *pairs[0][0].shape)
        assert first.targets.shape == (2, *pairs[0][1].shape)


@pytest.mark.parametrize("pairs", BATCHES.values(), ids=BATCHES)
def test_pairs_of_one_first_axis_are_batches(pairs: list[Any]) -> None:
    batches = batches_of(pairs, as_targets=as_numbers)
    assert len(batches) == len(pairs)
    assert batches.samples == sum(len(targets) for _, targets in pairs)


EITHER = {
    "3 channels, 3 targets": (PICTURE, (3,)),
    "a channel, a target": ((1, 8, 8), (1,)),
    "vectors as targets of themselves": ((5,), (5,)),
    "pictures as targets of themselves": (PICTURE, PICTURE),
}


@pytest.mark.parametrize("shapes", EITHER.values(), ids=EITHER)
def test_pairs_that_may_be_either_are_refused_with_what_to_write(
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
) -> None:
    pairs = pairs_of(*[shapes] * 4)
    count = shapes[0][0]
    said = rf"the list holds pairs of inputs \[{count}.* may be one sample or a batch of {count}\."
    with pytest.raises(DataError, match=said) as caught:
        batches_of(pairs, as_targets=as_numbers)
    assert "samples as a data set, Subset(pairs, range(len(pairs)))" in str(caught.value)
    assert "batches as a loader, DataLoader(batches, batch_size=None)" in str(caught.value)
    samples = batches_of(Subset(pairs, range(4)), as_targets=as_numbers)  # type: ignore[arg-type]
    assert (samples.samples, len(samples)) == (4, 1)
    loader = DataLoader(pairs, batch_size=None)  # type: ignore[arg-type]
    given = batches_of(loader, as_targets=as_numbers)
    assert (given.samples, len(given)) == (4 * count, 4)


def test_steps_of_series_with_a_target_each_are_not_taken_for_batches() -> None:
    series = pairs_of(((7,), (7,)), ((5,), (5,)), ((9,), (9,)))
    with pytest.raises(DataError, match=r"inputs \[7\] with 7 targets, each of which may be"):
        batches_of(series, as_targets=as_numbers)


def test_shuffled_batches_hold_samples_of_like_length_and_other_ones_in_each_epoch() -> None:
    lengths = torch.randint(4, 60, (103,), generator=torch.Generator().manual_seed(0)).tolist()
    order = Order(103, 8, shuffle=True, seed=3, lengths=lengths)
    epochs = [order.epoch(0), order.epoch(1)]
    for batches in epochs:
        assert torch.cat(batches).sort()[0].tolist() == list(range(103))
        assert [len(batch) for batch in batches] == [8] * 12 + [7]
        padded = sum(len(b) * max(lengths[i] for i in b.tolist()) for b in batches[:-1])
        assert padded < 1.35 * sum(lengths[i] for i in torch.cat(batches[:-1]).tolist())
    made_of = [{frozenset(batch.tolist()) for batch in batches} for batches in epochs]
    assert not made_of[0] & made_of[1]
    alike = Order(103, 8, shuffle=True, seed=3, lengths=[5] * 103)
    plain = Order(103, 8, shuffle=True, seed=3)
    assert torch.equal(torch.cat(alike.epoch(0)), torch.cat(plain.epoch(0)))
