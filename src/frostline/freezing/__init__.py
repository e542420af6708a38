"""Freezing: three switches (gradients, buffers, mode) behind one handle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, final

from torch import nn

from frostline.backward import Lean, is_lean
from frostline.backward import lean as lean_backward
from frostline.casting import Kept, asked_dtype, shrink
from frostline.errors import DriftError, FreezeError
from frostline.fingerprints import Fingerprint, Record
from frostline.freezing.modes import NormPolicy, is_held, mark_of, note_content, settle
from frostline.freezing.refusals import (
    check_as_wrapped,
    check_can_learn,
    check_can_stay,
    check_shared,
    check_unwrapped,
    check_words,
    passing,
)
from frostline.freezing.rows import held_rows, holds_of, kept_within
from frostline.freezing.switches import Snapshot, is_marked, is_off, switch_off, switch_on, trains
from frostline.freezing.tree import Summary, summary
from frostline.freezing.unlisted import UnlistedRecord, unlisted_records
from frostline.precisions import HalfName
from frostline.selectors import (
    Entry,
    Selection,
    SelectorLike,
    common,
    everything,
    inventory,
    nothing,
    select,
)
from frostline.selectors.pieces import cut_at
from frostline.selectors.ranges import common as common_rows
from frostline.selectors.ranges import suffix
from frostline.selectors.terms import Nothing
from frostline.units import format_bytes, some_of


@final
@dataclass(frozen=True, slots=True)
class Drift:
    """One frozen tensor or module that did not stay as it was."""

    name: str
    what: str

    def __str__(self) -> str:
        return f"{self.name}: {self.what}"


@final
@dataclass(frozen=True, slots=True)
class Proof:
    """The result of a verification that found nothing: how much was compared, and its hash.

    `not_covered` names what of the frozen part no proof can see, with what it is.
    """

    tensors: int
    nbytes: int
    fingerprint: Fingerprint
    not_covered: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = "nothing was frozen"
        if self.tensors:
            size = format_bytes(self.nbytes)
            text = f"{self.tensors} frozen tensors ({size}) are bit for bit as they were"
        return text + not_covered_text(self.not_covered)


@final
@dataclass(frozen=True, eq=False)
class Frozen:
    """A handle on what one call froze; printing it shows the model's table.

    Attributes:
        model: the model, unwrapped.
        selection: what was frozen.
        norm: the norm policy.
        records: tensor name -> what it was when it was frozen; parameters of the selection, rows
            of them as `embed.weight[0:100]`, and the buffers that are held with them.
        kept: with `dtype=`, in how many bytes the weights are kept now, and how far rounding moved
            them and the output.
        unlisted: of held modules, what they have beside parameters and buffers.
        leaned: with `lean=True`, the handle that makes the model plain again.
    """

    model: nn.Module = field(repr=False)
    selection: Selection
    norm: NormPolicy
    records: dict[str, Record] = field(repr=False)
    kept: Kept | None = None
    unlisted: tuple[UnlistedRecord, ...] = field(default=(), repr=False)
    leaned: Lean | None = field(default=None, repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters this call froze."""
        return self.selection.names

    @property
    def fingerprint(self) -> Fingerprint:
        """Content hash of the frozen tensors as they were when they were frozen."""
        saved = (pair for one in self.unlisted for pair in one.saved.items())
        records = {**self.records, **dict(saved)}
        return Fingerprint({name: record.digest for name, record in records.items()})

    @property
    def not_covered(self) -> tuple[str, ...]:
        """Names of what is frozen that no proof can see, with what it is."""
        return tuple(name for one in self.unlisted for name in one.not_covered())

    @property
    def in_no_file(self) -> tuple[str, ...]:
        """Names of what is frozen that a proof from files cannot see, with what it is."""
        attributes = (f"{name} (a plain attribute)" for one in self.unlisted for name in one.loose)
        return (*self.not_covered, *attributes)

    def verify(self) -> Proof:
        """Prove that nothing frozen moved: every bit, every gradient switch, every mode.

        What was thawed since, by `fl.thaw` or leaving `fl.frozen`, is no longer owed and left out.
        Where rows of a recorded tensor were thawed, its other rows are compared with what they
        were at that thaw.

        Raises:
            DriftError: lists each tensor that moved with how far, each parameter that wants
                gradients again and each held module found in train mode.
        """
        checks = [self._check(name, record) for name, record in self.records.items()]
        drifts = [drift for found, _ in checks for drift in found]
        drifts.extend(Drift(*found) for one in self.unlisted for found in one.drifts())
        drifts.extend(_mode_drifts(self.model))
        if drifts:
            raise _drift_error(self.model, drifts)
        proved = {name: record for _, found in checks for name, record in found.items()}
        beside = {name: r for one in self.unlisted for name, r in one.proved().items()}
        saved = {name for one in self.unlisted for name in one.saved}
        hashed = {**proved, **{name: r for name, r in beside.items() if name in saved}}
        return Proof(
            len(proved) + len(beside),
            sum(record.nbytes for record in (*proved.values(), *beside.values())),
            Fingerprint({name: record.digest for name, record in hashed.items()}),
            self.not_covered,
        )

    def thaw(self, selector: SelectorLike | None = None) -> None:
        """Thaw what this call froze, or the part of it that `selector` names."""
        chosen = self.selection
        if selector is not None:
            chosen = _non_empty(common(chosen, select(self.model, selector)), "thaw")
        _thaw(chosen)

    def summary(self, *, depth: int = 2) -> Summary:
        """The model's table as data, `depth` levels deep."""
        return summary(self.model, depth=depth)

    def __str__(self) -> str:
        covered = not_covered_text(self.not_covered).removeprefix("; ")
        return "\n".join(filter(None, (str(self.summary()), str(self.kept or ""), covered)))

    def _check(self, name: str, record: Record) -> tuple[list[Drift], dict[str, Record]]:
        """What is wrong with one recorded tensor, and what of it was to be proved."""
        place = name.removesuffix(suffix(record.rows))
        path, _, leaf = place.rpartition(".")
        owner = self.selection.inventory.modules[path]
        proofs = {
            place + suffix(owed.rows): owed for owed in _owed(owner, leaf, record, name=place)
        }
        if not proofs:
            return [], proofs
        tensor = owner._parameters.get(leaf, owner._buffers.get(leaf))
        if tensor is None or _module_at(self.model, path) is not owner:
            return [Drift(name, "is gone; it or the module that held it was replaced")], {}
        wanting = "wants gradients again; something set requires_grad behind the freeze"
        wants = tensor.requires_grad and leaf not in holds_of(owner)
        found = {
            part: [wanting if wants else None, owed.moved(tensor, name=part)]
            for part, owed in proofs.items()
        }
        lines = {part: ", and ".join(filter(None, words)) for part, words in found.items()}
        return [Drift(part, line) for part, line in lines.items() if line], proofs


def freeze(
    model: nn.Module,
    selector: SelectorLike,
    *,
    norm: NormPolicy = "hold",
    leaving: Literal["something", "nothing"] = "something",
    dtype: HalfName | None = None,
    example: Any = None,
    lean: bool = False,
) -> Frozen:
    """Freeze the selected part: no gradient, no moving buffer, the same function in training.

    Gradients are switched off and stale ones cleared; modules whose whole subtree is frozen are
    held in eval through any later `train()`. A module that is frozen in part follows the model's
    mode, except norm layers: `norm="hold"` keeps their statistics, `norm="adapt"` lets them
    follow the data. No module is replaced. Freezing twice is the same as once.

    Of a tensor of which only some rows are selected (`rows:embed.weight[0:100]`), these rows are
    held: their gradients are zeroed, and after each step of a `torch.optim.Optimizer` they are put
    back bit for bit from a copy, which takes as much memory as the frozen rows. The tensor itself
    stays trainable, and its module follows the model's mode as one that is frozen in part.

    Args:
        leaving: `"nothing"` allows freezing the whole model, as before putting a head on it.
        dtype: keep the selected weights in `"bfloat16"` or `"float16"`, half the bytes of float32.
            They are computed with in their own dtype as before, a layer at a time, so that what
            changes is their rounding alone; biases, norms and buffers stay as they are. A state
            dict has the rounded weights, a thaw gives the dtype back but not the bits, and a
            delta's base is the rounded model. A model whose forward reads a submodule's weight
            itself, without calling it, stumbles over the dtype at its first call.
        example: one batch, as the model takes it, on which to measure what `dtype` does to the
            output, in eval mode. A model that cannot compute with `dtype` is refused with it.
        lean: also lean the model, as `fl.lean`: its backward passes keep only what the wanted
            gradients need. `leaned.remove()` of the handle undoes it; a thaw does not.

    Returns:
        A handle: `print` it for the table, `verify()` proves that nothing moved, `kept` tells what
        `dtype` brought and how far it moved weights and output.
    Raises:
        SelectorError: the selector cannot be read or a term matches nothing.
        FreezeError: the selection is empty, nothing trainable would be left, the model is already
            wrapped for data-parallel training (a living wrapper around it counts too), a tensor of
            which rows are selected is sharded or has no data, or a selected layer is TorchScript
            or an embedding with `max_norm`; with `dtype`, rows are selected, or a weight is
            sharded, has no data or overflows. The model is as it was.
    """
    check_unwrapped(model)
    check_words(norm=norm, leaving=leaving)
    narrow_dtype = asked_dtype(dtype, example)
    selection = _non_empty(select(model, selector), "freeze")
    if leaving == "something":
        _check_leaves_something(selection)
    with _all_or_nothing(selection):
        _switch_off(selection, norm=norm)
        kept = None if narrow_dtype is None else shrink(selection, narrow_dtype, example)
        made = replace(_handle(selection, norm=norm), kept=kept)
        check_as_wrapped(selection)
    if lean and not is_lean(model):
        made = replace(made, leaned=lean_backward(model))
    return made


def thaw(model: nn.Module, selector: SelectorLike) -> None:
    """Make the selected parameters trainable.

    Modules that are no longer wholly frozen get back the mode each had before it was frozen.

    Raises:
        SelectorError: the selector cannot be read or a term matches nothing.
        FreezeError: the selection is empty, the model is already wrapped for data-parallel
            training, a tensor of which rows are selected is sharded or has no data, or one dropout
            would serve the thawed part and what stays frozen. The model is as it was.
    """
    check_unwrapped(model)
    _thaw(_non_empty(select(model, selector), "thaw"))


def train_only(model: nn.Module, selector: SelectorLike, *, norm: NormPolicy = "hold") -> Frozen:
    """Make the selected parameters trainable and freeze everything else.

    Returns:
        The handle of what was frozen.
    Raises:
        SelectorError: the selector cannot be read or a term matches nothing.
        FreezeError: the selection is empty; the model is as it was.
    """
    check_unwrapped(model)
    check_words(norm=norm)
    wanted = _non_empty(select(model, selector), "train")
    if not wanted.parameters:
        raise FreezeError(f"'{wanted.selector}' holds no parameter that could be trained.")
    stock = wanted.inventory
    rest = Selection(~wanted.selector, stock, everything.pick(stock) - wanted.picked)
    with _all_or_nothing(Selection(everything, stock, everything.pick(stock))):
        _switch_on(wanted)
        made = _freeze(rest, norm=norm)
        check_as_wrapped(rest)
        return made


def frozen_part(model: nn.Module) -> Frozen:
    """A handle on all that is frozen in `model` now, by whichever calls.

    Parameters whose `requires_grad` was switched off by hand count too, and get the two other
    switches: their modules are held in eval.

    Raises:
        FreezeError: as `freeze`, except that nothing needs to be left.
    """
    check_unwrapped(model)
    whole = inventory(model)
    stock = cut_at(whole, {id(e.tensor): held_rows(e.tensor) for e in whole.entries})
    off = {index for index, entry in enumerate(stock.entries) if is_off(entry)}
    marked = {index for index, entry in enumerate(stock.entries) if is_marked(entry)}
    by_hand = Selection(nothing, stock, frozenset(off - marked))
    with _all_or_nothing(by_hand):
        _switch_off(by_hand, norm="hold")
        return _handle(Selection(nothing, stock, frozenset(off | marked)), norm="hold")


@contextmanager
def frozen(
    model: nn.Module, selector: SelectorLike, *, norm: NormPolicy = "hold"
) -> Iterator[Frozen]:
    """Freeze within a `with` block; on leaving, gradient switches and modes are exactly as before.

    May freeze the whole model, as when a discriminator only judges. Gradients that the frozen
    parameters had are given back too.

    Raises:
        SelectorError, FreezeError: as `freeze`.
    """
    check_unwrapped(model)
    check_words(norm=norm)
    selection = _non_empty(select(model, selector), "freeze")
    before = Snapshot.of(selection)
    try:
        yield _freeze(selection, norm=norm)
    finally:
        before.restore()


@contextmanager
def freezes_kept(model: nn.Module) -> Iterator[None]:
    """Whatever the block freezes and thaws, afterwards all is switched and held as before."""
    stock = inventory(model)
    before = Snapshot.of(Selection(everything, stock, everything.pick(stock)))
    try:
        with passing():
            yield
    finally:
        before.restore()


@contextmanager
def _all_or_nothing(selection: Selection) -> Iterator[None]:
    before = Snapshot.of(selection)
    try:
        yield
    except BaseException:
        before.restore()
        raise


def _freeze(selection: Selection, *, norm: NormPolicy) -> Frozen:
    _switch_off(selection, norm=norm)
    return _handle(selection, norm=norm)


def _switch_off(selection: Selection, *, norm: NormPolicy) -> None:
    check_can_stay(selection)
    switch_off(selection, norm=norm)
    settle(selection.inventory.model)
    check_shared(selection.inventory.model)


def _handle(selection: Selection, *, norm: NormPolicy) -> Frozen:
    root = selection.inventory.model
    frozen = {id(entry.tensor) for entry in selection.entries if entry.rows is None}
    beside = tuple(unlisted_records(selection.inventory.modules, frozen))
    records = dict(_owed_records(selection))
    for name, record in records.items():
        path, _, leaf = name.rpartition(".")
        if record.rows is None:
            owner = selection.inventory.modules[path]
            note_content(owner, leaf, (record.dtype, record.digest))
    return Frozen(root, selection, norm, records, unlisted=beside)


def _thaw(selection: Selection) -> None:
    with _all_or_nothing(selection):
        _switch_on(selection)
        check_shared(selection.inventory.model)
        check_as_wrapped(selection)


def _switch_on(selection: Selection) -> None:
    check_can_learn(selection)
    switch_on(selection)
    settle(selection.inventory.model)


def _owed_records(selection: Selection) -> Iterator[tuple[str, Record]]:
    """What is frozen under each of its names, and the buffers that are held with it."""
    pieces: dict[int, list[Entry]] = {}
    for entry in selection.entries:
        pieces.setdefault(id(entry.tensor), []).append(entry)
    for path, module in selection.inventory.modules.items():
        prefix = f"{path}." if path else ""
        own = [(n, e) for n, p in module._parameters.items() for e in pieces.get(id(p), ())]
        buffers = [(n, b) for n, b in module._buffers.items() if b is not None]
        for leaf, entry in own:
            name = prefix + leaf + suffix(entry.rows)
            yield name, Record.of(entry.content, name=name, at=entry.rows)
        if (own or any(id(buffer) in pieces for _, buffer in buffers)) and is_held(module):
            yield from ((prefix + n, Record.of(b, name=prefix + n)) for n, b in buffers)


def not_covered_text(names: tuple[str, ...]) -> str:
    """What a proof adds about what it did not look at; empty where it saw all."""
    return f"; not covered: {some_of(names, most=5)}" if names else ""


def _module_at(root: nn.Module, path: str) -> nn.Module | None:
    try:
        return root.get_submodule(path)
    except AttributeError:
        return None


def _owed(owner: nn.Module, leaf: str, record: Record, *, name: str) -> Iterator[Record]:
    """What is frozen still of what was recorded: all of it, rows of it, or nothing.

    Rows that a later thaw of their neighbours left are owed as their hold keeps them.
    """
    mark = mark_of(owner)
    one = holds_of(owner).get(leaf)
    if leaf in owner._buffers:
        yield from [record] if is_held(owner) else []
    elif mark is not None and leaf in mark.names:
        yield record
    elif one is not None:
        recorded = range(record.shape[0]) if record.rows is None else record.rows
        left = common_rows([recorded], (piece.rows for piece in one.kept))
        if left == (record.rows,):
            yield record
        else:
            for piece in kept_within(one.kept, left):
                yield Record.of(piece.values, name=name, at=piece.rows)


def _mode_drifts(root: nn.Module) -> Iterator[Drift]:
    for path, module in root.named_modules():
        if is_held(module) and module.training:
            yield Drift(path or "(model)", "was put in train mode behind the freeze")


def _drift_error(model: nn.Module, drifts: list[Drift]) -> DriftError:
    lines = "".join(f"\n  {drift}" for drift in drifts)
    count = "one thing" if len(drifts) == 1 else f"{len(drifts)} things"
    return DriftError(
        f"{count} that {type(model).__name__} was to keep frozen did not stay as it was:{lines}\n"
        "Look for code that writes these after the freeze; load weights before freezing.",
        drifts,
    )


def _non_empty(selection: Selection, verb: str) -> Selection:
    if selection.picked or isinstance(selection.selector, Nothing):
        return selection
    raise FreezeError(
        f"'{selection.selector}' leaves nothing to {verb} in {selection.inventory.title}: its "
        "terms match, but no parameter is in all of them. See fl.select(model, ...) for each."
    )


def _check_leaves_something(selection: Selection) -> None:
    entries = enumerate(selection.inventory.entries)
    left = (entry for index, entry in entries if index not in selection.picked)
    if selection.parameters and not any(trains(entry) for entry in left):
        title = selection.inventory.title
        raise FreezeError(
            f"freezing '{selection.selector}' would leave nothing trainable in {title}. Add the "
            "new head first, or choose less; to freeze it whole all the same, as before putting "
            "a head on it: fl.freeze(model, ..., leaving='nothing')."
        )
