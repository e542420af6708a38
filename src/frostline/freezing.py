"""Freezing: three switches (gradients, buffers, mode) behind one handle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import final

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from frostline.errors import DriftError, FreezeError
from frostline.fingerprints import Fingerprint, Record, tensors_of
from frostline.modes import (
    Mark,
    NormPolicy,
    is_held,
    is_random_in_training,
    mark_of,
    set_mark,
    settle,
)
from frostline.selectors import Entry, Selection, SelectorLike, everything, select
from frostline.selectors.terms import Nothing
from frostline.tree import Summary, summary
from frostline.units import format_bytes

_NORM_POLICIES = ("hold", "adapt")


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
    """The result of a verification that found nothing: how much was compared, and its hash."""

    tensors: int
    nbytes: int
    fingerprint: Fingerprint

    def __str__(self) -> str:
        size = format_bytes(self.nbytes)
        return f"{self.tensors} frozen tensors ({size}) are bit for bit as they were"


@final
@dataclass(frozen=True, eq=False)
class Frozen:
    """A handle on what one call froze; printing it shows the model's table.

    Attributes:
        model: the model, unwrapped.
        selection: what was frozen.
        norm: the norm policy.
        records: tensor name -> what it was when it was frozen; parameters of the selection and
            the buffers that are held with them.
    """

    model: nn.Module = field(repr=False)
    selection: Selection
    norm: NormPolicy
    records: dict[str, Record] = field(repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters this call froze."""
        return self.selection.names

    @property
    def fingerprint(self) -> Fingerprint:
        """Content hash of the frozen tensors as they were when they were frozen."""
        return Fingerprint({name: record.digest for name, record in self.records.items()})

    def verify(self) -> Proof:
        """Prove that nothing frozen moved: every bit, every gradient switch, every mode.

        What was thawed since, by `fl.thaw` or leaving `fl.frozen`, is no longer owed and left out.

        Raises:
            DriftError: lists each tensor that moved with how far, each parameter that wants
                gradients again and each held module found in train mode.
        """
        checked: dict[str, Tensor] = {}
        drifts: list[Drift] = []
        for name, record in self.records.items():
            drift = self._check(name, record, checked)
            drifts.extend([drift] if drift else [])
        drifts.extend(_mode_drifts(self.model))
        if drifts:
            raise _drift_error(self.model, drifts)
        return Proof(
            len(checked),
            sum(tensor.nbytes for tensor in checked.values()),
            Fingerprint({name: self.records[name].digest for name in checked}),
        )

    def thaw(self, selector: SelectorLike | None = None) -> None:
        """Thaw what this call froze, or the part of it that `selector` names."""
        chosen = self.selection
        if selector is not None:
            named = select(self.model, selector)
            chosen = Selection(named.selector, chosen.inventory, chosen.picked & named.picked)
        _thaw(_non_empty(chosen, "thaw"))

    def summary(self) -> Summary:
        """The model's table as data."""
        return summary(self.model)

    def __str__(self) -> str:
        return str(self.summary())

    def _check(self, name: str, record: Record, checked: dict[str, Tensor]) -> Drift | None:
        path, _, leaf = name.rpartition(".")
        try:
            owner = self.model.get_submodule(path)
            tensor = owner._parameters.get(leaf, owner._buffers.get(leaf))
        except AttributeError:
            tensor = None
        if tensor is None:
            return Drift(name, "is gone; the module that held it was replaced")
        if not _is_owed(owner, leaf):
            return None
        checked[name] = tensor
        if tensor.requires_grad:
            return Drift(
                name, "wants gradients again; something set requires_grad behind the freeze"
            )
        moved = record.moved(tensor, name=name)
        return Drift(name, moved) if moved else None


def freeze(
    model: nn.Module,
    selector: SelectorLike,
    *,
    norm: NormPolicy = "hold",
    leaving: str = "something",
) -> Frozen:
    """Freeze the selected part: no gradient, no moving buffer, the same function in training.

    Gradients are switched off and stale ones cleared; modules whose whole subtree is frozen are
    held in eval through any later `train()`. A module that is frozen in part follows the model's
    mode, except norm layers: `norm="hold"` keeps their statistics, `norm="adapt"` lets them
    follow the data. No module is replaced. Freezing twice is the same as once.

    Args:
        leaving: `"nothing"` allows freezing the whole model, as before putting a head on it.

    Returns:
        A handle: `print` it for the table, `verify()` proves that nothing moved.
    Raises:
        SelectorError: the selector cannot be read or a term matches nothing.
        FreezeError: the selection is empty, nothing trainable would be left, or the model is
            already wrapped for data-parallel training. The model is as it was.
    """
    _check_freezable(model)
    selection = _non_empty(select(model, selector), "freeze")
    if norm not in _NORM_POLICIES:
        raise FreezeError(f"norm={norm!r} is no norm policy. Use norm='hold' or norm='adapt'.")
    if leaving != "nothing":
        _check_leaves_something(selection)
    with _all_or_nothing(selection):
        return _freeze(selection, norm=norm)


def thaw(model: nn.Module, selector: SelectorLike) -> None:
    """Make the selected parameters trainable.

    Modules that are no longer wholly frozen get back the mode each had before it was frozen.

    Raises:
        SelectorError: the selector cannot be read or a term matches nothing.
        FreezeError: the selection is empty.
    """
    _thaw(_non_empty(select(model, selector), "thaw"))


def train_only(model: nn.Module, selector: SelectorLike, *, norm: NormPolicy = "hold") -> Frozen:
    """Make the selected parameters trainable and freeze everything else.

    Returns:
        The handle of what was frozen.
    Raises:
        SelectorError: the selector cannot be read or a term matches nothing.
        FreezeError: the selection is empty; the model is as it was.
    """
    _check_freezable(model)
    wanted = _non_empty(select(model, selector), "train")
    if not wanted.parameters:
        raise FreezeError(f"'{wanted.selector}' holds no parameter that could be trained.")
    stock = wanted.inventory
    rest = Selection(~wanted.selector, stock, everything.pick(stock) - wanted.picked)
    with _all_or_nothing(Selection(everything, stock, everything.pick(stock))):
        _thaw(wanted)
        return _freeze(rest, norm=norm)


@contextmanager
def frozen(
    model: nn.Module, selector: SelectorLike, *, norm: NormPolicy = "hold"
) -> Iterator[Frozen]:
    """Freeze within a `with` block; on leaving, gradients switches and modes are exactly as before.

    May freeze the whole model, as when a discriminator only judges. Gradients that the frozen
    parameters had are given back too.

    Raises:
        SelectorError, FreezeError: as `freeze`.
    """
    _check_freezable(model)
    selection = _non_empty(select(model, selector), "freeze")
    before = _Snapshot.of(selection)
    try:
        yield _freeze(selection, norm=norm)
    finally:
        before.restore()


@final
@dataclass(frozen=True, slots=True)
class _Snapshot:
    """Gradient switches, gradients and marks of what a selection touches; modes follow marks."""

    model: nn.Module
    gradients: tuple[tuple[Tensor, bool, Tensor | None], ...]
    marks: tuple[tuple[nn.Module, Mark | None], ...]

    @classmethod
    def of(cls, selection: Selection) -> _Snapshot:
        tensors = [entry.tensor for entry in selection.entries]
        owners = {owner for entry in selection.entries for owner, _ in _homes(entry)}
        return cls(
            selection.inventory.model,
            tuple((tensor, tensor.requires_grad, tensor.grad) for tensor in tensors),
            tuple((owner, mark_of(owner)) for owner in owners),
        )

    def restore(self) -> None:
        for tensor, wanted, gradient in self.gradients:
            tensor.requires_grad_(wanted)
            tensor.grad = gradient
        for owner, mark in self.marks:
            set_mark(owner, mark.names if mark else frozenset(), norm=mark.norm if mark else "hold")
        settle(self.model)


@contextmanager
def _all_or_nothing(selection: Selection) -> Iterator[None]:
    before = _Snapshot.of(selection)
    try:
        yield
    except BaseException:
        before.restore()
        raise


def _freeze(selection: Selection, *, norm: NormPolicy) -> Frozen:
    for entry in selection.entries:
        if entry.tensor.requires_grad:
            entry.tensor.requires_grad_(False)
        entry.tensor.grad = None
        for owner, leaf in _homes(entry):
            mark = mark_of(owner)
            set_mark(owner, (mark.names if mark else frozenset()) | {leaf}, norm=norm)
    root = selection.inventory.model
    settle(root)
    _check_shared(root)
    owed = {n: t for n, t in tensors_of(selection).items() if _is_owed(*_home(root, n))}
    records = {name: Record.of(tensor, name=name) for name, tensor in owed.items()}
    return Frozen(root, selection, norm, records)


def _thaw(selection: Selection) -> None:
    for entry in selection.entries:
        tensor = entry.tensor
        if entry.is_parameter and (tensor.is_floating_point() or tensor.is_complex()):
            tensor.requires_grad_(True)
        for owner, leaf in _homes(entry):
            if mark := mark_of(owner):
                set_mark(owner, mark.names - {leaf}, norm=mark.norm)
    settle(selection.inventory.model)


def _homes(entry: Entry) -> Iterator[tuple[nn.Module, str]]:
    for place in entry.occurrences:
        yield place.owner, place.name.rpartition(".")[2]


def _home(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return root.get_submodule(path), leaf


def _is_owed(owner: nn.Module, leaf: str) -> bool:
    """Whether that tensor of `owner` is to stay as it is: a marked parameter, a held buffer."""
    if leaf in owner._buffers:
        return is_held(owner)
    mark = mark_of(owner)
    return mark is not None and leaf in mark.names


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


def _check_freezable(model: nn.Module) -> None:
    if isinstance(model, DistributedDataParallel | DataParallel):
        raise FreezeError(
            f"the model is already wrapped in {type(model).__name__}, which took note of its "
            "trainable parameters. Freeze first, then wrap."
        )


def _check_shared(root: nn.Module) -> None:
    """Refuse one dropout object that serves a frozen and a trainable part."""
    held: dict[nn.Module, str] = {}
    free: dict[nn.Module, str] = {}
    for path, module in root.named_modules(remove_duplicate=False):
        if is_random_in_training(module):
            parent = root.get_submodule(path.rpartition(".")[0])
            (held if is_held(parent) else free)[module] = path
    for module in held.keys() & free.keys():
        raise FreezeError(
            f"one {type(module).__name__} serves the frozen part as {held[module]} and the "
            f"trainable part as {free[module]}; it cannot be off in one and on in the other. "
            "Give each part its own."
        )


def _check_leaves_something(selection: Selection) -> None:
    gone = {id(parameter) for parameter in selection.parameters}
    left = (e.tensor for e in selection.inventory.entries if id(e.tensor) not in gone)
    if selection.parameters and not any(tensor.requires_grad for tensor in left):
        title = selection.inventory.title
        raise FreezeError(
            f"freezing '{selection.selector}' would leave nothing trainable in {title}. Add the "
            "new head first, or choose less; to freeze it whole all the same, as before putting "
            "a head on it: fl.freeze(model, ..., leaving='nothing')."
        )
