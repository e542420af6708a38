"""Is the cut model the model? Both are run on the same batch, in both modes, and compared."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from frostline.cutting.offering import Unfollowed
from frostline.cutting.reads import reads_noted
from frostline.cutting.structures import InputSpec, flatten_output, same_bits
from frostline.cutting.trial import rows_at
from frostline.cutting.watching import Watch
from frostline.errors import CutError
from frostline.freezing.held_layers import packing

# Above it, it is another function; below, kernels that sum in another order.
_LARGEST_ERROR = 1e-4

CutForward = Callable[[list[Tensor]], object]


def check(
    model: nn.Module, spec: InputSpec, tensors: list[Tensor], halves: CutForward, *, training: bool
) -> tuple[float, Watch]:
    """Relative error of `halves` against the model in one mode; 0.0 means bit for bit.

    In training the gradients, the buffers afterwards and the random numbers drawn count as well.
    Nothing of the model stays moved. Also gives what the model's forward reads of its modules.

    Raises:
        CutError: they differ by more than the order of summation explains.
    """
    with state_kept(model):
        model.train(training)
        noting = _Noting(model, spec)
        try:
            plain = _outcome(model, noting, tensors, training=training)
        except RuntimeError as broken:
            raise CutError(
                f"{type(model).__name__} cannot be trained on the example as it is: {broken}"
            ) from broken
        cut = _outcome(model, halves, tensors, training=training)
        watch = Watch.of(model, noting.reads)
    error = max((_error(a, b) for a, b in zip(plain, cut, strict=False)), default=float("inf"))
    if len(plain) != len(cut) or not error <= _LARGEST_ERROR:
        mode = "training" if training else "evaluation"
        raise Unfollowed(
            f"the cut {type(model).__name__} does not give what the model gives in {mode} "
            f"(relative error {error:.2g}), so it is not used. {_advice(model)}"
        )
    return error, watch


@final
class _Noting:
    """The model's own forward, noting what it reads of its modules."""

    def __init__(self, model: nn.Module, spec: InputSpec) -> None:
        self._model = model
        self._spec = spec
        self.reads: dict[str, set[str]] = {}

    def __call__(self, given: list[Tensor]) -> object:
        with reads_noted(self._model) as self.reads:
            return self._spec.call(self._model, given)


def _advice(model: nn.Module) -> str:
    if not (encoders := packing(model)):
        return "Please report this model."
    names = ", ".join(path or "the model" for path in encoders)
    return (
        "nn.TransformerEncoder packs padded batches, which no graph does, and gives zeros at "
        f"padded places. Set use_nested_tensor = False on {names}, which computes these places "
        "like the others, and cut again."
    )


def check_one(
    model: nn.Module, spec: InputSpec, tensors: list[Tensor], halves: CutForward, *, training: bool
) -> Refusal | None:
    """The first sample alone gives the outputs that the model gives, where it takes one sample.

    The graph is that of two samples or more: a forward that asks how many there are may go
    another way for one. Nothing of the model stays moved. Gives what the model refuses one sample
    with, if it does.

    Raises:
        CutError: it gives something else.
    """
    one = rows_at(tensors, [0])
    with state_kept(model):
        model.train(training)
        try:
            plain = _outcome(model, lambda given: spec.call(model, given), one, training=False)
        except Exception as error:  # whatever a forward raises that wants more samples
            return Refusal.of(error)
        try:
            cut = _outcome(model, halves, one, training=False)
        except RuntimeError:  # shapes that do not fit
            cut = []
    if len(plain) != len(cut) or any(
        a.isfinite().all() and not _error(a, b) <= _LARGEST_ERROR
        for a, b in zip(plain, cut, strict=True)
    ):
        raise Unfollowed(
            f"the forward of {type(model).__name__} takes another way for one sample than for more."
        )
    return None


@final
@dataclass(frozen=True, slots=True)
class Refusal:
    """What a model says to a batch of one sample that it does not take."""

    kind: type[Exception]
    text: str

    @classmethod
    def of(cls, error: Exception) -> Refusal:
        plain = type(error).__module__ == "builtins"  # others may want other arguments
        return cls(type(error) if plain else RuntimeError, str(error))

    def error(self) -> Exception:
        """The error that the model raises."""
        return self.kind(self.text)


def _outcome(
    model: nn.Module, forward: CutForward, tensors: list[Tensor], *, training: bool
) -> list[Tensor]:
    """Outputs; in training also gradients, buffers and the random state afterwards."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    devices = [t.device for t in tensors[:1] if t.device.type == "cuda"]
    with (
        state_kept(model),
        warnings.catch_warnings(action="ignore"),  # the user's to see when training, not now
        torch.random.fork_rng(devices=devices),
        torch.set_grad_enabled(training),
    ):
        torch.manual_seed(0)
        outputs, _ = flatten_output(forward([t.clone() for t in tensors]))
        found = [output.detach() for output in outputs]
        if training:
            found += _gradients(outputs, parameters)
            found += [buffer.clone() for buffer in model.buffers()]
            found.append(torch.get_rng_state())
    return found


def _gradients(outputs: list[Tensor], parameters: list[nn.Parameter]) -> list[Tensor]:
    scores = [o.float().square().mean() for o in outputs if o.requires_grad and o.numel()]
    if not scores:
        return []
    for parameter in parameters:
        parameter.grad = None
    # Not torch.autograd.grad, which reentrant checkpoints refuse.
    torch.stack(scores).sum().backward()  # type: ignore[no-untyped-call]  # torch's own
    return [torch.zeros(()) if p.grad is None else p.grad for p in parameters]


def _error(plain: Tensor, cut: Tensor) -> float:
    if same_bits(plain, cut):
        return 0.0
    if plain.shape != cut.shape or plain.dtype != cut.dtype or not plain.is_floating_point():
        return float("inf")
    away = (plain - cut).double().norm() / plain.double().norm().clamp(min=1e-30)
    return float(away) if away.isfinite() else float("inf")


@contextmanager
def state_kept(model: nn.Module) -> Iterator[None]:
    """Whatever the block does, afterwards gradients and buffers of the model are as before.

    The buffers are the same objects, also where a forward puts new ones in their place.
    """
    gradients = [(p, p.grad) for p in model.parameters()]
    buffers = [(b, b.detach().clone()) for b in model.buffers()]
    places = [(module, dict(module._buffers)) for module in model.modules()]
    try:
        yield
    finally:
        for module, own in places:
            module._buffers.update(own)
        for parameter, gradient in gradients:
            parameter.grad = gradient
        with torch.no_grad():
            for buffer, before in buffers:
                if not same_bits(buffer, before):
                    buffer.copy_(before)
