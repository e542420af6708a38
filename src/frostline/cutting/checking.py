"""Is the cut model the model? Both are run on the same batch, in both modes, and compared."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from frostline.cutting.offering import Unfollowed
from frostline.cutting.structures import InputSpec, flatten_output, same_bits
from frostline.cutting.trial import rows_at
from frostline.errors import CutError

# Above it, it is another function; below, kernels that sum in another order.
_LARGEST_ERROR = 1e-4

CutForward = Callable[[list[Tensor]], object]


def check(
    model: nn.Module, spec: InputSpec, tensors: list[Tensor], halves: CutForward, *, training: bool
) -> float:
    """Relative error of `halves` against the model in one mode; 0.0 means bit for bit.

    In training the gradients, the buffers afterwards and the random numbers drawn count as well.
    Nothing of the model stays moved.

    Raises:
        CutError: they differ by more than the order of summation explains.
    """
    with state_kept(model):
        model.train(training)
        try:
            plain = _outcome(
                model, lambda given: spec.call(model, given), tensors, training=training
            )
        except RuntimeError as broken:
            raise CutError(
                f"{type(model).__name__} cannot be trained on the example as it is: {broken}"
            ) from broken
        cut = _outcome(model, halves, tensors, training=training)
    error = max((_error(a, b) for a, b in zip(plain, cut, strict=False)), default=float("inf"))
    if len(plain) != len(cut) or not error <= _LARGEST_ERROR:
        mode = "training" if training else "evaluation"
        raise Unfollowed(
            f"the cut {type(model).__name__} does not give what the model gives in {mode} "
            f"(relative error {error:.2g}), so it is not used. Please report this model."
        )
    return error


def check_one(
    model: nn.Module, spec: InputSpec, tensors: list[Tensor], halves: CutForward, *, training: bool
) -> None:
    """The first sample alone gives the outputs that the model gives, where it takes one sample.

    The graph is that of two samples or more: a forward that asks how many there are may go
    another way for one. Nothing of the model stays moved.

    Raises:
        CutError: it gives something else.
    """
    one = rows_at(tensors, [0])
    with state_kept(model):
        model.train(training)
        try:
            plain = _outcome(model, lambda given: spec.call(model, given), one, training=False)
        except Exception:  # whatever a forward raises that wants more samples, as batch norm
            return
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
