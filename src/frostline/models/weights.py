"""Weights from a file into a model: all fit, or nothing changes and the misfits are named."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import filterfalse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from frostline._files import file_digest
from frostline.errors import ModelError, WeightsError, a_type, nearest
from frostline.models.state_files import read_state_dict
from frostline.units import format_count

# Names in published torchvision files that its models have since changed.
_RENAMED = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\."), r"\1\2."),
    (re.compile(r"\.mlp\.linear_1\."), ".mlp.0."),
    (re.compile(r"\.mlp\.linear_2\."), ".mlp.3."),
)
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
    shared = [name for name in wanted if name in found]
    taken = {name: found[name] for name in shared if found[name].shape == wanted[name].shape}
    # A tied tensor is there if it came under any of its names.
    held = {id(wanted[name]) for name in taken}
    missing = [name for name in wanted if name not in found and id(wanted[name]) not in held]
    strange = [*(n for n in shared if n not in taken), *(n for n in found if n not in wanted)]
    gone = tuple(f"{path}." for path in (*replaced, *removed))
    excused = {name for name in (*missing, *strange) if f"{name}.".startswith(gone)}
    excused.update(filter(_is_counter, missing))
    _check_kinds(path, taken)
    lacking, odd = ([n for n in names if n not in excused] for names in (missing, strange))
    if problems := _problems(lacking, odd, found, wanted):
        advice = "" if replaced else "; if only its classifier differs, use --on classifier"
        raise WeightsError(
            f"{path.name} does not fit {type(model).__name__}: {'; '.join(problems)}. "
            f"Use other weights, made for this network{advice}."
        )
    _check_no_nan(path, taken, wanted)
    with torch.no_grad():
        for name, value in taken.items():
            wanted[name].copy_(value)
    return WeightsReport(
        source=path.name,
        loaded=len(taken),
        missing=tuple(missing),
        ignored=tuple(strange),
        digest=file_digest(path),
    )


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


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] == "num_batches_tracked"


def _problems(
    missing: Sequence[str],
    strange: Sequence[str],
    found: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
) -> list[str]:
    """One clause for each kind of misfit, with the first five of each."""
    unknown = [name for name in strange if name not in wanted]
    misshapen = [name for name in strange if name in wanted]
    known = missing or tuple(wanted)
    close = {name: nearest(name, known, count=1) for name in unknown[:_SHOWN]}
    clauses = (
        ("it lacks", missing, missing[:_SHOWN]),
        (
            "it has, but the model has not,",
            unknown,
            [f"{name} (nearest: {near[0]})" if near else name for name, near in close.items()],
        ),
        (
            "of another shape are",
            misshapen,
            [
                f"{n} is {tuple(found[n].shape)} in the file and {tuple(wanted[n].shape)} here"
                for n in misshapen[:_SHOWN]
            ],
        ),
    )
    return [
        f"{what} {format_count(len(names))}: {_listed(shown, len(names))}"
        for what, names, shown in clauses
        if names
    ]


def _listed(shown: Sequence[str], count: int) -> str:
    more = f" and {format_count(count - len(shown))} more" if count > len(shown) else ""
    return ", ".join(shown) + more


def _check_kinds(path: Path, taken: Mapping[str, Tensor]) -> None:
    """Refuse tensors that cannot be copied number by number."""
    for name, tensor in taken.items():
        if tensor.is_meta:
            kind = "without data (on the meta device)"
        elif tensor.is_quantized:
            kind = "quantised"
        elif tensor.layout is not torch.strided or tensor.is_nested:
            kind = f"of the layout {tensor.layout}"
        elif type(tensor) not in (Tensor, nn.Parameter, nn.Buffer):
            kind = a_type(tensor)
        else:
            continue
        raise WeightsError(
            f"{name} in {path.name} is {kind}, not plain numbers. Save a state_dict of plain "
            "dense tensors: gathered, with their data, and dequantised."
        )


def _check_no_nan(path: Path, taken: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    # Parameters only: buffers may hold NaN or infinity on purpose.
    parameters = {n: v for n, v in taken.items() if isinstance(wanted[n], nn.Parameter)}
    bad = [name for name, value in parameters.items() if bool(value.isnan().any())]
    if bad:
        raise WeightsError(
            f"{path.name} holds NaN in {_listed(bad[:_SHOWN], len(bad))}: it is damaged, or was "
            "saved after training had diverged. Give another checkpoint."
        )


def _notes(report: WeightsReport) -> list[str]:
    counters = list(filter(_is_counter, report.missing))
    lacking = _owners(filterfalse(_is_counter, report.missing))
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
