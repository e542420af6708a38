"""Weights from a file into a model: all fit, or nothing changes and the misfits are named."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import filterfalse, takewhile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from frostline.errors import ModelError, WeightsError, a_type, nearest
from frostline.models.matching import Match, find_match, is_counter
from frostline.models.spec import INDEX_SUFFIX
from frostline.models.state_files import read_tensors, weights_digest
from frostline.units import format_count
from frostline.wording import option

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class WeightsReport:
    """What was loaded. `str()` is one line.

    Attributes:
        source: the file's name, the published entry, `none`, or the function that made them.
        loaded: number of tensors taken over.
        missing: names in the model for which the file had nothing, and which may be missing.
        ignored: names in the file that were not taken over, and need not be.
        digest: xxh3_128 of the file's content, hexadecimal, of an index with all its files; empty
            where there was no file.
        prefix: what stands in the file before the model's names, with its last dot.
        beside: names in the file that are none of the network's.
    """

    source: str
    loaded: int
    missing: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    digest: str = ""
    prefix: str = ""
    beside: tuple[str, ...] = ()

    @classmethod
    def none(cls) -> WeightsReport:
        """No weights were loaded; the values are random."""
        return cls(source="none", loaded=0)

    def __str__(self) -> str:
        if self.source == "none":
            return "no weights loaded: the values are random"
        if not self.loaded and not self.digest:
            return f"weights as {self.source} made them"
        place = f" from {self.prefix[:-1]}" if self.prefix else ""
        loaded = f"{self.source}: {format_count(self.loaded)} tensors loaded{place}"
        return "; ".join([loaded, *_notes(self)])


def load_weights(
    model: nn.Module,
    path: Path,
    *,
    replaced: Collection[str] = (),
    removed: Collection[str] = (),
    within: str = "",
    tensors: Mapping[str, Tensor] | None = None,
) -> WeightsReport:
    """Copy the tensors of a file into `model`, which keeps its devices and dtypes.

    Every name and shape must fit, but for `num_batches_tracked`, which old files lack, and for
    tied tensors, of which one name is enough. In the file the names may stand behind one prefix,
    with whatever else beside it (`find_match`). On an error the model is as it was.

    Args:
        replaced: module paths that are going to be replaced; what is missing, unknown or of
            another shape under these is left out and reported.
        removed: module paths that the model no longer has; what the file holds for them is left
            out and reported.
        within: part of the prefix, where the file holds several networks that fit.
        tensors: of the file, where it was read before.

    Raises:
        WeightsError: the file cannot be read, does not fit or fits in several ways, or holds NaN
            in a parameter.
        ModelError: the model has lazy layers, which have no shapes yet.
    """
    wanted = _wanted(model)
    match = find_match(
        read_tensors(path) if tensors is None else tensors,
        wanted,
        excused=(*replaced, *removed),
        within=within,
        file=path.name,
    )
    taken = match.taken
    _check_kinds(path, taken)
    if problems := _problems(match, wanted):
        replace = f"; if only its classifier differs, use {option('on', 'classifier')}"
        advice = "" if replaced else replace
        raise WeightsError(
            f"{path.name} does not fit {type(model).__name__}: {'; '.join(problems)}. "
            f"{_whole(path)}Use other weights, made for this network{advice}."
        )
    _check_no_nan(path, taken, wanted)
    with torch.no_grad():
        for name, value in taken.items():
            wanted[name].copy_(value)
    return WeightsReport(
        source=path.name,
        loaded=len(taken),
        missing=match.missing,
        ignored=match.strange,
        digest=weights_digest(path),
        prefix=match.prefix,
        beside=match.beside,
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


def _problems(match: Match, wanted: Mapping[str, Tensor]) -> list[str]:
    """One clause for each kind of misfit, with the first five of each."""
    missing = [name for name in match.missing if name in match.misfits]
    strange = [name for name in match.strange if name in match.misfits]
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
                f"{n} is {tuple(match.found[n].shape)} in the file and {tuple(wanted[n].shape)} "
                "here"
                for n in misshapen[:_SHOWN]
            ],
        ),
    )
    behind = [f"of its names, those behind {match.prefix} are nearest"] if match.prefix else []
    found = [
        f"{what} {format_count(len(names))}: {_listed(shown, len(names))}"
        for what, names, shown in clauses
        if names
    ]
    return [*behind, *found] if found else []


def _whole(path: Path) -> str:
    """Advice for one file of several that hold a model's weights together."""
    index = next(path.parent.glob(f"*{INDEX_SUFFIX}"), None) if "-of-" in path.name else None
    return f"It is one file of several: give {index.name} instead. " if index else ""


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
    counters = list(filter(is_counter, report.missing))
    lacking = _owners(filterfalse(is_counter, report.missing))
    left_out = _owners(report.ignored)
    notes = []
    for what, owners in (("no weights for", lacking), ("not used of the file:", left_out)):
        reason = "it is replaced" if len(owners) == 1 else "they are replaced or taken out"
        if owners:
            notes.append(f"{what} {_listed(owners[:3], len(owners))} ({reason})")
    if beside := list(dict.fromkeys(_parts_beside(report))):
        notes.append(f"beside them in the file: {_listed(beside[:3], len(beside))}")
    if counters:
        notes.append(f"{format_count(len(counters))} batch counters start at their present value")
    return notes


def _parts_beside(report: WeightsReport) -> Iterator[str]:
    """What stands in the file beside the network, each part by one name."""
    prefix = report.prefix.split(".")
    for name in report.beside:
        parts = name.split(".")
        shared = takewhile(lambda pair: pair[0] == pair[1], zip(prefix, parts, strict=False))
        yield parts[min(sum(1 for _ in shared), len(parts) - 1)]


def _owners(names: Iterable[str]) -> list[str]:
    """The modules that own these tensors; their outermost modules if there are many."""
    paths = [name.rpartition(".")[0] or name for name in names]
    owners = list(dict.fromkeys(paths))
    return owners if len(owners) <= 3 else list(dict.fromkeys(p.partition(".")[0] for p in paths))
