"""`torch._dynamo` waits until something is compiled: to import it takes as long as all of torch.

Each optimizer of torch (2.15) imports it, to tell it what not to follow, and torchvision (0.29) for
a question that one operator asks when it is called. In a process of the command line a stand-in
answers these until something else is asked of it; then the real one is imported, told what it
missed, and takes the place.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial, wraps
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import FunctionType, MethodType, ModuleType
from typing import Any, Final

_DYNAMO: Final = "torch._dynamo"
_UTILS: Final = "torch._dynamo.utils"
# Where torch keeps what dynamo made of a function that it is not to follow.
_KEPT: Final = "__dynamo_disable"


def let_dynamo_wait() -> None:
    """Put the stand-ins in the way of the first import; nothing where that has been."""
    if _DYNAMO in sys.modules:
        return
    waiting: list[_Unfollowed] = []

    def disable(fn: Any = None, recursive: bool = True, **how: Any) -> Any:
        if fn is None:
            return partial(disable, recursive=recursive, **how)
        if not isinstance(fn, FunctionType | MethodType):
            return _real(_DYNAMO).disable(fn, recursive, **how)
        made = _Unfollowed(fn, recursive, how)
        waiting.append(made)
        return made.called

    def graph_break(*_: Any, **__: Any) -> None:
        """As it does where nothing is followed."""

    def is_compile_supported(device: str) -> Any:
        return _real(_UTILS).is_compile_supported(device)

    finder = _Finder(waiting)
    sys.meta_path.insert(0, finder)
    sys.modules[_DYNAMO] = _StandIn(_DYNAMO, finder, disable=disable, graph_break=graph_break)
    sys.modules[_UTILS] = _StandIn(_UTILS, finder, is_compile_supported=is_compile_supported)


class _StandIn(ModuleType):
    """In place of a module; what it does not know itself it asks the real one, which then comes."""

    def __init__(self, name: str, finder: _Finder, **known: Callable[..., Any]) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, loader=None)
        self.__dict__.update(known)
        self.__dict__["_finder"] = finder

    def __getattr__(self, name: str) -> Any:
        # `inspect` asks each module for its file; a part is imported by the path of the whole.
        if name.startswith("__") and (name, self.__name__) != ("__path__", _DYNAMO):
            raise AttributeError(name)
        self.__dict__["_finder"].end()
        return getattr(_real(self.__name__), name)


class _Unfollowed:
    """A function that dynamo is not to follow, once it is there."""

    def __init__(self, function: Any, recursive: bool, how: dict[str, Any]) -> None:
        self._function, self._how = function, {"recursive": recursive, **how}
        self._real: Callable[..., Any] | None = None

        @wraps(function)
        def called(*given: Any, **named: Any) -> Any:
            return (self._real or function)(*given, **named)

        self.called = called

    def tell(self) -> None:
        """Tell the real dynamo."""
        self._real = _real(_DYNAMO).disable(self._function, **self._how)
        if getattr(self._function, _KEPT, None) is self.called:
            setattr(self._function, _KEPT, self._real)
        # Whoever kept this one calls it still, and dynamo is not to look into it either.
        self.called._torchdynamo_disable = True  # type: ignore[attr-defined]
        self.called._torchdynamo_disable_msg = self._how.get("reason")  # type: ignore[attr-defined]


class _Finder(MetaPathFinder):
    """Sees that a part of dynamo is imported, before it is looked for."""

    def __init__(self, waiting: list[_Unfollowed]) -> None:
        self._waiting = waiting
        self._is_over = False

    def end(self) -> None:
        """Import the real one in place of the stand-ins."""
        if self._is_over:
            return
        self._is_over = True
        for name in (_UTILS, _DYNAMO):
            if isinstance(sys.modules.get(name), _StandIn):
                del sys.modules[name]
        import_module(_DYNAMO)
        for one in self._waiting:
            one.tell()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """What the import of the whole has brought already, found by whoever asked for the part."""
        del path, target
        known = sys.modules.get(fullname) if fullname.startswith(f"{_DYNAMO}.") else None
        return ModuleSpec(fullname, _There(known)) if known is not None else None


class _There(Loader):
    """Gives a module that was imported meanwhile, as it is."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        del spec
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__spec__"] = self._spec


def _real(name: str) -> Any:
    found = sys.modules.get(name)
    if isinstance(found, _StandIn):
        found.__dict__["_finder"].end()
    return import_module(name)
