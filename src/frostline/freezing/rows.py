"""Rows of a tensor held as they are, bit for bit, while its other rows train.

Zeroed gradients do not hold rows: weight decay, momentum and Adam's state move them all the same.
A hold keeps a copy of the rows (this is its memory: their bytes, and nothing for the other rows),
zeroes their gradients as these are accumulated, so that clipping does not count them, and puts
the rows back after each step of any `torch.optim.Optimizer` that has the tensor among its
parameters. Before each step the rows are compared with the copy: what something else wrote into
them is an error, not silently written over. Out of reach are optimizers that move copies of their
own (master weights, flat shards); what they write back is found at the next proof.

A hold hangs on the module that owns the tensor, as an instance attribute, so that it goes along
through `copy.deepcopy` and `torch.save` of the whole module, and stays through `to()` and
`load_state_dict`. A tied tensor has one on each of its owners, all with the same rows.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.hooks import RemovableHandle

from frostline.errors import DriftError, FreezeError
from frostline.selectors.inventory import Occurrence, not_plain
from frostline.selectors.ranges import Ranges, overlaps, suffix, union

_HOLDS = "_frostline_rows"
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def held(tensor: Tensor) -> tuple[Kept, ...]:
    """What is kept of the tensor's rows, in their order; nothing if none are held."""
    return next((hold.kept for hold in _holds_on(tensor)), ())


def held_rows(tensor: Tensor) -> Ranges:
    """The rows of the tensor that are held."""
    return union(kept.rows for kept in held(tensor))


def held_numel(tensor: Tensor) -> int:
    """How many numbers of the tensor are held."""
    return sum(kept.values.numel() for kept in held(tensor))


def holds_of(module: nn.Module) -> Mapping[str, RowHold]:
    """The holds that hang on the module, by the names of its own tensors."""
    holds: dict[str, RowHold] = module.__dict__.get(_HOLDS, {})
    return holds


def hold(tensor: Tensor, places: Sequence[Occurrence], kept: Iterable[Kept]) -> None:
    """Hold exactly these rows of the tensor, one that `check_holdable` passes; none releases it."""
    pieces = tuple(sorted(kept, key=lambda piece: piece.rows.start))
    # A module that got a new tensor since has its hold all the same.
    hanging = (holds_of(place.owner).get(place.own_name) for place in places)
    for one in {id(one): one for one in (*_holds_on(tensor), *hanging) if one}.values():
        one.kept = pieces
        if not pieces:
            one.release()
        elif one.tensor is not None:
            one.attend(one.tensor)
    for place in places if pieces else ():
        if place.own_name not in (holds := holds_of(place.owner)):
            made = RowHold(place.owner, place.own_name, place.name, pieces, tensor)
            place.owner.__dict__[_HOLDS] = {**holds, place.own_name: made}


def clear_gradient(tensor: Tensor) -> None:
    """Zero the gradient of the tensor's held rows, in place."""
    for one in _holds_on(tensor):
        one.clear_gradient(tensor)


def check_holdable(tensor: Tensor, name: str) -> None:
    """Raises FreezeError for a tensor of which no rows can be held; says why."""
    if kind := not_plain(tensor):
        raise FreezeError(
            f"no rows of {name} can be held: it is {kind}, so they cannot be copied and put back "
            "in place. Freeze rows of a plain tensor with its data loaded, or freeze it whole."
        )


@final
class RowHold:
    """Holds rows of one tensor of one module."""

    __slots__ = ("__weakref__", "_handle", "_module", "kept", "leaf", "name")

    def __init__(
        self, module: nn.Module, leaf: str, name: str, kept: tuple[Kept, ...], tensor: Tensor | None
    ) -> None:
        # Weak, since a cycle would keep a dropped model's memory until the next collection.
        self._module = weakref.ref(module)
        self._handle: RemovableHandle | None = None
        self.leaf = leaf  # the tensor's name in its module
        self.name = name  # its full name when it was held, for messages
        self.kept = kept
        # Given, since a module that is just being copied or loaded does not have it yet.
        if tensor is not None:
            self.attend(tensor)
        _watch(self)

    @property
    def module(self) -> nn.Module:
        """The module that it hangs on."""
        module = self._module()
        if module is None:
            raise ReferenceError("the module of this hold is gone")
        return module

    @property
    def tensor(self) -> Tensor | None:
        """The tensor as its module has it now; `None` when either is gone."""
        module = self._module()
        own = {} if module is None else module.__dict__.get("_parameters", {})
        found: Tensor | None = own.get(self.leaf)
        return found

    def release(self) -> None:
        """Hold nothing any more, and leave no trace on module and tensor."""
        _forget(id(self))
        if self._handle is not None:
            self._handle.remove()
        own = self.module.__dict__
        own[_HOLDS] = {leaf: one for leaf, one in holds_of(self.module).items() if one is not self}
        if not own[_HOLDS]:
            del own[_HOLDS]

    def attend(self, tensor: Tensor) -> None:
        """See to it that gradients accumulated on `tensor` are zeroed in the held rows."""
        hooks = tensor._post_accumulate_grad_hooks or {}
        if not tensor.requires_grad or (self._handle is not None and self._handle.id in hooks):
            return
        if self._handle is not None:
            self._handle.remove()
        # Weak, since an optimizer may keep the tensor longer than its module lives.
        method = weakref.WeakMethod(self.clear_gradient)
        register: Callable[..., RemovableHandle] = tensor.register_post_accumulate_grad_hook
        self._handle = register(lambda grown: (clear := method()) and clear(grown))

    def clear_gradient(self, tensor: Tensor) -> None:
        """Zero the gradient of the held rows, in place."""
        gradient = tensor.grad
        if gradient is not None and gradient.is_sparse:
            # What it lists may list a row twice.
            edges = [edge for piece in self.kept for edge in (piece.rows.start, piece.rows.stop)]
            listed, device = gradient._indices()[0].contiguous(), gradient.device
            places = torch.searchsorted(torch.tensor(edges, device=device), listed, right=True)
            gradient._values()[places % 2 == 1] = 0
        elif gradient is not None:
            for piece in self.kept:  # not detached: a gradient may have a graph of its own
                gradient[piece.rows.start : piece.rows.stop].zero_()

    def check(self, tensor: Tensor) -> None:
        """Raises DriftError if something wrote to the held rows since they were last put back."""
        check_holdable(tensor, self.name)
        self.attend(tensor)  # it may have been replaced
        like = self.kept[0].values
        if (like.dtype, like.device) != (tensor.dtype, tensor.device):  # cast or moved
            moved = ((k.rows, k.values.to(tensor.device, tensor.dtype)) for k in self.kept)
            self.kept = tuple(Kept(rows, values) for rows, values in moved)
        # While a CUDA graph is recorded nothing can be waited for.
        is_recorded = tensor.is_cuda and torch.cuda.is_current_stream_capturing()
        if is_recorded or are_same(self.kept, tensor):
            return
        found = ((piece.rows, difference(piece, tensor)) for piece in self.kept)
        lines = [f"{self.name}{suffix(rows)}: {what}" for rows, what in found if what]
        listed = "\n  ".join(lines)
        raise DriftError(
            f"rows of {self.name} that are frozen were written to by something other than an "
            f"optimizer's step:\n  {listed}\nLoad weights before freezing; to keep what was "
            "written, freeze these rows again.",
            lines,
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> RowHold:
        copied = memo.get(id(self.module), self.module)
        assert isinstance(copied, nn.Module)
        tensor = copy.deepcopy(self.tensor, memo)
        kept = tuple(Kept(k.rows, copy.deepcopy(k.values, memo)) for k in self.kept)
        return RowHold(copied, self.leaf, self.name, kept, tensor)

    def __reduce__(self) -> tuple[type[RowHold], tuple[object, ...]]:
        return RowHold, (self.module, self.leaf, self.name, self.kept, self.tensor)


# Every hold that lives, by its `id()`; torch's step hooks are there as long as there is one.
_living: dict[int, weakref.ref[RowHold]] = {}
_step_hooks: list[RemovableHandle] = []


def _watch(one: RowHold) -> None:
    key = id(one)
    _living[key] = weakref.ref(one, lambda _: _forget(key))
    if not _step_hooks:
        _step_hooks.append(register_optimizer_step_pre_hook(_before_step))
        _step_hooks.append(register_optimizer_step_post_hook(_after_step))


def _forget(key: int) -> None:
    _living.pop(key, None)
    while _step_hooks and not _living:
        _step_hooks.pop().remove()


def _pairs() -> Iterator[tuple[RowHold, Tensor]]:
    """The living holds, each with its tensor."""
    for reference in list(_living.values()):
        if (one := reference()) is not None and (tensor := one.tensor) is not None:
            yield one, tensor


def _holds_on(tensor: Tensor) -> list[RowHold]:
    """The holds of the tensor, one for each of its owners."""
    return [one for one, its in _pairs() if its is tensor]


def _moved_by(optimizer: Optimizer) -> list[tuple[RowHold, Tensor]]:
    """A hold of each held tensor that the optimizer moves."""
    moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return list(
        {id(tensor): (one, tensor) for one, tensor in _pairs() if id(tensor) in moved}.values()
    )


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:  # noqa: ARG001 - torch's
    with torch.no_grad():
        for one, tensor in _moved_by(optimizer):
            one.check(tensor)
            one.clear_gradient(tensor)


def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:  # noqa: ARG001 - torch's
    with torch.no_grad():
        for one, tensor in _moved_by(optimizer):
            for piece in one.kept:
                piece.of(tensor).copy_(piece.values)


@final
@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """Rows of a tensor, and a copy of what they held, which is never written to."""

    rows: range
    values: Tensor

    def of(self, tensor: Tensor) -> Tensor:
        """The tensor's own rows, as a view."""
        return tensor.detach()[self.rows.start : self.rows.stop]


def taken(tensor: Tensor, rows: Iterable[range]) -> tuple[Kept, ...]:
    """Copies of these rows as they are now."""
    return tuple(Kept(r, tensor.detach()[r.start : r.stop].clone()) for r in rows)


def kept_within(kept: Sequence[Kept], rows: Iterable[range]) -> tuple[Kept, ...]:
    """What of the kept rows is among `rows`; a piece that is cut is copied, to free the rest."""
    pieces = ((kept[at], p) for at, p in overlaps([k.rows for k in kept], union(rows)))
    return tuple(
        one
        if part == one.rows
        else Kept(part, one.values[part.start - one.rows.start :][: len(part)].clone())
        for one, part in pieces
    )


def are_same(kept: Iterable[Kept], tensor: Tensor) -> bool:
    """Whether the tensor has the kept rows, and each of their bits."""
    pairs = [(piece.of(tensor), piece.values) for piece in kept]
    if any(now.shape != before.shape for now, before in pairs):
        return False
    if tensor.device.type == "cpu":
        return all(torch.equal(_bits(now), _bits(before)) for now, before in pairs)
    return not any_differs(pairs)


def any_differs(pairs: Iterable[tuple[Tensor, Tensor]]) -> bool:
    """Whether any bit differs, for an accelerator: it is waited for once, not for each pair."""
    differs = [(_bits(now) != _bits(before)).any() for now, before in pairs]
    return bool(torch.stack(differs).any())


def difference(piece: Kept, tensor: Tensor) -> str | None:
    """How the tensor's rows differ from the kept ones, in words; `None` where no bit does."""
    now = piece.of(tensor)
    if now.shape != piece.values.shape:
        return f"shape changed from {(*piece.values.shape,)} to {(*now.shape,)}"
    differs = (_bits(now) != _bits(piece.values)).reshape(len(piece.rows), -1).any(dim=1)
    if not differs.any():
        return None
    count, first = int(differs.sum()), piece.rows[int(differs.int().argmax())]
    return f"{count} of {len(piece.rows)} rows differ, the first is row {first}"


def _bits(tensor: Tensor) -> Tensor:
    """The tensor's bits as integers, so that NaN equals itself and the sign of zero counts."""
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return real.view(_BITS[real.dtype.itemsize])
