"""The example through the model, forwards and backwards, and what that shows; nothing is left."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from frostline.calling import call_with
from frostline.checkup.keeping import same_bits, untouched
from frostline.checkup.live import frozen_parts, moving_layers, random_layers
from frostline.checkup.watching import ForwardWatch, PartCall, tensors_in, watching
from frostline.errors import DataError
from frostline.fingerprints.parts import is_finite, is_wrapped, plain_parts
from frostline.tasks import Classification, Task

Gradient = Literal["none", "zero", "some", "not finite"]
TrialStep = Literal[
    "preparation", "forward pass in train mode", "backward pass", "forward pass in eval mode"
]

_PASSES = 3  # until a parameter counts as without gradient: layers may be dropped at random
_WORTH: tuple[Gradient, ...] = ("none", "zero", "some", "not finite")


@final
@dataclass(frozen=True, slots=True)
class Failure:
    """A pass that did not come to its end.

    Attributes:
        step: what was done then, for people.
    """

    step: TrialStep
    error: Exception


@final
@dataclass(frozen=True, slots=True)
class Facts:
    """What one batch showed; names are dotted, in the model's order.

    Attributes:
        outputs: the output's floating-point tensors, of the pass in train mode.
        logits: the one among them that a classification would take, if any.
        gradients: what each trainable parameter got in the best of several passes.
        watch: what hooks saw in the pass in train mode.
        random_parts: frozen parts that draw random numbers in code of their own.
        moved_in_eval: buffers that a pass in eval mode changes, the second time too.
        differs_in_eval: whether two passes in eval mode give other numbers, with no buffer moved.
    """

    outputs: tuple[Tensor, ...]
    logits: Tensor | None
    gradients: Mapping[str, Gradient]
    watch: ForwardWatch
    random_parts: tuple[str, ...]
    moved_in_eval: tuple[str, ...]
    differs_in_eval: bool


def run_trial(root: nn.Module, example: Any, targets: Tensor | None, task: Task) -> Facts | Failure:
    """Run `example` through `root` in train mode with a backward pass, then in eval mode.

    Afterwards the model is as it was (see `untouched`). The same example gives the same facts:
    the passes draw from seeds of their own.

    Args:
        example: a tensor, a tuple of positional arguments or a mapping of keyword ones.
        targets: for the loss of the task; its example targets where they are None or do not fit.
    """
    with untouched(root), torch.inference_mode(False), torch.enable_grad():
        for module in root.modules():
            module._compiled_call_impl = None  # compiling takes minutes, and shows no more
        try:
            return _facts(root, example, targets, task)
        except _StoppedError as stopped:
            return stopped.failure
        except Exception as error:
            return Failure("preparation", error)


class _StoppedError(Exception):
    """Carries a failure out of the passes."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.step)
        self.failure = failure


def _facts(root: nn.Module, example: Any, targets: Tensor | None, task: Task) -> Facts:
    root.train()
    silent = [path for path, part in frozen_parts(root) if _is_silent(path, part)]
    with watching(root, silent) as watch:
        _seed(0)
        output = _forward(root, example)
    gradients = _gradients(root, output, targets, task)
    settled = _settled(root, example, targets, task, gradients)
    again = tuple(path for path, call in watch.parts.items() if _is_random(call))
    watch.parts.clear()
    moved, differs = _in_eval(root, example)
    classifies = isinstance(task, Classification)
    logits = logits_in(output) if classifies else None
    return Facts(
        outputs=tuple(t.detach() for t in _floats(output)),
        logits=None if logits is None else logits.detach(),
        gradients=settled,
        watch=watch,
        random_parts=again,
        moved_in_eval=moved,
        differs_in_eval=differs,
    )


def _forward(root: nn.Module, example: Any) -> Any:
    with _stopping("forward pass in train mode"):
        return call(root, example)


def call(root: nn.Module, example: Any) -> Any:
    """`root` on a copy of the example, which a layer may write into."""
    # A mapping of a library's own is none that tensors are found in.
    return call_with(root, _copied(dict(example) if isinstance(example, Mapping) else example))


def logits_in(output: Any) -> Tensor | None:
    """What cross-entropy would take: the tensor itself, its `logits`, or the first of a tuple."""
    if isinstance(output, Mapping):
        found = output.get("logits", output.get("out"))
    else:
        found = getattr(output, "logits", None)
        if found is None and isinstance(output, tuple | list) and output:
            found = output[0]
    found = output if isinstance(output, Tensor) else found
    if isinstance(found, Tensor) and found.is_floating_point() and found.dim() > 1:
        return found
    return None


def _gradients(
    root: nn.Module, output: Any, targets: Tensor | None, task: Task
) -> dict[str, Gradient]:
    """A backward pass, and what each trainable parameter got."""
    with _stopping("backward pass"), _quietly():
        loss = _loss(output, targets, task)
        if loss is not None and loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own
    return {name: _kind(p.grad) for name, p in root.named_parameters() if p.requires_grad}


def _settled(
    root: nn.Module, example: Any, targets: Tensor | None, task: Task, found: dict[str, Gradient]
) -> dict[str, Gradient]:
    """`found`, corrected by what further passes show.

    What begins at zero, as the last norm of a residual block or half of a low-rank pair, lets no
    gradient through in the first step and does in the second; so it is nudged. Layers that are
    dropped at random are there in another pass.
    """
    for attempt in range(1, _PASSES):
        if all(kind in ("some", "not finite") for kind in found.values()):
            break
        root.zero_grad(set_to_none=True)
        _seed(attempt)
        _nudge_zeros(root)
        with _quietly():
            further = _gradients(root, _forward(root, example), targets, task)
        found = {n: max(kind, further[n], key=_WORTH.index) for n, kind in found.items()}
    return found


def _nudge_zeros(root: nn.Module) -> None:
    for name, parameter in root.named_parameters():
        is_weight = parameter.requires_grad and not name.endswith("bias")
        if is_wrapped(parameter):
            continue  # no such tensor begins at zero, and few can be filled
        if is_weight and parameter.is_floating_point() and not parameter.any():
            parameter.data.normal_(std=0.02)


def _kind(gradient: Tensor | None) -> Gradient:
    if gradient is None:
        return "none"
    values = gradient.coalesce().values() if gradient.is_sparse else gradient
    if not is_finite(values, "a gradient"):
        return "not finite"
    return "some" if any(map(Tensor.any, plain_parts(values, "a gradient")[1])) else "zero"


def _loss(output: Any, targets: Tensor | None, task: Task) -> Tensor | None:
    own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if isinstance(own, Tensor) and own.dim() == 0:
        return own
    logits = logits_in(output)
    first = None if logits is None else _task_loss(logits, targets, task)
    # Auxiliary outputs count too. A plain sum would be constant after a softmax or a layer norm.
    others = [t for t in _floats(output) if t.requires_grad and (first is None or t is not logits)]
    parts = [(tensor * torch.randn_like(tensor)).sum() for tensor in others]
    if first is not None:
        parts.insert(0, first)
    return sum(parts[1:], parts[0]) if parts else None


def _task_loss(logits: Tensor, targets: Tensor | None, task: Task) -> Tensor | None:
    """The task's loss, by example targets where the given ones do not fit it.

    None where numbers are given to a task that has none: they are of something else.
    """
    fitted = task.example_targets(logits)
    if targets is not None:
        floating = targets.is_floating_point()
        if floating and not fitted.is_floating_point():
            return None
        if targets.shape == fitted.shape and not targets.is_complex():
            with suppress(DataError):
                task.check(logits.detach(), targets, [f"sample {n}" for n in range(len(targets))])
                fitted = targets.to(fitted)
    return task.loss(logits.float(), fitted)


def _is_silent(path: str, part: nn.Module) -> bool:
    """Whether a frozen part is in train mode, and no layer of it says that this matters."""
    known = [*random_layers(path, part), *moving_layers(path, part)]
    return any(module.training for module in part.modules()) and not known


def _is_random(call: PartCall) -> bool:
    """Whether two calls with the same arguments give different numbers."""
    if not call.is_fresh:
        return False
    outputs = []
    for seed in (1, 2):
        _seed(seed)
        with torch.no_grad(), _quietly():
            outputs.append(tensors_in(call.module(*call.args, **call.kwargs)))
    return _differ(*outputs)


def _differ(ones: list[Tensor], others: list[Tensor]) -> bool:
    return any(
        a.shape != b.shape or not torch.allclose(a, b, rtol=1e-3, atol=1e-5, equal_nan=True)
        for a, b in zip(ones, others, strict=False)
    )


def _in_eval(root: nn.Module, example: Any) -> tuple[tuple[str, ...], bool]:
    """Buffers that change in two passes (the first may fill what is made when needed), and whether
    the outputs differ though none does."""
    root.eval()
    moved: list[tuple[str, ...]] = []
    outputs: list[list[Tensor]] = []
    for seed in (1, 2):
        before = {name: buffer.clone() for name, buffer in root.named_buffers()}
        _seed(seed)
        with torch.no_grad(), _quietly(), _stopping("forward pass in eval mode"):
            outputs.append(_floats(call(root, example)))
        now = dict(root.named_buffers())
        moved.append(tuple(n for n, b in before.items() if n in now and not same_bits(now[n], b)))
    first, second = moved
    both = tuple(name for name in second if name in first)
    return both, not first and not second and _differ(*outputs)


def _floats(output: Any) -> list[Tensor]:
    tree = dict(output) if isinstance(output, Mapping) else output
    return [tensor for tensor in tensors_in(tree) if tensor.is_floating_point()]


def _copied(tree: Any) -> Any:
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), tree)


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


@contextmanager
def _quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _stopping(step: TrialStep) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise _StoppedError(Failure(step, error)) from error
