"""The same training twice: the plain model, and its suffix over features kept per sample."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from frostline.cutting import Cut
from frostline.cutting.structures import flatten_output
from frostline.fingerprints.parts import same_bits

Batch = Any


def rows(inputs: Batch, places: Sequence[int]) -> Batch:
    """These samples of a batch, as copies."""
    if isinstance(inputs, dict):
        return {name: rows(part, places) for name, part in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(rows(part, places) for part in inputs)
    return inputs[list(places)].clone() if isinstance(inputs, Tensor) else inputs


def call(model: nn.Module, inputs: Batch) -> Any:
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


class Kept:
    """Features of each sample, as a store keeps them: one contiguous row for each value."""

    def __init__(self) -> None:
        self._rows: dict[int, list[Tensor]] = {}

    def put(self, places: Sequence[int], values: tuple[Tensor, ...]) -> None:
        for number, place in enumerate(places):
            self._rows[place] = [value[number].clone().contiguous() for value in values]

    def get(self, places: Sequence[int]) -> list[Tensor]:
        chosen = [self._rows[place] for place in places]
        return [torch.stack(column) for column in zip(*chosen, strict=True)]


def prefix_of(cut: Cut, inputs: Batch) -> tuple[Tensor, ...]:
    found = cut.prefix(**inputs) if isinstance(inputs, dict) else cut.prefix(*_several(inputs))
    return tuple(found)


def _several(inputs: Batch) -> tuple[Tensor, ...]:
    return inputs if isinstance(inputs, tuple) else (inputs,)


def kept_features(cut: Cut, inputs: Batch, batches: Sequence[Sequence[int]]) -> Kept:
    """The prefix once over each of the batches."""
    kept = Kept()
    for places in batches:
        kept.put(places, prefix_of(cut, rows(inputs, places)))
    return kept


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.001),
}


@dataclass(frozen=True)
class Trained:
    """What a training left: each step's loss and random state, and the model's whole state."""

    losses: list[Tensor]
    chances: list[Tensor]
    state: dict[str, Tensor]


def train(
    model: nn.Module,
    forward: Callable[[Sequence[int]], Any],
    batches: Sequence[Sequence[int]],
    optimizer: str,
) -> Trained:
    """One step on each batch; the loss is of all that the model gives."""
    model.train()
    wanted = [p for p in model.parameters() if p.requires_grad]
    steps = OPTIMIZERS[optimizer](wanted)
    losses, chances = [], []
    for number, places in enumerate(batches):
        torch.manual_seed(number)
        loss = loss_of(forward(places))
        steps.zero_grad()
        if loss.requires_grad:
            loss.backward()
            steps.step()
        losses.append(loss.detach().clone())
        chances.append(torch.get_rng_state())
    return Trained(losses, chances, {k: v.clone() for k, v in model.state_dict().items()})


def loss_of(output: Any) -> Tensor:
    tensors, _ = flatten_output(output)
    scores = [(t.float() - 0.5).square().mean() for t in tensors]
    wanted = [s for s in scores if s.requires_grad] or scores
    return torch.stack(wanted).sum()


def differences(one: Trained, other: Trained) -> list[str]:
    """Names of what is not equal bit by bit."""
    return [
        *(f"loss {i}" for i, pair in _pairs(one.losses, other.losses) if not same_bits(*pair)),
        *(f"chance {i}" for i, pair in _pairs(one.chances, other.chances) if not same_bits(*pair)),
        *(name for name in one.state if not same_bits(one.state[name], other.state[name])),
    ]


def _pairs(one: list[Tensor], other: list[Tensor]) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
    return enumerate(zip(one, other, strict=True))


def both_trainings(
    model: nn.Module,
    cut: Cut,
    inputs: Batch,
    batches: Sequence[Sequence[int]],
    *,
    passes: Sequence[Sequence[int]] | None = None,
    optimizer: str = "sgd",
) -> tuple[Trained, Trained]:
    """The plain training of a copy, and that of the suffix over kept features.

    Args:
        passes: the batches in which the features are computed; those of the training itself if
            None, once for each.
    """
    twin = copy.deepcopy(model)
    plain = train(twin, lambda places: call(twin, rows(inputs, places)), batches, optimizer)
    if passes is None:

        def forward(places: Sequence[int]) -> Any:
            kept = kept_features(cut, inputs, [places])
            return cut.suffix(*kept.get(places))
    else:
        kept = kept_features(cut, inputs, passes)

        def forward(places: Sequence[int]) -> Any:
            return cut.suffix(*kept.get(places))

    return plain, train(model, forward, batches, optimizer)
