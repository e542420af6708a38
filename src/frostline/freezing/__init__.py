"""Freezing: three switches (gradients, buffers, mode) behind one handle.

A tensor is frozen by its gradients switch (`switches`), whole or in rows (`rows`). The modules that
are frozen with all that is in them are held in eval (`modes`, `held_layers`), so their buffers stay
too. The handle (`handle`) proves it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

from torch import nn

from frostline.backward import is_lean
from frostline.backward import lean as lean_backward
from frostline.casting import CastDtype, asked_dtype, cast_weights
from frostline.choices import NormPolicy
from frostline.errors import FreezeError
from frostline.freezing.handle import Frozen as Frozen
from frostline.freezing.handle import Proof as Proof
from frostline.freezing.handle import non_empty, thaw_selection
from frostline.freezing.handle import not_covered_text as not_covered_text
from frostline.freezing.modes import modes_kept
from frostline.freezing.refusals import check_as_wrapped, check_unwrapped, check_words, passing
from frostline.freezing.rows import held_rows
from frostline.freezing.switches import is_marked, is_off, restoring, switch_off, switch_on, trains
from frostline.selectors import Selection, SelectorLike, everything, inventory, nothing, select
from frostline.selectors.pieces import cut_at
from frostline.wording import either


def freeze(
    model: nn.Module,
    selector: SelectorLike,
    *,
    norm: NormPolicy = "hold",
    leaving: Literal["something", "nothing"] = "something",
    dtype: CastDtype | None = None,
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
            itself, without calling it, raises at its first call, for the dtype is another.
        example: one batch, as the model takes it, on which to measure what `dtype` does to the
            output, in eval mode. A model that cannot compute with `dtype` is refused with it.
        lean: also lean the model, as `fl.lean`: its backward passes keep only what the wanted
            gradients need. `leaned.remove()` of the handle undoes it; a thaw does not.

    Returns:
        A handle: `print` it for the table, `verify()` proves that nothing moved, `kept` says what
        `dtype` brought and how far it moved weights and output.
    Raises:
        SelectorError: the selector cannot be read or a term matches nothing.
        FreezeError: the selection is empty, nothing trainable would be left, the model is already
            wrapped for data-parallel training (a living wrapper around it counts too), a tensor of
            which rows are selected is sharded or has no data, or a selected layer is TorchScript
            or an embedding with `max_norm`; with `dtype`, rows are selected, or a weight is
            sharded, has no data or overflows. The model is as it was.

    Example:
        >>> print(fl.freeze(model, "backbone"))
        module       type          parameters   gradients       mode
        ──────────────────────────────────────────────────────────────────
        (model)      Sequential           258   partly frozen   train
          backbone   Sequential           240   frozen          eval, held
        ...
        18 of 258 parameters trainable (6.98%), 1.1 KB in all
    """
    check_unwrapped(model)
    check_words(norm=norm, leaving=leaving)
    cast_to = asked_dtype(dtype, example)
    selection = non_empty(select(model, selector), "freeze")
    title, trained = selection.inventory.title, selection.inventory.indices(trains)
    if leaving == "something" and selection.parameters and trained <= selection.picked:
        raise FreezeError(
            f"freezing '{selection.selector}' would leave nothing trainable in {title}. Add the "
            "new head first, or choose less"
            + either(
                "; to freeze it whole all the same: fl.freeze(model, ..., leaving='nothing'). With "
                "a head put on it then, fl.train_only(model, ...) of the head freezes the rest.",
                ".",
            )
        )
    with restoring(selection, only_on_error=True):
        switch_off(selection, norm=norm)
        check_as_wrapped(selection)
        kept = None if cast_to is None else cast_weights(selection, cast_to, example)
        made = Frozen.of(selection, norm=norm, kept=kept)
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

    Example:
        >>> fl.thaw(model, "backbone.1")
        >>> model.backbone[1].weight.requires_grad
        True
    """
    check_unwrapped(model)
    thaw_selection(non_empty(select(model, selector), "thaw"))


def train_only(model: nn.Module, selector: SelectorLike, *, norm: NormPolicy = "hold") -> Frozen:
    """Make the selected parameters trainable and freeze everything else.

    Returns:
        The handle of what was frozen.
    Raises:
        SelectorError: the selector cannot be read or a term matches nothing.
        FreezeError: the selection is empty; the model is as it was.

    Example:
        >>> frozen = fl.train_only(model, "head | backbone.1.bias")
        >>> frozen.selection.names
        ('backbone.0.weight', 'backbone.0.bias', 'backbone.1.weight')
    """
    check_unwrapped(model)
    check_words(norm=norm)
    wanted = non_empty(select(model, selector), "train")
    if not wanted.parameters:
        raise FreezeError(f"'{wanted.selector}' holds no parameter that could be trained.")
    stock = wanted.inventory
    whole = everything.pick(stock)
    rest = Selection(~wanted.selector, stock, whole - wanted.picked)
    with restoring(Selection(everything, stock, whole), only_on_error=True):
        switch_on(wanted)
        switch_off(rest, norm=norm)
        check_as_wrapped(rest)
        return Frozen.of(rest, norm=norm)


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
    off, marked = stock.indices(is_off), stock.indices(is_marked)
    by_hand = Selection(nothing, stock, off - marked)
    with restoring(by_hand, only_on_error=True):
        switch_off(by_hand, norm="hold")
        return Frozen.of(Selection(nothing, stock, off | marked), norm="hold")


@contextmanager
def frozen(
    model: nn.Module, selector: SelectorLike, *, norm: NormPolicy = "hold"
) -> Iterator[Frozen]:
    """Freeze within a `with` block; on leaving, gradient switches and modes are exactly as before.

    Those of the whole model, whatever the block called on it. May freeze all of it, as when a
    discriminator only judges. Gradients that the frozen parameters had are given back too; those
    that the block made of others stay.

    Raises:
        SelectorError, FreezeError: as `freeze`.

    Example:
        >>> with fl.frozen(model, "all"):
        ...     print(model(images).requires_grad)
        False
        >>> model(images).requires_grad
        True
    """
    check_unwrapped(model)
    check_words(norm=norm)
    selection = non_empty(select(model, selector), "freeze")
    stock = selection.inventory
    others = Selection(~selection.selector, stock, everything.pick(stock) - selection.picked)
    with modes_kept(model), restoring(others, gradients=False), restoring(selection):
        switch_off(selection, norm=norm)
        yield Frozen.of(selection, norm=norm)


@contextmanager
def freezes_kept(model: nn.Module) -> Iterator[None]:
    """Whatever the block freezes and thaws, afterwards all is switched and held as before."""
    stock = inventory(model)
    whole = Selection(everything, stock, everything.pick(stock))
    with restoring(whole, unmoved=True), passing():
        yield
