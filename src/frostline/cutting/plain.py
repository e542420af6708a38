"""A line as plain data, and back: JSON and tensors, so that nothing read from disk can run code.

What a file names is operators of torch, a few functions of arithmetic and our own checks; names
that become code are held against a pattern. A line with anything else in it has no such form.
"""

from __future__ import annotations

import builtins
import math
import operator
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from frostline.cutting import effects
from frostline.cutting.checking import Checked, Refusal
from frostline.cutting.drawing import Drawn, FrontierValue
from frostline.cutting.graphs import OpenGraph, Ref, Rows, TensorPlace
from frostline.cutting.lengths import OwnLength, Straight, straight
from frostline.cutting.regions import Region
from frostline.cutting.structures import Rebuild, plain_rebuild, rebuild_of
from frostline.cutting.watching import Structure
from frostline.fingerprints import Fingerprint

_OPERATOR: Final = re.compile(r"torch\.ops\.(aten|prims|torchvision)\.\w+\.\w+")
_TENSOR: Final = re.compile(r"[\w.]+")
_ARITHMETIC: Final = (
    *("getitem", "add", "sub", "mul", "truediv", "floordiv", "mod", "neg", "pow"),
    *("eq", "ne", "lt", "le", "gt", "ge"),
)
_FUNCTIONS: Final[Mapping[str, Callable[..., Any]]] = {
    **{f"operator.{name}": getattr(operator, name) for name in _ARITHMETIC},
    **{f"math.{name}": getattr(math, name) for name in ("ceil", "floor", "trunc", "sqrt")},
    **{
        f"torch.{name}": getattr(torch, name)
        for name in ("sym_float", "sym_int", "sym_max", "sym_min", "sym_not")
    },
    **{
        f"effects.{check.__name__}": check
        for check in (
            effects.check_batch_norm,
            effects.check_instance_norm,
            effects.check_group_norm,
        )
    },
}
_NAMES: Final = {function: name for name, function in _FUNCTIONS.items()}
_SINGLE: Final = (torch.dtype, torch.memory_format, torch.layout)
_DENSE: Final = (Tensor, nn.Parameter, nn.Buffer)


class NotPlainError(Exception):
    """Something in a line has no plain form, or what was read is none."""


@final
@dataclass(frozen=True, slots=True)
class PlainLine:
    """A line that was drawn and checked.

    Attributes:
        data: what JSON can hold.
        tensors: constants of its graphs.
    """

    data: Any
    tensors: Mapping[str, Tensor]


def to_plain(drawn: Drawn, seen: Checked) -> PlainLine:
    """The plain form.

    Raises:
        NotPlainError: there is none.
    """
    tensors: dict[str, Tensor] = {}
    graphs = {"prefix": drawn.prefix, "train": drawn.training[0], "eval": drawn.evaluation[0]}
    prefix, key = drawn.key["prefix"], drawn.key["tensors"]
    if not isinstance(key, Fingerprint):
        raise NotPlainError("a key without the digests of its tensors")
    data = {
        "graphs": {name: _plain_graph(name, graph, tensors) for name, graph in graphs.items()},
        "outputs": [_plain_output(rebuild) for _, rebuild in (drawn.training, drawn.evaluation)],
        "frontier": [_plain_value(value) for value in drawn.frontier],
        "why": drawn.why,
        "share": drawn.share,
        "prefix": prefix,
        "digests": dict(key.tensors),
        "varying": list(drawn.varying),
        "error": seen.error,
        "structures": [
            {path: dict(words) for path, words in seen.structures[mode].modules.items()}
            for mode in (True, False)
        ],
        "refusals": [_plain_refusal(seen.refusals.get(mode)) for mode in (True, False)],
    }
    return PlainLine(data, tensors)


def of_plain(line: PlainLine) -> tuple[Drawn, Checked]:
    """What `to_plain` was given.

    Raises:
        NotPlainError: it is not what that gives.
    """
    data = line.data
    try:
        graphs = {
            name: _graph(name, data["graphs"][name], line.tensors)
            for name in ("prefix", "train", "eval")
        }
        training, evaluation = map(_output, data["outputs"])
        drawn = Drawn(
            graphs["prefix"],
            (graphs["train"], training),
            (graphs["eval"], evaluation),
            tuple(map(_value, data["frontier"])),
            str(data["why"]),
            float(data["share"]),
            {"prefix": str(data["prefix"]), "tensors": Fingerprint(data["digests"])},
            tuple(map(int, data["varying"])),
        )
        structures = dict(zip((True, False), map(Structure, data["structures"]), strict=True))
        refusals = zip((True, False), map(_refusal, data["refusals"]), strict=True)
        known = {mode: refusal for mode, refusal in refusals if refusal is not None}
        return drawn, Checked(float(data["error"]), structures, known)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise NotPlainError(f"no line: {error}") from error


def _plain_graph(name: str, graph: OpenGraph, tensors: dict[str, Tensor]) -> Any:
    rows = []
    for op, called, target, args, kwargs, form, regions in graph.rows:
        shape = None if form is None else [list(form.shape), _plain(form.dtype)]
        told = _plain_target(op, target)
        rows.append([op, called, told, _plain(args), _plain(kwargs), shape, _plain(regions)])
    for held, value in graph.values.items():
        if type(value) not in _DENSE or value.layout != torch.strided:
            raise NotPlainError(f"{held} is no plain tensor")
        if not value.is_contiguous() or not _TENSOR.fullmatch(held):
            raise NotPlainError(f"{held} has gaps")
        # Apart, since safetensors refuses tensors that share memory.
        tensors[f"{name} {held}"] = value.detach().cpu().clone()
    devices = {held: str(value.device) for held, value in graph.values.items()}
    places = [
        [p.name, p.kind, list(p.shape), _plain(p.dtype), str(p.device), list(p.ties)]
        for p in graph.places
    ]
    return {"rows": rows, "devices": devices, "places": places, "entered": sorted(graph.entered)}


def _graph(name: str, data: Any, tensors: Mapping[str, Tensor]) -> OpenGraph:
    rows: Rows = []
    for op, called, told, args, kwargs, shape, regions in data["rows"]:
        form = shape and torch.empty(shape[0], dtype=_read(shape[1]), device="meta")
        target = _target(op, told)
        if not _TENSOR.fullmatch(called):
            raise NotPlainError(f"{called!r} is no name of a node")
        read = _read(args), _read(kwargs)
        rows.append((op, called, target, *read, form, _read(regions)))
    places = [
        TensorPlace(held, kind, torch.Size(shape), _read(dtype), torch.device(device), tuple(ties))
        for held, kind, shape, dtype, device, ties in data["places"]
    ]
    if any(place.kind not in ("_parameters", "_buffers", "__dict__") for place in places):
        raise NotPlainError("a tensor in no dict of a module")
    values = {
        held: tensors[f"{name} {held}"].to(device) for held, device in data["devices"].items()
    }
    return OpenGraph(rows, values, places, frozenset(data["entered"]))


def _plain_target(op: str, target: Any) -> Any:
    if isinstance(target, str):
        told = target
    elif target in _NAMES:
        told = f"={_NAMES[target]}"
    else:
        raise NotPlainError(f"{target} is a function of someone's own")
    _target(op, told)
    return told


def _target(op: str, told: str) -> Any:
    if op == "call_function":
        if told.startswith("="):
            return _FUNCTIONS[told[1:]]
        if _OPERATOR.fullmatch(told):
            return told
    elif op in ("placeholder", "output", "get_attr") and _TENSOR.fullmatch(told):
        return told
    raise NotPlainError(f"{op} of {told!r}")


def _plain(value: Any) -> Any:
    """An argument of an operation; each kind that JSON lacks is an object of one entry."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Ref():
            return {"node": value.place}
        case torch.device():
            return {"device": str(value)}
        case torch.dtype() | torch.memory_format() | torch.layout():
            return {"torch": str(value).removeprefix("torch.")}
        case slice():
            return {"slice": [_plain(p) for p in (value.start, value.stop, value.step)]}
        case Region():
            return {"region": [value.kind, _plain(value.settings), value.number]}
        case tuple():
            return {"tuple": [_plain(part) for part in value]}
        case list():
            return [_plain(part) for part in value]
        case dict():
            return {"dict": [[_plain(key), _plain(part)] for key, part in value.items()]}
    raise NotPlainError(f"{type(value).__name__} in the arguments of an operation")


def _read(told: Any) -> Any:
    if isinstance(told, list):
        return [_read(part) for part in told]
    if not isinstance(told, dict):
        return told
    ((kind, value),) = told.items()
    match kind:
        case "node":
            return Ref(int(value))
        case "device":
            return torch.device(value)
        case "torch":
            found = getattr(torch, value)
            if isinstance(found, _SINGLE):
                return found
        case "slice":
            return slice(*map(_read, value))
        case "region":
            return Region(str(value[0]), _read(value[1]), int(value[2]))
        case "tuple":
            return tuple(map(_read, value))
        case "dict":
            return {_read(key): _read(part) for key, part in value}
    raise NotPlainError(f"{kind} {value!r}")


def _plain_value(value: FrontierValue) -> Any:
    lengths: list[Any] = []
    for length in value.lengths:
        found = length and straight(length)
        if length is not None and found is None:
            raise NotPlainError(f"a size of {value.name} that follows its input in a curve")
        lengths.append(found and [found.factor, found.offset, found.symbol, found.number])
    dtype = _plain(value.dtype)
    return [value.name, list(value.shape), dtype, value.nbytes, lengths]


def _value(told: Any) -> FrontierValue:
    name, shape, dtype, nbytes, lengths = told
    own = tuple(
        each and OwnLength(line := Straight(*each), ((line.symbol, line.number),))
        for each in lengths
    )
    return FrontierValue(str(name), tuple(shape), _read(dtype), int(nbytes), own)


def _plain_output(rebuild: Rebuild) -> Any:
    try:
        return plain_rebuild(rebuild)
    except ValueError as error:
        raise NotPlainError(str(error)) from error


def _output(told: Any) -> Rebuild:
    return rebuild_of(told, _class_of_output)


def _class_of_output(name: str) -> type:
    """A class of outputs of transformers, where that is loaded: the model is one of its own."""
    module, _, called = name.rpartition(".")
    found: Any = getattr(sys.modules.get(module), called, None)
    is_class = module.startswith("transformers.") and isinstance(found, type)
    if not (is_class and issubclass(found, Mapping)):
        raise NotPlainError(f"{name} is no class of outputs of transformers")
    kind: type = found
    return kind


def _plain_refusal(refusal: Refusal | None) -> Any:
    if refusal is None:
        return None
    if not isinstance(refusal, partial):
        raise NotPlainError("an error of someone's own")
    return [refusal.func.__name__, *refusal.args]


def _refusal(told: Any) -> Refusal | None:
    if told is None:
        return None
    name, message = told
    kind = getattr(builtins, name)
    if not (isinstance(kind, type) and issubclass(kind, Exception)):
        raise NotPlainError(f"{name} is no error")
    return partial(kind, str(message))
