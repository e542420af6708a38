"""Steps that several processes make as one: one loss, the sum of their gradients, the same weights.

Each process goes backward from its share of the whole batch's loss, and `DistributedDataParallel`
adds the gradients up. They are added in the order of ranks, whatever buckets they are sent in:
DDP makes its buckets anew after its first step, and a run that was resumed has another first step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from frostline.data import Batch
from frostline.deltas import all_tensors
from frostline.engine.joining import places_of
from frostline.engine.norms import shared_norms
from frostline.errors import ModelError, TrainingError
from frostline.freezing.modes import is_held, modes_kept
from frostline.session import Forward, Survey
from frostline.tasks import Task, loss_of
from frostline.world import World, bits_of_first, gathered

_NAMED_AT_MOST = 3
_SENT = frozenset(
    (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32)
)


@final
@dataclass(frozen=True, slots=True)
class Part:
    """This process's part in the loss of a whole batch.

    Attributes:
        loss: of its own samples, or of all where the task's loss is no mean over samples.
        weight: what `loss` is the mean over; None where it is of all.
    """

    loss: Tensor
    weight: Tensor | None


@final
@dataclass(frozen=True, slots=True)
class Whole:
    """What a whole batch gave, the same in all processes.

    Attributes:
        loss: the batch's.
        sums: of the task, over the batch.
        samples: in it.
        own: what this process goes backward from; the gradients of all add up to the batch's.
    """

    loss: float
    sums: Mapping[str, Tensor]
    samples: int
    own: Tensor


@final
class SharedSteps:
    """What the steps of a phase need of the other processes.

    The first step finds out which parameters get a gradient, and sums those itself; from the
    second on `DistributedDataParallel` does, around these alone.
    """

    def __init__(
        self,
        world: World,
        task: Task,
        model: nn.Module,
        trainable: Mapping[str, nn.Parameter],
        *,
        sync_norm: bool,
    ) -> None:
        self._world, self._task, self._model = world, task, model
        self._trainable, self._sync_norm = trainable, sync_norm
        self._reached: dict[str, nn.Parameter] | None = None  # by a gradient, once it is known
        self._wrapped: DistributedDataParallel | None = None

    @property
    def unreached(self) -> tuple[str, ...] | None:
        """Parameters that got no gradient in any process; None before the first step."""
        if self._reached is None:
            return None
        return tuple(name for name in self._trainable if name not in self._reached)

    def around(self, forward: Forward) -> Forward:
        """`forward`; in it DDP prepares to sum the gradients, once it is known which."""
        if self._reached is None:
            return forward
        if self._wrapped is None:
            self._wrapped = self._wrap(forward)
        return self._wrapped

    @contextmanager
    def computing(self, batch: Batch) -> Iterator[None]:
        """Around the forward of a step.

        A sample that is lent goes through in evaluation mode, and so moves nothing; where norms
        are shared, it stays out of their statistics instead.
        """
        with ExitStack() as stack:
            if self._sync_norm:
                stack.enter_context(shared_norms(counts=not batch.is_spare))
            elif batch.is_spare:
                stack.enter_context(modes_kept(self._model))
                self._model.eval()
            yield

    def part(self, outputs: Any, targets: Tensor, batch: Batch) -> Part:
        """The loss of this process's samples, to be weighed; or of those of all.

        Raises:
            ModelError: it is of all, and their outputs do not fit together.
        """
        weight = self._task.weight(outputs, targets)
        if weight is not None and batch.is_spare:
            return Part(_nothing(outputs), torch.zeros_like(weight))
        if weight is not None:
            return Part(loss_of(self._task, outputs, targets), weight)
        loss = loss_of(self._task, *self._brought_together(outputs, targets, batch))
        return Part(loss + _nothing(outputs) if batch.is_spare else loss, None)

    def whole(self, part: Part, sums: Mapping[str, Tensor], batch: Batch) -> Whole:
        """What all parts make together."""
        names = sorted(sums)
        counted = [len(batch.targets), *(float(sums[name]) for name in names)]
        own = [0.0 if batch.is_spare else count for count in counted]
        # A loss of all samples is the same in each process: the first one says it.
        weight = float(self._world.rank == 0 if part.weight is None else part.weight)
        loss = weight * part.loss.item() if weight else 0.0
        met = self._world.sum(torch.tensor([weight, loss, *own], dtype=torch.float64))
        every, value, samples, *_ = met.tolist()
        share = part.loss if part.weight is None else part.loss * (weight / (every or 1.0))
        found = dict(zip(names, met[3:].unbind(), strict=True))
        return Whole(value / (every or 1.0), found, round(samples), share)

    def sum_gradients(self) -> None:
        """After a backward: see to it that each gradient is the sum over the processes.

        Raises:
            TrainingError: other parameters got a gradient than in the first step.
        """
        got = {name for name, p in self._trainable.items() if p.grad is not None}
        if self._reached is None:
            own = torch.tensor([name in got for name in self._trainable], dtype=torch.long)
            every = self._world.sum(own).tolist()
            pairs = zip(self._trainable.items(), every, strict=True)
            self._reached = {name: p for (name, p), count in pairs if count}
            _sum_now(list(self._reached.values()))
        elif got != self._reached.keys():
            other = sorted(got ^ self._reached.keys())
            more = ", ..." if len(other) > _NAMED_AT_MOST else ""
            raise TrainingError(
                f"{', '.join(other[:_NAMED_AT_MOST])}{more} got a gradient from some batches and "
                "none from others, as where layers are left out at random, and processes wait for "
                "each other's. Train in one process, or let every batch use the same layers."
            )

    def even_buffers(self) -> None:
        """Give all processes the buffers of the first, as before each of DDP's forwards."""
        for buffer in _moving_buffers(self._model):
            dist.broadcast(buffer, 0)

    def _wrap(self, forward: Forward) -> DistributedDataParallel:
        assert self._reached is not None
        buffers = [] if self._sync_norm else _moving_buffers(self._model)
        made = DistributedDataParallel(
            _Trained(forward, list(self._reached.values()), buffers), init_sync=False
        )
        # A lambda, since DDP reads annotations, and not as texts (torch 2.15).
        made.register_comm_hook(None, lambda _, bucket: _done(_in_order_of_ranks(bucket.buffer())))
        return made

    def _brought_together(self, outputs: Any, targets: Tensor, batch: Batch) -> tuple[Any, Tensor]:
        """The outputs and targets of the whole batch, of which the own ones have gradients."""
        count = 0 if batch.is_spare else len(targets)
        order = places_of(self._world, [count])
        assert order is not None
        leaves, structure = tree_flatten(outputs)
        made = [
            self._rows_of_all(leaf, count, order) if _has_rows(leaf, targets) else leaf
            for leaf in leaves
        ]
        return tree_unflatten(made, structure), self._rows_of_all(targets, count, order)

    def _rows_of_all(self, own: Tensor, count: int, order: Tensor) -> Tensor:
        shape = torch.tensor([[own.dim(), *own.shape[1:]]])
        if self._world.sum(shape).ne(shape * self._world.size).any():
            raise ModelError(
                "the processes have outputs or targets of different shapes, and the loss takes "
                "those of all together. Let all samples have one shape; or write a task whose "
                "weight() says what its loss is the mean over."
            )
        rows = gathered(self._world, own[:count].detach())
        live = gathered(self._world, torch.full((count,), self._world.rank)) == self._world.rank
        if count:
            rows = rows.index_put((live.nonzero().squeeze(1).to(rows.device),), own[:count])
        return rows[order.to(rows.device)]


def even_out(model: nn.Module, planned: Survey, world: World) -> None:
    """Give the models of all processes what the first one's has, but for what no phase trains."""
    if world.size == 1:
        return
    with torch.no_grad():
        for name, tensor in all_tensors(model).items():
            if name not in planned.untouched.tensors:
                tensor.copy_(bits_of_first(world, tensor))


@final
class _Trained(nn.Module):
    """A forward with nothing but what is trained, so that DDP touches nothing else."""

    def __init__(
        self, forward: Forward, parameters: Sequence[nn.Parameter], buffers: Sequence[Tensor]
    ) -> None:
        super().__init__()
        object.__setattr__(self, "run", forward)  # not a submodule, whose rest is frozen
        self.trained = nn.ParameterList(parameters)
        for number, buffer in enumerate(buffers):
            self.register_buffer(f"buffer_{number}", buffer)

    run: Forward

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.run(*inputs, **named)


def _nothing(outputs: Any) -> Tensor:
    """0, by way of the outputs: all that they depend on gets a gradient of 0."""
    live = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
    found = [leaf.float().sum() * 0 for leaf in live if leaf.requires_grad]
    return torch.stack(found).sum() if found else torch.zeros(())


def _has_rows(leaf: object, targets: Tensor) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == len(targets)


def _moving_buffers(model: nn.Module) -> list[Tensor]:
    """Buffers of modules that are not held, as far as they are numbers that gloo sends."""
    found = {
        id(buffer): buffer
        for module in model.modules()
        if not is_held(module)
        for buffer in module.buffers(recurse=False)
        if buffer.dtype in _SENT
    }
    return list(found.values())


def _sum_now(parameters: Sequence[nn.Parameter]) -> None:
    """The sums of gradients, where DDP is not there yet; none counts as zeros."""
    kinds: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        kinds.setdefault((parameter.grad.dtype, parameter.grad.device), []).append(parameter)
    for alike in kinds.values():
        gradients = [p.grad for p in alike if p.grad is not None]
        total = _in_order_of_ranks(torch.cat([grad.flatten() for grad in gradients]))
        parts = torch.split(total, [grad.numel() for grad in gradients])
        for grad, part in zip(gradients, parts, strict=True):
            grad.copy_(part.view_as(grad))


def _done(total: Tensor) -> torch.futures.Future[Tensor]:
    """What DDP takes of a bucket of gradients, which were summed and not averaged."""
    devices: list[int | str | torch.device] = [total.device]
    on_cpu = total.device.type == "cpu"
    done: torch.futures.Future[Tensor] = torch.futures.Future(devices=None if on_cpu else devices)
    done.set_result(total)
    return done


def _in_order_of_ranks(own: Tensor) -> Tensor:
    """The sum over the processes, each number in the order of ranks, wherever it stands.

    Each process sums a part of the numbers and gives it to all: as many bytes as by `all_reduce`,
    whose order depends on where a number stands in the buffer.
    """
    size = dist.get_world_size()
    each = -(-own.numel() // size)
    given = own.new_zeros(size * each)
    given[: own.numel()] = own
    parts = torch.empty_like(given)
    dist.all_to_all_single(parts, given)
    first, *others = parts.view(size, each).unbind()
    is_half = own.dtype in (torch.float16, torch.bfloat16)
    total = first.float() if is_half else first
    for other in others:
        total = total + other
    summed = list(given.view(size, each).unbind())
    dist.all_gather(summed, total.to(own.dtype))
    return torch.cat(summed)[: own.numel()].view_as(own)
