"""Two made-up ranks: samples are shared without loss or repetition, sums are of all, one writes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import frostline as fl
from frostline.data import Order, make_batches
from frostline.devices import Compute
from frostline.engine.steps import predict
from frostline.world import ALONE, World, gathered, gathered_names


@dataclass
class Shared:
    """What threads that stand in for processes have in common."""

    size: int = 2
    barrier: threading.Barrier = field(init=False)
    values: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.size, timeout=30)


@dataclass(frozen=True)
class Rank:
    rank: int
    shared: Shared

    @property
    def size(self) -> int:
        return self.shared.size

    @property
    def writes(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        self.shared.barrier.wait()

    def sum(self, values: Tensor) -> Tensor:
        self.shared.values[self.rank] = values
        self.barrier()
        total = torch.stack([self.shared.values[rank] for rank in range(self.size)]).sum(dim=0)
        self.barrier()
        return total.to(values.dtype)

    def tell(self, error: BaseException) -> BaseException:
        raise AssertionError("threads that fail break the barrier") from error


def together(work: Callable[[World], Any], *, size: int = 2) -> list[Any]:
    """What `work` gives on each rank, all at once."""
    shared, found, errors = Shared(size), {}, []

    def one(rank: int) -> None:
        try:
            found[rank] = work(Rank(rank, shared))
        except BaseException as error:
            errors.append(error)
            shared.barrier.abort()

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [found[rank] for rank in range(size)]


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("samples", [1, 7, 8, 9, 24])
@pytest.mark.parametrize("shuffle", [True, False])
def test_ranks_share_the_batches_of_one_process(size: int, samples: int, shuffle: bool) -> None:
    shared = Shared(size)
    whole = Order(samples, 4, shuffle, seed=5)
    for epoch in range(2):
        parts = []
        for rank in range(size):
            order = Order(samples, 4, shuffle, 5, Rank(rank, shared))
            batches = order.epoch(epoch)
            assert len(batches) == len(order) == len(whole)
            assert all(len(batch) for batch in batches)
            assert [b.tolist() for b in order.epoch(epoch, start=1)] == [
                b.tolist() for b in batches[1:]
            ]
            parts.append([b[: 0 if order.is_spare(n) else 4] for n, b in enumerate(batches)])
        for batch, *own in zip(whole.epoch(epoch), *parts, strict=True):
            assert sorted(batch.tolist()) == sorted(torch.cat(own).tolist())
            assert [b.tolist() for b in own] == [batch[r::size].tolist() for r in range(size)]


def test_rows_of_all_ranks_are_gathered_as_they_are() -> None:
    rows = torch.randn(5, 3)
    rows[0, 0], rows[4, 2] = float("nan"), float("inf")
    cuts = (rows[:2], rows[2:])
    first, second = together(lambda world: gathered(world, cuts[world.rank]))
    assert torch.equal(first.view(torch.int32), rows.view(torch.int32))
    assert torch.equal(second.view(torch.int32), rows.view(torch.int32))


def test_one_process_gathers_what_it_has() -> None:
    rows = torch.randn(5, 3)
    assert gathered(ALONE, rows) is rows
    assert (ALONE.rank, ALONE.size, ALONE.writes) == (0, 1, True)


def rows() -> TensorDataset:
    inputs = torch.randn(11, 4, generator=torch.Generator().manual_seed(1))
    return TensorDataset(inputs, inputs[:, :2].argmax(dim=1))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))


def test_an_evaluation_is_of_the_samples_of_all_ranks() -> None:
    task, whole = fl.Classification("ab"), net()

    def judged(world: World) -> Any:
        model = deepcopy(whole)
        batches = make_batches(rows(), batch_size=2, shuffle=False, seed=0, world=world)
        found = predict(model, batches, Compute("cpu"), world=world)
        assert found.names == tuple(f"sample {number}" for number in range(11))
        return task.summarise(found.outputs, found.targets)

    alone = judged(ALONE)
    for found in together(judged):
        assert found["accuracy"] == alone["accuracy"]
        assert found["loss"] == pytest.approx(alone["loss"])
        assert found.samples == 11


def test_names_of_all_ranks_are_gathered_whatever_they_hold() -> None:
    names = (["a/ü.png", "b\udcff.png"], [])
    first, second = together(lambda world: gathered_names(world, names[world.rank]))
    assert first == second == tuple(names[0])
