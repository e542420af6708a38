"""The example through the model, forwards and backwards, and what that shows; nothing is left."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal, final
from warnings import catch_warnings

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from frostline.calling import call_with
from frostline.checkup.keeping import untouched
from frostline.checkup.live import frozen_parts, moving_layers, random_layers
from frostline.checkup.watching import ForwardWatch, PartCall, tensors_in, versions_in, watching
from frostline.cutting.outside import frozen_versions, written_since
from frostline.errors import DataError
from frostline.fingerprints.parts import is_finite, plain_parts, same_bits
from frostline.tasks import Classification, Task, step_loss
from frostline.wrapped import is_wrapped

Gradient = Literal["none", "zero", "some", "not finite"]
Step = Literal[
    "preparation", "forward pass in train mode", "backward pass", "forward pass in eval mode"
]

_PASSES = 3  # until a parameter counts as without gradient: layers may be dropped at random
_WORTH: tuple[Gradient, ...] = ("none", "zero", "some", "not finite")


@final
@dataclass(frozen=True, slots=True)
class Facts:
    """What one batch showed; names are dotted, in the model's order.

    Without a batch, or where a pass did not come to its end, it showed nothing.

    Attributes:
        outputs: the output's floating-point tensors, of the pass in train mode.
        logits: the one among them that a classification would take, if any.
        gradients: what each trainable parameter got in the best of several passes.
        watch: what hooks saw in the pass in train mode.
        random_parts: frozen parts that draw random numbers in code of their own.
        moved_in_eval: buffers that a pass in eval mode changes, the second time too, and frozen
            parameters that any pass writes to.
        differs_in_eval: whether two passes in eval mode give other numbers, with no buffer moved.
        failure: what was done when it failed, and the error; None where all went through.
    """

    outputs: tuple[Tensor, ...] = ()
    logits: Tensor | None = None
    gradients: Mapping[str, Gradient] = field(default_factory=dict)
    watch: ForwardWatch = field(default_factory=lambda: ForwardWatch((), []))
    random_parts: tuple[str, ...] = ()
    moved_in_eval: tuple[str, ...] = ()
    differs_in_eval: bool = False
    failure: tuple[Step, Exception] | None = None

    def with_gradient(self, kind: Gradient) -> tuple[str, ...]:
        """Names of the parameters that got such a one."""
        return tuple(name for name, got in self.gradients.items() if got == kind)


def run_trial(root: nn.Module, example: Any, targets: Tensor | None, task: Task) -> Facts:
    """Run `example` through `root` in train mode with a backward pass, then in eval mode.

    Afterwards the model is as it was (see `untouched`). The same example gives the same facts:
    the passes draw from seeds of their own.

    Args:
        example: a tensor, a tuple of positional arguments or a mapping of keyword ones.
        targets: for the loss of the task; its example targets where they are None or do not fit.
    """
    quiet = catch_warnings(action="ignore")
    with untouched(root), torch.inference_mode(False), torch.enable_grad(), quiet:
        for module in root.modules():
            module._compiled_call_impl = None  # compiling takes minutes, and shows no more
        trial = _Trial(root, example, targets, task)
        try:
            return trial.run()
        except Exception as error:
            return Facts(failure=(trial.step, error))


@final
class _Trial:
    """The passes of one batch through one model.

    Attributes:
        step: what is done now, or was when it failed.
    """

    def __init__(self, root: nn.Module, example: Any, targets: Tensor | None, task: Task) -> None:
        self.root, self.task, self.targets = root, task, targets
        # A mapping of a library's own is none that tensors are found in.
        self.example = dict(example) if isinstance(example, Mapping) else example
        self.step: Step = "preparation"

    def run(self) -> Facts:
        """All of them."""
        stood = frozen_versions(self.root)
        self.root.train()
        # Frozen parts in train mode no layer of which says that this matters.
        silent = [
            path
            for path, part in frozen_parts(self.root)
            if any(module.training for module in part.modules())
            and not [*random_layers(path, part), *moving_layers(path, part)]
        ]
        with watching(self.root, silent) as watch:
            output = self._forward(seed=0)
        gradients = self._settled(self._gradients(output))
        random_parts = tuple(path for path, call in watch.parts.items() if _is_random(call))
        watch.parts.clear()
        moved, differs = self._in_eval()
        moved += written_since(stood, self.root)
        logits = _logits(output) if isinstance(self.task, Classification) else None
        return Facts(
            outputs=tuple(t.detach() for t in _floats(output)),
            logits=None if logits is None else logits.detach(),
            gradients=gradients,
            watch=watch,
            random_parts=random_parts,
            moved_in_eval=moved,
            differs_in_eval=differs,
        )

    @contextmanager
    def _doing(self, step: Step) -> Iterator[None]:
        self.step = step
        yield
        self.step = "preparation"  # not after a failure, which is told by the step

    def _forward(self, *, seed: int, step: Step = "forward pass in train mode") -> Any:
        """A pass over a copy of the example, which a layer may write into."""
        _seed(seed)
        with self._doing(step):
            copy = pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), self.example)
            return call_with(self.root, copy)

    def _gradients(self, output: Any) -> dict[str, Gradient]:
        """A backward pass, and what each trainable parameter got."""
        with self._doing("backward pass"):
            loss = self._loss(output)
            if loss is not None and loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        named = self.root.named_parameters()
        return {name: _kind(p.grad) for name, p in named if p.requires_grad}

    def _settled(self, found: dict[str, Gradient]) -> dict[str, Gradient]:
        """`found`, corrected by what further passes show.

        What begins at zero, as the last norm of a residual block or half of a low-rank pair, lets
        no gradient through in the first step and does in the second; so it is nudged. Layers that
        are dropped at random are there in another pass.
        """
        for attempt in range(1, _PASSES):
            if all(kind in ("some", "not finite") for kind in found.values()):
                break
            self.root.zero_grad(set_to_none=True)
            self._nudge_zeros()
            further = self._gradients(self._forward(seed=attempt))
            found = {n: max(kind, further[n], key=_WORTH.index) for n, kind in found.items()}
        return found

    def _nudge_zeros(self) -> None:
        for name, parameter in self.root.named_parameters():
            if is_wrapped(parameter):
                continue  # no such tensor begins at zero, and few can be filled
            is_weight = parameter.requires_grad and not name.endswith("bias")
            if is_weight and parameter.is_floating_point() and not parameter.any():
                parameter.data.normal_(std=0.02)

    def _loss(self, output: Any) -> Tensor | None:
        own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        if isinstance(own, Tensor) and own.dim() == 0:
            return own
        logits = _logits(output)
        first = None if logits is None else self._task_loss(logits)
        # Auxiliary outputs count too. A plain sum would be constant after a softmax or layer norm.
        others = (t for t in _floats(output) if first is None or t is not logits)
        parts = [] if first is None else [first]
        parts += [(t * torch.randn_like(t)).sum() for t in others if t.requires_grad]
        return sum(parts[1:], parts[0]) if parts else None

    def _task_loss(self, logits: Tensor) -> Tensor | None:
        """The task's loss, by example targets where the given ones do not fit it.

        None where numbers are given to a task that has none: they are of something else.
        """
        fitted, targets = self.task.example_targets(logits), self.targets
        if targets is not None:
            if targets.is_floating_point() and not fitted.is_floating_point():
                return None
            if targets.shape == fitted.shape and not targets.is_complex():
                names = [f"sample {n}" for n in range(len(targets))]
                with suppress(DataError):
                    self.task.check(logits.detach(), targets, names)
                    fitted = targets.to(fitted)
        return step_loss(self.task, logits, fitted)

    def _in_eval(self) -> tuple[tuple[str, ...], bool]:
        """Buffers that change in two passes (the first may fill what is made when needed), and
        whether the outputs differ though none does."""
        self.root.eval()
        moved: list[tuple[str, ...]] = []
        outputs: list[list[Tensor]] = []
        for seed in _SEEDS:
            before = {name: buffer.clone() for name, buffer in self.root.named_buffers()}
            with torch.no_grad():
                output = self._forward(seed=seed, step="forward pass in eval mode")
            outputs.append(_floats(output))
            now = dict(self.root.named_buffers())
            kept = (n for n in before if n in now)
            moved.append(tuple(n for n in kept if not same_bits(now[n], before[n])))
        first, second = moved
        both = tuple(name for name in second if name in first)
        return both, not first and not second and _differ(*outputs)


def _logits(output: Any) -> Tensor | None:
    """What cross-entropy would take: the tensor itself, its `logits`, or the first of a tuple."""
    found = output
    if isinstance(output, Mapping):
        found = output.get("logits", output.get("out"))
    elif not isinstance(output, Tensor):
        found = getattr(output, "logits", None)
        if found is None and isinstance(output, tuple | list) and output:
            found = output[0]
    is_found = isinstance(found, Tensor) and found.is_floating_point() and found.dim() > 1
    return found if is_found else None


def _kind(gradient: Tensor | None) -> Gradient:
    if gradient is None:
        return "none"
    values = gradient.coalesce().values() if gradient.is_sparse else gradient
    if not is_finite(values, "a gradient"):
        return "not finite"
    return "some" if any(map(Tensor.any, plain_parts(values, "a gradient")[1])) else "zero"


# The first draws after each lie on the two sides of a half: of torch, of Python and of NumPy.
_SEEDS = (1, 331)


def _is_random(call: PartCall) -> bool:
    """Whether two calls with the same arguments give different numbers."""
    if call.versions != versions_in((call.args, call.kwargs)):
        return False  # the pass wrote into them afterwards
    outputs = []
    for seed in _SEEDS:
        _seed(seed)
        with torch.no_grad():
            outputs.append(tensors_in(call.module(*call.args, **call.kwargs)))
    return _differ(*outputs)


def _differ(ones: list[Tensor], others: list[Tensor]) -> bool:
    return any(
        a.shape != b.shape or not torch.allclose(a, b, rtol=1e-3, atol=1e-5, equal_nan=True)
        for a, b in zip(ones, others, strict=False)
    )


def _floats(output: Any) -> list[Tensor]:
    tree = dict(output) if isinstance(output, Mapping) else output
    return [tensor for tensor in tensors_in(tree) if tensor.is_floating_point()]


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
