"""One training step on fake tensors: every operation, what is saved for it, and what is alive."""

from __future__ import annotations

import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
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
        turn: index into the trace's turns.
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


# A storage, by the turn in which it was made and its number within that turn: the same in every
# trace of one model.
Key = tuple[int, int]


@final
@dataclass(slots=True)
class Turn:
    """What runs between two changes of the innermost module.

    Attributes:
        layer: index of that module.
        kept: storages that are saved for the backward pass, with their bytes.
        reads: turns whose values it reads; -1 is the batch.
        own: places of the parameters it reads.
        given: bytes and shape of what later turns read of it, by storage.
        is_random: whether it draws random numbers.
    """

    layer: int
    kept: dict[Key, int] = field(default_factory=dict)
    reads: set[int] = field(default_factory=set)
    own: set[int] = field(default_factory=set)
    given: dict[Key, tuple[int, tuple[int, ...]]] = field(default_factory=dict)
    is_random: bool = False


@final
@dataclass(frozen=True, slots=True)
class StepTrace:
    """What one step does and keeps.

    Attributes:
        paths: of the modules, the model itself first.
        turns: of the forward pass, in order.
        saved: bytes kept for the backward pass by the layer that first keeps them, each storage
            once; without parameters, buffers and the batch itself.
        peak_bytes: the most that is alive at once besides parameters, buffers and the batch;
            gradients are in it, the optimizer's state is not.
        gradients: bytes of each parameter's gradient, by name.
        batch_bytes: of the batch.
    """

    paths: tuple[str, ...]
    turns: tuple[Turn, ...]
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
    fake.zero_grad(set_to_none=True)
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
        watch.settle()
        saved = tuple(watch.saved)
        watch.during = "backward"
        if backward and found.requires_grad:
            found.backward()  # type: ignore[no-untyped-call]  # torch's own
    return StepTrace(
        tuple(watch.paths),
        tuple(watch.turns),
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
        # Of the forward pass, each with the first autograd sequence number that belongs to it:
        # the backward pass is told by those.
        self.turns = [Turn(0)]
        self._starts = [0]
        self._packed: list[tuple[weakref.ref[Tensor], int]] = []
        tensors = [t for t in pytree.tree_leaves(batch) if isinstance(t, Tensor)]
        given = [t.untyped_storage() for t in tensors]
        self.batch_bytes = sum(storage.nbytes() for storage in given)
        parameters = [t.untyped_storage() for t in model.parameters()]
        buffers = [t.untyped_storage() for t in model.buffers()]
        self._given = (given, parameters, buffers)  # so that no other storage takes their place
        self._batch = {storage._cdata for storage in given}
        self._parameters = {storage._cdata: place for place, storage in enumerate(parameters)}
        self._own = {storage._cdata for group in self._given for storage in group}
        # Of each storage that was made: its key, and the turn that wrote it last.
        self._keys: dict[int, Key] = {}
        self._writers: dict[int, int] = {}
        self._made = 0

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
        """A tensor is saved for the backward pass, as far as it is still there after the forward.

        A leaned layer turns its output into bits when it is clear that nobody else keeps it.
        """
        self._packed.append((weakref.ref(tensor), len(self.turns) - 1))
        return tensor

    def settle(self) -> None:
        """The forward is over: count what is kept, each storage for the first that keeps it."""
        counted: set[int] = set()
        for reference, place in self._packed:
            tensor = reference()
            if tensor is None:
                continue
            storage = tensor.untyped_storage()
            if storage._cdata in self._own:
                continue
            turn = self.turns[place]
            turn.kept[self._key(storage)] = storage.nbytes()
            if storage._cdata not in counted:
                counted.add(storage._cdata)
                self.saved[turn.layer] += storage.nbytes()
        self._packed.clear()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.namespace == "prim":
            return out
        given = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        made = [t for t in pytree.tree_leaves(out) if isinstance(t, Tensor)]
        is_view = func.is_view or func._overloadpacket in _FREE
        if self.during == "forward":
            self._link(given, made, is_view=is_view)
            self.turns[-1].is_random |= torch.Tag.nondeterministic_seeded in func.tags
        for tensor in made:
            self._key(tensor.untyped_storage())
        packet = flop_registry.get(func._overloadpacket)
        leaves, spec = pytree.tree_flatten((args, kwargs))
        shaped = tuple(Shaped.of(x) if isinstance(x, Tensor) else x for x in leaves)
        turn = self._turn_now()
        self.ops.append(
            Op(
                Call(func, shaped, spec),
                self.during,
                self.turns[turn].layer,
                turn,
                flops=packet(*args, **kwargs, out_val=out) if packet else 0,
                nbytes=0 if is_view else sum(map(_touched, (*given, *made))),
                is_view=is_view,
            )
        )
        return out

    def _turn(self, place: int | None) -> None:
        if place is None:
            self._stack.pop()
        else:
            self._stack.append(place)
        if self.during == "forward":
            self.turns.append(Turn(self._stack[-1]))
            self._starts.append(torch._C._autograd._get_sequence_nr())
            self._made = 0

    def _turn_now(self) -> int:
        node = torch._C._current_autograd_node()
        if node is None:
            return len(self.turns) - 1
        return bisect_right(self._starts, node._sequence_nr()) - 1

    def _link(self, given: list[Tensor], made: list[Tensor], *, is_view: bool) -> None:
        """Note whose values this turn reads."""
        now = len(self.turns) - 1
        turn = self.turns[now]
        for tensor in given:
            key = tensor.untyped_storage()._cdata
            if key in self._parameters:
                turn.own.add(self._parameters[key])
            elif key in self._batch:
                turn.reads.add(-1)
            elif (writer := self._writers.get(key, now)) != now:
                turn.reads.add(writer)
                read = (tensor.untyped_storage().nbytes(), tuple(tensor.shape))
                self.turns[writer].given[self._keys[key]] = read
        if not is_view:
            for tensor in made:
                self._writers[tensor.untyped_storage()._cdata] = now

    def _key(self, storage: torch.UntypedStorage) -> Key:
        """Of a storage; one that is new is alive from now on."""
        name = storage._cdata
        if name in self._own:
            return (-1, 0)
        if name not in self._keys:
            self._keys[name] = (len(self.turns) - 1, self._made)
            self._made += 1
            self._alive += storage.nbytes()
            self.peak = max(self.peak, self._alive)
            weakref.finalize(storage, self._free, name, storage.nbytes())
        return self._keys[name]

    def _free(self, name: int, nbytes: int) -> None:
        self._keys.pop(name, None)
        self._writers.pop(name, None)
        self._alive -= nbytes


def _touched(tensor: Tensor) -> int:
    """Bytes that are there to be read: a value that is repeated along an axis, once."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else 1
    return count * tensor.element_size()


_FREE = frozenset({torch.ops.aten.detach, torch.ops.aten.lift_fresh})
