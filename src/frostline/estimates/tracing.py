"""One training step on fake tensors: every operation, what is saved for it, and what is alive."""

from __future__ import annotations

import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from frostline.errors import ConfigError
from frostline.estimates.skeleton import call, fake_batch, fake_mode, skeleton
from frostline.models import logits_of

Pass = Literal["forward", "backward"]
Loss = Callable[[Any], Tensor]


@final
@dataclass(frozen=True, slots=True)
class Shaped:
    """A tensor argument: all of it that decides how long a kernel takes."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> Shaped:
        return cls(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)


@final
@dataclass(frozen=True, slots=True)
class Call:
    """An operation with the shapes of its arguments: calls that are equal take equally long."""

    func: Any
    leaves: tuple[Any, ...]
    spec: Any


@final
@dataclass(frozen=True, slots=True)
class Op:
    """One operation of a step.

    Attributes:
        layer: index of the innermost module it ran for.
        flops: of matrix products and convolutions; 0 for others.
        nbytes: read and written.
        is_view: whether it moves no number.
    """

    call: Call
    during: Pass
    layer: int
    flops: int
    nbytes: int
    is_view: bool


@final
@dataclass(frozen=True, slots=True)
class StepTrace:
    """What one step does and keeps.

    Attributes:
        paths: of the modules, the model itself first.
        saved: bytes kept for the backward pass by the layer that first keeps them, each storage
            once; without parameters, buffers and the batch itself.
        peak_bytes: the most that is alive at once besides parameters, buffers and the batch;
            gradients are in it, the optimizer's state is not.
        gradients: bytes of each parameter's gradient, by name.
        batch_bytes: of the batch.
        output_rows: of the model's output.
    """

    paths: tuple[str, ...]
    ops: tuple[Op, ...]
    saved: tuple[int, ...]
    peak_bytes: int
    gradients: dict[str, int]
    batch_bytes: int

    @property
    def saved_bytes(self) -> int:
        return sum(self.saved)


def trace_step(
    model: nn.Module,
    example: Any,
    *,
    batch_size: int,
    precision: str = "fp32",
    loss: Loss | None = None,
) -> StepTrace:
    """Run a step of `model` in train mode without memory or kernels; the model is not touched.

    Args:
        example: one batch as the model takes it; only shapes, dtypes and layout matter.
        precision: `fp32`, or `bf16` or `fp16` for autocast.
        loss: from the model's output; by default cross-entropy on its logits.
    Raises:
        ConfigError: the forward needs numbers, so that it cannot run without them.
    """
    mode = fake_mode()
    fake = skeleton(model, mode)
    fake.train()
    batch = fake_batch(example, batch_size, mode)
    return trace_fake_step(fake, batch, mode, precision=precision, loss=loss)


def trace_fake_step(
    fake: nn.Module,
    batch: Any,
    mode: FakeTensorMode,
    *,
    precision: str = "fp32",
    loss: Loss | None = None,
    backward: bool = True,
) -> StepTrace:
    """A step of a skeleton, in the modes it is in."""
    watch = _Watch(fake, batch)
    kind = next((t.device.type for t in fake.parameters()), "cpu")
    with ExitStack() as stack:
        stack.enter_context(watch.following())
        stack.enter_context(mode)
        stack.enter_context(watch)
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_runnable(type(fake).__name__))
        with torch.autograd.graph.saved_tensors_hooks(watch.pack, lambda tensor: tensor):
            with _autocast(kind, precision):
                output = call(fake, batch)
                found = (loss or _cross_entropy)(output)
            del output
        saved = tuple(watch.saved)
        watch.during = "backward"
        if backward and found.requires_grad:
            found.backward()  # type: ignore[no-untyped-call]  # torch's own
    return StepTrace(
        tuple(watch.paths),
        tuple(watch.ops),
        saved,
        watch.peak,
        {n: p.grad.nbytes for n, p in fake.named_parameters() if p.grad is not None},
        watch.batch_bytes,
    )


@contextmanager
def _runnable(name: str) -> Iterator[None]:
    try:
        yield
    except (ConfigError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"{name} cannot be estimated: its step does not run without numbers "
            f"({type(error).__name__}: {text}). Give an example that the model takes; where its "
            "forward asks for values, as `if x.sum() > 0`, an estimate cannot be made."
        ) from error


def _autocast(kind: str, precision: str) -> Any:
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(kind, dtype=dtype, enabled=dtype is not None)


def _cross_entropy(output: Any) -> Tensor:
    logits = logits_of(output)
    if logits.dim() == 3:  # of each token
        logits = logits.flatten(0, 1)
    shape = (logits.shape[0], *logits.shape[2:])
    targets = torch.zeros(shape, dtype=torch.long, device=logits.device)
    return nn.functional.cross_entropy(logits, targets)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
    """Notes each operation below autograd, and how many bytes are alive."""

    def __init__(self, model: nn.Module, batch: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self.paths = [path for path, _ in model.named_modules()]
        self.ops: list[Op] = []
        self.saved = [0] * len(self.paths)
        self.during: Pass = "forward"
        self.peak = 0
        self._alive = 0
        self._model = model
        self._stack = [0]
        # From which autograd sequence number on which layer runs: for the backward pass.
        self._turns: list[tuple[int, int]] = [(0, 0)]
        self._known: set[int] = set()
        self._kept: set[int] = set()
        tensors = [t for t in pytree.tree_leaves(batch) if isinstance(t, Tensor)]
        self.batch_bytes = sum(t.untyped_storage().nbytes() for t in tensors)
        self._given = [t.untyped_storage() for t in tensors]
        self._given += [t.untyped_storage() for t in (*model.parameters(), *model.buffers())]
        self._own = {storage._cdata for storage in self._given}
        self._known |= self._own

    @contextmanager
    def following(self) -> Iterator[None]:
        """Know which module runs."""
        handles = []
        for place, module in enumerate(self._model.modules()):
            enter = module.register_forward_pre_hook(lambda *_, at=place: self._turn(at))
            leave = module.register_forward_hook(lambda *_: self._turn(None), always_call=True)
            handles += [enter, leave]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def pack(self, tensor: Tensor) -> Tensor:
        """A tensor is saved for the backward pass."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._own and storage._cdata not in self._kept:
            self._kept.add(storage._cdata)
            weakref.finalize(storage, self._kept.discard, storage._cdata)
            self.saved[self._stack[-1]] += storage.nbytes()
        return tensor

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.namespace == "prim":
            return out
        given = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        made = [t for t in pytree.tree_leaves(out) if isinstance(t, Tensor)]
        for tensor in made:
            self._count(tensor.untyped_storage())
        packet = flop_registry.get(func._overloadpacket)
        flops = packet(*args, **(kwargs or {}), out_val=out) if packet else 0
        is_view = func.is_view or func._overloadpacket in _FREE
        nbytes = 0 if is_view else sum(map(_touched, (*given, *made)))
        leaves, spec = pytree.tree_flatten((args, kwargs or {}))
        shaped = tuple(Shaped.of(x) if isinstance(x, Tensor) else x for x in leaves)
        self.ops.append(
            Op(Call(func, shaped, spec), self.during, self._layer(), flops, nbytes, is_view)
        )
        return out

    def _turn(self, place: int | None) -> None:
        if place is None:
            self._stack.pop()
        else:
            self._stack.append(place)
        self._turns.append((torch._C._autograd._get_sequence_nr(), self._stack[-1]))

    def _layer(self) -> int:
        node = torch._C._current_autograd_node()
        if node is None:
            return self._stack[-1]
        number = node._sequence_nr()
        return self._turns[bisect_right(self._turns, number, key=lambda turn: turn[0]) - 1][1]

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self._alive += storage.nbytes()
        self.peak = max(self.peak, self._alive)
        weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())

    def _free(self, key: int, nbytes: int) -> None:
        self._known.discard(key)
        self._alive -= nbytes


def _touched(tensor: Tensor) -> int:
    """Bytes that are there to be read: a value that is repeated along an axis, once."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else 1
    return count * tensor.element_size()


_FREE = frozenset({torch.ops.aten.detach, torch.ops.aten.lift_fresh})
