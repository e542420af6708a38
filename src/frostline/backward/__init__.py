"""Backward keeps only what the wanted gradients need.

with fl.lean(model):
    loss = criterion(model(inputs), targets)
loss.backward()
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from torch import nn

from frostline.backward.counting import saved_bytes as saved_bytes
from frostline.backward.entering import hook
from frostline.backward.entering import is_lean as is_lean
from frostline.backward.entering import unlean as unlean
from frostline.backward.tensors import Gelu, Settings
from frostline.wrappers import check_is_model


def lean(model: nn.Module, *, gelu: Gelu = "exact", at_least_bytes: int = 1 << 20) -> Lean:
    """From now on each forward of `model` keeps what the gradients wanted then need, no more.

    Each operation decides when it runs, by what wants a gradient at that moment, so freezing and
    thawing need no other call. No module is replaced and no `state_dict` key changes. Outputs,
    gradients, buffers and random numbers are those of the plain model, bit for bit in float32, and
    never more is kept. A copy of the model, by `copy.deepcopy` or `torch.save`, is leaned as well.

    What follows by an elementwise pass from what is kept (the outputs of SiLU, hard swish, Mish,
    GELU, layer norm), or from the batch by a frozen first layer that is a small part of the model,
    is computed again in the backward pass; so the batch must not be written to before that.

    Args:
        model: any module, also a graph module such as `fl.cut(...).suffix`.
        gelu: `"compressed"` keeps one byte an element of each GELU's slope instead of its input;
            the gradient is then off by at most 0.0025 of the incoming one, an element.
        at_least_bytes: operations on less are left to PyTorch, being too quick to pay.
    Raises:
        ConfigError: `gelu` is neither, or `model` is none.
    Returns:
        A handle; `remove()`, or the end of a `with` block, makes the model plain again.

    Example:
        >>> with fl.lean(model):
        ...     loss = model(images).sum()
        >>> loss.backward()
    """
    return Lean(model, Settings(at_least_bytes, gelu))


@final
class Lean:
    """A leaned model; printing it says what that does.

    Example:
        >>> lean = fl.lean(model)
        >>> print(lean)
        <Lean Sequential: the backward pass keeps only what the wanted gradients need. ...>
        >>> lean.remove()
    """

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        check_is_model(model)
        self._settings = settings
        self._name = type(model).__name__
        self._removals: list[Callable[[], None]] = hook(model, settings)

    def remove(self) -> None:
        """Make the model plain again; graphs that were already made stay as they are."""
        while self._removals:
            self._removals.pop()()

    def __enter__(self) -> Lean:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        if not self._removals:
            return f"<Lean {self._name}: removed>"
        gelu = " GELU keeps a byte an element, its gradient within 0.0025."
        return (
            f"<Lean {self._name}: the backward pass keeps only what the wanted gradients need."
            f"{gelu if self._settings.gelu == 'compressed' else ''} remove() undoes it>"
        )
