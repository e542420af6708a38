"""What the key of a user's own split says of the model: its tensors, its modules and their code.

No graph tells what the forward up to the named submodule reads, so all of the model counts that
its numbers may depend on. A change above the line may then cost computing anew; rows of another
forward are never taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any, final

import torch
import xxhash
from torch import Tensor, nn

from frostline.fingerprints import digest, fingerprint_of
from frostline.freezing.modes import is_held


@final
@dataclass(frozen=True, slots=True)
class At:
    """Where a user's own split runs.

    Attributes:
        path: of the submodule.
        passing: attributes and buffers that each forward leaves behind anew, as a counter or the
            attention last seen; they do not count.
    """

    path: str
    passing: frozenset[str]


def at_line(model: nn.Module, path: str, forward: Callable[[], object]) -> At:
    """The split behind `path`; `forward` runs the model on another batch than it saw last."""
    before = {**dict(_lines(model)), **_digests(model)}
    forward()
    after = {**dict(_lines(model)), **_digests(model)}
    names = before.keys() | after.keys()
    return At(path, frozenset(n for n in names if before.get(n) != after.get(n)))


def at_key(model: nn.Module, at: At) -> dict[str, str]:
    """The key of a cut at a line; equal for equal models in any process.

    Counted are frozen parameters, all buffers, how the modules print, their attributes that are
    numbers, text or tensors, and the code of their classes as it runs. Trainable parameters do
    not count, nor do functions elsewhere that the forward calls. The tensors' part tells each
    tensor's digest by its name.
    """
    lines = "\n".join(f"{n} {text}" for n, text in _lines(model) if n not in at.passing)
    modules = xxhash.xxh3_128_hexdigest(lines.encode())
    held = {name: tensor for name, tensor in _tensors(model) if name not in at.passing}
    return {
        "prefix": f"{type(model).__qualname__} up to {at.path}, modules {modules}",
        "tensors": fingerprint_of(held),
    }


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from ((name, p) for name, p in model.named_parameters() if not p.requires_grad)
    yield from model.named_buffers()


def _digests(model: nn.Module) -> dict[str, str]:
    """Of buffers alone: a forward that wrote into a frozen parameter is not to be followed."""
    return {name: digest(buffer, name=name) for name, buffer in model.named_buffers()}


def _lines(model: nn.Module) -> Iterator[tuple[str, str]]:
    yield "", repr(model)
    classes: dict[type, None] = {}
    for path, module in model.named_modules():
        yield f"{path}:", type(module).__qualname__
        # In any mode the key is that of train mode, where only what is held stays in eval.
        own = {**vars(module), "training": not is_held(module)}
        yield from ((f"{path}: {name}", text) for name, text in _attributes(own))
        classes |= dict.fromkeys(c for c in type(module).__mro__ if c not in nn.Module.__mro__)
    for of in classes:
        for name, text in _attributes(dict(vars(of))):
            yield f"class {of.__qualname__} {name}", text


def _attributes(owner: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Functions under any name; the rest only if public, since torch keeps its own there."""
    for name in sorted(owner):
        text = _text(owner[name], set())
        if text and (not name.startswith("_") or text.startswith("code ")):
            yield name, text


def content(value: object) -> str:
    """A text that is equal for values of equal content, code included; empty where none is told."""
    return _text(value, set())


def _text(value: Any, seen: set[int]) -> str:
    """The content of what has a content to tell it by; empty for other objects."""
    match value:
        case None | bool() | int() | float() | complex() | str() | bytes() | torch.dtype():
            return repr(value)
        case tuple() | list():
            return f"[{', '.join(_text(part, seen) for part in value)}]"
        case frozenset():
            return f"{{{', '.join(sorted(_text(part, seen) for part in value))}}}"
        case Tensor() if value.layout == torch.strided and not value.is_meta:
            return digest(value)
        case property():
            return _text(value.fget, seen)
        case staticmethod() | classmethod() | MethodType():
            return _text(value.__func__, seen)
        case FunctionType() if id(value) not in seen:
            seen.add(id(value))
            cells = tuple(map(_held, value.__closure__ or ()))
            return f"{_code(value.__code__)} {_text((value.__defaults__, cells), seen)}"
        case CodeType():
            return _code(value)
    return ""


def _held(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _code(code: CodeType) -> str:
    return f"code {code.co_code.hex()} {code.co_names} {_text(code.co_consts, set())}"
