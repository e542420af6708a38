"""Weights from a file into a model: all fit, or nothing changes and the misfits are named."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import filterfalse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from frostline._files import file_digest
from frostline.errors import ModelError, WeightsError, nearest
from frostline.models.state_files import read_state_dict
from frostline.units import format_count

# Names in published torchvision files that its models have since changed.
_RENAMED = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\."), r"\1\2."),
    (re.compile(r"\.mlp\.linear_1\."), ".mlp.0."),
    (re.compile(r"\.mlp\.linear_2\."), ".mlp.3."),
)
_COUNTER = "num_batches_tracked"
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class WeightsReport:
    """What was loaded. `str()` is one line.

    Attributes:
        source: the file's name, the published entry, `none`, or the function that made them.
        loaded: number of tensors taken over.
        missing: names in the model for which the file had nothing, and which may be missing.
        ignored: names in the file that were not taken over, and need not be.
        digest: xxh3_128 of the file's content, hexadecimal; empty where there was no file.
    """

    source: str
    loaded: int
    missing: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    digest: str = ""

    @classmethod
    def none(cls) -> WeightsReport:
        """No weights were loaded; the values are random."""
        return cls(source="none", loaded=0)

    def __str__(self) -> str:
        if self.source == "none":
            return "no weights loaded: the values are random"
        if not self.loaded and not self.digest:
            return f"weights as {self.source} made them"
        return "; ".join(
            [f"{self.source}: {format_count(self.loaded)} tensors loaded", *_notes(self)]
        )


def load_weights(
    model: nn.Module,
    path: Path,
    *,
    replaced: Collection[str] = (),
    removed: Collection[str] = (),
) -> WeightsReport:
    """Copy the tensors of a file into `model`, which keeps its devices and dtypes.

    Every name and shape must fit, but for `num_batches_tracked`, which old files lack, and for
    tied tensors, of which one name is enough. On an error the model is as it was.

    Args:
        replaced: module paths that are going to be replaced; what is missing, unknown or of
            another shape under these is left out and reported.
        removed: module paths that the model no longer has; what the file holds for them is left
            out and reported.

    Raises:
        WeightsError: the file cannot be read, does not fit, or holds NaN in a parameter.
        ModelError: the model has lazy layers, which have no shapes yet.
    """
    wanted = _wanted(model)
    found = _modern(read_state_dict(path), wanted)
    fit = _fit(found, wanted, tolerated=(*replaced, *removed))
    _check_kinds(path, {name: found[name] for name in fit.taken})
    if problems := _problems(fit, found, wanted):
        advice = "" if replaced else "; if only its classifier differs, use --on classifier"
        raise WeightsError(
            f"{path.name} does not fit {type(model).__name__}: {'; '.join(problems)}. "
            f"Use other weights, made for this network{advice}."
        )
    _check_no_nan(path, fit, found, wanted)
    with torch.no_grad():
        for name in fit.taken:
            wanted[name].copy_(found[name])
    return WeightsReport(
        source=path.name,
        loaded=len(fit.taken),
        missing=fit.absent,
        ignored=fit.ignored,
        digest=file_digest(path),
    )


def is_under(name: str, paths: Iterable[str]) -> bool:
    """Whether a tensor's or module's dotted name is one of `paths` or below one."""
    return any(name == path or name.startswith(f"{path}.") for path in paths)


@dataclass(frozen=True, slots=True)
class _Fit:
    """How the names of a file and of a model meet; the last three are what does not fit."""

    taken: tuple[str, ...]
    absent: tuple[str, ...]
    ignored: tuple[str, ...]
    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    misshapen: tuple[str, ...]


def _wanted(model: nn.Module) -> dict[str, Tensor]:
    """The model's own tensors, by every name they have."""
    lazy = [name for name, value in model.named_parameters() if is_lazy(value)]
    if lazy:
        raise ModelError(
            f"{type(model).__name__} has lazy layers without shapes yet ({lazy[0]}). "
            "Run it once on an example before loading weights."
        )
    entries = model.state_dict(keep_vars=True).items()
    return {name: value for name, value in entries if isinstance(value, Tensor)}


def _modern(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Old names of torchvision's layers -> today's, where the model has today's."""
    named = {}
    for name, value in found.items():
        new = name
        for pattern, replacement in _RENAMED:
            new = pattern.sub(replacement, new)
        named[new if name not in wanted and new in wanted else name] = value
    return named


def _fit(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], *, tolerated: Sequence[str]
) -> _Fit:
    shared = [name for name in wanted if name in found]
    taken = [name for name in shared if found[name].shape == wanted[name].shape]
    misshapen = [name for name in shared if name not in set(taken)]
    # A tied tensor is there if it came under any of its names.
    held = {id(wanted[name]) for name in taken}
    missing = [name for name in wanted if name not in found and id(wanted[name]) not in held]
    unknown = [name for name in found if name not in wanted]

    replaced = partial(is_under, paths=tolerated)
    counted = {name for name in missing if name.rpartition(".")[2] == _COUNTER}
    absent = [name for name in missing if name in counted or replaced(name)]
    return _Fit(
        taken=tuple(taken),
        absent=tuple(absent),
        ignored=tuple(filter(replaced, [*misshapen, *unknown])),
        missing=tuple(filterfalse(set(absent).__contains__, missing)),
        unknown=tuple(filterfalse(replaced, unknown)),
        misshapen=tuple(filterfalse(replaced, misshapen)),
    )


def _problems(fit: _Fit, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """One clause for each kind of misfit, with the first five of each."""
    shapes = [
        f"{name} is {tuple(found[name].shape)} in the file and {tuple(wanted[name].shape)} here"
        for name in fit.misshapen[:_SHOWN]
    ]
    known = fit.missing or tuple(wanted)
    unknown = [f"{name}{_hint(name, known)}" for name in fit.unknown[:_SHOWN]]
    clauses = (
        ("it lacks", fit.missing, list(fit.missing[:_SHOWN])),
        ("it has, but the model has not,", fit.unknown, unknown),
        ("of another shape are", fit.misshapen, shapes),
    )
    return [
        f"{what} {format_count(len(names))}: {_listed(shown, len(names))}"
        for what, names, shown in clauses
        if names
    ]


def _hint(name: str, known: Sequence[str]) -> str:
    close = nearest(name, known, count=1)
    return f" (nearest: {close[0]})" if close else ""


def _listed(shown: Sequence[str], count: int) -> str:
    more = f" and {format_count(count - len(shown))} more" if count > len(shown) else ""
    return ", ".join(shown) + more


def _check_kinds(path: Path, taken: Mapping[str, Tensor]) -> None:
    """Refuse tensors that cannot be copied number by number."""
    for name, tensor in taken.items():
        kind = _kind(tensor)
        if kind:
            raise WeightsError(
                f"{name} in {path.name} is {kind}, not plain numbers. Save a state_dict of plain "
                "dense tensors: gathered, with their data, and dequantised."
            )


def _kind(tensor: Tensor) -> str:
    if tensor.is_meta:
        return "without data (on the meta device)"
    if tensor.is_quantized:
        return "quantised"
    if tensor.layout is not torch.strided or tensor.is_nested:
        return f"of the layout {tensor.layout}"
    plain = type(tensor) in (Tensor, nn.Parameter, nn.Buffer)
    return "" if plain else f"a {type(tensor).__name__}"


def _check_no_nan(
    path: Path, fit: _Fit, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> None:
    # Parameters only: buffers may hold NaN or infinity on purpose.
    parameters = [name for name in fit.taken if isinstance(wanted[name], nn.Parameter)]
    bad = [name for name in parameters if bool(found[name].isnan().any())]
    if bad:
        raise WeightsError(
            f"{path.name} holds NaN in {_listed(bad[:_SHOWN], len(bad))}: it is damaged, or was "
            "saved after training had diverged. Give another checkpoint."
        )


def _notes(report: WeightsReport) -> list[str]:
    counters = [name for name in report.missing if name.rpartition(".")[2] == _COUNTER]
    lacking = _owners(name for name in report.missing if name not in set(counters))
    left_out = _owners(report.ignored)
    notes = []
    for what, owners in (("no weights for", lacking), ("not used of the file:", left_out)):
        reason = "it is replaced" if len(owners) == 1 else "they are replaced or taken out"
        if owners:
            notes.append(f"{what} {_listed(owners[:3], len(owners))} ({reason})")
    if counters:
        notes.append(f"{format_count(len(counters))} batch counters start at their present value")
    return notes


def _owners(names: Iterable[str]) -> list[str]:
    """The modules that own these tensors; their outermost modules if there are many."""
    paths = [name.rpartition(".")[0] or name for name in names]
    owners = list(dict.fromkeys(paths))
    return owners if len(owners) <= 3 else list(dict.fromkeys(p.partition(".")[0] for p in paths))
