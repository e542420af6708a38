"""Freezing: three switches (gradients, buffers, mode) behind one handle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, final

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from frostline.errors import DriftError, FreezeError
from frostline.fingerprints import Fingerprint, Record
from frostline.modes import (
    Mark,
    NormPolicy,
    is_held,
    is_random_in_training,
    mark_of,
    set_mark,
    settle,
)
from frostline.selectors import (
    Entry,
    Selection,
    SelectorLike,
    everything,
    inventory,
    nothing,
    select,
)
from frostline.selectors.inventory import wrappers
from frostline.selectors.terms import Nothing
from frostline.tree import Summary, summary
from frostline.units import format_bytes

_NORM_POLICIES = ("hold", "adapt")
_LEAVINGS = ("something", "nothing")


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
        if not self.tensors:
            return "nothing was frozen"
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
            chosen = _common(chosen, select(self.model, selector))
        _thaw(_non_empty(chosen, "thaw"))

    def summary(self, *, depth: int = 2) -> Summary:
        """The model's table as data, `depth` levels deep."""
        return summary(self.model, depth=depth)

    def __str__(self) -> str:
        return str(self.summary())

    def _check(self, name: str, record: Record, checked: dict[str, Tensor]) -> Drift | None:
        path, _, leaf = name.rpartition(".")
        owner = self.selection.inventory.modules[path]
        if not _is_owed(owner, leaf):
            return None
        tensor = owner._parameters.get(leaf, owner._buffers.get(leaf))
        if tensor is None or _module_at(self.model, path) is not owner:
            return Drift(name, "is gone; it or the module that held it was replaced")
        checked[name] = tensor
        wanting = "wants gradients again; something set requires_grad behind the freeze"
        found = [wanting if tensor.requires_grad else None, record.moved(tensor, name=name)]
        return Drift(name, ", and ".join(filter(None, found))) if any(found) else None


def freeze(
    model: nn.Module,
    selector: SelectorLike,
    *,
    norm: NormPolicy = "hold",
    leaving: Literal["something", "nothing"] = "something",
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
    _check_unwrapped(model)
    _check_words(norm=norm, leaving=leaving)
    selection = _non_empty(select(model, selector), "freeze")
    if leaving == "something":
        _check_leaves_something(selection)
    with _all_or_nothing(selection):
        return _freeze(selection, norm=norm)


def thaw(model: nn.Module, selector: SelectorLike) -> None:
    """Make the selected parameters trainable.

    Modules that are no longer wholly frozen get back the mode each had before it was frozen.

    Raises:
        SelectorError: the selector cannot be read or a term matches nothing.
        FreezeError: the selection is empty, or the model is already wrapped for data-parallel
            training.
    """
    _check_unwrapped(model)
    _thaw(_non_empty(select(model, selector), "thaw"))


def train_only(model: nn.Module, selector: SelectorLike, *, norm: NormPolicy = "hold") -> Frozen:
    """Make the selected parameters trainable and freeze everything else.

    Returns:
        The handle of what was frozen.
    Raises:
        SelectorError: the selector cannot be read or a term matches nothing.
        FreezeError: the selection is empty; the model is as it was.
    """
    _check_unwrapped(model)
    _check_words(norm=norm)
    wanted = _non_empty(select(model, selector), "train")
    if not wanted.parameters:
        raise FreezeError(f"'{wanted.selector}' holds no parameter that could be trained.")
    stock = wanted.inventory
    rest = Selection(~wanted.selector, stock, everything.pick(stock) - wanted.picked)
    with _all_or_nothing(Selection(everything, stock, everything.pick(stock))):
        _thaw(wanted)
        return _freeze(rest, norm=norm)


def frozen_part(model: nn.Module) -> Frozen:
    """A handle on all that is frozen in `model` now, by whichever calls.

    Parameters whose `requires_grad` was switched off by hand count too, and get the two other
    switches: their modules are held in eval.

    Raises:
        FreezeError: as `freeze`, except that nothing needs to be left.
    """
    _check_unwrapped(model)
    stock = inventory(model)
    off = {index for index, entry in enumerate(stock.entries) if _is_off(entry)}
    marked = {i for i, e in enumerate(stock.entries) if _is_marked(e)}
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
    _check_unwrapped(model)
    _check_words(norm=norm)
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
            # Inside the block the model may have been cast or moved to another device.
            tensor.grad = None if gradient is None else gradient.to(tensor.device, tensor.dtype)
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
    _switch_off(selection, norm=norm)
    return _handle(selection, norm=norm)


def _switch_off(selection: Selection, *, norm: NormPolicy) -> None:
    for entry in selection.entries:
        if entry.tensor.requires_grad:
            entry.tensor.requires_grad_(False)
        entry.tensor.grad = None
        for owner, leaf in _homes(entry):
            mark = mark_of(owner)
            set_mark(owner, (mark.names if mark else frozenset()) | {leaf}, norm=norm)
    settle(selection.inventory.model)
    _check_shared(selection.inventory.model)


def _handle(selection: Selection, *, norm: NormPolicy) -> Frozen:
    root = selection.inventory.model
    records = {n: Record.of(tensor, name=n) for n, tensor in _owed_tensors(selection)}
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


def _is_off(entry: Entry) -> bool:
    """Whether the parameter wants no gradient; statistics go with the part frozen by hand."""
    if entry.is_parameter:
        return not entry.tensor.requires_grad
    owners = reversed(entry.occurrences[0].owners)
    part = next((o for o in owners if next(o.parameters(), None) is not None), None)
    return (
        part is not None
        and not any(parameter.requires_grad for parameter in part.parameters())
        and not any(mark_of(module) for module in part.modules())
    )


def _is_marked(entry: Entry) -> bool:
    return any((mark := mark_of(owner)) and leaf in mark.names for owner, leaf in _homes(entry))


def _owed_tensors(selection: Selection) -> Iterator[tuple[str, Tensor]]:
    """The selected tensors under each of their names, and the buffers that are held with them."""
    picked = {id(entry.tensor) for entry in selection.entries}
    for path, module in selection.inventory.modules.items():
        prefix = f"{path}." if path else ""
        own = [(n, p) for n, p in module._parameters.items() if p is not None and id(p) in picked]
        buffers = [(n, b) for n, b in module._buffers.items() if b is not None]
        touched = own or any(id(buffer) in picked for _, buffer in buffers)
        yield from ((prefix + name, parameter) for name, parameter in own)
        if touched and is_held(module):
            yield from ((prefix + name, buffer) for name, buffer in buffers)


def _module_at(root: nn.Module, path: str) -> nn.Module | None:
    try:
        return root.get_submodule(path)
    except AttributeError:
        return None


def _common(selection: Selection, other: Selection) -> Selection:
    """What both hold, by identity: the model may have changed between the two."""
    named = {id(entry.tensor) for entry in other.entries}
    entries = selection.inventory.entries
    both = frozenset(i for i in selection.picked if id(entries[i].tensor) in named)
    return Selection(other.selector, selection.inventory, both)


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


def _check_unwrapped(model: nn.Module) -> None:
    for wrapper in wrappers(model):
        if isinstance(wrapper, DistributedDataParallel | DataParallel):
            raise FreezeError(
                f"the model is already wrapped in {type(wrapper).__name__}, which took note of its "
                "trainable parameters. Freeze and thaw first, then wrap."
            )


def _check_words(*, norm: str, leaving: str = "something") -> None:
    if norm not in _NORM_POLICIES:
        raise FreezeError(f"norm={norm!r} is no norm policy. Use norm='hold' or norm='adapt'.")
    if leaving not in _LEAVINGS:
        raise FreezeError(
            f"leaving={leaving!r} is unknown. Use leaving='something', or leaving='nothing' to "
            "freeze the whole model."
        )


def _check_shared(root: nn.Module) -> None:
    """Refuse one dropout object that serves a frozen and a trainable part."""
    held: dict[nn.Module, str] = {}
    free: dict[nn.Module, str] = {}
    for path, module in root.named_modules(remove_duplicate=False):
        if is_random_in_training(module):
            (held if is_held(_part_around(root, path)) else free)[module] = path
    for module in held.keys() & free.keys():
        raise FreezeError(
            f"one {type(module).__name__} serves the frozen part as {held[module]} and the "
            f"trainable part as {free[module]}; it cannot be off in one and on in the other. "
            "Give each part its own."
        )


def _part_around(root: nn.Module, path: str) -> nn.Module:
    """The nearest module above `path` that has parameters: the part which the layer serves."""
    while path:
        path = path.rpartition(".")[0]
        above = root.get_submodule(path)
        if next(above.parameters(), None) is not None:
            return above
    return root


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
