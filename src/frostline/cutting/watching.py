"""What of a model's structure a cut rests on: described at the cut, and compared afterwards.

A graph knows nothing of what changes in Python: a layer that another one replaced, a hook, an
adapter that was switched off. So for each module that the forward reads, the cut keeps a
description in words, of what the forward read. At each call a look at identities has to do, a
microsecond for each module; where that finds something new, the words decide.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from operator import is_not, itemgetter
from typing import Any, NamedTuple, final

import xxhash
from torch import Tensor, nn

from frostline.backward.entering import Enter, Leave
from frostline.cutting.at_key import content
from frostline.errors import CutError
from frostline.standins import StandIn

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_ALWAYS = (*_HOOKS, "_modules", "_parameters", "_buffers")
_OF_MODULES = frozenset(vars(nn.Module())) - {"training"}
_MODE = "training"
_MANY = 100  # entries of a list or dict; what holds more counts by identity and length
_DEEP = 4
_SHORT = 30


@final
@dataclass(frozen=True)
class Watched:
    """One module: the attributes that count, and what they and its form are in words."""

    names: tuple[str, ...]
    words: dict[str, str]

    def less(self, moved: Collection[str]) -> Watched:
        """The same without some of the attributes."""
        names = tuple(name for name in self.names if name not in moved)
        return Watched(names, {n: text for n, text in self.words.items() if n not in moved})


@final
@dataclass(frozen=True)
class Watch:
    """The modules of a model that one mode's forward reads."""

    modules: Mapping[str, Watched] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, model: nn.Module, reads: Mapping[str, Collection[str]]) -> Watch:
        """The model as it is now, in the mode it is in; `reads` tells what its forward reads."""
        read = [path for path, names in reads.items() if names]
        wanted = {*read, *(up for path in read for up in _upwards(path))}
        return cls._described(
            model, {p: tuple(sorted({*reads.get(p, ())} - _OF_MODULES)) for p in wanted}
        )

    @classmethod
    def _described(cls, model: nn.Module, names: Mapping[str, tuple[str, ...]]) -> Watch:
        codes: dict[type, str] = {}
        modules = dict(model.named_modules(remove_duplicate=False))
        return cls({p: Watched(n, _words(modules[p], n, codes)) for p, n in names.items()})

    def settled(self, model: nn.Module) -> Watch:
        """Less what has moved since without anyone's doing, as a cache does in a forward.

        Args:
            model: the same, in the same mode.
        """
        later = self._described(
            model, {path: watched.names for path, watched in self.modules.items()}
        )
        kept = {}
        for path, watched in self.modules.items():
            now = later.modules[path].words
            moved = {n for n in watched.words | now if watched.words.get(n) != now.get(n)}
            kept[path] = watched.less(moved)
        return Watch(kept)

    def without(self, roots: Collection[str]) -> Watch:
        """Less the modules at these paths and below."""
        return Watch(
            {p: watched for p, watched in self.modules.items() if not _is_under(p, roots)},
        )

    def held_modes_only(self) -> Watch:
        """As what holds in both modes: of modes, the evaluation in which a frozen part is held."""
        free = {p for p, watched in self.modules.items() if watched.words.get(_MODE) == str(True)}
        return Watch({p: t.less({_MODE}) if p in free else t for p, t in self.modules.items()})

    def look(self, model: nn.Module) -> Look:
        """The model's modules as they are, if they are what they were.

        Raises:
            CutError: they are not; says what has changed.
        """
        now = dict(model.named_modules(remove_duplicate=False))
        codes: dict[type, str] = {}
        for path in self.modules:
            if path not in now:
                raise changed(model, f"'{path}' is gone")
        for path, watched in self.modules.items():
            words = _words(now[path], watched.names, codes)
            if difference := _difference(path, watched.words, words):
                raise changed(model, difference)
        return Look([_Seen.of(path, now, watched.names) for path, watched in self.modules.items()])


class _Seen(NamedTuple):
    """One module as it was when its words were read."""

    module: nn.Module
    kind: type
    forward: object
    around: dict[str, Any]
    leaf: str
    own: dict[str, Any]
    get: itemgetter[Any]
    values: tuple[Any, ...]
    children: int
    hooks: tuple[object, ...]
    filled: tuple[tuple[Any, Any], ...]  # lists and dicts, each with what it held
    absent: tuple[str, ...]  # what the class has, and the module might get of its own

    @classmethod
    def of(cls, path: str, modules: Mapping[str, nn.Module], names: tuple[str, ...]) -> _Seen:
        module = modules[path]
        own = vars(module)
        up, _, leaf = path.rpartition(".")
        around = vars(modules[up])["_modules"] if path else {"": module}
        get = itemgetter(*_ALWAYS, *(name for name in names if name in own))
        values = get(own)
        return cls(
            module,
            type(module),
            type(module).forward,
            around,
            leaf,
            own,
            get,
            values,
            len(own["_modules"]),
            _hooks(values),
            tuple((v, _snapshot(v)) for v in values[len(_ALWAYS) :] if _is_filled(v)),
            tuple(name for name in names if name not in own),
        )

    def is_as_it_was(self) -> bool:
        try:
            now = self.get(self.own)
        except KeyError:
            return False
        return not (
            any(map(is_not, now, self.values))
            or self.around.get(self.leaf) is not self.module
            or self.module.__class__ is not self.kind
            or self.kind.forward is not self.forward
            or len(now[4]) != self.children
            or ((now[0] or now[1] or now[2] or now[3] or self.hooks) and _hooks(now) != self.hooks)
            or any(_snapshot(value) != held for value, held in self.filled)
            or any(name in self.own for name in self.absent)
        )


@final
class Look:
    """Identities of what was looked at."""

    def __init__(self, seen: list[_Seen]) -> None:
        self._seen = seen

    def is_current(self) -> bool:
        """Whether all is what it was, by identity; False may also mean an equal replacement."""
        return all(map(_Seen.is_as_it_was, self._seen))


def _hooks(values: tuple[Any, ...]) -> tuple[object, ...]:
    """Hooks, less those of `fl.lean`, which change no number."""
    kinds = values[: len(_HOOKS)]
    return tuple(h for hooks in kinds for h in hooks.values() if not isinstance(h, Enter | Leave))


def _is_filled(value: object) -> bool:
    return isinstance(value, list | dict | set) and len(value) <= _MANY and _is_plain(value, _DEEP)


def _is_plain(value: object, deep: int) -> bool:
    """Whether it is made of plain values alone, which can be compared."""
    if isinstance(value, dict):
        return deep > 0 and all(_is_plain(part, deep - 1) for part in value.values())
    if isinstance(value, list | tuple | set):
        return deep > 0 and all(_is_plain(part, deep - 1) for part in value)
    return value is None or isinstance(value, bool | int | float | str)


def _snapshot(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _snapshot(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_snapshot(part) for part in value]
    return set(value) if isinstance(value, set) else value


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


def _upwards(path: str) -> Iterator[str]:
    while path:
        path = path.rpartition(".")[0]
        yield path


def _is_under(path: str, roots: Collection[str]) -> bool:
    return path in roots or any(up in roots for up in _upwards(path))


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
