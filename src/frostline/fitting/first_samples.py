"""A few samples before the run: what the model makes of them, and what a step on them takes."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from frostline.cutting import Cut, KeptLines, kept_cut
from frostline.data import Batch, Samples, first_batch, holds_all, some_targets
from frostline.devices import Compute, to_device
from frostline.engine import predict
from frostline.session.pipelines import CHECKED_SAMPLES
from frostline.tasks import Predictions, Task


@final
@dataclass(frozen=True)
class FirstSamples:
    """A few validation samples, what the model makes of them, and how long it takes for one.

    Attributes:
        inputs: on the device.
        found: the model's outputs, and the targets.
        seconds: of one plain forward, for one sample.
        operations: floating-point operations of it; 0 where they were not counted.
        cut: of the model, where its line was kept: then what it makes of them is known by its
            form alone, and the frozen part did not run.
    """

    inputs: Any
    found: Predictions
    seconds: float
    operations: float
    cut: Cut | None = None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        samples: Samples,
        task: Task,
        compute: Compute,
        *,
        judged: bool,
        lines: KeptLines | None = None,
    ) -> Self:
        """Look at them; `judged` also counts operations, and times a pass that need not warm up.

        Args:
            lines: where lines of this model are kept.
        """
        batch = first_batch(samples, CHECKED_SAMPLES, task.targets)
        few = replace(batch, inputs=to_device(batch.inputs, compute.device))
        model.to(compute.device)
        count, operations = len(batch.targets), 0.0
        if lines is not None and (kept := kept_cut(model, few.inputs, lines)) is not None:
            made, facts = kept
            formed = predict(model, [_features(made, few)], compute, task=task, forward=made.suffix)
            return cls(few.inputs, formed, facts["seconds"], facts["operations"], made)
        if judged:
            from torch.utils.flop_counter import FlopCounterMode  # and with it triton

            with FlopCounterMode(display=False) as counter:
                predict(model, [few], compute, task=task)
            # Kernels that torch's counter does not know, as of recurrent layers, by parameters.
            least = 2 * count * sum(parameter.numel() for parameter in model.parameters())
            operations = float(max(counter.get_total_flops(), least))
        start = time.perf_counter()
        found = predict(model, [few], compute, task=task)
        seconds = time.perf_counter() - start
        return cls(few.inputs, found, seconds / count, operations / count)

    def check_targets(self, samples: Samples, task: Task) -> None:
        """Hold targets that are known without their inputs against the outputs, all at once.

        Not of samples that differ in length, whose outputs do too.

        Raises:
            DataError: one does not go with the task; names its sample.
        """
        outputs, count = self.found.outputs, len(samples.targets)
        if not (holds_all(samples.targets) and count and task.padding is None):
            return
        if isinstance(outputs, Tensor):
            targets = task.targets(some_targets(samples.targets), count, samples.what)
            names = tuple(map(samples.name, range(count)))
            task.check(outputs[:1].expand(count, *outputs.shape[1:]), targets, names)

    def step_seconds(self, model: nn.Module, task: Task) -> float:
        """Seconds of a plain training step on these, for one sample; 0 where it is not known."""
        count = len(self.found.targets)
        if not isinstance(self.inputs, Tensor) or count < 2:  # a norm may need two samples
            return 0.0
        targets = self.found.targets.to(self.inputs.device)
        from frostline.estimates.measuring import measure_step

        with suppress(RuntimeError, ValueError):  # the run itself says better what is wrong
            return measure_step(model, self.inputs, targets, task=task, repeats=2).seconds / count
        return 0.0


def _features(made: Cut, batch: Batch) -> Batch:
    """In place of the batch, zeros in the form of its features."""
    tensors, count = made.prefix.spec.flatten(batch.inputs), len(batch.targets)
    zeros = tuple(
        torch.zeros((count, *value.own_shape(tensors)), dtype=value.dtype, device=tensors[0].device)
        for value in made.frontier.values
    )
    return replace(batch, inputs=zeros)
