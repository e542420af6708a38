"""What one training step costs, measured: time, and memory besides the weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from itertools import count
from statistics import median
from typing import Any, TypeVar, cast, final

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from frostline.backward import saved_bytes
from frostline.calling import call_with
from frostline.cutting.checking import state_kept
from frostline.devices import autocast
from frostline.errors import ModelError
from frostline.freezing.modes import modes_kept
from frostline.tasks import Classification, Task, step_loss

Progress = Callable[[int, int], None]  # parts of the work done, and in all
_Work = TypeVar("_Work", bound=Callable[..., Any])

# What a step that does not run fails with: a wrong shape, an index out of range, no memory.
STEP_ERRORS = (RuntimeError, ValueError, TypeError, LookupError)


@final
@dataclass(frozen=True, slots=True)
class StepCost:
    """One optimizer step on one batch.

    Attributes:
        forward_seconds, backward_seconds, optimizer_seconds: medians of the later half of the timed
            steps; the loss is in the first, making gradients none in the last.
        saved_bytes: activations kept for the backward pass, each storage once, without weights
            and the batch.
        gradient_bytes: of all gradients.
        state_bytes: of what the optimizer keeps.
    """

    forward_seconds: float
    backward_seconds: float
    optimizer_seconds: float
    saved_bytes: int
    gradient_bytes: int
    state_bytes: int

    @property
    def seconds(self) -> float:
        """Of a whole step."""
        return self.forward_seconds + self.backward_seconds + self.optimizer_seconds

    @property
    def nbytes(self) -> int:
        """Memory of a step besides the weights."""
        return self.saved_bytes + self.gradient_bytes + self.state_bytes


def measure_step(
    model: nn.Module,
    inputs: Any,
    targets: Tensor | None = None,
    *,
    optimizer: str = "adamw",
    precision: str = "fp32",
    task: Task | None = None,
    repeats: int = 3,
    within: float = float("inf"),
) -> StepCost:
    """Time and memory of a step of what is trainable in `model`; its weights do not move.

    Args:
        inputs: one batch as the model takes it, on its device.
        targets: as the task takes them; by default its example targets.
        optimizer: `adamw`, `adam` or `sgd` with momentum.
        precision: `fp32`, or `bf16` or `fp16` for autocast.
        task: whose loss is taken; by default classification.
        repeats: timed steps after two to warm up.
        within: seconds after which no other step is begun; two run at least, the second timed.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    given = [t for t in pytree.tree_leaves(inputs) if isinstance(t, Tensor)]

    def forward() -> Tensor:
        with autocast(model, precision):
            return some_loss(task or Classification(), call_with(model, inputs), targets)

    with _left_as_it_was(model, parameters):
        start = time.perf_counter()
        model.train()
        made = still_optimizer(optimizer, parameters or [torch.zeros(())])
        losses: list[Tensor] = []
        saved = saved_bytes(
            lambda: losses.append(forward()),
            besides=(*model.parameters(), *model.buffers(), *given),
        )
        _backward(losses.pop())
        size = sum(p.grad.nbytes for p in parameters if p.grad is not None)
        made.step()
        made.zero_grad(set_to_none=True)
        times = [_step(forward, made)]
        while len(times) <= repeats and time.perf_counter() - start < within:
            times.append(_step(forward, made))
    kept = pytree.tree_leaves(list(made.state.values()))
    state = sum(value.nbytes for value in kept if isinstance(value, Tensor))
    # The earlier ones still get their memory from the system, the later from the process.
    spent = [median(some) for some in zip(*times[len(times) // 2 :], strict=True)]
    return StepCost(spent[0], spent[1], spent[2], saved, size, state)


@contextmanager
def _left_as_it_was(model: nn.Module, parameters: list[nn.Parameter]) -> Iterator[None]:
    """What a step of `parameters` moves is put back, and modes and random numbers."""
    before = [p.detach().clone() for p in parameters]
    with state_kept(model), modes_kept(model), torch.random.fork_rng(devices=()):
        for parameter in parameters:
            parameter.grad = None  # a gradient from before would be added to, in place
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(parameters, before, strict=True):
                    parameter.copy_(value)  # a step of zero may still turn -0.0 into 0.0


def still_optimizer(name: str, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
    """An optimizer as a run makes it, that moves nothing."""
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=0.0, momentum=0.9, fused=True)
    kind = torch.optim.AdamW if name == "adamw" else torch.optim.Adam
    return kind(parameters, lr=0.0, weight_decay=0.0, fused=True)


@final
class Stopwatch:
    """Seconds since it was made, and how much of a processor core this thread had of them.

    A thread that computes has all of one on an idle machine, with however many others it shares
    the work; one that waits for a GPU has none, so there the share is not known: 1.
    """

    def __init__(self) -> None:
        self._start = (time.perf_counter(), time.thread_time())
        self.seconds, self.core_share = 0.0, 1.0

    def stop(self) -> None:
        now = (time.perf_counter(), time.thread_time())
        self.seconds, own = (end - start for start, end in zip(self._start, now, strict=True))
        if self.seconds and not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch's own
            self.core_share = min(1.0, own / self.seconds)


def counted(progress: Progress | None, parts: int) -> Callable[[_Work], _Work]:
    """Has each call of some works count as one of so many parts of an estimate, once it is done."""
    done = count(1)

    def told(work: _Work) -> _Work:
        @wraps(work)
        def telling(*given: Any, **named: Any) -> Any:
            found = work(*given, **named)
            if progress is not None:
                progress(next(done), parts)
            return found

        return cast(_Work, telling)

    return told


def clock() -> float:
    """Seconds, when all that was begun on a GPU is done."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch's own
        torch.cuda.synchronize()
    return time.perf_counter()


def _step(
    forward: Callable[[], Tensor], optimizer: torch.optim.Optimizer
) -> tuple[float, float, float]:
    """Seconds of the forward pass, the backward pass and the optimizer."""
    times = [clock()]
    loss = forward()
    times.append(clock())
    _backward(loss)
    times.append(clock())
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    times.append(clock())
    return times[1] - times[0], times[2] - times[1], times[3] - times[2]


def some_loss(task: Task, output: Any, targets: Tensor | None = None) -> Tensor:
    """The task's loss; or by default, where the output is of no classification, the mean square.

    What a step costs hangs on the outputs alone, and not on what is minimised of them.
    """
    if targets is not None or type(task) is not Classification:
        return step_loss(task, output, targets)
    try:
        return step_loss(task, output)
    except (ModelError, RuntimeError, ValueError, IndexError):
        tree = dict(output) if isinstance(output, Mapping) else output
        tensors = [t for t in pytree.tree_leaves(tree) if isinstance(t, Tensor)]
        squares = [t.float().square().mean() for t in tensors if t.is_floating_point()]
        if not squares:
            raise
        return torch.stack(squares).sum()


def _backward(loss: Tensor) -> None:
    if loss.requires_grad:  # not where nothing trains
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
