"""What a module computes with that is neither parameter nor buffer, as far as it can be seen.

Three kinds. *Saved*: what its class itself adds to a state dict, as `get_extra_state` and the
packed weights of quantised layers; it is state by its own word. *Loose*: tensors that are plain
attributes, also within lists, dicts, partials and closures; some are state, some are what a
forward puts aside. *Unseen*: what may hold numbers and does not show them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import CellType, FunctionType
from typing import Any, final

import torch
from torch import Tensor, nn

_TORCHS = frozenset(nn.Module().__dict__) | {"_flat_weights", "train", "register_buffer"}
_DEEPEST = 6  # levels of containers


@final
@dataclass(frozen=True, slots=True)
class Unlisted:
    """What of one module is in no list of torch, by full names.

    Attributes:
        saved: text and numbers of it as tensors too.
        loose: tensors, none of which is a view of a listed one.
        unseen: names, with the reason.
    """

    saved: Mapping[str, Tensor]
    loose: Mapping[str, Tensor]
    unseen: tuple[str, ...]


def unlisted(module: nn.Module, path: str, listed: Collection[int]) -> Unlisted:
    """Look through the own attributes of the module at `path`; it is not changed.

    Args:
        listed: `storage_of` each parameter and buffer of the model.
    """
    prefix = f"{path}." if path else ""
    saved: dict[str, Tensor] = {}
    loose: dict[str, Tensor] = {}
    unseen: dict[str, None] = {}
    says_itself = False
    try:
        own = _saved(module)
    except Exception as error:  # whatever a class of a stranger's does there
        unseen[f"{prefix}its saved state ({type(error).__name__})"] = None
    else:
        says_itself = own is not None
        for name, value in _leaves_of(own or {}, prefix):
            if (numbers := _as_tensor(value)) is not None:
                saved[name] = numbers
            else:
                unseen[f"{name} ({type(value).__name__})"] = None
    attributes = {n: v for n, v in module.__dict__.items() if _is_own(module, n)}
    for name, value in _leaves_of(attributes, prefix):
        if isinstance(value, Tensor):
            if storage_of(value) not in listed:
                loose[name] = value
        elif _holds_tensors(value) and not (says_itself and isinstance(value, torch.ScriptObject)):
            unseen[f"{name} ({type(value).__name__})"] = None
    return Unlisted(saved, loose, tuple(unseen))


def saved_state(modules: Mapping[str, nn.Module], frozen: Collection[int]) -> dict[str, Tensor]:
    """By full names, what classes save of their own in such parts, held or not."""
    listed = listed_storages(modules[""])
    return {
        name: tensor
        for path, module in modules.items()
        for name, tensor in unlisted(module, path, listed).saved.items()
        if belongs(modules, path, frozen)
    }


def belongs(modules: Mapping[str, nn.Module], path: str, frozen: Collection[int]) -> bool:
    """Whether all parameters are among `frozen` of the nearest module around that has any."""
    while path and next(modules[path].parameters(), None) is None:
        path = path.rpartition(".")[0]
    return all(id(parameter) in frozen for parameter in modules[path].parameters())


def listed_storages(model: nn.Module) -> set[int]:
    """`storage_of` each parameter and buffer of the model."""
    return {storage_of(t) for own in (model.parameters(), model.buffers()) for t in own}


def storage_of(tensor: Tensor) -> int:
    """Tells storages apart; the tensor itself where it has none."""
    try:
        return tensor.untyped_storage().data_ptr() or id(tensor)
    except (RuntimeError, NotImplementedError):  # sparse, wrapped or without data
        return id(tensor)


def _saved(module: nn.Module) -> dict[str, Any] | None:
    """What the module's class adds to its state dict; None where it has torch's methods."""
    kind = type(module)
    if (
        kind.get_extra_state is nn.Module.get_extra_state
        and kind._save_to_state_dict is nn.Module._save_to_state_dict
    ):
        return None
    found: dict[str, Any] = {}
    module._save_to_state_dict(found, "", True)
    return {n: v for n, v in found.items() if n not in {*module._parameters, *module._buffers}}


def _is_own(module: nn.Module, name: str) -> bool:
    """Whether an attribute is neither torch's, nor ours, nor made anew from parameters."""
    parts = set(module._parameters.keys())  # of TorchScript a list
    is_derived = f"{name}_orig" in parts or {f"{name}_g", f"{name}_v"} <= parts
    return name not in _TORCHS and not name.startswith("_frostline") and not is_derived


def _leaves_of(own: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    seen: set[int] = set()
    return (pair for name, value in own.items() for pair in _leaves(value, prefix + name, seen, 1))


def _leaves(value: Any, name: str, seen: set[int], depth: int) -> Iterator[tuple[str, Any]]:
    """What lies at the ends of containers, each object once."""
    inner: dict[str, Any] | None = None
    if isinstance(value, dict):
        inner = {f"{name}[{k!r}]": v for k, v in value.items()}
    elif isinstance(value, list | tuple):
        inner = {f"{name}[{i}]": v for i, v in enumerate(value)}
    elif isinstance(value, partial):
        inner = {f"{name}({k})": v for k, v in {**value.keywords, "": value.args}.items()}
        inner[name] = value.func
    elif isinstance(value, FunctionType):
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        inner = {f"{name}({n})": cell_content(cell) for n, cell in cells}
    if inner is None:
        yield name, value
    elif id(value) not in seen and depth < _DEEPEST:
        seen.add(id(value))
        for within, one in inner.items():
            yield from _leaves(one, within, seen, depth + 1)


def cell_content(cell: CellType) -> Any:
    """What a function's closure holds there; None where nothing is in it yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _holds_tensors(value: Any) -> bool:
    """Whether something that is no tensor, container or module shows that it has tensors."""
    if isinstance(value, torch.ScriptObject):
        return True
    if isinstance(value, nn.Module | type):
        return False
    return any(isinstance(one, Tensor) for one in getattr(value, "__dict__", {}).values())


def _as_tensor(value: Any) -> Tensor | None:
    """Its bits as a tensor, so that they are hashed and compared like any other."""
    if isinstance(value, Tensor):
        return value
    if hasattr(value, "getvalue"):  # io.BytesIO, in which some libraries keep it
        value = value.getvalue()
    if value is None or isinstance(value, bool | str | bytes | torch.dtype):
        return torch.tensor(list(value if isinstance(value, bytes) else repr(value).encode()))
    if isinstance(value, int | float):
        return torch.tensor(value, dtype=torch.float64)
    return None
