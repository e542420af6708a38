"""One optimizer step of all members of a stack, each at its own learning rate and weight decay.

The update is torch's own kernel with a learning rate of 1, on zeros: what it takes from them is
what it would take from the weights, but for the rate, by which each member's share is scaled. So a
member's update is that of torch's Adam, AdamW and SGD but for one rounding of the product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from frostline.recipe import Recipe

_BETAS, _EPS = (0.9, 0.999), 1e-8  # torch's defaults, which a single run has
_CLIP_EPS = 1e-6  # in the norm, as torch's clip_grad_norm_ has it
_FUSED = ("cpu", "cuda", "mps", "xpu")


@final
class StackedOptimizer:
    """The recipe's optimizer over stacked tensors `(members, *shape)`.

    Args:
        rates: of each member, the peak learning rate, float64 `(members,)`; `decays` likewise the
            weight decay.
        shares: of each tensor what a rule makes of these two: factors of both.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        recipe: Recipe,
        rates: Tensor,
        decays: Tensor,
        shares: Mapping[str, tuple[float, float]],
    ) -> None:
        self._names = tuple(tensors)
        self._recipe = recipe
        every = tensors.values()
        pairs = [(tensors[name], *shares[name]) for name in self._names]
        self._rates = [_beside(rates * rate, tensor) for tensor, rate, _ in pairs]
        # Of AdamW a share of the weights for each step, of others a part of the gradient.
        is_apart = recipe.optimizer == "adamw"
        self._decays = [
            _beside(decays * decay * (rates * rate if is_apart else 1.0), tensor)
            for tensor, rate, decay in pairs
        ]
        self._decaying = [bool(decay.any()) for decay in self._decays]
        self._first = [torch.zeros_like(tensor) for tensor in every]
        self._second = [torch.zeros_like(tensor) for tensor in every if recipe.optimizer != "sgd"]
        self._moves = [torch.zeros_like(tensor) for tensor in every]
        self._steps = [torch.zeros((), dtype=torch.float32) for _ in every]
        self._fused = all(tensor.device.type in _FUSED for tensor in every) or None

    def keep(self, places: Tensor) -> None:
        """Go on with these members alone."""
        every = self._rates, self._decays, self._first, self._second, self._moves
        for state in every:
            state[:] = [tensor.index_select(0, places.to(tensor.device)) for tensor in state]

    @torch.no_grad()
    def step(self, tensors: Mapping[str, Tensor], factor: float) -> None:
        """Update by the gradients, which are taken away.

        Args:
            factor: share of the peak learning rate.
        """
        every = [tensors[name] for name in self._names]
        gradients = [_gradient(tensor) for tensor in every]
        if self._recipe.clip_norm is not None:
            _clip(gradients, self._recipe.clip_norm)
        is_apart = self._recipe.optimizer == "adamw"
        decays = zip(every, gradients, self._decays, self._decaying, strict=True)
        for tensor, gradient, decay, is_decaying in decays:
            if is_decaying and is_apart:
                tensor.mul_((decay * -factor).add_(1.0))
            elif is_decaying:
                gradient.addcmul_(tensor, decay)
        self._move(gradients)
        for tensor, move, rate in zip(every, self._moves, self._rates, strict=True):
            tensor.addcmul_(move, rate, value=factor)
            tensor.grad = None

    def _move(self, gradients: list[Tensor]) -> None:
        """What the weights lose at a learning rate of 1, negative."""
        torch._foreach_zero_(self._moves)
        if self._recipe.optimizer == "sgd":
            sgd(
                self._moves,
                gradients,
                list(self._first),
                weight_decay=0.0,
                momentum=self._recipe.momentum,
                lr=1.0,
                dampening=0.0,
                nesterov=False,
                maximize=False,
                fused=self._fused,
            )
            return
        adam(
            self._moves,
            gradients,
            self._first,
            self._second,
            [],
            self._steps,
            fused=self._fused,
            amsgrad=False,
            beta1=_BETAS[0],
            beta2=_BETAS[1],
            lr=1.0,
            weight_decay=0.0,
            eps=_EPS,
            maximize=False,
        )


def _gradient(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad


def _clip(gradients: Sequence[Tensor], most: float) -> None:
    """Scale each member's gradients so that their norm is at most `most`."""
    squares = sum(gradient.flatten(1).square().sum(1) for gradient in gradients)
    assert isinstance(squares, Tensor)
    scale = (most / (squares.sqrt() + _CLIP_EPS)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(_beside(scale, gradient))


def _beside(values: Tensor, tensor: Tensor) -> Tensor:
    """One number for each member, in the tensor's form."""
    return values.to(tensor).view(-1, *[1] * (tensor.dim() - 1))
