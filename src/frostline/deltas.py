"""Deltas: what training changed, in safetensors, with the fingerprint of the base it belongs to.

A delta MUST be applied to the base it was made from; the header says which that is:

    format         "frostline-delta"
    version        "2"; "1" lacked the four from `trainable` on
    base           fingerprint of every tensor that is not in the delta
    base_tensors   JSON object, tensor name -> digest (see fingerprints/)
    content        fingerprint of the tensors in the delta, checked when it is read
    digests        JSON object, tensor name -> digest, to name those that are damaged; may lack
    trainable      JSON array, names of the parameters that were trainable
    held_rows      JSON object, name of one of these -> its frozen rows, [[first, behind last], ...]
    tied           JSON object, each further name of a shared tensor -> its first name
    unsaved        JSON array, names of buffers that a state_dict does not hold, and of what modules
                   save besides tensors (packed weights, extra state), which is in `base` alone
    kept           JSON object, name of a tensor of the base that is kept in fewer bits than it is
                   computed with -> in which dtype; its digest is that of the rounded numbers
    about          JSON object, what its maker wanted to note: model, weights, epoch, plan, ...
    header         checksum of all texts above (see _files.py), checked when it is read; may lack
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Literal, cast, final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from frostline._files import is_text
from frostline._tensor_files import check_header, save_tensors
from frostline.casting import CAST_DTYPES, cast_dtypes
from frostline.errors import ConfigError, CorruptDelta, DeltaError
from frostline.fingerprints import Fingerprint, digest, fingerprint_of
from frostline.fingerprints.unlisted import saved_state
from frostline.freezing import freeze as freeze_part
from frostline.freezing import train_only
from frostline.freezing.modes import is_held, mark_of, note_content
from frostline.freezing.rows import held_rows
from frostline.selectors import exactly, inventory, rows
from frostline.sharding import is_shard, placed_like, whole, world_of
from frostline.tables import Displayed
from frostline.units import format_bytes, some_of
from frostline.wording import either
from frostline.world import together
from frostline.wrappers import unwrap

FORMAT = "frostline-delta"
VERSION = "2"
_READ = ("1", "2")
_some = partial(some_of, most=5)
_FREEZES = ("as it is", "as saved")


@final
@dataclass(frozen=True, slots=True)
class Delta(Displayed):
    """A delta's content.

    Attributes:
        tensors: name -> trained parameter or changed buffer, on the CPU.
        base: fingerprint of everything else in the model.
        about: what was noted when it was saved.
        trainable: names of the parameters that were trainable; a `state_dict` carries no flags.
        held_rows: of those of which some rows were frozen, from the first to before the last.
        tied: each further name of a shared tensor -> the name under which it stands here.
        unsaved: buffers of the model that a `state_dict` does not hold.
        kept: tensors of the base that `freeze(..., dtype=...)` rounded -> to which dtype.
    """

    tensors: Mapping[str, Tensor]
    base: Fingerprint
    about: Mapping[str, str]
    trainable: tuple[str, ...] = ()
    held_rows: Mapping[str, Sequence[tuple[int, int]]] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)
    unsaved: tuple[str, ...] = ()
    kept: Mapping[str, str] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def __str__(self) -> str:
        return f"{len(self.tensors)} tensors, {format_bytes(self.nbytes)}, on base {self.base}"


def save_delta(
    model: nn.Module,
    path: str | Path,
    *,
    base: Fingerprint | None = None,
    about: Mapping[str, str] | None = None,
    content: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the trainable parameters and changed buffers of `model`, whole or not at all.

    Of a model that `fully_shard` sharded all processes call it. What was trained is gathered, one
    tensor at a time, into the memory of the first process, which writes the file that one process
    would; where it cannot, all raise.

    Args:
        base: fingerprint of the whole model before training; with it, buffers that did not
            change and are not held are left out. Without it all buffers outside the held part
            are written.
        about: notes that go along, text by text.
        content: what `delta_content` gave earlier, to write that state rather than the present;
            whether frozen weights moved since is then for the caller to prove.

    Raises:
        DeltaError: nothing is trainable and no buffer changed: there is no delta; frozen weights
            moved since they were frozen, as in an average whose steps rounded them; or a tensor is
            of a dtype that safetensors lacks, as complex128.
        OutputError: the file cannot be written.

    Example:
        >>> fl.save_delta(model, "delta.safetensors")
        >>> print(fl.load_delta(model, "delta.safetensors"))
        2 tensors, 72 B, on base xxh3:...
    """
    tensors = all_tensors(model)
    trained = delta_content(model, base=base) if content is None else content
    rest = rest_of(model, tensors, trained)
    # A run that kept an earlier state proves the frozen part itself, and keeps what it trained.
    if content is None:
        _check_as_frozen(model, rest)
    ranges = {name: [(r.start, r.stop) for r in held_rows(t)] for name, t in tensors.items()}
    listed = unwrap(model).state_dict(keep_vars=True).keys()
    delta = Delta(
        trained,
        rest,
        dict(about or {}),
        trainable=tuple(name for name, tensor in tensors.items() if tensor.requires_grad),
        held_rows={name: pairs for name, pairs in ranges.items() if pairs},
        tied=_tied_names(model),
        unsaved=(*(name for name in tensors if name not in listed), *saved_besides(model)),
        kept={name: word for name, word in cast_dtypes(model).items() if name in rest.tensors},
    )
    world = world_of(model)
    delta = replace(delta, tensors=_gathered(trained, keep=world.writes))
    with together(world):
        if world.writes:
            _write(delta, Path(path))
        world.barrier()


def _write(delta: Delta, path: Path) -> None:
    try:
        save_tensors(delta.tensors, path, header=_header(delta))
    except KeyError as error:  # safetensors 0.8: a dtype that its table of sizes lacks
        dtype = error.args[0]
        names = [name for name, tensor in delta.tensors.items() if tensor.dtype == dtype]
        raise DeltaError(
            f"safetensors, the format of a delta, has no {dtype}, the dtype of {_some(names)}. "
            "Keep them in complex64, or save the state_dict with torch.save."
        ) from error


def _gathered(content: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """All of each tensor, on the CPU; of the sharded ones only where they are kept."""
    found = {}
    for name, tensor in content.items():
        values = whole(tensor) if is_shard(tensor) else tensor  # all processes gather it
        if keep or not is_shard(tensor):
            found[name] = values.cpu()
    return found


def delta_content(
    model: nn.Module, *, base: Fingerprint | None = None, also: Collection[str] = ()
) -> dict[str, Tensor]:
    """Copies, on the CPU, of what a delta of `model` would hold now.

    Of a sharded tensor it is this process's part, on its device.

    Args:
        base: as for `save_delta`.
        also: tensors to hold besides, as those that were trained before they were frozen.

    Raises:
        DeltaError: nothing is trainable and no buffer changed: there is no delta.
    """
    tensors = all_tensors(model)
    changed = _changed_names(model, tensors, base).union(also)
    if not changed:
        raise DeltaError(
            f"nothing in {type(model).__name__} is trainable, so there is no delta to save. "
            "Thaw what was trained, or save the whole state_dict."
        )
    return {name: _copied(tensor) for name, tensor in tensors.items() if name in changed}


def load_delta(
    model: nn.Module,
    path: str | Path,
    *,
    check_base: bool = True,
    freeze: Literal["as it is", "as saved"] = "as it is",
) -> Delta:
    """Put a delta's tensors into `model`, the base it was made from; all of them or none.

    Of a model that `fully_shard` sharded all processes call it, and each reads the file.

    Args:
        check_base: compare the rest of the model with the delta's base first.
        freeze: leave what is frozen in `model` as it is, or train only what was trainable when
            the delta was saved.

    Returns:
        What was loaded.
    Raises:
        DeltaError: the file is no delta, the model is another one (names the first tensors that
            differ), or shapes do not fit. The model is as it was.
        CorruptDelta: the file is damaged; likewise.

    Example:
        >>> fl.save_delta(model, "delta.safetensors")
        >>> delta = fl.load_delta(model, "delta.safetensors")
        >>> list(delta.tensors)
        ['head.2.bias', 'head.2.weight']
    """
    if freeze not in _FREEZES:
        known = " or ".join(f"freeze={word!r}" for word in _FREEZES)
        raise ConfigError(f"freeze={freeze!r} is unknown. Use {known}.")
    delta = read_delta(path)
    tensors = all_tensors(model)
    _check_fit(delta, tensors, Path(path))
    if check_base:
        compare_base(model, delta, tensors, Path(path))
    if freeze == "as saved":
        _check_says_what_trained(delta, tensors, Path(path))
    put_tensors(model, delta.tensors)
    if freeze == "as saved":
        _freeze_as_saved(model, delta)
    return delta


def merge_tensors(delta: Delta, base: Mapping[str, Tensor], *, where: str) -> dict[str, Tensor]:
    """The full `state_dict` of a delta on its base, given as named tensors.

    What was kept in half the bits comes in the base's dtype, with the rounded numbers.

    Args:
        where: what to call the base in messages.

    Raises:
        DeltaError: the base lacks tensors, or holds others; names the first.
    """
    dtypes = {name: values.dtype for name, values in base.items()}
    kept = {name: CAST_DTYPES[word] for name, word in delta.kept.items()}
    base = {name: values.to(kept.get(name, values.dtype)) for name, values in base.items()}
    needed = [name for name in delta.base.tensors if name not in delta.unsaved]
    differing = [
        name
        for name in needed
        if name not in base or digest(base[name], name=name) != delta.base.tensors[name]
    ]
    if differing:
        raise DeltaError(
            f"{where} is not the base that this delta was trained on: {len(differing)} of "
            f"{len(needed)} tensors are missing or differ, first {_some(differing)}. Give the "
            "weights it was trained on."
        )
    trained = {n: t for n, t in delta.tensors.items() if n not in delta.unsaved}
    whole = {**{name: base[name].to(dtypes[name]) for name in needed}, **trained}
    return {**whole, **{name: whole[first] for name, first in delta.tied.items() if first in whole}}


def put_tensors(model: nn.Module, content: Mapping[str, Tensor]) -> None:
    """Copy tensors into those of the same names, in place."""
    tensors, root = all_tensors(model), unwrap(model)
    with torch.no_grad():
        for name, values in content.items():
            tensors[name].detach().copy_(placed_like(values, tensors[name]))
            path, _, leaf = name.rpartition(".")
            note_content(root.get_submodule(path), leaf, None)


def read_delta(path: str | Path) -> Delta:
    """Read a delta without a model.

    Raises:
        DeltaError: there is no such file, it is no delta, or of a later version.
        CorruptDelta: the file is damaged.
    """
    file = Path(path)
    if not file.is_file():
        raise DeltaError(
            f"there is no delta at {file}. A run keeps its own in best/ and last/, from its first "
            "epochs on: wait for one that is going; one that was stopped goes on by "
            f"{either('fl.fit(..., resume=True)', '`frostline train --resume`')}."
        )
    try:
        with safe_open(file, framework="pt") as content:
            header = cast("dict[str, str]", content.metadata() or {})
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        if not is_text(str(file)):  # which safetensors 0.8 takes for no path
            raise DeltaError(
                f"the path {file} is no UTF-8, so safetensors cannot read it. Move the run, or the "
                "file, to a folder with another name."
            ) from error
        if file.suffix != ".safetensors":
            raise DeltaError(
                f"{file} is no delta: those are .safetensors files. A run keeps its own in best/ "
                "and last/."
            ) from error
        raise CorruptDelta(
            f"{file} cannot be read as safetensors: {error}. It is damaged or something else; "
            "take another copy, or train again."
        ) from error
    if header.get("format") != FORMAT:
        load = either("model.load_state_dict", "--weights")
        raise DeltaError(f"{file} is no Frostline delta. Load a full checkpoint with {load}.")
    if header.get("version") not in _READ:
        raise DeltaError(
            f"{file} has delta version {header.get('version')}, this Frostline reads {VERSION}. "
            "Use the Frostline that wrote it, or a newer one."
        )
    if header.get("content") != _content_hash(tensors):
        raise CorruptDelta(
            f"{file} is damaged: {_damaged(tensors, header)} not what was written. "
            "Take another copy."
        )
    return _with_header(tensors, header, file)


def all_tensors(model: nn.Module, *, every_name: bool = False) -> dict[str, Tensor]:
    """Every parameter and buffer under its first name, or under each that it has."""
    root = inventory(model).model
    parameters = root.named_parameters(remove_duplicate=not every_name)
    return {**dict(parameters), **dict(root.named_buffers(remove_duplicate=not every_name))}


def saved_besides(model: nn.Module) -> dict[str, Tensor]:
    """What modules save besides parameters and buffers, by full names."""
    stock = inventory(model)
    return saved_state(stock.modules, {id(p) for p in stock.model.parameters()})


def _copied(tensor: Tensor) -> Tensor:
    if is_shard(tensor):
        return tensor.detach().clone()
    return whole(tensor).cpu().contiguous().clone()


def _check_as_frozen(model: nn.Module, rest: Fingerprint) -> None:
    """Refuse a base that is none: what it is to hold was another when it was frozen."""
    moved = []
    for path, module in unwrap(model).named_modules():
        mark = mark_of(module)
        for leaf, (dtype, known) in mark.contents.items() if mark else ():
            name = f"{path}.{leaf}" if path else leaf
            tensor = module._parameters.get(leaf)
            # A cast of the whole model makes another base, and is meant.
            if (
                tensor is not None
                and tensor.dtype == dtype
                and rest.tensors.get(name, known) != known
            ):
                moved.append(name)
    if moved:
        raise DeltaError(
            f"{_some(moved)} moved since being frozen, so the delta would fit no base that there "
            "is: something wrote them, as an average that multiplies and adds, whose steps round. "
            "Copy the frozen weights over from the model itself, then save; or, where they are "
            "meant so and are kept elsewhere, freeze them again first, which takes them as they "
            "are."
        )


def rest_of(
    model: nn.Module, tensors: Mapping[str, Tensor], content: Collection[str]
) -> Fingerprint:
    """Of the base: all tensors that are not in the delta, and what modules save besides."""
    left = {name: tensor for name, tensor in tensors.items() if name not in content}
    return fingerprint_of({**left, **saved_besides(model)})


def _damaged(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    """The names of damaged tensors, as subject of a sentence; all of them where none is known."""
    with suppress(ValueError, AttributeError):
        written = json.loads(header.get("digests", "{}"))
        found = fingerprint_of(tensors).tensors
        names = [name for name, known in written.items() if found.get(name) != known]
        if names:
            return f"{_some(names)} {'is' if len(names) == 1 else 'are'}"
    return "its tensors are"


def _header(delta: Delta) -> dict[str, str]:
    """A delta but for its tensors, as texts: see the format above."""
    notes = {one.name: json.dumps(getattr(delta, one.name)) for one in fields(delta)[2:]}
    return {
        "format": FORMAT,
        "version": VERSION,
        "base": str(delta.base),
        "base_tensors": json.dumps(delta.base.tensors),
        "content": _content_hash(delta.tensors),
        "digests": json.dumps(fingerprint_of(delta.tensors).tensors),
        **notes,
    }


def _with_header(tensors: dict[str, Tensor], header: Mapping[str, str], file: Path) -> Delta:
    """The delta with the base's fingerprint, checked against its hash, and the notes."""
    try:
        check_header(header)
        delta = Delta(
            tensors,
            Fingerprint(json.loads(header["base_tensors"])),
            dict(json.loads(header["about"])),
            trainable=tuple(json.loads(header.get("trainable", "[]"))),
            held_rows={
                name: tuple((int(first), int(behind)) for first, behind in ranges)
                for name, ranges in json.loads(header.get("held_rows", "{}")).items()
            },
            tied=dict(json.loads(header.get("tied", "{}"))),
            unsaved=tuple(json.loads(header.get("unsaved", "[]"))),
            kept=dict(json.loads(header.get("kept", "{}"))),
        )
        if delta.base == header["base"] and CAST_DTYPES.keys() >= set(delta.kept.values()):
            return delta
    except (KeyError, ValueError, TypeError, AttributeError):
        pass
    raise CorruptDelta(
        f"{file} is damaged: its header is not the one that was written. Take another copy."
    )


def _tied_names(model: nn.Module) -> dict[str, str]:
    """Each further name of a shared tensor -> its first."""
    first, named = dict[int, str](), all_tensors(model, every_name=True).items()
    tied = {name: first.setdefault(id(tensor), name) for name, tensor in named}
    return {name: known for name, known in tied.items() if name != known}


def _check_says_what_trained(delta: Delta, tensors: Mapping[str, Tensor], file: Path) -> None:
    if not delta.trainable or not tensors.keys() >= set(delta.trainable):
        raise DeltaError(
            f"{file} does not say what was trainable in this model. Freeze with "
            "fl.train_only(model, ...), and load it with freeze='as it is'."
        )


def _freeze_as_saved(model: nn.Module, delta: Delta) -> None:
    tensors = all_tensors(model)
    train_only(model, exactly(*(tensors[name] for name in delta.trainable)))
    for name, ranges in delta.held_rows.items():
        for first, behind in ranges:
            freeze_part(model, rows(name, first, behind))


def _content_hash(tensors: Mapping[str, Tensor]) -> str:
    return str(fingerprint_of({name: tensors[name] for name in sorted(tensors)}))


def _changed_names(
    model: nn.Module, tensors: Mapping[str, Tensor], base: Fingerprint | None
) -> set[str]:
    root = unwrap(model)
    changed = {name for name, parameter in root.named_parameters() if parameter.requires_grad}
    for name, buffer in root.named_buffers():
        owner = root.get_submodule(name.rpartition(".")[0])
        unmoved = base is not None and base.tensors.get(name) == digest(buffer, name=name)
        if not is_held(owner) and not unmoved:
            changed.add(name)
    return changed & tensors.keys()


def _check_fit(delta: Delta, tensors: Mapping[str, Tensor], file: Path) -> None:
    missing = [name for name in delta.tensors if name not in tensors]
    if missing:
        raise DeltaError(
            f"{file} holds {_some(missing)}, which this model does not have. Build the model as "
            "it was trained, with the same head, then load the delta."
        )
    wrong = [
        f"{name} is {tuple(content.shape)} {content.dtype} there and "
        f"{tuple(tensors[name].shape)} {tensors[name].dtype} here"
        for name, content in delta.tensors.items()
        if (content.shape, content.dtype) != (tensors[name].shape, tensors[name].dtype)
    ]
    if wrong:
        raise DeltaError(f"{file} does not fit this model: {_some(wrong)}. Build the same head.")


def compare_base(model: nn.Module, delta: Delta, tensors: Mapping[str, Tensor], file: Path) -> None:
    """Raises DeltaError where the rest of the model is not what the delta was made from."""
    rest = rest_of(model, tensors, delta.tensors)
    # A delta of before knows nothing of what modules save besides their tensors.
    names = [n for n in rest.tensors if n in tensors or n in delta.base.tensors]
    differing = [
        name
        for name in dict.fromkeys([*delta.base.tensors, *names])
        if delta.base.tensors.get(name) != rest.tensors.get(name)
    ]
    rounded = {delta.kept.get(name) for name in differing}
    if len(rounded) == 1 and (word := rounded.pop()) and not cast_dtypes(model):
        raise DeltaError(
            f"{file} was trained with {len(delta.kept)} frozen weights kept in {word}, and here "
            f"they are not. Freeze them so before loading: fl.freeze(model, ..., dtype='{word}')."
        )
    if differing:
        raise DeltaError(
            f"{file} was trained on another base: {len(differing)} of {len(rest.tensors)} frozen "
            f"tensors differ, first {_some(differing)}. Load the weights it was trained on."
        )
