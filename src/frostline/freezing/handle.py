"""The handle on what one call froze: records of every tensor, and the proof that none moved."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Self, final

from torch import Tensor, nn

from frostline.backward import Lean
from frostline.casting import CastReport
from frostline.choices import NormPolicy
from frostline.errors import DriftError, FreezeError
from frostline.fingerprints import Fingerprint, Record, named_tensors
from frostline.fingerprints.unlisted import belongs, listed_storages, unlisted
from frostline.freezing.modes import freezes_of, is_held, mark_of, note_content
from frostline.freezing.refusals import check_as_wrapped, check_shared
from frostline.freezing.rows import holds_of, kept_within
from frostline.freezing.switches import restoring, switch_on
from frostline.freezing.tree import Summary, summary
from frostline.selectors import Selection, SelectorLike, common, select
from frostline.selectors.ranges import common as common_rows
from frostline.selectors.ranges import suffix
from frostline.selectors.terms import Nothing
from frostline.tables import Displayed, Table
from frostline.units import format_bytes, format_count, some_of
from frostline.wording import either

_LOOK = "Look for code that writes these after the freeze; load weights before freezing."
_CAST = "Cast a model before freezing it."
_FILLED = "Of a buffer that the first forward fills: run the model once, then freeze."
_AGAIN = "After putting another layer in its place, freeze again and verify by that handle."
_BY_THAW = "To train frozen tensors, thaw them: their handles know of it then."
_BY_TRAIN = "Set modes by train() and eval(), which leave what is held alone."


@final
@dataclass(frozen=True, slots=True)
class Drift(Displayed):
    """One frozen tensor or module that did not stay as it was."""

    name: str
    what: str
    do: str = _LOOK

    def __str__(self) -> str:
        return f"{self.name}: {self.what}"


@final
@dataclass(frozen=True, slots=True)
class Proof(Displayed):
    """The result of a verification that found nothing: how much was compared, and its hash.

    `not_covered` names what of the frozen part no proof can see, with what it is. `thawed` counts
    the tensors that were thawed since, which are not compared.
    """

    tensors: int
    nbytes: int
    fingerprint: Fingerprint
    not_covered: tuple[str, ...] = ()
    thawed: int = 0

    def __str__(self) -> str:
        since = f"{format_count(self.thawed)} thawed since" if self.thawed else ""
        text = f"nothing is frozen any more, {since}" if since else "nothing was frozen"
        if self.tensors:
            size = format_bytes(self.nbytes)
            text = f"{self.tensors} frozen tensors ({size}) are bit for bit as they were"
            text += f", {since}" if since else ""
        return text + not_covered_text(self.not_covered)


def not_covered_text(names: tuple[str, ...]) -> str:
    """What a proof adds about what it did not look at; empty where it saw all."""
    return f"; not covered: {some_of(names, most=5)}" if names else ""


@final
@dataclass(frozen=True, slots=True)
class UnlistedRecord:
    """What one held module had beside parameters and buffers when it was frozen, by full names."""

    module: nn.Module
    path: str  # of the module
    saved: Mapping[str, Record]
    loose: Mapping[str, Record]
    # The loose tensors themselves, to tell one that was written from one put in its place, as
    # forwards do that put results aside.
    objects: Mapping[str, Tensor]
    unseen: tuple[str, ...]  # full names of what cannot be looked at, with what it is

    @classmethod
    def of(cls, module: nn.Module, path: str, listed: Collection[int]) -> Self:
        """Take it down as it is now."""
        found = unlisted(module, path, listed)
        saved, loose = (
            {name: Record.of(tensor, name=name) for name, tensor in own.items()}
            for own in (found.saved, found.loose)
        )
        return cls(module, path, saved, loose, found.loose, found.unseen)

    def drifts(self) -> Iterator[Drift]:
        """What did not stay as it was."""
        now = self._now()
        for name, record in {**self.saved, **self.loose}.items():
            tensor = now.get(name)
            is_kept = name in self.saved or tensor is self.objects[name]
            words = "is gone" if tensor is None else record.moved(tensor, name=name)
            if is_kept and words:
                yield Drift(name, words)

    def replaced(self) -> set[str]:
        """Loose tensors in whose place there is another object with other bits, or none."""
        now = self._now()
        others = {name for name, was in self.objects.items() if now.get(name) is not was}
        return {n for n in others if n not in now or self.loose[n].moved(now[n], name=n)}

    def not_covered(self) -> tuple[str, ...]:
        """Names that no proof covers, with the reason."""
        return (*self.unseen, *(f"{name} (replaced since)" for name in self.replaced()))

    def _now(self) -> dict[str, Tensor]:
        found = unlisted(self.module, self.path, ())
        return {**found.loose, **found.saved}


@final
@dataclass(frozen=True, eq=False)
class Frozen(Displayed):
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
        since: name of a tensor, or of a module with more than those -> numbers of the freezes that
            it was under then; none in a handle of an earlier Frostline.

    Example:
        >>> frozen = fl.freeze(model, "backbone")
        >>> print(frozen.verify())
        7 frozen tensors (1.03 KB) are bit for bit as they were
    """

    model: nn.Module = field(repr=False)
    selection: Selection
    norm: NormPolicy
    records: dict[str, Record] = field(repr=False)
    kept: CastReport | None = None
    unlisted: tuple[UnlistedRecord, ...] = field(default=(), repr=False)
    leaned: Lean | None = field(default=None, repr=False)
    since: Mapping[str, frozenset[int]] | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls, selection: Selection, *, norm: NormPolicy, kept: CastReport | None = None
    ) -> Frozen:
        """Take down what is frozen of the selection, as it is now."""
        modules, frozen = selection.inventory.modules, selection.whole
        touched = selection.by_tensor

        def is_held_with_it(module: nn.Module) -> bool:
            own = (*module._parameters.values(), *module._buffers.values())
            return is_held(module) and any(id(tensor) in touched for tensor in own)

        found = named_tensors(selection, is_held_with_it)
        records = {name: Record.of(tensor, name=name, at=rows) for name, tensor, rows in found}
        for name, record in records.items():
            path, _, leaf = name.rpartition(".")
            if record.rows is None:
                note_content(modules[path], leaf, (record.dtype, record.digest))
        listed = listed_storages(selection.inventory.model)
        beside = tuple(
            UnlistedRecord.of(module, path, listed)
            for path, module in modules.items()
            if is_held(module) and belongs(modules, path, frozen)
        )
        since = {}
        for name, record in records.items():
            owner, _, leaf = _home(modules, name, record)
            since[name] = freezes_of(owner, leaf)
        since |= {one.path: freezes_of(one.module, "") for one in beside}
        return cls(selection.inventory.model, selection, norm, records, kept, beside, since=since)

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
        return tuple(name for one in self._beside() for name in one.not_covered())

    @property
    def in_no_file(self) -> tuple[str, ...]:
        """Names of what is frozen that a proof from files cannot see, with what it is."""
        loose = (f"{name} (a plain attribute)" for one in self.unlisted for name in one.objects)
        return (*self.not_covered, *loose)

    def verify(self) -> Proof:
        """Prove that nothing frozen moved: every bit, every gradient switch, every mode.

        What was thawed since, by `fl.thaw` or leaving `fl.frozen`, is no longer checked. Where
        rows of a recorded tensor were thawed, its other rows are compared with what they were at
        that thaw.

        Raises:
            DriftError: lists each tensor that moved with how far, each parameter that wants
                gradients again and each held module found in train mode.
        """
        drifts: list[Drift] = []
        proved: dict[str, Record] = {}
        thawed = 0
        for name, record in self.records.items():
            due = self._still_frozen(name, record)
            thawed += not due
            drifts += self._drifts(name, due)
            proved |= due
        beside: dict[str, Record] = {}
        for one in self._beside():
            drifts += one.drifts()
            replaced = one.replaced()
            beside |= {n: r for n, r in {**one.saved, **one.loose}.items() if n not in replaced}
        for path, module in self.model.named_modules():
            if is_held(module) and module.training:
                words = "was put in train mode behind the freeze"
                drifts.append(Drift(path or "(model)", words, _BY_TRAIN))
        if drifts:
            count = "one thing" if len(drifts) == 1 else f"{len(drifts)} things"
            lines = "".join(f"\n  {drift}" for drift in drifts)
            do = " ".join(dict.fromkeys(drift.do for drift in drifts))
            raise DriftError(
                f"{count} that {type(self.model).__name__} was to keep frozen did not stay as it "
                f"was:{lines}\n{do}",
                drifts,
            )
        saved = {name for one in self.unlisted for name in one.saved}
        hashed = {**proved, **{name: r for name, r in beside.items() if name in saved}}
        return Proof(
            len(proved) + len(beside),
            sum(record.nbytes for record in (*proved.values(), *beside.values())),
            Fingerprint({name: record.digest for name, record in hashed.items()}),
            self.not_covered,
            thawed,
        )

    def thaw(self, selector: SelectorLike | None = None) -> None:
        """Thaw what this call froze, or the part of it that `selector` names."""
        chosen = self.selection
        if selector is not None:
            chosen = non_empty(common(chosen, select(self.model, selector)), "thaw")
        thaw_selection(chosen)

    def summary(self, *, depth: int = 2) -> Summary:
        """The model's table as data, `depth` levels deep."""
        return summary(self.model, depth=depth)

    def _parts(self) -> Iterator[Table | str]:
        yield self.summary().table()
        covered = not_covered_text(self.not_covered).removeprefix("; ")
        yield from filter(None, (str(self.kept or ""), covered))

    def __str__(self) -> str:
        return "\n".join(map(str, self._parts()))

    def _beside(self) -> list[UnlistedRecord]:
        return [
            one
            for one in self.unlisted
            if is_held(one.module) and self._is_same_freeze(one.path, one.module, "")
        ]

    def _is_same_freeze(self, name: str, module: nn.Module, leaf: str) -> bool:
        """Whether it was never thawed since; one that was may have trained meanwhile."""
        return self.since is None or self.since[name] <= freezes_of(module, leaf)

    def _still_frozen(self, name: str, record: Record) -> dict[str, Record]:
        """What is frozen still of what was recorded: all of it, rows of it, or nothing."""
        # Rows that a later thaw of their neighbours left are recorded as their hold keeps them.
        owner, place, leaf = self._home(name, record)
        mark, hold = mark_of(owner), holds_of(owner).get(leaf)
        if not self._is_same_freeze(name, owner, leaf):
            return {}
        if leaf in owner._buffers:
            return {name: record} if is_held(owner) else {}
        if mark is not None and leaf in mark.names:
            return {name: record}
        if hold is None:
            return {}
        recorded = range(record.shape[0]) if record.rows is None else record.rows
        left = common_rows([recorded], (piece.rows for piece in hold.kept))
        if left == (record.rows,):
            return {name: record}
        return {
            place + suffix(piece.rows): Record.of(piece.values, name=place, at=piece.rows)
            for piece in kept_within(hold.kept, left)
        }

    def _drifts(self, name: str, due: Mapping[str, Record]) -> Iterator[Drift]:
        """What is wrong with one recorded tensor, where any of it is frozen still."""
        owner, place, leaf = self._home(name, self.records[name])
        tensor = owner._parameters.get(leaf, owner._buffers.get(leaf))
        if due and (tensor is None or not _stands_at(owner, self.model, place)):
            yield Drift(name, "is gone; it or the module that held it was replaced", _AGAIN)
        elif tensor is not None:
            wants = tensor.requires_grad and leaf not in holds_of(owner)
            wanting = "wants gradients again; something set requires_grad behind the freeze"
            for part, record in due.items():
                moved = record.moved(tensor, name=part)
                if line := ", and ".join(filter(None, [wanting if wants else None, moved])):
                    yield Drift(part, line, _what_to_do(record, tensor, moved))

    def _home(self, name: str, record: Record) -> tuple[nn.Module, str, str]:
        """The module that owned a recorded tensor, the tensor's full name, and its name there."""
        return _home(self.selection.inventory.modules, name, record)


def _home(
    modules: Mapping[str, nn.Module], name: str, record: Record
) -> tuple[nn.Module, str, str]:
    place = name.removesuffix(suffix(record.rows))
    path, _, leaf = place.rpartition(".")
    return modules[path], place, leaf


def _what_to_do(record: Record, tensor: Tensor, moved: str | None) -> str:
    if moved is None:
        return _BY_THAW
    if tensor.dtype != record.dtype:
        return _CAST
    is_filled = record.rows is None and tuple(tensor.shape) != record.shape
    return _FILLED if is_filled and not isinstance(tensor, nn.Parameter) else _LOOK


def thaw_selection(selection: Selection) -> None:
    """Thaw what is selected, all of it or nothing; raises as `thaw`."""
    with restoring(selection, only_on_error=True):
        switch_on(selection)
        check_shared(selection.inventory.model)
        check_as_wrapped(selection)


def non_empty(selection: Selection, verb: str) -> Selection:
    """The selection; raises FreezeError if it is empty, unless nothing was asked for."""
    if selection.picked or isinstance(selection.selector, Nothing):
        return selection
    raise FreezeError(
        f"'{selection.selector}' leaves nothing to {verb} in {selection.inventory.title}: its "
        "terms match, but no parameter is in all of them. See what each matches: "
        + either("fl.select(model, ...).", "`frostline inspect MODEL --train SEL`.")
    )


def _stands_at(module: nn.Module, root: nn.Module, place: str) -> bool:
    """Whether it still owns the tensor of that full name, through compiled parts as well.

    Also within what was put around it since, or where that stood which was around it and is gone:
    adapters come and go so, and leave the layer itself alone.
    """
    path = place.rpartition(".")[0]
    found = _module_at(root, path)
    if found is None:
        return _module_at(root, path.rpartition(".")[0]) is module
    return any(inner is module for inner in found.modules())


def _module_at(root: nn.Module, path: str) -> nn.Module | None:
    try:
        return root.get_submodule(path)
    except AttributeError:
        return None
