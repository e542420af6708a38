"""Two processes share a data set: whatever needs to know that asks a `World`.

    python examples/05_world_of_two.py

Two threads stand in for two processes here. Under `torchrun`, `frostline.world.world_here()` gives
one of `torch.distributed`, and `fl.fit` finds it itself: see docs/processes.md.
"""

import threading

import torch

import frostline as fl
from frostline.data import Order
from frostline.world import gathered


class Thread:
    """One of two threads, as a world: about what a world of one's own takes."""

    def __init__(self, rank, shared):
        self.rank, self.size, self.writes = rank, 2, rank == 0
        self._barrier, self._values = shared

    def barrier(self):
        self._barrier.wait()

    def sum(self, values):
        self._values[self.rank] = values
        self.barrier()
        total = self._values[0] + self._values[1]
        self.barrier()  # nobody puts new values before both have read these
        return total

    def tell(self, error):
        self._barrier.abort()
        return error


def main() -> None:
    shared = threading.Barrier(2), {}
    threads = [threading.Thread(target=work, args=(Thread(rank, shared),)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def work(world: fl.World) -> None:
    order = Order(samples=11, batch_size=5, shuffle=True, seed=0, world=world)
    parts = enumerate(order.epoch(0))  # this one's samples of each batch of the first epoch
    own = torch.cat([part for number, part in parts if not order.is_spare(number)])
    hits = world.sum((own % 3 == 0).sum())  # an evaluation: sums over all
    every = gathered(world, own)
    if world.writes:
        print(f"of {len(every)} samples this process had {len(own)}; {int(hits)} right in all")
        print(f"each once: {sorted(every.tolist()) == list(range(11))}")


if __name__ == "__main__":
    main()
