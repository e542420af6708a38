"""The suffix of a cut: a module that stands for the model, above the line, in any training loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from frostline.cutting.at_module import ModuleSplit
from frostline.cutting.checking import state_kept
from frostline.cutting.drawing import FrontierValue
from frostline.cutting.effects import is_part
from frostline.cutting.graphs import OpenGraph
from frostline.cutting.halves import Above
from frostline.cutting.standalone import Standalone
from frostline.cutting.structures import flatten_output
from frostline.cutting.verdicts import LABELS
from frostline.devices import device_of
from frostline.errors import CutError
from frostline.freezing.modes import modes_kept
from frostline.narrowing import narrow

_MADE_UP = (2, 5)  # samples
_LAST_BITS = 1000  # by which sums in another order may differ, in a deep suffix


class Suffix(nn.Module):
    """The rest: `suffix(*values)` gives what the model gives, in the mode that the model is in.

    The values may also go in as one tuple, or by the frontier's names, as items of stored features
    have them. Of a model that was cut on an example with `labels` it takes these too and gives its
    loss, so a trainer takes the suffix for the model.

    Submodules, parameters, buffers, mode and state are the model's own, under the model's names;
    gradients, buffers and random numbers are those of the plain forward. It reads the tensors that
    the model has when it is called, so it may be copied, averaged and pickled as any module is.
    """

    # The loss is the mean of its batch: transformers' Trainer then divides by accumulated steps.
    accepts_loss_kwargs = False

    def __init__(
        self,
        model: nn.Module,
        above: ModuleSplit | tuple[Above, Above],
        names: tuple[str, ...],
    ) -> None:
        """Over `model`; `above` is what lies above the line, in evaluation and in training."""
        super().__init__()
        object.__setattr__(self, "model", model)  # not a submodule: names are the model's
        for held in ("_parameters", "_buffers", "_non_persistent_buffers_set", "_modules"):
            object.__setattr__(self, held, getattr(model, held))  # one dict with the model
        self._above = above
        self._names = names

    model: nn.Module

    @property
    def training(self) -> bool:
        """The model's mode; whoever goes through the modules to set modes sets it here."""
        return self.model.training

    @training.setter
    def training(self, mode: bool) -> None:
        if "model" in self.__dict__:
            self.model.training = mode

    def train(self, mode: bool = True) -> Suffix:
        """Put the model in this mode; what is held in it stays in evaluation."""
        self.model.train(mode)
        return self

    def state_dict(self, *args: Any, **options: Any) -> Any:
        """The model's."""
        return self.model.state_dict(*args, **options)

    def load_state_dict(self, state_dict: Mapping[str, Any], **options: Any) -> Any:  # type: ignore[override]  # torch names two
        """As the model does."""
        return self.model.load_state_dict(state_dict, **options)

    def forward(self, *values: Any, labels: Tensor | None = None, **named: Tensor) -> Any:
        """The model's output.

        Args:
            values: the frontier's, each `(batch, *shape)`; they are not written into.
            labels: for the loss, where the model was cut with an example that has them.
            named: values by the frontier's names, in place of their positions.
        Raises:
            CutError: values are missing or too many; a parameter below the line is trainable now;
                or the model is not what was cut any more in what it computes here. Otherwise what
                the model raises.
        """
        if len(values) == 1 and isinstance(values[0], tuple | list):
            values = tuple(values[0])
        if labels is not None:
            named[LABELS] = labels
        if named or len(values) != len(self._names):
            values = self._in_order(values, named)
        if isinstance(self._above, ModuleSplit):
            return self._above.suffix(values)
        half, rebuild, refusal = self._above[self.model.training]
        # Here, where torch.compile can follow all the rest as one.
        tensors = half.tensors(self.model)
        if refusal is not None and values[0].shape[0] == 1:
            error = refusal()
            if not (is_part() and "more than 1 value per channel" in str(error)):
                raise error
        return rebuild(iter(half.graph.run(tensors, values)))

    def check_same(self) -> None:
        """Raise CutError where the model, in the mode that it is in, is not what was cut."""
        if not isinstance(self._above, ModuleSplit):
            self._above[self.model.training].half.tensors(self.model)

    def graph(self, *, training: bool) -> OpenGraph | None:
        """What it computes in that mode; None behind a named submodule, where no graph tells."""
        above = self._above
        return None if isinstance(above, ModuleSplit) else above[training].half.graph

    def alone(self) -> Standalone:
        """A copy that has of its model only what it reads, and trains without touching the model.

        Raises:
            CutError: the cut is one behind a named submodule, where no graph tells what is read.
        """
        if isinstance(self._above, ModuleSplit):
            raise CutError(
                "a suffix behind a named submodule cannot stand alone: it runs the model's own "
                "forward. Cut without at=, or train the suffix itself."
            )
        return Standalone(self.model, self._above)

    def narrowed(self, frontier: Sequence[FrontierValue]) -> Suffix | None:
        """One that leaves out rows which nobody reads, as all tokens but the one a head takes.

        What it gives is the same but for last bits, outputs and gradients, since products of fewer
        rows may sum in another order; compared on made-up values, in both modes. None where there
        is nothing to leave out.

        Args:
            frontier: what crosses the line.
        """
        if isinstance(self._above, ModuleSplit) or not _can_be_made_up(frontier):
            return None
        found = [above.half.graph.rewritten(narrow) for above in self._above]
        if any(graph is None for graph in found):
            return None
        evaluation, training = (
            above._replace(half=above.half.over(graph))
            for above, graph in zip(self._above, found, strict=True)
            if graph is not None
        )
        made = Suffix(self.model, (evaluation, training), self._names)
        return made if _are_alike(self, made, frontier) else None

    def _in_order(self, values: tuple[Any, ...], named: Mapping[str, Tensor]) -> tuple[Any, ...]:
        free = [name for name in self._names if name not in named]
        if len(values) != len(free) or not named.keys() <= set(self._names):
            raise CutError(self._mismatch(len(values), named))
        found = {**dict(zip(free, values, strict=True)), **named}
        return tuple(found[name] for name in self._names)

    def _mismatch(self, count: int, named: Mapping[str, Tensor]) -> str:
        given = [*([f"{count} by position"] if count else []), *named]
        text = (
            f"the suffix of {type(self.model).__name__} takes {', '.join(self._names)}, and got "
            f"{', '.join(given) or 'nothing'}. "
        )
        if LABELS in named and LABELS not in self._names:
            return text + "Cut with an example that has labels, and the suffix gives the loss."
        if LABELS in self._names and LABELS not in named:
            return text + "Give labels, or cut with an example that has none."
        return text + "Give the values of this cut's prefix, or of features that were made with it."


def _can_be_made_up(frontier: Sequence[FrontierValue]) -> bool:
    fixed = (None not in value.shape for value in frontier)
    return all(fixed) and all(value.dtype.is_floating_point for value in frontier)


def _are_alike(one: Suffix, other: Suffix, frontier: Sequence[FrontierValue]) -> bool:
    """Whether both give the same but for last bits, for two numbers of samples in both modes."""
    device = device_of(one.model)
    devices = [device] if device.type == "cuda" else []
    with state_kept(one.model), modes_kept(one.model), torch.no_grad():
        for rows, training in product(_MADE_UP, (True, False)):
            one.model.train(training)
            outputs = []
            for suffix in (one, other):
                with torch.random.fork_rng(devices=devices):
                    torch.manual_seed(rows)
                    values = [
                        torch.randn(rows, *value.shape, dtype=value.dtype, device=device)  # type: ignore[arg-type]  # fixed
                        for value in frontier
                    ]
                    outputs.append(flatten_output(suffix(*values))[0])
            if not all(map(_is_near, *outputs)):
                return False
    return True


def _is_near(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or not one.is_floating_point():
        return torch.equal(one, other)
    largest = one.abs().max().clamp(min=torch.finfo(one.dtype).tiny)
    return bool((one - other).abs().max() <= _LAST_BITS * torch.finfo(one.dtype).eps * largest)
