"""What train and eval mode means for the frozen part, and how eval is held there.

A module whose whole subtree is frozen is *held*: it stays in eval however often anyone calls
`train()` on it or on a module above. Each held module carries an instance attribute `train` (a
`Hold`), so no class is changed, no module replaced and no `state_dict` key added, and the hold
goes along through `copy.deepcopy` and `torch.save` of the whole module.

`FROST` marks, on each module that owns frozen tensors, which of its own are frozen by Frostline;
`settle` derives from the marks who is to be held. Norm layers have a policy of their own:
`hold` keeps one that is frozen in any part in eval, `adapt` leaves it to follow the mode of the
model, so that its statistics follow the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from itertools import count
from typing import Any, final

import torch
from torch import nn

from frostline.choices import NormPolicy
from frostline.freezing.held_layers import equip, pack_where_whole, strip
from frostline.selectors.inventory import paths_above
from frostline.selectors.kinds import keeps_running_statistics
from frostline.standins import StandIn


@final
@dataclass(frozen=True, slots=True)
class FrozenMark:
    """Which of a module's own tensors Frostline froze, and with which norm policy."""

    names: frozenset[str]  # of those that are frozen whole
    norm: NormPolicy = "hold"
    partly: frozenset[str] = frozenset()  # of those frozen in some rows (see rows.py)
    # Dtype and digest of each parameter of `names` as the last freeze found it; they go along with
    # a copy, so that a delta of one whose frozen weights moved can be refused.
    contents: Mapping[str, tuple[torch.dtype, str]] = field(default_factory=dict, compare=False)
    # Numbers of the freezes that each is under, to tell one that was thawed in between.
    since: Mapping[str, frozenset[int]] = field(default_factory=dict, compare=False)

    def __setstate__(self, state: list[object]) -> None:
        """Of a model that an earlier Frostline saved, too, which knew fewer of the fields."""
        for number, own in enumerate(fields(self)):
            object.__setattr__(self, own.name, state[number] if number < len(state) else {})


@final
class Hold(StandIn):
    """Stands in for `module.train`: the module stays in eval, its children get the call."""

    # Held children ignore it likewise; a norm layer left to adapt follows it. `former` is the mode
    # that the module had before it was held, `since` the number of the freeze that it is under.

    __slots__ = ("former", "lets_go", "since")
    method = "train"

    def __init__(
        self,
        module: nn.Module,
        shadowed: Callable[..., Any] | None,
        former: bool,
        since: int = 0,  # in a model that an earlier Frostline saved, as what follows
        lets_go: bool = False,
    ) -> None:
        super().__init__(module, shadowed)
        self.former, self.since = former, since
        # While something below it trains that came later, it follows the model's mode.
        self.lets_go = lets_go

    def __call__(self, mode: bool = True) -> nn.Module:
        module = self.module
        for child in module.children():
            child.train(mode)
        self.lets_go = _may_let_go(module) and any(map(_is_free, module.children()))
        module.training = mode and self.lets_go
        return module

    def release(self) -> None:
        """Give the module the mode back that it had."""
        self.take_off()
        self.module.training = self.former
        strip(self.module)

    def more(self) -> tuple[bool, int, bool]:
        """See `StandIn`."""
        return self.former, self.since, self.lets_go


_MARK = "_frostline"
NUMBERS = count(1)
"""Of the freezes of this process."""


def mark_of(module: nn.Module) -> FrozenMark | None:
    """The module's mark, if it owns frozen tensors."""
    mark = module.__dict__.get(_MARK)
    return mark if isinstance(mark, FrozenMark) else None


def set_mark(module: nn.Module, mark: FrozenMark | None) -> None:
    """Record that exactly these of the module's own tensors are frozen; none removes the mark."""
    if mark is not None and (mark.names or mark.partly):
        module.__dict__[_MARK] = mark
    else:
        module.__dict__.pop(_MARK, None)


def note_content(module: nn.Module, leaf: str, content: tuple[torch.dtype, str] | None) -> None:
    """Note what the frozen parameter holds now; none says that it was written on purpose."""
    mark = mark_of(module)
    if mark is None or leaf not in mark.names or leaf not in module._parameters:
        return
    others = {name: known for name, known in mark.contents.items() if name != leaf}
    noted = {} if content is None else {leaf: content}
    set_mark(module, replace(mark, contents={**others, **noted}))


def is_held(module: nn.Module) -> bool:
    """Whether the module is held in eval."""
    hold = _hold_of(module)
    return hold is not None and not hold.lets_go


def _hold_of(module: nn.Module) -> Hold | None:
    """Its hold, also one that follows the mode of the model for what is below it."""
    found = module.__dict__.get("train")
    return found if isinstance(found, Hold) else None


def adapts(module: nn.Module) -> bool:
    """Whether the module's statistics were left to follow the data by `norm="adapt"`."""
    mark = mark_of(module)
    return mark is not None and mark.norm == "adapt" and keeps_running_statistics(module)


def is_random_in_training(module: nn.Module) -> bool:
    """Whether a parameterless layer draws random numbers in train mode: dropouts and the like."""
    name = type(module).__name__.lower()
    return any(word in name for word in ("drop", "stochasticdepth", "rrelu"))


def freezes_of(module: nn.Module, leaf: str) -> frozenset[int]:
    """Numbers of the freezes that a module's own tensor is under, or what it has beside."""
    mark, hold = mark_of(module), _hold_of(module)
    if mark is not None and leaf in mark.since:  # also of one that is gone by now
        return mark.since[leaf]
    if leaf in module._parameters or hold is None:
        return frozenset()
    return frozenset({hold.since})


def numbers_of_holds(model: nn.Module) -> list[tuple[nn.Module, int]]:
    """What is held, with the numbers of the freezes that it is under."""
    holds = ((module, _hold_of(module)) for module in model.modules())
    return [(module, hold.since) for module, hold in holds if hold and not hold.lets_go]


def hold_under(numbers: Iterable[tuple[nn.Module, int]]) -> None:
    """Let what is held be so under these freezes, as if it had been all along."""
    for module, number in numbers:
        hold = _hold_of(module)
        if hold and not hold.lets_go:
            hold.since = number


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Whatever the block does, afterwards every module has the mode of its own that it had."""
    # One that is held then is in eval, and gets that mode when it is thawed.
    before = []
    for module in model.modules():
        hold = _hold_of(module)
        former, lets_go = (hold.former, hold.lets_go) if hold else (module.training, False)
        before.append((module, module.training, former, lets_go))
    try:
        yield
    finally:
        for module, training, former, lets_go in before:
            if (hold := _hold_of(module)) is None:
                module.training = former
            else:
                hold.former, hold.lets_go = former, lets_go
                module.training = training and lets_go


def settle(model: nn.Module) -> None:
    """Hold every module that the marks below `model` say is wholly frozen, release the others."""
    # A released module gets back the mode it had before it was held.
    due = _due(model)
    for module in model.modules():
        hold = _hold_of(module)
        if module in due and hold is not None:
            hold.lets_go = module.training = False
        elif module in due:
            Hold.put(module, module.training, next(NUMBERS))
            module.training = False
            equip(module)
        elif hold is not None:
            hold.release()
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            pack_where_whole(module, any(map(is_held, module.layers)))


def _has_new(module: nn.Module) -> bool:
    """Whether something below a held module trains that was put there since, as a new head."""
    below = (_has_new(c) if _hold_of(c) else _is_new(c) for c in module.children())
    return _may_let_go(module) and any(below)


def _may_let_go(module: nn.Module) -> bool:
    """Whether nothing of its own would move: neither statistics nor buffers."""
    return not module._buffers and not keeps_running_statistics(module)


def _is_free(module: nn.Module) -> bool:
    """Whether it trains and came later, or follows the mode of the model for what is below it."""
    hold = _hold_of(module)
    return hold.lets_go if hold is not None else _is_new(module)


def _is_new(module: nn.Module) -> bool:
    """Whether it trains and was put below a held one since, as a new head; what was there is held.

    A norm in the place of a held one is a mistake, which a doctor tells by what is around it.
    """
    if _hold_of(module) or keeps_running_statistics(module):
        return False
    return any(parameter.requires_grad for parameter in module.parameters())


def held_though_trainable(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The outermost modules that are held although something unfroze them behind the freeze."""
    # They train with dropout and statistics off until `fl.thaw` (or another freeze) settles them.
    due = _due(model)
    stray = {
        path: module
        for path, module in model.named_modules()
        if is_held(module) and module not in due and not _has_new(module)
    }
    for path, module in stray.items():
        if stray.keys().isdisjoint(paths_above(path)):
            yield path, module


def _due(model: nn.Module) -> set[nn.Module]:
    """The modules to be held: wholly frozen subtrees, and norms frozen in part."""
    due: set[nn.Module] = set()
    for module in model.modules():  # a frozen root comes before what is in it
        if module not in due and _is_wholly_frozen(module):
            due.update(module.modules())
        elif keeps_running_statistics(module) and _is_frozen_in_part(module):
            due.add(module)
    return {module for module in due if not adapts(module)}


def _is_frozen_in_part(module: nn.Module) -> bool:
    """Whether any own tensor that Frostline froze is frozen still; one may be unfrozen by hand."""
    if (mark := mark_of(module)) is None:
        return False
    own = {**module._parameters, **module._buffers}
    frozen = (tensor for name in mark.names if (tensor := own.get(name)) is not None)
    return bool(mark.partly) or not all(tensor.requires_grad for tensor in frozen)


def _is_wholly_frozen(root: nn.Module) -> bool:
    """No parameter wants a gradient, no statistics are free, and Frostline had a hand in it."""
    return (
        any(mark_of(module) is not None for module in root.modules())
        and not any(parameter.requires_grad for parameter in root.parameters())
        and not any(_has_free_statistics(module) for module in root.modules())
    )


def _has_free_statistics(module: nn.Module) -> bool:
    """Whether a norm without parameters was not selected; one with parameters goes by those."""
    has_parameters = next(module.parameters(recurse=False), None) is not None
    return keeps_running_statistics(module) and not has_parameters and mark_of(module) is None
