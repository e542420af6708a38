"""What of a model's structure a cut rests on: recorded at the cut, and compared afterwards.

A graph knows nothing of what changes in Python: a layer that another one replaced, a hook, an
adapter that was switched off. So for each module that the forward reads, the cut keeps a
description in words, of what the forward read. At each call a look at identities has to do, a
microsecond for each module; where that finds something new, the words decide.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from operator import is_not, itemgetter
from typing import Any, final

import xxhash
from torch import Tensor, nn

from frostline.backward.entering import Enter, Leave
from frostline.cutting.keys import content
from frostline.errors import CutError
from frostline.standins import StandIn

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_ALWAYS = (*_HOOKS, "_modules", "_parameters", "_buffers")
_OF_MODULES = frozenset(vars(nn.Module())) - {"training"}
_MODE = "training"
_MANY = 100  # entries of a list or dict; what holds more counts by identity and length
_DEEP = 4
_SHORT = 30
_LOCK = threading.RLock()  # for what is changed of torch's own class meanwhile


@final
@dataclass(frozen=True)
class ModuleWords:
    """One module: the attributes that count, and what they and its form are in words."""

    names: tuple[str, ...]
    words: dict[str, str]

    def less(self, moved: Collection[str]) -> ModuleWords:
        """The same without some of the attributes."""
        names = tuple(name for name in self.names if name not in moved)
        return ModuleWords(names, {n: text for n, text in self.words.items() if n not in moved})


@final
@dataclass(frozen=True)
class Structure:
    """The modules of a model that one mode's forward reads, by path."""

    modules: Mapping[str, ModuleWords] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, model: nn.Module, reads: Mapping[str, Collection[str]]) -> Structure:
        """The model as it is now, in the mode it is in; `reads` tells what its forward reads."""
        read = [path for path, names in reads.items() if names]
        wanted = {*read, *(up for path in read for up in upwards(path))}
        names = {path: tuple(sorted({*reads.get(path, ())} - _OF_MODULES)) for path in wanted}
        return cls(_described(model, names))

    def settled(self, model: nn.Module) -> Structure:
        """Less what has moved since without anyone's doing, as a cache does in a forward.

        Args:
            model: the same, in the same mode.
        """
        later = _described(model, {path: before.names for path, before in self.modules.items()})
        kept = {}
        for path, before in self.modules.items():
            was, now = before.words, later[path].words
            kept[path] = before.less({n for n in was | now if was.get(n) != now.get(n)})
        return Structure(kept)

    def without(self, roots: frozenset[str]) -> Structure:
        """Less the modules at these paths and below."""
        kept = {p for p in self.modules if p not in roots and roots.isdisjoint(upwards(p))}
        return Structure({p: words for p, words in self.modules.items() if p in kept})

    def held_modes_only(self) -> Structure:
        """As what holds in both modes: of modes, the evaluation in which a frozen part is held."""
        free = {p for p, module in self.modules.items() if module.words.get(_MODE) == str(True)}
        return Structure({p: t.less({_MODE}) if p in free else t for p, t in self.modules.items()})

    def look(self, model: nn.Module) -> list[Callable[[], bool]]:
        """If the model's modules are what they were: what tells later whether they still are.

        Of each a check of identities; where it fails, the words decide.

        Raises:
            CutError: they are not; says what has changed.
        """
        now = dict(model.named_modules(remove_duplicate=False))
        for path in self.modules:
            if path not in now:
                raise changed(model, f"'{path}' is gone")
        later = _described(model, {path: before.names for path, before in self.modules.items()})
        for path, before in self.modules.items():
            if difference := _difference(path, before.words, later[path].words):
                raise changed(model, difference)
        return [_identity(path, now, before.names) for path, before in self.modules.items()]


def _described(model: nn.Module, names: Mapping[str, tuple[str, ...]]) -> dict[str, ModuleWords]:
    codes: dict[type, str] = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    return {path: ModuleWords(n, _words(modules[path], n, codes)) for path, n in names.items()}


def _identity(
    path: str, modules: Mapping[str, nn.Module], names: tuple[str, ...]
) -> Callable[[], bool]:
    """Tells later whether a module is what it is now; False may also mean an equal replacement."""
    module = modules[path]
    kind, own, forward = type(module), vars(module), type(module).forward
    up, _, leaf = path.rpartition(".")
    around = vars(modules[up])["_modules"] if path else {"": module}
    get = itemgetter(*_ALWAYS, *(name for name in names if name in own))
    values = get(own)
    children, hooks = len(own["_modules"]), _hooks(values)
    # Lists and dicts may be filled otherwise and stay the same objects.
    filled = [
        (value, deepcopy(value))
        for value in values[len(_ALWAYS) :]
        if isinstance(value, list | dict | set) and len(value) <= _MANY and _is_plain(value, _DEEP)
    ]
    absent = [name for name in names if name not in own]  # the class has it, or nobody

    def is_as_it_was() -> bool:
        try:
            now = get(own)
        except KeyError:
            return False
        # In the order of _ALWAYS: four kinds of hooks, then the modules in it.
        return not (
            any(map(is_not, now, values))
            or around.get(leaf) is not module
            or module.__class__ is not kind
            or kind.forward is not forward
            or len(now[4]) != children
            or ((now[0] or now[1] or now[2] or now[3] or hooks) and _hooks(now) != hooks)
            or any(value != held for value, held in filled)
            or any(name in own for name in absent)
        )

    return is_as_it_was


def _hooks(values: tuple[Any, ...]) -> tuple[object, ...]:
    """Hooks, less those of `fl.lean`, which change no number."""
    kinds = values[: len(_HOOKS)]
    return tuple(h for hooks in kinds for h in hooks.values() if not isinstance(h, Enter | Leave))


def _is_plain(value: object, deep: int) -> bool:
    """Whether it is made of plain values alone, which can be compared."""
    if isinstance(value, dict | list | tuple | set):
        parts = value.values() if isinstance(value, dict) else value
        return deep > 0 and all(_is_plain(part, deep - 1) for part in parts)
    return value is None or isinstance(value, bool | int | float | str)


def _words(module: nn.Module, names: tuple[str, ...], codes: dict[type, str]) -> dict[str, str]:
    own, kind = vars(module), type(module)
    if kind not in codes:
        codes[kind] = _code(kind)
    found = {"class": kind.__qualname__, "code": codes[kind]}
    for label in _HOOKS:
        hooks = _hooks((own[label], {}, {}, {}))
        if hooks:
            found[label] = ", ".join(map(_name, hooks))
    found["children"] = " ".join(n for n, child in own["_modules"].items() if child is not None)
    for name in names:
        value = own.get(name)
        while isinstance(value, StandIn):  # ours, which change no number
            value = value.shadowed
        if value is not None or (name in own and own[name] is None):
            found[name] = _in_words(value, _DEEP)
    return found


def _code(kind: type) -> str:
    """A hash of the code of a class's functions, with those it inherits from other than torch."""
    own = [c for c in kind.__mro__ if c not in nn.Module.__mro__]
    texts = (f"{name} {content(vars(c)[name])}" for c in own for name in sorted(vars(c)))
    return xxhash.xxh3_128_hexdigest("\n".join(t for t in texts if " code " in t).encode())


def _name(hook: object) -> str:
    return str(getattr(hook, "__qualname__", type(hook).__qualname__))


def _in_words(value: Any, deep: int) -> str:
    match value:
        case Tensor() if value.requires_grad or deep < _DEEP:
            return "a tensor"  # one that is trained, or hangs on such
        case nn.Module():
            return f"a {type(value).__qualname__}"
        case dict() | list() | tuple() | set() if len(value) > _MANY or not deep:
            return f"{len(value)} entries"
        case dict():
            parts = (f"{key}: {_in_words(part, deep - 1)}" for key, part in value.items())
            return f"{{{', '.join(parts)}}}"
        case list() | tuple() | set():
            return f"({', '.join(_in_words(part, deep - 1) for part in value)})"
        case partial():
            return f"partial {_in_words((value.func, value.args, value.keywords), deep - 1)}"
    return content(value) or _name(value)


def upwards(path: str) -> Iterator[str]:
    """The paths of the modules that hold what is at `path`; the last is the model's own, ""."""
    while path:
        path = path.rpartition(".")[0]
        yield path


def _difference(path: str, before: Mapping[str, str], now: Mapping[str, str]) -> str:
    where = f"'{path}'" if path else "the model itself"
    for label in dict.fromkeys([*before, *now]):
        was, is_now = before.get(label), now.get(label)
        if was == is_now:
            continue
        if label == "class":
            return f"{where} is a {is_now}, and was a {was}"
        if label == _MODE:
            mode = "training" if is_now == str(True) else "evaluation"
            return (
                f"{where} is in {mode} mode, other than it was in this mode of the model "
                "(model.train() or model.eval() sets all; fl.freeze holds a part in evaluation)"
            )
        if label in _HOOKS:
            word = label.strip("_").replace("_", " ")
            return f"{where} has {is_now or 'none'} for {word}, and had {was or 'none'}"
        if label in ("code", "forward"):
            return f"{where} has another forward"
        if label == "children":
            return f"{where} has other modules in it"
        if was is None or is_now is None or len(was) > _SHORT or len(is_now) > _SHORT:
            return f"{where} has another {label}"
        return f"{where} has {label} = {is_now}, and had {was}"
    return ""


def changed(model: nn.Module, what: str) -> CutError:
    """The error that says what of the model is not as it was cut."""
    return CutError(
        f"this {type(model).__name__} is not what was cut any more: {what}. Cut it again: "
        "fl.cut(model, example)."
    )


@contextmanager
def reads_recorded(model: nn.Module) -> Iterator[dict[str, set[str]]]:
    """Path of a module -> names of its attributes that the block reads, and does not set.

    For a module under several paths, under each. What a forward sets is its own business: a
    counter, a cache, the attention it saw last.
    """
    read: dict[int, set[str]] = {id(module): set() for module in model.modules()}
    written: dict[int, set[str]] = {id(module): set() for module in model.modules()}
    found: dict[str, set[str]] = {}

    def recording_get(self: nn.Module, name: str) -> Any:
        if (names := read.get(id(self))) is not None:
            names.add(name)
        return get(self, name)

    def recording_put(self: nn.Module, name: str, value: Any) -> None:
        if (names := written.get(id(self))) is not None:
            names.add(name)
        put(self, name, value)

    with _LOCK:
        former = vars(nn.Module).get("__getattribute__")
        get, put = nn.Module.__getattribute__, nn.Module.__setattr__
        nn.Module.__getattribute__ = recording_get  # type: ignore[method-assign, assignment]  # meanwhile
        nn.Module.__setattr__ = recording_put  # type: ignore[method-assign]  # likewise
        try:
            yield found
        finally:
            nn.Module.__setattr__ = put  # type: ignore[method-assign]  # as it was
            if former is None:
                del nn.Module.__getattribute__
            else:
                nn.Module.__getattribute__ = former  # type: ignore[method-assign]  # as it was
    for path, module in model.named_modules(remove_duplicate=False):
        found[path] = read.get(id(module), set()) - written.get(id(module), set())
