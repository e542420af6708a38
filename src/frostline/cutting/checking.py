"""Is the cut model the model? Both are run on the same batch, in both modes, and compared."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

from frostline.cutting.outside import draws_kept, draws_of, numbers_kept
from frostline.cutting.structures import InputSpec, flatten_output
from frostline.cutting.tracing import Unfollowed
from frostline.cutting.trial import rows_at
from frostline.cutting.watching import Reads, Structure, reads_recorded
from frostline.errors import CutError
from frostline.fingerprints.parts import same_bits
from frostline.freezing.held_layers import packing
from frostline.sharding import cut_short, whole
from frostline.units import some_of
from frostline.wrappers import reshard

# Above it, it is another function; below, kernels that sum in another order.
_LARGEST_ERROR = 1e-4

# What is done every few steps shows at one of these, and a warm-up at the last.
_LATER: tuple[Callable[[Any], Any], ...] = (
    *(lambda count, more=more: count + more for more in range(1, 11)),
    *(lambda count, many=many: count + -count % many for many in (16, 50, 64, 100, 500, 1000)),
    *(lambda count, many=many: count + -count % many - 1 for many in (16, 50, 64, 100, 500, 1000)),
    lambda count: count + 1_000_003,
)

CutForward = Callable[[list[Tensor]], object]
Refusal = Callable[[], Exception]  # makes the error that a model raises


@final
@dataclass(frozen=True, slots=True)
class Checked:
    """What came of the checks in both modes, training under True and evaluation under False.

    Attributes:
        error: relative error against the model, the larger of the two.
        structures: of the modules that the model's own forward reads.
        refusals: what it says to one sample, where it does not take that.
    """

    error: float = 0.0
    structures: Mapping[bool, Structure] = field(default_factory=lambda: defaultdict(Structure))
    refusals: Mapping[bool, Refusal] = field(default_factory=dict)


def check(
    model: nn.Module,
    spec: InputSpec,
    tensors: list[Tensor],
    halves: CutForward,
    *,
    is_own: bool = False,
) -> Checked:
    """Compare `halves` with the model in both modes, on the example and on its first sample.

    The model's modes move, and nothing else of it.

    Args:
        is_own: whether what is above the line is the model's own forward, which goes on as ever.

    Raises:
        CutError: they differ by more than the order of summation explains.
    """
    structures, refusals, largest = dict[bool, Structure](), dict[bool, Refusal](), 0.0
    plain = _Recorded(model, spec, is_own)
    for training in (True, False):
        model.train(training)
        error = _compared(model, plain, tensors, halves, gradients=training)
        structures[training] = Structure.of(model, plain.reads)
        largest = max(largest, error)
    if _begins_with_zeros(model):  # in evaluation still
        largest = max(largest, _compared(model, plain, tensors, halves, gradients=True))
    alone = Structure()
    for training in (True, False):
        model.train(training)
        if training or not plain.reads.is_same_in(alone, model):
            refusal = _compared_on_one(model, plain, tensors, halves)
            alone = Structure.of(model, plain.reads)
        if refusal:
            refusals[training] = refusal
        structures[training] = structures[training].settled(model)
    return Checked(largest, structures, refusals)


@final
@dataclass
class _Recorded:
    """The model's own forward, and what its last call did beside what a graph has of it.

    `reads` is what it read of the modules, `drawn` what it drew from.
    """

    model: nn.Module
    spec: InputSpec
    is_own: bool = False
    reads: Reads = field(default_factory=Reads)
    drawn: list[str] = field(default_factory=list)

    def __call__(self, given: list[Tensor]) -> object:
        stood = draws_of(self.model)
        with reads_recorded(self.model) as self.reads:
            output = self.spec.call(self.model, given)
        now = draws_of(self.model).items()
        self.drawn = [name for name, state in now if stood.get(name, state) != state]
        return output


def _compared(
    model: nn.Module, own: _Recorded, tensors: list[Tensor], halves: CutForward, *, gradients: bool
) -> float:
    """Relative error in the present mode, 0.0 for bit for bit.

    Args:
        gradients: count as well, with the buffers afterwards and the random numbers drawn.
    """
    try:
        plain = _outcome(model, own, tensors, gradients=gradients)
    except RuntimeError as broken:
        if gradients and not model.training:
            return 0.0  # as RNNs of cuDNN, which have no backward in evaluation
        raise CutError(
            f"{type(model).__name__} cannot be trained on the example as it is: {broken}"
        ) from broken
    if not own.is_own:  # of which the part above the line draws and counts anew in each call
        _check_repeats(model, own, tensors)
    cut = _outcome(model, halves, tensors, gradients=gradients)
    error = max(map(_error, plain, cut), default=float("inf"))
    if len(plain) != len(cut) or not error <= _LARGEST_ERROR:
        mode = "training" if model.training else "evaluation"
        raise Unfollowed(
            f"the cut {type(model).__name__} does not give what the model gives in {mode} "
            f"(relative error {error:.2g}), so it is not used. "
            f"{_advice(model, (plain, cut) if gradients else ([], []))}"
        )
    return error


def _check_repeats(model: nn.Module, own: _Recorded, tensors: list[Tensor]) -> None:
    """Refuse a forward that may be another one in its next step, for what no graph has of it."""
    if own.drawn:
        drawn = some_of(own.drawn, most=3)
        raise Unfollowed(
            f"the forward of {type(model).__name__} draws from {drawn}, and a cut "
            "would repeat for ever what it drew once. Draw with torch, as torch.rand does, or "
            "outside of the forward."
        )
    if model.training and (counts := _counts_that_matter(model, own, tensors)):
        raise Unfollowed(
            f"the forward of {type(model).__name__} goes by a count in {some_of(counts, most=3)}, "
            "and a cut would go on with one for ever. Count outside of the forward."
        )


def _counts_that_matter(model: nn.Module, own: _Recorded, tensors: list[Tensor]) -> list[str]:
    """Attributes that the forward counts in, if it gives something else at other counts."""
    counted = {
        name: (module, name.rpartition(".")[2]) for name, module in own.reads.counted.items()
    }
    if not counted:
        return []
    before = [(module, leaf, getattr(module, leaf)) for module, leaf in counted.values()]

    few = rows_at(tensors, list(range(min(4, tensors[0].shape[0]))))

    def outcome(later: Callable[[Any], Any]) -> list[Tensor]:
        for module, leaf, value in before:
            setattr(module, leaf, later(value))
        return _outcome(model, own, few, gradients=True)

    try:
        plain = outcome(lambda value: value)
        for later in _LATER:
            with suppress(Exception):  # as where it is the place in a list
                other = outcome(later)
                if len(other) != len(plain) or not all(map(same_bits, other, plain)):
                    return list(counted)
    finally:
        for module, leaf, value in before:
            setattr(module, leaf, value)
    return []


def _begins_with_zeros(model: nn.Module) -> bool:
    """Whether zeros that are trained may hide from the output what goes into them."""
    return any(
        p.requires_grad and "bias" not in name.rpartition(".")[2] and not whole(p.detach()).any()
        for name, p in model.named_parameters()
    )


def _advice(model: nn.Module, found: tuple[list[Tensor], list[Tensor]]) -> str:
    """What to do about it, by what the model gave in training and what its halves did."""
    buffers = list(dict(model.named_buffers()))
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    end = -1 - len(buffers)  # the random state is the last
    start = end - len(trained)
    moved = list(zip(buffers, *(outcome[end:-1] for outcome in found), strict=False))
    slopes = list(zip(trained, *(outcome[start:end] for outcome in found), strict=False))
    again = [n for n, own, cut in moved if n.endswith("num_batches_tracked") and own > cut]
    if again:
        norms = [name.rpartition(".")[0] or "the model" for name in again]
        return (
            f"{some_of(norms, most=3)}: a step moves the running statistics more than once, as "
            "torch.utils.checkpoint runs layers again in the backward pass. Turn checkpointing off "
            "for what trains, and cut again."
        )
    if lost := [name for name, own, cut in slopes if cut.any() and not own.any()]:
        return (
            f"{some_of(lost, most=3)}: the model's own step gives no gradient, and would never "
            "train it. A torch.utils.checkpoint with use_reentrant=True does so where all inputs "
            "of its part are frozen: use use_reentrant=False, and cut again."
        )
    if not (encoders := packing(model)):
        return "Please report this model."
    names = ", ".join(path or "the model" for path in encoders)
    return (
        "nn.TransformerEncoder packs padded batches, which no graph does, and gives zeros at "
        f"padded places. Set use_nested_tensor = False on {names}, which computes these places "
        "like the others, and cut again."
    )


def _compared_on_one(
    model: nn.Module, own: CutForward, tensors: list[Tensor], halves: CutForward
) -> Refusal | None:
    """Compare outputs on the first sample alone; gives what the model refuses it with, if it does.

    The graph is that of two samples or more: a forward that asks how many there are may go
    another way for one.
    """
    one = rows_at(tensors, [0])
    try:
        plain = _outcome(model, own, one)
    except Exception as error:  # whatever a forward raises that wants more samples
        builtin = type(error).__module__ == "builtins"  # others may want other arguments
        return partial(type(error) if builtin else RuntimeError, str(error))
    try:
        cut = _outcome(model, halves, one)
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


def compared_on_one(
    model: nn.Module, spec: InputSpec, tensors: list[Tensor], halves: CutForward
) -> bool:
    """Whether the first sample alone goes through both, in the present mode, to the same."""
    try:
        return _compared_on_one(model, _Recorded(model, spec), tensors, halves) is None
    except CutError:
        return False


def _outcome(
    model: nn.Module, forward: CutForward, tensors: list[Tensor], *, gradients: bool = False
) -> list[Tensor]:
    """Outputs, and if asked for gradients, buffers and the random state afterwards.

    Nothing of the model stays moved.
    """
    devices = [t.device for t in tensors[:1] if t.device.type == "cuda"]
    with (
        state_kept(model),
        numbers_kept(model),  # so that each run counts from where the other did
        draws_kept(model),  # and draws likewise
        cut_short(model),
        warnings.catch_warnings(action="ignore"),  # the user's to see when training, not now
        torch.random.fork_rng(devices=devices),
        torch.set_grad_enabled(gradients),
    ):
        torch.manual_seed(0)
        trained = [p for p in model.parameters() if p.requires_grad]
        outputs, _ = flatten_output(forward([t.clone() for t in tensors]))
        found = [output.detach() for output in outputs]
        if gradients:
            found += _gradients(outputs, trained)
            found += [buffer.clone() for buffer in model.buffers()]
            found.append(torch.get_rng_state())
    return found


def _gradients(outputs: list[Tensor], parameters: list[nn.Parameter]) -> list[Tensor]:
    # By the distance from numbers that no output is at: a head that begins with zeros gives zeros
    # for any features, and their squares would give it no gradient that tells the features apart.
    scores = [
        (o.float() - _target(o)).square().mean() for o in outputs if o.requires_grad and o.numel()
    ]
    if not scores:
        return []
    for parameter in parameters:
        parameter.grad = None
    # Not torch.autograd.grad, which reentrant checkpoints refuse.
    torch.stack(scores).sum().backward()  # type: ignore[no-untyped-call]  # torch's own
    return [torch.zeros(()) if p.grad is None else p.grad for p in parameters]


def _target(output: Tensor) -> Tensor:
    """Numbers between -1 and 1, hardly two of them the same."""
    return torch.arange(output.numel(), device=output.device).float().cos_().view(output.shape)


def _error(plain: Tensor, cut: Tensor) -> float:
    if same_bits(plain, cut):
        return 0.0
    if plain.shape != cut.shape or plain.dtype != cut.dtype or not plain.is_floating_point():
        return float("inf")
    plain, cut = whole(plain), whole(cut)
    away = (plain - cut).double().norm() / plain.double().norm().clamp(min=1e-30)
    return float(away) if away.isfinite() else float("inf")


@contextmanager
def state_kept(model: nn.Module) -> Iterator[None]:
    """Whatever the block does, afterwards gradients and buffers of the model are as before.

    The buffers are the same objects, also where a forward puts new ones in their place.
    """
    reshard(model)
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
