"""Small random networks, drawn by hypothesis: branches, skips, in-place writes, shared layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CHANNELS, LENGTH = 4, 6

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(LENGTH, LENGTH),
    "conv": lambda: nn.Conv1d(CHANNELS, CHANNELS, 3, padding=1),
    "batch norm": lambda: nn.BatchNorm1d(CHANNELS),
    "group norm": lambda: nn.GroupNorm(2, CHANNELS),
    "layer norm": lambda: nn.LayerNorm(LENGTH),
    "block": lambda: nn.Sequential(
        nn.Linear(LENGTH, LENGTH), nn.BatchNorm1d(CHANNELS), nn.ReLU(inplace=True), nn.Dropout(0.3)
    ),
    "counting": lambda: Counting(),
}


class Counting(nn.Module):
    """A layer whose forward writes into its buffers."""

    seen: Tensor
    level: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(LENGTH))
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("level", torch.zeros(LENGTH))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += 1
            with torch.no_grad():
                self.level.mul_(0.9).add_(x.detach().mean((0, 1)), alpha=0.1)
        return x * self.weight - self.level


@dataclass(frozen=True)
class Step:
    """One step of a forward: what to do with which of the values so far."""

    verb: str
    first: int
    second: int
    layer: int


def _views(x: Tensor) -> Tensor:
    return x.view(x.shape[0], -1).view(x.shape)


def _half(x: Tensor) -> Tensor:
    return x[:, : CHANNELS // 2]


def _write_half(x: Tensor, y: Tensor) -> Tensor:
    _half(x).mul_(2)
    x[:, 0] = y[:, 1]
    return x


def _buffered(x: Tensor, y: Tensor) -> Tensor:
    room = torch.zeros(CHANNELS, LENGTH)
    before = x + room
    room += 1
    room[0] = 3
    return before * room + y


def _collected(x: Tensor, y: Tensor) -> Tensor:
    made = x.new_zeros(x.shape)
    made[:, ::2] = x[:, ::2]
    made.add_(y)
    return made


def _no_grad(x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        scale = x.abs().mean((1, 2), keepdim=True)
    return y / (1 + scale)


VERBS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda x, y: x + y,
    "multiply": lambda x, y: x * y.tanh(),
    "concatenate": lambda x, y: torch.cat([x, y], 1)[:, ::2],
    "relu_": lambda x, _: x.relu_(),
    "add_": lambda x, y: x.add_(y),
    "scale_": lambda x, _: x.mul_(0.5),
    "view": lambda x, _: _views(x),
    "write half": _write_half,
    "transposed write": lambda x, y: x.transpose(1, 2).add_(y.transpose(1, 2)).transpose(1, 2),
    "dropout": lambda x, _: F.dropout(x, 0.4),
    "no dropout": lambda x, _: F.dropout(x, 0.0),
    "no dropout_": lambda x, _: F.dropout(x, 0.0, inplace=True),
    "frozen dropout": lambda x, _: F.dropout(x, 0.5, training=False),
    "stale": lambda x, y: x.add_(1) + x.clone().mul_(y.detach()),
    "expanded": lambda x, y: x[:, :1].expand(-1, CHANNELS, -1) - y,
    "flipped": lambda x, y: x.flip(0) + y,
    "mates": lambda x, _: x - x.mean(0, keepdim=True),
    "size": lambda x, _: x / x.shape[0],
    "positions": lambda x, _: x + torch.arange(LENGTH) / LENGTH,
    "rows": lambda x, y: x + torch.ones(x.shape[0], 1, 1).expand(-1, CHANNELS, 1) * y,
    "buffered": _buffered,
    "collected": _collected,
    "no grad": _no_grad,
    "detach": lambda x, y: x.detach() + y,
    "softmax": lambda x, _: x.softmax(-1),
    "clone": lambda x, _: x.clone(),
    "chunk": lambda x, y: x.chunk(2, 1)[0].repeat(1, 2, 1) + y,
}
LAYER_VERBS = ("layer", "layer", "layer", "checkpoint", "attribute")


class RandomNet(nn.Module):
    """Two inputs, a forward of drawn steps, two outputs."""

    def __init__(self, kinds: tuple[str, ...], steps: tuple[Step, ...], out: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(LAYERS[kind]() for kind in kinds)
        self.head = nn.Linear(LENGTH, 2)
        self.steps = steps
        self.out = out

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        values = [x, y]
        for step in self.steps:
            first, second = (values[-1 - n % len(values)] for n in (step.first, step.second))
            layer = self.layers[step.layer % len(self.layers)]
            values.append(self._do(step.verb, layer, first, second))
        return self.head(values[-1]), values[self.out % len(values)]

    def _do(self, verb: str, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if verb == "layer":
            return layer(x)
        if verb == "checkpoint":
            # A checkpointed layer that moves buffers does so twice, for its forward runs twice.
            moves = any(True for _ in layer.buffers())
            return layer(x) if moves else checkpoint(layer, x, use_reentrant=False)
        if verb == "attribute":
            return x * next(layer.parameters()).sum()
        return VERBS[verb](x, y)


@dataclass(frozen=True)
class Drawn:
    """A network's plan and what of it is frozen."""

    kinds: tuple[str, ...]
    steps: tuple[Step, ...]
    out: int
    frozen: tuple[int, ...]
    norm: str
    head_frozen: bool
    optimizer: str
    seed: int

    def build(self) -> RandomNet:
        torch.manual_seed(self.seed)
        return RandomNet(self.kinds, self.steps, self.out)


@st.composite
def drawn_nets(draw: st.DrawFn) -> Drawn:
    kinds = draw(st.lists(st.sampled_from(sorted(LAYERS)), min_size=2, max_size=5))
    verbs = st.sampled_from([*LAYER_VERBS, *LAYER_VERBS, *sorted(VERBS)])
    place = st.integers(0, 3)
    step = st.builds(Step, verbs, place, place, st.integers(0, len(kinds) - 1))
    steps = draw(st.lists(step, min_size=2, max_size=9))
    frozen = draw(st.sets(st.integers(0, len(kinds) - 1), min_size=1, max_size=len(kinds)))
    return Drawn(
        tuple(kinds),
        tuple(steps),
        draw(st.integers(0, 12)),
        tuple(sorted(frozen)),
        draw(st.sampled_from(["hold", "hold", "adapt"])),
        draw(st.booleans()) and len(frozen) < len(kinds),
        draw(st.sampled_from(["sgd", "adam"])),
        draw(st.integers(0, 3)),
    )
