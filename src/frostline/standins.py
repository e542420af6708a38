"""An object on a module's instance in place of a method of its class, as `train` or `forward`.

No class is changed, no module replaced and no `state_dict` key added, and the stand-in goes along
through `copy.deepcopy` and `torch.save` of the whole module.
"""

from __future__ import annotations

import copy
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar

from torch import nn


class StandIn(ABC):
    """Stands in for one method of `module`, until it is taken off.

    Attributes:
        method: which one.
        shadowed: what somebody had set on the instance before, if anything.
    """

    __slots__ = ("_module", "shadowed")
    method: ClassVar[str]

    def __init__(self, module: nn.Module, shadowed: Callable[..., Any] | None) -> None:
        # Weak, since a cycle would keep a dropped model's memory until the next collection.
        self._module = weakref.ref(module)
        self.shadowed = shadowed

    @abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What is done in place of the method."""

    @property
    def module(self) -> nn.Module:
        """The module that it is on."""
        module = self._module()
        if module is None:
            raise ReferenceError(f"the module of this {type(self).__name__} is gone")
        return module

    @property
    def original(self) -> Callable[..., Any]:
        """The method that it stands in for."""
        if self.shadowed is not None:
            return self.shadowed
        module = self.module
        return partial(getattr(type(module), self.method), module)

    @classmethod
    def put(cls, module: nn.Module, *more: Any) -> None:
        """Put one on the module, over what somebody has set there."""
        cls(module, module.__dict__.get(cls.method), *more).put_on()

    @classmethod
    def remove(cls, module: nn.Module) -> None:
        """Take those of this class off the module."""
        for found in [one for one in stand_ins(module, cls.method) if isinstance(one, cls)]:
            found.take_off()

    def put_on(self) -> None:
        """Make it the instance's method."""
        self.module.__dict__[self.method] = self

    def take_off(self) -> None:
        """Give back what was there before, also from below another stand-in."""
        own = self.module.__dict__
        if own.get(self.method) is self:
            own.pop(self.method)
            if self.shadowed is not None:
                own[self.method] = self.shadowed
        for other in stand_ins(self.module, self.method):
            if other.shadowed is self:
                other.shadowed = self.shadowed

    def more(self) -> tuple[Any, ...]:
        """What its class takes beside module and shadowed; a copy gets it too."""
        return ()

    def __deepcopy__(self, memo: dict[int, Any]) -> StandIn:
        copied = memo.get(id(self.module), self.module)
        return type(self)(copied, copy.deepcopy(self.shadowed, memo), *self.more())

    def __reduce__(self) -> tuple[type[StandIn], tuple[Any, ...]]:
        return type(self), (self.module, self.shadowed, *self.more())


def stand_ins(module: nn.Module, method: str) -> Iterator[StandIn]:
    """Those on the instance for that method, the uppermost first."""
    found = module.__dict__.get(method)
    while isinstance(found, StandIn):
        yield found
        found = found.shadowed
