"""On how many threads the steps of a small head run: on one, where that gives the same bits.

The threads of a processor meet after each operation. Those of a small head are over before they
meet, and where other programs run too, one waits for a core while the others wait for it: 25 epochs
of a head 1000-100-2 then took 30 times as long (2 threads on 2 cores that others used).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from frostline.calling import call_with
from frostline.cutting.checking import state_kept
from frostline.data import Batch, some_rows
from frostline.devices import on_threads
from frostline.engine.training import Training
from frostline.features import FeatureBatches
from frostline.fingerprints.parts import same_bits
from frostline.freezing.modes import modes_kept
from frostline.session import Pipeline
from frostline.tasks import CallableTask, Task, loss_of

_LARGEST = 5e7  # trained parameters times samples, above which a step is worth several threads
_TINY_SECONDS = 0.001  # a shorter step never is
_SHORT_SECONDS = 0.01  # nor one up to this, where several threads are no quicker
_TRIES = 3
_GAIN = 1.1  # by which they have to be


def step_threads(training: Training, data: Pipeline, task: Task) -> int | None:
    """1 where a step over stored features is short, and no slower, on one thread; else None.

    Tried on the first batch and on one as small as the last: outputs of both modes, loss, gradients
    and their norms have the same bits then on one thread as on all; those of a batch norm do not
    (torch 2.15 sums its rows by threads). The model, the random state and the order of the samples
    stay as they are.
    """
    train, threads = data.train, torch.get_num_threads()
    stored = isinstance(train, FeatureBatches) and isinstance(data.validation, FeatureBatches)
    ours = type(task).__module__.startswith("frostline.tasks") and type(task) is not CallableTask
    is_plain = data.device.type == "cpu" and training.session.world.size == 1
    if not (stored and ours and is_plain) or threads == 1 or training.compute.is_mixed:
        return None
    with closing(train.epoch(0)) as given:
        batch = next(given)
    trial = _Trial(training.model, data, task)
    if trial.parameters * len(batch.targets) > _LARGEST:
        return None
    last = train.samples % len(batch.targets)
    with modes_kept(training.model), state_kept(training.model), torch.random.fork_rng(devices=[]):
        for size in {len(batch.targets), last} - {0}:
            if not trial.is_same(_part(batch, size), threads):
                return None
        return 1 if trial.is_worth_one(batch, threads) else None


def _part(batch: Batch, size: int) -> Batch:
    chosen = slice(size)
    inputs, targets = some_rows(batch.inputs, chosen), batch.targets[:size]
    return replace(batch, inputs=inputs, targets=targets, names=batch.names[:size])


class _Trial:
    def __init__(self, model: nn.Module, data: Pipeline, task: Task) -> None:
        self._model = model
        self._forward = data.forward
        self._task = task
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self.parameters = sum(parameter.numel() for parameter in self._trained)

    def is_same(self, batch: Batch, threads: int) -> bool:
        """Whether one thread gives the bits of all; not where the batch is refused."""
        try:
            one, every = (self._both(batch, count) for count in (1, threads))
        except (RuntimeError, ValueError):  # the loop itself says what is wrong
            return False
        return len(one) == len(every) and all(map(same_bits, one, every))

    def is_worth_one(self, batch: Batch, threads: int) -> bool:
        """Whether a step is short on one thread, and not much quicker on all of them."""
        # Of a processor, however busy it is.
        own = min(self._seconds(batch, 1, time.thread_time) for _ in range(_TRIES))
        if own < _TINY_SECONDS:
            return True
        one = every = math.inf
        for _ in range(_TRIES if own < _SHORT_SECONDS else 0):
            one = min(one, self._seconds(batch, 1, time.perf_counter))
            every = min(every, self._seconds(batch, threads, time.perf_counter))
        return one < _GAIN * every

    def _seconds(self, batch: Batch, threads: int, clock: Callable[[], float]) -> float:
        with on_threads(threads):
            began = clock()
            self._step(batch)
            return clock() - began

    def _both(self, batch: Batch, threads: int) -> list[Tensor]:
        with on_threads(threads), state_kept(self._model):
            return [*self._step(batch), *self._outputs(batch)]

    def _step(self, batch: Batch) -> list[Tensor]:
        """What a training step computes of a batch, less the step itself, which adds number by
        number."""
        self._model.train()
        torch.manual_seed(0)
        outputs = self._called(batch)
        loss = loss_of(self._task, outputs, batch.targets)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's
        found = [leaf.detach() for leaf in _tensors(outputs)] + [loss.detach()]
        for parameter in self._trained:
            if parameter.grad is not None:
                found += [parameter.grad, torch.linalg.vector_norm(parameter.grad)]
            parameter.grad = None
        return found

    def _outputs(self, batch: Batch) -> list[Tensor]:
        self._model.eval()
        with torch.no_grad():
            return [*_tensors(self._called(batch))]

    def _called(self, batch: Batch) -> Any:
        return self._task.read(call_with(self._forward, batch.inputs))


def _tensors(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
