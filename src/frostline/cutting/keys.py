"""The key of a user's own split, and whether a cut of any kind is still one of its model.

No graph tells what the forward up to a named submodule reads, so all of the model counts that
its numbers may depend on: its tensors, its modules and their code. A change above the line may
then cost computing anew; rows of another forward are never taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from types import CodeType, FunctionType, MethodType
from typing import Any, Final, final

import torch
import xxhash
from torch import Tensor, nn

from frostline.backward.entering import Enter, Leave
from frostline.errors import CutError
from frostline.fingerprints import Fingerprint, digest, fingerprint_of
from frostline.fingerprints.unlisted import cell_content
from frostline.freezing.modes import is_held
from frostline.sharding import own_class, precisions
from frostline.units import some_of
from frostline.wrappers import reshard, units

OF_MODULES: Final = frozenset(vars(nn.Module())) - {"training"}
"""Attributes that torch gives each module."""

_MARKS: Final = ("_frostline", "_fsdp_", "_is_fsdp_")  # left by us and by `fully_shard`


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
    before = _content_now(model)
    forward()
    after = _content_now(model)
    names = before.keys() | after.keys()
    return At(path, frozenset(n for n in names if before.get(n) != after.get(n)))


def at_key(model: nn.Module, at: At) -> dict[str, str]:
    """The key of a cut at a line; equal for equal models in any process.

    Counted are frozen parameters, all buffers, how the modules print, their attributes that are
    numbers, text or tensors, the code of their classes and hooks as it runs, and what hooks hold.
    Trainable parameters do not count, nor do functions elsewhere that the forward calls. The
    tensors' part tells each tensor's digest by its name.
    """
    reshard(model)
    lines = "\n".join(f"{n} {text}" for n, text in _lines(model) if n not in at.passing)
    modules = xxhash.xxh3_128_hexdigest(lines.encode())
    frozen = ((name, p) for name, p in model.named_parameters() if not p.requires_grad)
    tensors = chain(frozen, model.named_buffers())
    held = {name: tensor for name, tensor in tensors if name not in at.passing}
    return {
        "prefix": f"{own_class(model).__qualname__} up to {at.path}, modules {modules}",
        "tensors": fingerprint_of(held),
    }


def check_current(
    model: nn.Module, line: Sequence[tuple[str, Tensor]] | At, key: Mapping[str, str]
) -> None:
    """Make sure that what a prefix computes now belongs under the key of its cut.

    Args:
        line: the tensors that the prefix reads, as the model has them now, or where it ends in it.
    Raises:
        CutError: as `Cut.check_current`.
    """
    known = _tensors_of(key)
    if isinstance(line, At):
        now = at_key(model, line)
        digests = _tensors_of(now)
        wanted = {name for name, p in model.named_parameters() if p.requires_grad}
        trainable = [name for name in known if name in wanted]
        changed = [n for n in known if n not in wanted and digests.get(n) != known[n]]
        if now["prefix"] != key["prefix"]:
            changed.append("its modules, their attributes or their code")
    else:
        trainable = [name for name, tensor in line if tensor.requires_grad]
        changed = [
            name
            for (name, tensor), digested in zip(line, known.values(), strict=True)
            if not tensor.requires_grad and digest(tensor, name=name) != digested
        ]
    reasons = "; ".join(
        f"{some_of(names, most=3)} {'is' if len(names) == 1 else 'are'} {what}"
        for names, what in ((trainable, "trainable now"), (changed, "changed since"))
        if names
    )
    if reasons:
        raise CutError(
            f"the frozen part of this {type(model).__name__} is not what was cut: {reasons}. What "
            "it computes now does not belong to what was kept; cut again: fl.cut(model, example)."
        )


def _tensors_of(key: Mapping[str, str]) -> Mapping[str, str]:
    found = key["tensors"]
    assert isinstance(found, Fingerprint)
    return found.tensors


def _content_now(model: nn.Module) -> dict[str, str]:
    """Of tensors, buffers alone: a forward that wrote into a parameter is not to be followed."""
    digests = {name: digest(buffer, name=name) for name, buffer in model.named_buffers()}
    return dict(_lines(model)) | digests


def _lines(model: nn.Module) -> Iterator[tuple[str, str]]:
    # As of the model that it was before it was sharded, but for what changes its numbers.
    yield "", _printed(model)
    yield from ((f"{path}: computed in", text) for path, text in precisions(model).items())
    classes: dict[type, None] = {}
    for path, module in model.named_modules():
        kind = own_class(module)
        yield f"{path}:", kind.__qualname__
        # In any mode the key is that of train mode, where only what is held stays in eval.
        own = {
            name: value
            for name, value in vars(module).items()
            if name not in OF_MODULES and not name.startswith(_MARKS)
        }
        own["training"] = not is_held(module)
        yield from ((f"{path}: {name}", text) for name, text in _attributes(own))
        classes |= dict.fromkeys(c for c in kind.__mro__ if c not in nn.Module.__mro__)
        for hook, where in _hooks_of_users(module):
            # Apart, since what it holds may be a list that each forward makes longer.
            yield f"{path}: {where}", hook_name(hook)
            yield f"{path}: {where} holds", _held_by(hook)
            code = getattr(hook, "__func__", hook)
            if isinstance(code, FunctionType):
                yield f"{path}: {where} does", _code(code.__code__)
            else:
                classes[type(hook)] = None
    for of in classes:
        for name, text in _attributes(dict(vars(of))):
            yield f"class {of.__qualname__} {name}", text


def hooks_of(module: nn.Module, label: str) -> list[object]:
    """The hooks of a module in one of torch's dicts, but for those of `fl.lean`.

    Those change no number.
    """
    return [hook for hook in vars(module)[label].values() if not isinstance(hook, Enter | Leave)]


def hook_name(hook: object) -> str:
    """Its name, or its class's."""
    return str(getattr(hook, "__qualname__", type(hook).__qualname__))


def _hooks_of_users(module: nn.Module) -> Iterator[tuple[object, str]]:
    """What changes inputs and outputs of a module, with the place of each."""
    for label in ("_forward_pre_hooks", "_forward_hooks"):
        hooks = [h for h in hooks_of(module, label) if not _is_of_sharding(h)]
        yield from ((hook, f"{label} {place}") for place, hook in enumerate(hooks))


def _is_of_sharding(hook: object) -> bool:
    """Whether it gathers and frees what `fully_shard` divided, which changes no number."""
    return str(getattr(hook, "__module__", "")).startswith("torch.distributed")


def _held_by(hook: object) -> str:
    owner = getattr(hook, "__self__", hook)  # of a method
    if isinstance(owner, FunctionType):
        return content((owner.__defaults__, tuple(map(cell_content, owner.__closure__ or ()))))
    if isinstance(owner, partial):
        return content(owner)
    own = {} if isinstance(owner, nn.Module) else getattr(owner, "__dict__", {})
    return " ".join(f"{name} {text}" for name, text in _attributes(own))


def _printed(model: nn.Module) -> str:
    text = repr(model)
    for name, own in {(type(m).__name__, own_class(m).__name__) for m in units(model)}:
        text = text.replace(f"{name}(", f"{own}(")
    return text


def _attributes(owner: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Functions under any name; of the rest nothing that Python itself puts there."""
    for name in sorted(owner):
        text = content(owner[name])
        if text and (not name.startswith("__") or text.startswith("code ")):
            yield name, text


def content(value: Any, seen: set[int] | None = None) -> str:
    """A text that is equal for values of equal content, code included; empty for other objects.

    Args:
        seen: functions that were read before, which do not count again.
    """
    seen = set() if seen is None else seen
    match value:
        case None | bool() | int() | float() | complex() | str() | bytes() | torch.dtype():
            return repr(value)
        case tuple() | list():
            return f"[{', '.join(content(part, seen) for part in value)}]"
        case dict():
            pairs = (f"{key!r}: {content(part, seen)}" for key, part in value.items())
            return f"{{{', '.join(pairs)}}}"
        case partial():
            return f"partial {content((value.func, value.args, value.keywords), seen)}"
        case set() | frozenset():
            return f"{{{', '.join(sorted(content(part, seen) for part in value))}}}"
        case Tensor() if value.layout == torch.strided and not value.is_meta:
            return digest(value)
        case property():
            return content(value.fget, seen)
        case staticmethod() | classmethod() | MethodType():
            return content(value.__func__, seen)
        case FunctionType() if id(value) not in seen:
            seen.add(id(value))
            cells = tuple(map(cell_content, value.__closure__ or ()))
            return f"{_code(value.__code__)} {content((value.__defaults__, cells), seen)}"
        case CodeType():
            return _code(value)
    return ""


def _code(code: CodeType) -> str:
    return f"code {code.co_code.hex()} {code.co_names} {content(code.co_consts)}"
