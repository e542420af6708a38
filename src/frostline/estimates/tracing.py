"""One training step on fake tensors: every operation, what is saved for it, and what is alive."""

from __future__ import annotations

import gc
import weakref
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from frostline.backward.counting import apart
from frostline.calling import call_with
from frostline.devices import autocast
from frostline.errors import ConfigError, one_line
from frostline.estimates.measuring import some_loss
from frostline.estimates.skeleton import with_workspace
from frostline.tasks import Task

Pass = Literal["forward", "backward"]
# A storage: the turn in which it was made, its number within that turn, and its bytes.
Key = tuple[int, int, int]


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
        turn: number of the stay in a module in which it ran, or whose backward pass it is.
        flops: of matrix products and convolutions; 0 for others.
        nbytes: read and written.
        is_view: whether it moves no number.
    """

    call: Call
    during: Pass
    layer: int
    turn: int
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


@contextmanager
def runnable(model: nn.Module) -> Iterator[None]:
    """Says in one error what goes wrong where a step runs without numbers."""
    try:
        yield
    except (ConfigError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ConfigError(
            f"{type(model).__name__} cannot be estimated: its step does not run without numbers "
            f"({one_line(error)}). Give an example that the model takes; where its "
            "forward asks for values, as `if x.sum() > 0`, an estimate cannot be made."
        ) from error


@contextmanager
def uncollected() -> Iterator[None]:
    """Without Python's collector: each sweep goes through all of torch, a quarter of a trace."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class OpRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
    """Notes each operation of a skeleton's one step, below autograd, and what bytes are alive."""

    def __init__(self, model: nn.Module, batch: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self.paths = [path for path, _ in model.named_modules()]
        self.ops: list[Op] = []
        # Equal calls are one object: of a deep network all ops together would else be millions,
        # which the garbage collector goes through again and again.
        self._calls: dict[Call, Call] = {}
        self.saved = [0] * len(self.paths)
        self.during: Pass = "forward"
        self.peak = 0
        self._alive = 0
        self._stack = [0]
        # The layer of each turn of the forward pass, and the first autograd sequence number that
        # belongs to it: those say to which turn a backward pass belongs.
        self.layers = [0]
        self._starts = [0]
        self.packed: list[tuple[weakref.ref[Tensor], int]] = []  # and in which turn
        tensors = [t for t in pytree.tree_leaves(batch) if isinstance(t, Tensor)]
        self.batch_bytes = sum(t.untyped_storage().nbytes() for t in tensors)
        given = (*tensors, *model.parameters(), *model.buffers())
        self._given = [t.untyped_storage() for t in given]  # so that no other takes their place
        self._own = {storage._cdata for storage in self._given}
        self.made: dict[int, Key] = {}  # storages that the step made and that are alive
        self.counts: dict[int, int] = defaultdict(int)  # of storages that each turn made
        for place, module in enumerate(model.modules()):  # so that it is known which one runs
            module.register_forward_pre_hook(lambda *_, at=place: self._turn(at))
            module.register_forward_hook(lambda *_: self._turn(None), always_call=True)

    def run(
        self,
        model: nn.Module,
        batch: Any,
        mode: FakeTensorMode,
        task: Task,
        *,
        precision: str = "fp32",
        backward: bool = True,
    ) -> None:
        """The step, in the modes that the skeleton is in, or its forward pass alone.

        The model is not kept: the end of its gradients is awaited, and who waits stays alive.

        Raises:
            ConfigError: the forward needs numbers, so that it cannot run without them.
        """
        with mode, self, torch.enable_grad(), runnable(model):
            with torch.autograd.graph.saved_tensors_hooks(self.pack, lambda tensor: tensor):
                with autocast(model, precision):
                    output = call_with(model, batch)
                    found = some_loss(task, output)
                del output
            self.settle()
            self.during = "backward"
            if backward and found.requires_grad:
                found.backward()  # type: ignore[no-untyped-call]  # torch's own

    def pack(self, tensor: Tensor) -> Tensor:
        """A tensor is saved for the backward pass, as far as it is still there after the forward.

        A leaned layer turns its output into bits when it is clear that nobody else keeps it.
        """
        kept = apart(tensor)
        self.packed.append((weakref.ref(kept), len(self.layers) - 1))
        return kept

    def settle(self) -> None:
        """The forward is over: count what is kept, each storage for the first that keeps it."""
        counted = set(self._own)
        for reference, turn in self.packed:
            tensor = reference()
            if tensor is None:
                continue
            storage = tensor.untyped_storage()
            if storage._cdata not in counted:
                counted.add(storage._cdata)
                self.saved[self.layers[turn]] += storage.nbytes()
        self.packed.clear()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = with_workspace(func, args, func(*args, **kwargs))
        if func.namespace == "prim":
            return out
        leaves, spec = pytree.tree_flatten((args, kwargs))
        given = [t for t in leaves if isinstance(t, Tensor)]
        made = [t for t in pytree.tree_leaves(out) if isinstance(t, Tensor)]
        is_view = func.is_view or func._overloadpacket in _FREE
        for tensor in made:
            self._count(tensor.untyped_storage())
        if self.during == "forward":
            self.record(func, given, () if is_view else made)
        packet = flop_registry.get(func._overloadpacket)
        shaped = tuple(Shaped.of(x) if isinstance(x, Tensor) else x for x in leaves)
        call = Call(func, shaped, spec)
        turn = self._turn_now()
        self.ops.append(
            Op(
                self._calls.setdefault(call, call),
                self.during,
                self.layers[turn],
                turn,
                flops=packet(*args, **kwargs, out_val=out) if packet else 0,
                nbytes=0 if is_view else sum(map(touched, (*given, *made))),
                is_view=is_view,
            )
        )
        return out

    def record(self, func: Any, given: Sequence[Tensor], written: Sequence[Tensor]) -> None:
        """For those who want more of the forward pass: an operation has run."""

    def _turn(self, place: int | None) -> None:
        if place is None:
            self._stack.pop()
        else:
            self._stack.append(place)
        if self.during == "forward":
            self.layers.append(self._stack[-1])
            self._starts.append(torch._C._autograd._get_sequence_nr())

    def _turn_now(self) -> int:
        node = torch._C._current_autograd_node()
        if node is None:
            return len(self.layers) - 1
        return bisect_right(self._starts, node._sequence_nr()) - 1

    def _count(self, storage: torch.UntypedStorage) -> None:
        """A storage that is new is alive from now on."""
        name, turn = storage._cdata, len(self.layers) - 1
        if name in self._own or name in self.made:
            return
        self.made[name] = (turn, self.counts[turn], storage.nbytes())
        self.counts[turn] += 1
        self._grow(storage.nbytes())
        weakref.finalize(storage, self.free, name)

    def free(self, name: int) -> None:
        """A storage that the step made is gone."""
        self._grow(-self.made.pop(name)[2])

    def _grow(self, nbytes: int) -> None:
        self._alive += nbytes
        self.peak = max(self.peak, self._alive)


def touched(tensor: Tensor) -> int:
    """Bytes that are there to be read: a value that is repeated along an axis, once."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else 1
    return count * tensor.element_size()


_FREE = frozenset({torch.ops.aten.detach, torch.ops.aten.lift_fresh})
