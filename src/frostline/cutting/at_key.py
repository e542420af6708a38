"""What the key of a user's own split says of the model: its tensors, its modules and their code.

No graph tells what the forward up to the named submodule reads, so all of the model counts that
its numbers may depend on. A change above the line may then cost computing anew; rows of another
forward are never taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

from frostline.fingerprints import digest, fingerprint_of


def at_key(model: nn.Module, path: str) -> dict[str, str]:
    """The key of a cut behind the submodule `path`; equal for equal models in any process.

    Counted are frozen parameters, all buffers, how the modules print, their attributes that are
    numbers, text or tensors, and the code of their classes as it runs. Trainable parameters do
    not count, nor do functions elsewhere that the forward calls.
    """
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    held = {**frozen, **dict(model.named_buffers())}
    modules = xxhash.xxh3_128_hexdigest("\n".join(_lines(model)).encode())
    return {
        "prefix": f"{type(model).__qualname__} up to {path}, modules {modules}",
        "tensors": str(fingerprint_of(held)),
    }


def _lines(model: nn.Module) -> Iterator[str]:
    yield repr(model)
    classes: dict[type, None] = {}
    for path, module in model.named_modules():
        yield f"{path}: {type(module).__qualname__}"
        yield from _attributes(vars(module))
        classes |= dict.fromkeys(c for c in type(module).__mro__ if c not in nn.Module.__mro__)
    for of in classes:
        yield f"class {of.__qualname__}"
        yield from _attributes(dict(vars(of)))


def _attributes(owner: dict[str, Any]) -> Iterator[str]:
    """Functions under any name; the rest only if public, since torch keeps its own there."""
    for name in sorted(owner):
        text = _text(owner[name], set())
        if text and (not name.startswith("_") or text.startswith("code ")):
            yield f"{name} {text}"


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
