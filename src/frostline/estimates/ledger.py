"""What each part of a model's step takes under every way to freeze it.

A forward pass is a sequence of *turns*: what runs between two changes of the innermost module.
What a turn keeps for the backward pass, and how long that takes, depends only on whether a value
that it reads wants a gradient, whether one of its own weights (two axes or more) or vectors
(biases, norms) does, and whether it is in train mode. So a few passes on fake tensors, one for
each such case, say what any selection costs, without the model.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from frostline.estimates.calibrating import OPERATIONS_SHARE, calibrated
from frostline.estimates.pricing import Prices, measure_prices
from frostline.estimates.skeleton import fake_batch, fake_mode, skeleton
from frostline.estimates.steps import Setup, optimizer_terms
from frostline.estimates.tracing import Op, OpRecorder, run_step, touched
from frostline.freezing import freezes_kept, thaw
from frostline.tasks import Classification

VALUES, WEIGHTS, VECTORS = 1, 2, 4  # who wants a gradient; a case is their sum

# A storage: the turn in which it was made, its number within that turn, and its bytes.
Key = tuple[int, int, int]
# What one turn gives to later ones: the turn that wrote it, its storage and its shape.
Value = tuple[int, Key, tuple[int, ...]]


@final
@dataclass(frozen=True, slots=True)
class Case:
    """Who wants a gradient, in which mode."""

    wanting: int
    train: bool = True

    @property
    def name(self) -> str:
        return f"{self.wanting}{'' if self.train else 'e'}"


# A module is in eval while all of it is frozen; then only what it reads can want a gradient.
_CASES = (
    Case(VALUES | WEIGHTS | VECTORS),
    Case(VALUES, train=False),
    Case(VALUES),
    Case(VALUES | WEIGHTS),
    Case(VALUES | VECTORS),
    Case(WEIGHTS | VECTORS),
    Case(WEIGHTS),
    Case(VECTORS),
)


@final
@dataclass(slots=True)
class _Turn:
    reads: dict[Value, int] = field(default_factory=dict)  # bytes
    own: set[int] = field(default_factory=set)
    kept: set[Key] = field(default_factory=set)
    draws: bool = False


@final
@dataclass(frozen=True, slots=True)
class Ledger:
    """Plain data from which any selection's step can be summed up.

    Attributes:
        turns: each with `layer` (place in `paths`), `reads` (places in `values`; -1 is the
            batch), `own` (places of parameters), `draws` (random numbers, in train mode),
            `forward` seconds in train and eval mode, and by case `backward` seconds and `saved`
            storages.
        values: what one turn gives to later ones: `turn`, `nbytes`, `shape`.
        storages: `nbytes`, the `turn` that makes it, and, where that turn makes none in eval mode
            but hands its input on, `eval_as`: the storage that takes its place.
        optimizer_seconds: for each byte and for each tensor that trains.
        state: bytes for each byte of a gradient, and for each tensor.
    """

    batch_size: int
    optimizer: str
    batch_bytes: int
    paths: tuple[str, ...]
    turns: tuple[dict[str, Any], ...]
    values: tuple[dict[str, Any], ...]
    storages: tuple[dict[str, Any], ...]
    optimizer_seconds: tuple[float, float]
    state: tuple[int, int]


def ledger(
    model: nn.Module,
    example: Any,
    *,
    batch_size: int = 32,
    optimizer: str = "adamw",
    calibration_seconds: float = 6.0,
) -> Ledger:
    """Work out what a step of `model` costs by turns; afterwards the model is as it was.

    Args:
        example, batch_size, optimizer, calibration_seconds: as for `estimate`.
    Raises:
        ConfigError: the forward needs numbers, so that it cannot run without them.
    """
    with torch.random.fork_rng(devices=()), freezes_kept(model):
        thaw(model, "all")
        seen = {case: _follow(model, example, batch_size, case) for case in _CASES}
        prices = measure_prices(
            (op for turns in seen.values() for op in turns.ops),
            optimizer=optimizer,
            seconds=calibration_seconds * OPERATIONS_SHARE,
        )
        setup = Setup(model, example, optimizer, "fp32", Classification(), batch_size)
        rest = calibration_seconds * (1 - OPERATIONS_SHARE)
        prices = calibrated(prices, setup, setup.trace(), rest)
    return _Writer(seen, prices).write(batch_size, optimizer)


def _follow(model: nn.Module, example: Any, batch_size: int, case: Case) -> _Turns:
    mode = fake_mode()
    fake = skeleton(model, mode)
    fake.train(case.train)
    for parameter in fake.parameters():
        wanted = WEIGHTS if parameter.dim() > 1 else VECTORS
        parameter.requires_grad_(bool(case.wanting & wanted))
        parameter.grad = None
    batch = fake_batch(example, batch_size, mode)
    values = bool(case.wanting & VALUES)
    if values:
        with mode, torch.enable_grad():
            batch = pytree.tree_map_only(Tensor, _wanting, batch)
        _let_first_values_want(fake)
    else:
        _let_no_value_want(fake)
    watch = _Turns(fake, batch)
    run_step(watch, fake, batch, mode, backward=values)
    return watch


def _wanting(tensor: Tensor) -> Tensor:
    """One that wants a gradient and may be written in place; whole numbers cannot."""
    if not tensor.is_floating_point():
        return tensor
    return tensor.detach().requires_grad_().clone(memory_format=torch.preserve_format)


def _let_first_values_want(model: nn.Module) -> None:
    """What comes of whole numbers, as from an embedding, wants a gradient too."""

    def want(_module: nn.Module, _given: Any, output: Any) -> None:
        for tensor in pytree.tree_leaves(output):
            is_number = isinstance(tensor, Tensor) and tensor.is_floating_point()
            if is_number and not tensor.requires_grad:
                tensor.requires_grad_()

    for module in model.modules():
        if module._parameters:
            module.register_forward_hook(want)


def _let_no_value_want(model: nn.Module) -> None:
    """A module with parameters of its own takes values that want no gradient."""
    before = []  # what is kept for them would go with them

    def cut(_module: nn.Module, args: Any, kwargs: Any) -> Any:
        before.append((args, kwargs))
        return pytree.tree_map_only(Tensor, Tensor.detach, (args, kwargs))

    for module in model.modules():
        if module._parameters:
            module.register_forward_pre_hook(cut, with_kwargs=True)


@final
class _Turns(OpRecorder):  # type: ignore[no-untyped-call]  # torch's own
    """Notes, turn by turn, what is read and what is kept."""

    def __init__(self, model: nn.Module, batch: Any) -> None:
        super().__init__(model, batch)
        places = {id(p): place for place, p in enumerate(model.parameters())}
        self._parameters = {p.untyped_storage()._cdata: places[id(p)] for p in model.parameters()}
        tensors = [t for t in pytree.tree_leaves(batch) if isinstance(t, Tensor)]
        self._batch = {t.untyped_storage()._cdata for t in tensors}
        self.turns: dict[int, _Turn] = defaultdict(_Turn)
        self._keys: dict[int, Key] = {}
        self._writers: dict[int, int] = {}
        self._made: dict[int, int] = defaultdict(int)

    def record(self, func: Any, given: Sequence[Tensor], written: Sequence[Tensor]) -> None:
        now = self._now
        turn = self.turns[now]
        turn.draws |= torch.Tag.nondeterministic_seeded in func.tags
        for tensor in given:
            name = tensor.untyped_storage()._cdata
            if name in self._parameters:
                turn.own.add(self._parameters[name])
            elif name in self._batch:
                turn.reads[(-1, (-1, 0, 0), ())] = 0
            elif self._writers.get(name, now) != now:
                value = (self._writers[name], self._keys[name], tuple(tensor.shape))
                turn.reads[value] = touched(tensor)
        for tensor in written:
            storage = tensor.untyped_storage()
            if self._key(storage) is not None:
                self._writers[storage._cdata] = now

    def settle(self) -> None:
        for reference, turn in self.packed:
            if (tensor := reference()) is not None and (
                key := self._key(tensor.untyped_storage())
            ) is not None:
                self.turns[turn].kept.add(key)
        super().settle()

    def made(self, turn: int) -> bool:
        """Whether a turn has made a storage of its own."""
        return self._made.get(turn, 0) > 0

    @property
    def _now(self) -> int:
        return len(self.layers) - 1

    def _key(self, storage: torch.UntypedStorage) -> Key | None:
        """Of a storage that the step made; one that is new is of this turn."""
        name = storage._cdata
        if name in self._own:
            return None
        if name not in self._keys:
            self._keys[name] = (self._now, self._made[self._now], storage.nbytes())
            self._made[self._now] += 1
            weakref.finalize(storage, self._forget, name)
        return self._keys[name]

    def _forget(self, name: int) -> None:
        self._keys.pop(name, None)
        self._writers.pop(name, None)


@final
class _Writer:
    """Puts what was seen in each case together."""

    def __init__(self, seen: dict[Case, _Turns], prices: Prices) -> None:
        self._seen = seen
        self._train, self._eval = seen[_CASES[0]], seen[_CASES[1]]
        self._prices = prices
        self._seconds = {case: self._sums(turns.ops) for case, turns in seen.items()}
        self._values: dict[Value, int] = {}
        self._keys: dict[Key, int] = {}

    def write(self, batch_size: int, optimizer: str) -> Ledger:
        order = sorted({op.turn for op in (*self._train.ops, *self._eval.ops)})
        places = {turn: place for place, turn in enumerate(order)}
        for turn in order:
            self._values |= self._train.turns[turn].reads
        by_value = {value: place for place, value in enumerate(self._values)}
        turns = tuple(self._turn(turn, by_value) for turn in order)
        return Ledger(
            batch_size,
            optimizer,
            self._train.batch_bytes,
            tuple(self._train.paths),
            turns,
            tuple(
                {"turn": places.get(turn, -1), "nbytes": nbytes, "shape": shape}
                for (turn, _, shape), nbytes in self._values.items()
            ),
            tuple(self._storages(places)),
            (self._prices.optimizer_byte, self._prices.optimizer_tensor),
            optimizer_terms(optimizer),
        )

    def _turn(self, turn: int, by_value: dict[Value, int]) -> dict[str, Any]:
        found = self._train.turns[turn]
        backward = {
            case.name: seconds
            for case, sums in self._seconds.items()
            if (seconds := sums["backward"].get(turn))
        }
        saved = {
            case.name: [self._place(key) for key in sorted(seen.turns[turn].kept)]
            for case, seen in self._seen.items()
            if seen.turns[turn].kept
        }
        return {
            "layer": self._train.layers[turn],
            "reads": [-1 if value[0] == -1 else by_value[value] for value in found.reads],
            "own": sorted(found.own),
            "draws": found.draws,
            "forward": [
                self._seconds[case]["forward"].get(turn, 0.0) for case in (_CASES[0], _CASES[1])
            ],
            "backward": backward,
            "saved": saved,
        }

    def _place(self, key: Key) -> int:
        return self._keys.setdefault(key, len(self._keys))

    def _storages(self, places: dict[int, int]) -> Iterator[dict[str, Any]]:
        waiting = list(self._keys)
        for key in waiting:  # grows by those that take another's place
            turn, _, nbytes = key
            found = {"nbytes": nbytes, "turn": places.get(turn, -1)}
            source = next(iter(self._train.turns[turn].reads), None)
            if source is not None and source[0] >= 0 and not self._eval.made(turn):
                found["eval_as"] = self._place(source[1])
                waiting.extend(list(self._keys)[len(waiting) :])
            yield found

    def _sums(self, ops: list[Op]) -> dict[str, dict[int, float]]:
        sums: dict[str, dict[int, float]] = {
            "forward": defaultdict(float),
            "backward": defaultdict(float),
        }
        for op in ops:
            sums[op.during][op.turn] += self._prices.of(op)
        return sums
