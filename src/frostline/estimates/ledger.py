"""What each part of a model's step takes under every way to freeze it.

A forward pass is a sequence of *turns*: what runs between two changes of the innermost module.
What a turn keeps for the backward pass, and how long that takes, depends only on whether a value
that it reads wants a gradient, whether one of its own weights (two axes or more) or vectors
(biases, norms) does, and whether it is in train mode. So a few passes on fake tensors, one for
each such case, say what any selection costs, without the model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from frostline.estimates.calibrating import OPERATIONS_SHARE, calibrated
from frostline.estimates.measuring import Progress, Stopwatch, counted
from frostline.estimates.pricing import Prices, measure_prices
from frostline.estimates.skeleton import skeleton
from frostline.estimates.steps import STATE_BYTES, Setup
from frostline.estimates.tracing import Key, OpRecorder, Pass, touched, uncollected
from frostline.freezing import freezes_kept, thaw
from frostline.tasks import Classification

_VALUES, _WEIGHTS, _VECTORS = 1, 2, 4  # who wants a gradient; a case is their sum

# What one turn gives to later ones: the turn that wrote it, its storage and its shape.
Value = tuple[int, Key, tuple[int, ...]]

_BATCH: Value = (-1, (-1, 0, 0), ())

# Each case is who wants a gradient, and `e` in eval mode: in that a module is while all of it is
# frozen, and then only what it reads can want one.
_ALL, _EVAL = "7", "1e"
_CASES = (_ALL, _EVAL, "1", "3", "5", "6", "2", "4")
# Of each case those in which the same and more want a gradient, itself among them.
_MORE = {
    case: [
        more
        for more in _CASES
        if more == case or (more != _EVAL and int(more) & int(case[0]) == int(case[0]))
    ]
    for case in _CASES
}


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
        core_share: of a processor core that this thread had while timing, from 0 to 1.
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
    core_share: float


def ledger(
    model: nn.Module,
    example: Any,
    *,
    batch_size: int = 32,
    optimizer: str = "adamw",
    calibration_seconds: float = 2.5,
    progress: Progress | None = None,
) -> Ledger:
    """Work out what a step of `model` costs by turns; afterwards the model is as it was.

    Args:
        example, batch_size, optimizer, calibration_seconds, progress: as for `estimate`.
    Raises:
        ConfigError: the forward needs numbers, so that it cannot run without them.
    """
    with torch.random.fork_rng(devices=()), freezes_kept(model):
        thaw(model, "all")
        done = counted(progress, len(_CASES) + 2)
        follow = done(_follow)
        seen = {case: follow(model, example, batch_size, case) for case in _CASES}
        watch = Stopwatch()
        prices = done(measure_prices)(
            (op for turns in seen.values() for op in turns.ops),
            optimizer=optimizer,
            seconds=calibration_seconds * OPERATIONS_SHARE,
        )
        setup = Setup(model, example, optimizer, batch_size=batch_size)
        rest = calibration_seconds * (1 - OPERATIONS_SHARE)
        prices = done(calibrated)(prices, setup, setup.trace(), rest)
        watch.stop()
    return _Writer(seen, prices).write(batch_size, optimizer, watch.core_share)


@uncollected()
def _follow(model: nn.Module, example: Any, batch_size: int, case: str) -> _Turns:
    fake, batch, mode = skeleton(model, example, batch_size)
    wanting = int(case[0])
    fake.train(case != _EVAL)
    for parameter in fake.parameters():
        wanted = _WEIGHTS if parameter.dim() > 1 else _VECTORS
        parameter.requires_grad_(bool(wanting & wanted))
    values = bool(wanting & _VALUES)
    if values:
        with mode, torch.enable_grad():
            batch = pytree.tree_map_only(Tensor, _wanting, batch)
        _let_first_values_want(fake)
    else:
        _let_no_value_want(fake)
    watch = _Turns(fake, batch)
    watch.run(fake, batch, mode, Classification(), backward=values)
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
        self._writers: dict[int, int] = {}

    def record(self, func: Any, given: Sequence[Tensor], written: Sequence[Tensor]) -> None:
        now = len(self.layers) - 1
        turn = self.turns[now]
        turn.draws |= torch.Tag.nondeterministic_seeded in func.tags
        for tensor in given:
            name = tensor.untyped_storage()._cdata
            if name in self._parameters:
                turn.own.add(self._parameters[name])
            elif name in self._batch:
                turn.reads[_BATCH] = 0
            elif self._writers.get(name, now) != now:
                value = (self._writers[name], self.made[name], tuple(tensor.shape))
                turn.reads[value] = touched(tensor)
        names = {tensor.untyped_storage()._cdata for tensor in written}
        self._writers.update(dict.fromkeys(names & self.made.keys(), now))

    def settle(self) -> None:
        for reference, turn in self.packed:
            if (tensor := reference()) is not None:
                storage = tensor.untyped_storage()
                self._count(storage)  # a constant of the model's own: no operation made it
                if storage._cdata in self.made:
                    self.turns[turn].kept.add(self.made[storage._cdata])
        super().settle()

    def free(self, name: int) -> None:
        super().free(name)
        self._writers.pop(name, None)


@final
class _Writer:
    """Puts what was seen in each case together."""

    def __init__(self, seen: dict[str, _Turns], prices: Prices) -> None:
        self._seen = seen
        self._train, self._eval = seen[_ALL], seen[_EVAL]
        self._prices = prices
        self._seconds: dict[tuple[str, Pass, int], float] = defaultdict(float)
        for case, turns in seen.items():
            for op in turns.ops:
                self._seconds[case, op.during, op.turn] += prices.of(op)
        self._places: dict[Key, int] = {}  # of storages

    def write(self, batch_size: int, optimizer: str, core_share: float) -> Ledger:
        order = sorted({op.turn for op in (*self._train.ops, *self._eval.ops)})
        places = {turn: place for place, turn in enumerate(order)}
        values: dict[Value, int] = {}
        for turn in order:
            values |= self._train.turns[turn].reads
        value_places = {value: place for place, value in enumerate(values)} | {_BATCH: -1}
        turns = tuple(self._turn(turn, value_places) for turn in order)
        return Ledger(
            batch_size,
            optimizer,
            self._train.batch_bytes,
            tuple(self._train.paths),
            turns,
            tuple(
                {"turn": places.get(turn, -1), "nbytes": nbytes, "shape": shape}
                for (turn, _, shape), nbytes in values.items()
            ),
            tuple(self._storages(places)),
            (self._prices.optimizer_byte, self._prices.optimizer_tensor),
            STATE_BYTES[optimizer],
            core_share,
        )

    def _turn(self, turn: int, value_places: dict[Value, int]) -> dict[str, Any]:
        found = self._train.turns[turn]
        seconds = {case: self._seconds[case, "backward", turn] for case in _CASES}
        # Who wants less computes less, as in evaluation; noise may have it the other way round.
        backward = {case: min(seconds[more] for more in _MORE[case]) for case in _CASES}
        forward = [self._seconds[case, "forward", turn] for case in (_ALL, _EVAL)]
        kept = {case: sorted(seen.turns[turn].kept) for case, seen in self._seen.items()}
        return {
            "layer": self._train.layers[turn],
            "reads": [value_places[value] for value in found.reads],
            "own": sorted(found.own),
            "draws": found.draws,
            "forward": [forward[0], min(forward)],
            "backward": {case: seconds for case, seconds in backward.items() if seconds},
            "saved": {case: list(map(self._place, keys)) for case, keys in kept.items() if keys},
        }

    def _place(self, key: Key) -> int:
        return self._places.setdefault(key, len(self._places))

    def _storages(self, places: dict[int, int]) -> Iterator[dict[str, Any]]:
        waiting = list(self._places)
        for key in waiting:  # grows by those that take another's place
            turn, _, nbytes = key
            found = {"nbytes": nbytes, "turn": places.get(turn, -1)}
            source = next(iter(self._train.turns[turn].reads), _BATCH)
            if source != _BATCH and not self._eval.counts[turn]:
                found["eval_as"] = self._place(source[1])
                waiting.extend(list(self._places)[len(waiting) :])
            yield found
