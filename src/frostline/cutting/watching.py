"""What of a model's structure a cut rests on: recorded at the cut, and compared afterwards.

A graph knows nothing of what changes in Python: a layer that another one replaced, a hook, an
adapter that was switched off. So for each module that the forward reads, the cut keeps a
description in words, of what the forward read. At each call a look at identities has to do, a
microsecond for each module; where that finds something new, the words decide.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from operator import eq, is_
from typing import Any, final

import xxhash
from torch import Tensor, nn

from frostline.cutting.keys import OF_MODULES, content, hook_name, hooks_of
from frostline.errors import CutError, a_type
from frostline.standins import StandIn

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
MODE = "training"
# What is told of a module beside its attributes, under words that can be no attribute's name.
_CLASS, _CODE, _CHILDREN = "its class", "its code", "its modules"
_FORM = {_CLASS, _CODE, _CHILDREN, *_HOOKS}
_MANY = 100  # entries of a list or dict; what holds more counts by identity and length
_DEEP = 4
_SHORT = 30
_ABSENT = object()
_LOCK = threading.RLock()  # for what is changed of torch's own class meanwhile

# Of one module, its form and the attributes that count, in words; "" for one that only its class
# has, or nobody.
Words = Mapping[str, str]


# A dict, a key, and what it held there; a list or dict that may be filled otherwise, and a copy.
_Item = tuple[dict[str, Any], str, object]
_Content = tuple[object, object]


@final
class Identities:
    """Objects of a model that were seen: while they are the same, its structure is too."""

    def __init__(
        self, items: list[_Item], contents: list[_Content], modules: list[nn.Module]
    ) -> None:
        # In columns, since each call waits for this and `map` takes no step of Python for each.
        self._items = tuple(zip(*items, strict=True)) or ((), (), ())
        self._contents = tuple(zip(*contents, strict=True)) or ((), ())
        self._modules = modules
        self._kinds = [type(module) for module in modules]
        self._forwards = {kind: kind.forward for kind in self._kinds}

    def hold(self) -> bool:
        """Whether nothing is another object; where something is, an equal one may have come."""
        owners, keys, values = self._items
        try:
            return (
                all(map(is_, map(dict.get, owners, keys, repeat(_ABSENT)), values))
                and all(map(is_, map(type, self._modules), self._kinds))
                and all(kind.forward is forward for kind, forward in self._forwards.items())
                and all(map(eq, *self._contents))
            )
        except (RuntimeError, ValueError):  # tensors or arrays are in a list now
            return False


@final
@dataclass(frozen=True)
class Structure:
    """The modules of a model that one mode's forward reads, by path."""

    modules: Mapping[str, Words] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, model: nn.Module, reads: Mapping[str, Collection[str]]) -> Structure:
        """The model as it is now, in the mode it is in; `reads` tells what its forward reads."""
        read = [path for path, names in reads.items() if names]
        wanted = {*read, *(up for path in read for up in upwards(path))}
        return cls(_described(model, {p: {*reads.get(p, ())} - OF_MODULES for p in wanted}))

    def settled(self, model: nn.Module) -> Structure:
        """Less what has moved since without anyone's doing, as a cache does in a forward.

        Args:
            model: the same, in the same mode.
        """
        now = _described(model, self.modules)
        return Structure(
            {
                path: {word: text for word, text in words.items() if now[path].get(word) == text}
                for path, words in self.modules.items()
            }
        )

    def differing(self, other: Structure) -> dict[str, set[str]]:
        """By path of a module what of it is not as in `other`, which looked at the same."""
        return {
            path: {word for word in {*words, *found} if words.get(word) != found.get(word)}
            for path, words in self.modules.items()
            if words != (found := other.modules[path])
        }

    def without(self, roots: frozenset[str]) -> Structure:
        """Less the modules at these paths and below."""
        kept = (p for p in self.modules if p not in roots and roots.isdisjoint(upwards(p)))
        return Structure({path: self.modules[path] for path in kept})

    def also_in(self, evaluation: Structure) -> Structure:
        """As what holds in both modes: less what a `train` of the model's own changes.

        Of modes, the evaluation in which a frozen part is held.
        """
        free, others = (MODE, str(True)), evaluation.modules
        return Structure(
            {
                path: {
                    word: text
                    for word, text in words.items()
                    if (word, text) != free and others.get(path, words).get(word, text) == text
                }
                for path, words in self.modules.items()
            }
        )

    def look(self, model: nn.Module, standing: Collection[str]) -> Identities:
        """If the model's modules are what they were, the objects that they are now.

        Args:
            standing: paths of further modules that may not be replaced by others.
        Raises:
            CutError: they are not; says what has changed.
        """
        modules = dict(model.named_modules(remove_duplicate=False))
        for path in self.modules:
            if path not in modules:
                raise changed(model, f"'{path}' is gone")
        now = _described(model, self.modules)
        items, contents = list[_Item](), list[_Content]()
        for path, words in self.modules.items():
            if difference := _difference(path, words, now[path]):
                raise changed(model, difference)
            own = modules[path].__dict__
            names = words.keys() - _FORM
            dicts = (*_HOOKS, "_modules", "_parameters", "_buffers")
            items += [(own, name, own.get(name, _ABSENT)) for name in (*dicts, *names)]
            contents += [(own[name], dict(own[name])) for name in (*_HOOKS, "_modules")]
            held = [own.get(name) for name in names]
            contents += [(value, deepcopy(value)) for value in held if _is_small(value)]
        for path in standing:
            up, _, leaf = path.rpartition(".")
            items.append((vars(modules[up])["_modules"], leaf, modules[path]))
        return Identities(items, contents, [modules[p] for p in {*self.modules, *standing}])


def _described(model: nn.Module, names: Mapping[str, Iterable[str]]) -> dict[str, Words]:
    modules = dict(model.named_modules(remove_duplicate=False))
    codes = {kind: _code(kind) for kind in {type(modules[path]) for path in names}}
    return {
        path: _words(modules[path], sorted({*own} - _FORM), codes[type(modules[path])])
        for path, own in names.items()
    }


def _is_small(value: object) -> bool:
    """Whether it can be filled otherwise and stay the same object, and a copy of it is cheap."""
    may_change = isinstance(value, list | dict | set) and len(value) <= _MANY
    return may_change and _is_plain(value, _DEEP)


def _is_plain(value: object, deep: int) -> bool:
    """Whether it is made of plain values alone, which can be compared."""
    if isinstance(value, dict | list | tuple | set):
        parts = value.values() if isinstance(value, dict) else value
        return deep > 0 and all(_is_plain(part, deep - 1) for part in parts)
    return value is None or isinstance(value, bool | int | float | str)


def _words(module: nn.Module, names: Iterable[str], code: str) -> Words:
    own = vars(module)
    found = {_CLASS: type(module).__qualname__, _CODE: code}
    for label in _HOOKS:
        if hooks := hooks_of(module, label):
            found[label] = ", ".join(map(hook_name, hooks))
    found[_CHILDREN] = " ".join(n for n, child in own["_modules"].items() if child is not None)
    for name in names:
        value = own.get(name, _ABSENT)
        while isinstance(value, StandIn):  # ours, which change no number
            value = _ABSENT if value.shadowed is None else value.shadowed
        found[name] = "" if value is _ABSENT else _in_words(value, _DEEP)
    return found


def _code(kind: type) -> str:
    """A hash of the code of a class's functions, with those it inherits from other than torch."""
    own = [c for c in kind.__mro__ if c not in nn.Module.__mro__]
    texts = (f"{name} {content(vars(c)[name])}" for c in own for name in sorted(vars(c)))
    return xxhash.xxh3_128_hexdigest("\n".join(t for t in texts if " code " in t).encode())


def _in_words(value: Any, deep: int) -> str:
    match value:
        case Tensor() if value.requires_grad or deep < _DEEP:
            return "a tensor"  # one that is trained, or hangs on such
        case nn.Module():
            return a_type(value)
        case dict() | list() | tuple() | set() if len(value) > _MANY or not deep:
            return f"{len(value)} entries"
        case dict():
            parts = (f"{key}: {_in_words(part, deep - 1)}" for key, part in value.items())
            return f"{{{', '.join(parts)}}}"
        case list() | tuple() | set():
            return f"({', '.join(_in_words(part, deep - 1) for part in value)})"
        case partial():
            return f"partial {_in_words((value.func, value.args, value.keywords), deep - 1)}"
    return content(value) or hook_name(value)


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
        if label == _CLASS:
            return f"{where} is a {is_now}, and was a {was}"
        if label == MODE:
            mode = "training" if is_now == str(True) else "evaluation"
            return (
                f"{where} is in {mode} mode, other than it was in this mode of the model "
                "(model.train() or model.eval() sets all; fl.freeze holds a part in evaluation)"
            )
        if label in _HOOKS:
            word = label.strip("_").replace("_", " ")
            return f"{where} has {is_now or 'none'} for {word}, and had {was or 'none'}"
        if label in (_CODE, "forward"):
            return f"{where} has another forward"
        if label == _CHILDREN:
            return f"{where} has other modules in it"
        if not was or not is_now or max(len(was), len(is_now)) > _SHORT:
            return f"{where} has another {label}"
        return f"{where} has {label} = {is_now}, and had {was}"
    return ""


def changed(model: nn.Module, what: str) -> CutError:
    """The error that says what of the model is not as it was cut."""
    return CutError(
        f"this {type(model).__name__} is not what was cut any more: {what}. Cut it again: "
        "fl.cut(model, example)."
    )


@final
class Reads(dict[str, set[str]]):
    """Path of a module -> names of its attributes that were read, and not set.

    Attributes:
        sets_modes: whether a module was put in training or evaluation mode meanwhile.
        counted: attributes with a number that were read, and set to another one; by full names,
            with their modules.
    """

    sets_modes = False
    counted: dict[str, nn.Module]

    def is_same_in(self, before: Structure, model: nn.Module) -> bool:
        """Whether what was read is now what it was `before`, so that the forward is the same."""
        return not self.sets_modes and Structure.of(model, self) == before


def _is_other_number(before: object, now: object) -> bool:
    return type(before) in (int, float) and type(now) in (int, float) and before != now


@contextmanager
def reads_recorded(model: nn.Module, *, until: Sequence[object] = ()) -> Iterator[Reads]:
    """The attributes of modules that the block reads.

    For a module under several paths, under each. What a forward sets is its own business: a
    counter, a cache, the attention it saw last.

    Args:
        until: once there is something in it, nothing more is recorded.
    """
    # By its dict: torch.export (2.15) calls other objects with the same dicts in place of modules
    # where a model has one under two paths.
    read = {id(vars(module)): set[str]() for module in model.modules()}
    # With what was there before.
    written = {id(vars(module)): dict[str, object]() for module in model.modules()}
    found, others, further = Reads(), set[str](), dict[str, object]()

    def recording_get(self: nn.Module, name: str) -> Any:
        if not until:
            read.get(id(get(self, "__dict__")), others).add(name)
        return get(self, name)

    def recording_put(self: nn.Module, name: str, value: Any) -> None:
        own = get(self, "__dict__")
        written.get(id(own), further).setdefault(name, own.get(name))
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
            found.counted = {}
            for path, module in model.named_modules(remove_duplicate=False):
                own = written.get(id(vars(module)), {})
                seen = read.get(id(vars(module)), set())
                found[path] = seen - own.keys()
                found.sets_modes |= MODE in own
                found.counted |= {
                    f"{path}.{name}".removeprefix("."): module
                    for name, before in own.items()
                    if name in seen and _is_other_number(before, vars(module).get(name))
                }
