"""While a leaned module's forward runs, operations pass by the rules; nothing is replaced.

Every module gets two hooks: one enters, one leaves (also when the forward fails). They hold no
reference, so they go along through `copy.deepcopy` and `torch.save`, and a submodule that is called
by itself, as by a checkpoint in the backward pass, is covered too.

Attention and Transformer layers get a stand-in for their forward instead. PyTorch runs one that
needs no gradient as one kernel, which gives other bits, if no hook is in it and no mode is on; so
there is none where nothing in it wants a gradient.

Gradient checkpointing compares what a forward and its repetition keep, number by number. In the
forward, a checkpointed function's own operations run inside the outer module; in the repetition,
outside of any. So rules act only while the saved-tensor hooks are those that the innermost module
was entered under, which holds for submodules in both passes and for bare operations in none.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from frostline.backward import recomputing
from frostline.backward.rules import RULES
from frostline.backward.tensors import Settings, wants
from frostline.standins import StandIn, stand_ins

# What PyTorch runs as one kernel in inference.
_FUSED = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)


@final
class Enter:
    """A forward pre-hook: rules apply from here on, in this thread."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def __call__(self, module: nn.Module, _args: tuple[Any, ...]) -> None:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        _thread.enter(module, self.settings)


@final
class Leave:
    """A forward hook, also called when the forward fails: undoes `Enter`."""

    def __call__(self, module: nn.Module, _args: tuple[Any, ...], _output: object) -> None:
        if not torch.compiler.is_compiling():
            _thread.leave(module)


@final
class Fused(StandIn):
    """Stands in for the forward of what PyTorch may run as one kernel."""

    __slots__ = ("settings",)
    method = "forward"

    def __init__(
        self, module: nn.Module, shadowed: Callable[..., Any] | None, settings: Settings
    ) -> None:
        super().__init__(module, shadowed)
        self.settings = settings

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self.module
        if torch.compiler.is_compiling():
            return self.original(*args, **kwargs)
        given = (*pytree.tree_leaves((args, kwargs)), *module.parameters())
        wanted = any(isinstance(t, Tensor) and wants(t) for t in given)
        if not wanted or not torch.is_grad_enabled():
            with _thread.left():
                return self.original(*args, **kwargs)
        _thread.enter(module, self.settings)
        try:
            return self.original(*args, **kwargs)
        finally:
            _thread.leave(module)

    def more(self) -> tuple[Settings]:
        """See `StandIn`."""
        return (self.settings,)


def hook(model: nn.Module, settings: Settings) -> list[Callable[[], None]]:
    """Put one of both on every module; gives what takes each off again."""
    removals: list[Callable[[], None]] = []
    enter, leave = Enter(settings), Leave()
    # A hook within such a layer would keep it from being run as one kernel.
    layers = (m for m in model.modules() if isinstance(m, nn.TransformerEncoderLayer))
    unhookable = {module for layer in layers for module in layer.modules()}
    for module in model.modules():
        if isinstance(module, _FUSED):
            fused = Fused(module, module.__dict__.get("forward"), settings)
            fused.put_on()
            removals.append(fused.take_off)
        elif module not in unhookable:
            # Before the hooks that are there, so that what they compute passes by the rules too.
            before = module.register_forward_pre_hook(enter, prepend=True)
            after = module.register_forward_hook(leave, always_call=True)
            removals += [before.remove, after.remove]
    return removals


def unlean(model: nn.Module) -> None:
    """Make a model plain, whoever leaned it; for copies of a leaned model, which have no handle."""
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [k for k, h in hooks.items() if isinstance(h, Enter | Leave)]:
                del hooks[key]
                module._forward_hooks_always_called.pop(key, None)
        Fused.remove(module)


def is_lean(module: nn.Module) -> bool:
    """Whether `module` is leaned."""
    ours = (*module._forward_pre_hooks.values(), *stand_ins(module, Fused.method))
    return any(isinstance(one, Enter | Fused) for one in ours)


class _Entry(NamedTuple):
    module: nn.Module
    outer: object  # the saved-tensor hooks that it was entered under
    settings: Settings


class _Mode(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        rule = RULES.get(func)
        kwargs = kwargs or {}
        entries = _thread.entries
        if not entries or not _is_plain() or entries[-1].outer is not recomputing.outer_pack():
            return func(*args, **kwargs)
        output = rule(entries[-1].settings, *args, **kwargs) if rule else None
        if output is None:
            output = recomputing.run(func, args, kwargs)
        recomputing.count(func, args, output)
        return output


class _Thread(threading.local):
    """Which leaned modules run now, outermost first."""

    def __init__(self) -> None:
        self.entries: list[_Entry] = []
        self.mode = _Mode()
        self.frame: FrameType | None = None

    def enter(self, module: nn.Module, settings: Settings) -> None:
        # An interrupt passes by the hooks that leave: its entries are found by the next forward.
        if self.entries and module is self.entries[0].module and not self._is_running():
            self._abandon()
        if not self.entries:
            self.mode.__enter__()  # type: ignore[no-untyped-call]  # torch's own
            self.frame = sys._getframe(2)
            recomputing.begin(module)
        self.entries.append(_Entry(module, recomputing.outer_pack(), settings))

    def leave(self, module: nn.Module) -> None:
        # Absent where it was entered without gradients, or a hook before ours failed.
        for position in range(len(self.entries) - 1, -1, -1):
            if self.entries[position].module is module:
                del self.entries[position:]
                if not self.entries:
                    recomputing.end()
                    self.frame = None
                    self.mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]  # likewise
                return

    @contextmanager
    def left(self) -> Iterator[None]:
        """No mode of ours is on within the block, unless another one is on top of it."""
        depth = torch._C._len_torch_function_stack()
        mode = torch._C._get_function_stack_at(depth - 1) if depth else None
        if mode is not self.mode:
            yield
            return
        torch._C._pop_torch_function_stack()
        try:
            yield
        finally:
            torch._C._push_on_torch_function_stack(mode)

    def _is_running(self) -> bool:
        """Whether the outermost forward, which may call itself, is still under way."""
        frame: FrameType | None = sys._getframe(2)
        while frame is not None and frame is not self.frame:
            frame = frame.f_back
        return frame is not None

    def _abandon(self) -> None:
        """As if the outermost forward had been left; modes that others put on ours stay on."""
        self.entries.clear()
        recomputing.end(whole=False)
        self.frame = None
        above = []
        while (top := torch._C._pop_torch_function_stack()) is not self.mode:
            above.append(top)
        for mode in reversed(above):
            torch._C._push_on_torch_function_stack(mode)


_thread = _Thread()


def _is_plain() -> bool:
    """Whether gradients are recorded, and by nothing but autograd's backward mode."""
    return (
        torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and torch._C._functorch.peek_interpreter_stack() is None
        and forward_ad._current_level < 0
        and torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is None
    )
