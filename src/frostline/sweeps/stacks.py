"""Members whose chains have one shape, trained together: one product over the weights of all.

Each sees the batches that its own single run would see, in that order, at its own learning rate by
that run's schedule; on a CPU dropout keeps what it would keep there. Sums are taken in another
order than one alone takes them, so weights drift from those of the single run by rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from typing import final

import torch
from torch import Tensor

from frostline.cutting.chains import Chain
from frostline.data import Batch, Order
from frostline.devices import Compute, to_device
from frostline.features import FeatureBatches
from frostline.plans import Phase
from frostline.recipe import Recipe
from frostline.session import epoch_seed
from frostline.sweeps.optimizers import StackedOptimizer
from frostline.sweeps.settings import Setting
from frostline.tasks import Classification

_JUDGED_ROWS = 512  # of validation data at a time; results depend on it by rounding alone


@final
@dataclass(frozen=True, slots=True)
class Judged:
    """What one member makes of the validation data after an epoch.

    Attributes:
        train_loss: mean over the epoch while the weights moved.
        loss: mean cross-entropy per sample of the validation data.
        predicted: class of each validation sample, `(samples,)`.
    """

    train_loss: float
    loss: float
    predicted: Tensor

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.train_loss) and not math.isnan(self.loss)


@final
@dataclass(frozen=True)
class Ground:
    """What all stacks train on.

    Attributes:
        train: of the recipe's seed; those of other seeds are made of it.
        shares: of each tensor above the line, factors of learning rate and weight decay.
    """

    train: FeatureBatches
    validation: FeatureBatches
    task: Classification
    recipe: Recipe
    compute: Compute
    shares: Mapping[str, tuple[float, float]]

    @property
    def phase(self) -> Phase:
        """With the schedule that a single run has."""
        return Phase(epochs=self.recipe.epochs).completed(self.recipe)

    def of_seed(self, seed: int) -> FeatureBatches:
        return replace(self.train, order=replace(self.train.order, seed=seed))


@final
@dataclass
class Stack:
    """Members in training.

    Attributes:
        numbers: of its members in the sweep.
        settings: of these members.
        tensors: of all, by the model's names, `(members, *shape)`; they are updated in place.
    """

    ground: Ground
    chain: Chain
    numbers: list[int]
    settings: list[Setting]
    tensors: dict[str, Tensor]
    _steps: int = 0
    _optimizer: StackedOptimizer = field(init=False)

    def __post_init__(self) -> None:
        ground, numbers = self.ground, torch.float64
        self.tensors = {
            name: tensor.detach().clone().to(ground.compute.device).requires_grad_()
            for name, tensor in self.tensors.items()
        }
        self._optimizer = StackedOptimizer(
            self.tensors,
            ground.recipe,
            torch.tensor([setting.lr for setting in self.settings], dtype=numbers),
            torch.tensor([setting.weight_decay for setting in self.settings], dtype=numbers),
            {name: ground.shares[name] for name in self.tensors},
        )

    def epoch(self, number: int) -> list[Judged]:
        """Train an epoch, counted from 0, and judge what came of it."""
        losses = self.train_epoch(number) / self.ground.train.samples
        return self._judged(losses.tolist())

    def keep(self, numbers: Sequence[int]) -> None:
        """Go on with these members alone."""
        places = [self.numbers.index(number) for number in numbers]
        chosen = torch.tensor(places, dtype=torch.long)
        self.numbers, self.settings = list(numbers), [self.settings[place] for place in places]
        self.tensors = {
            name: tensor.detach()[chosen.to(tensor.device)].requires_grad_()
            for name, tensor in self.tensors.items()
        }
        self._optimizer.keep(chosen)

    def train_epoch(self, number: int) -> Tensor:
        """Train an epoch, counted from 0; sums of each member's loss over it, `(members,)`."""
        ground, phase = self.ground, self.ground.phase
        seeds = list(dict.fromkeys(setting.seed for setting in self.settings))
        draws = _Draws(seeds, [setting.seed for setting in self.settings], number, ground.compute)
        sums = torch.zeros(len(self.numbers), device=ground.compute.device)
        each = len(ground.train)
        with ExitStack() as stack:
            given = [
                stack.enter_context(closing(ground.of_seed(seed).epoch(number))) for seed in seeds
            ]
            for batches in zip(*given, strict=True):
                values, targets = self._placed(batches, seeds)
                outputs = self.chain.run(values, self.tensors, draws)
                losses = ground.task.losses(outputs, targets)
                losses.sum().backward()  # type: ignore[no-untyped-call]  # torch's
                self._optimizer.step(self.tensors, phase.lr_factor(self._steps, each))
                self._steps += 1
                sums += losses.detach() * targets.shape[-1]
        return sums

    def _placed(self, batches: Sequence[Batch], seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Values `(1 or members, batch, ...)` and targets `(1 or members, batch)`."""
        place, device = self.chain.place, self.ground.compute.device
        parts = [to_device((batch.inputs[place], batch.targets), device) for batch in batches]
        if len(seeds) == 1:  # a view: copying them would take as long as a small product
            values, targets = parts[0]
            return values.unsqueeze(0), targets.unsqueeze(0)
        values, targets = (torch.stack(one) for one in zip(*parts, strict=True))
        own = torch.tensor([seeds.index(setting.seed) for setting in self.settings], device=device)
        return values[own], targets[own]

    @torch.no_grad()
    def _judged(self, train_losses: Sequence[float]) -> list[Judged]:
        ground = self.ground
        order: Order = replace(ground.validation.order, batch_size=_JUDGED_ROWS)
        sums = torch.zeros(len(self.numbers), dtype=torch.float64)
        predicted: list[Tensor] = []
        with closing(replace(ground.validation, order=order).epoch(0)) as given:
            for batch in given:
                values = to_device(batch.inputs[self.chain.place], ground.compute.device)
                outputs = self.chain.run(values.unsqueeze(0), self.tensors).cpu()
                predicted.append(outputs.argmax(dim=2))
                sums += _cross_entropies(outputs, batch.targets).sum(dim=1)
        classes = torch.cat(predicted, dim=1)
        losses = (sums / ground.validation.samples).tolist()
        return [Judged(*one) for one in zip(train_losses, losses, classes.unbind(0), strict=True)]


@final
class _Draws:
    """What dropout keeps in an epoch, from each seed's own random numbers.

    On a CPU they are those that the single run of that seed draws: the same generator, seeded as
    for it, asked for the same sizes in the same order.
    """

    def __init__(
        self, seeds: Sequence[int], members: Sequence[int], epoch: int, compute: Compute
    ) -> None:
        self._device = compute.device
        self._generators = [
            torch.Generator(self._device).manual_seed(epoch_seed(seed, epoch)) for seed in seeds
        ]
        self._places = [seeds.index(seed) for seed in members]

    def __call__(self, p: float, shape: Sequence[int], like: Tensor, /) -> Tensor:
        kept = [
            torch.empty(tuple(shape), dtype=like.dtype, device=self._device)
            .bernoulli_(1 - p, generator=generator)
            .div_(1 - p)
            for generator in self._generators
        ]
        if len(kept) == 1:
            return kept[0].unsqueeze(0)
        return torch.stack([kept[place] for place in self._places])


def _cross_entropies(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of each member and sample, float64, as an epoch of a single run is judged."""
    chances = outputs.double().log_softmax(dim=2)
    places = targets.view(1, -1, 1).expand(len(outputs), -1, 1)
    return -chances.gather(2, places).squeeze(2)


def stacked(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of all members by name, `(members, *shape)`."""
    return {name: torch.stack([part[name].detach() for part in parts]) for name in parts[0]}


def in_stacks(settings: Sequence[Setting], numbers: Sequence[int]) -> Iterator[list[int]]:
    """Members of one shape in stacks: by seed where each has several, else all in one.

    What all members of a stack read is multiplied once for all; batches that differ by seed are
    gathered and multiplied for each.
    """
    by_seed: dict[int, list[int]] = {}
    for number in numbers:
        by_seed.setdefault(settings[number].seed, []).append(number)
    if len(numbers) >= _WORTH_OF_SEED * len(by_seed):
        yield from by_seed.values()
    else:
        yield list(numbers)


_WORTH_OF_SEED = 3  # members of one seed from which on they go faster by themselves
