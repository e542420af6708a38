"""The prefix of a cut, ready to compute features: in which form, and how faithful it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from frostline.cutting import Cut
from frostline.features.decisions import Decisions
from frostline.tuning import PLAIN, Form, Precision, Tuned, machine, realise, tune


@final
@dataclass(frozen=True)
class Computing:
    """A cut's prefix in the form that was chosen.

    Attributes:
        tuned: the form, its error and the batch size of a pass.
        training: whether plain float32 is computed as in a training step; some kernels (LSTM's)
            give other last bits in evaluation.
        device: where it runs.
        mode: names `training` in the key; empty where it makes no difference.
    """

    cut: Cut
    tuned: Tuned
    training: bool
    device: torch.device
    mode: str
    _run: Callable[..., tuple[Tensor, ...]]

    def __call__(self, inputs: Any) -> tuple[Tensor, ...]:
        """The frontier's values of a batch, each `(batch, *shape)`, on the device."""
        tensors = [t.to(self.device) for t in self.cut.prefix.spec.flatten(inputs)]
        with torch.set_grad_enabled(self.training):
            return tuple(value.detach() for value in self._run(*tensors))

    @property
    def key(self) -> dict[str, str]:
        """What the numbers depend on, besides the samples."""
        parts = {**self.cut.key, "form": str(self.tuned.form), "torch": torch.__version__}
        if self.tuned.form == PLAIN:
            # Bits are promised, and kernels are chosen by what the processor can do.
            parts["kernels"] = f"{self.device.type} {torch.backends.cpu.get_cpu_capability()}"
        if self.mode:
            parts["mode"] = self.mode
        return parts


def computing(
    cut: Cut,
    samples: Any,
    *,
    precision: Precision,
    batch_size: int,
    device: torch.device,
    planned_samples: int | None = None,
    decisions: Decisions | None = None,
    form: Form | None = None,
) -> Computing:
    """Choose how to compute the prefix of `cut`, by measuring on `samples`.

    Args:
        samples: a batch of real inputs; not needed with `form`.
        precision: `"exact"`, `"auto"` or the relative error to allow.
        decisions: what was decided before under the same name is not measured again.
        form: use this one, as chosen before.
    """
    graph = cut.prefix.graph
    if graph is None or precision == "exact":
        return _plain(cut, batch_size, device)
    if form is not None:
        tuned: Tuned | None = Tuned(form, float("nan"), batch_size)
    else:
        tensors = [t.to(device) for t in cut.prefix.spec.flatten(samples)]
        name = _name(cut, tensors, precision, device)
        tuned = decisions.find(name) if decisions else None
    if tuned is None:
        tuned = tune(
            graph,
            tensors,
            precision=precision,
            batch_size=batch_size,
            planned_samples=planned_samples,
        )
        if decisions:
            decisions.keep(name, tuned)
    if tuned.form == PLAIN:
        return _plain(cut, tuned.batch_size, device)
    return Computing(cut, tuned, False, device, "", realise(graph, tuned.form))


def _plain(cut: Cut, batch_size: int, device: torch.device) -> Computing:
    tuned = Tuned(PLAIN, 0.0, batch_size)
    plain = lambda *given: cut.prefix.run_flat(list(given))  # noqa: E731
    return Computing(cut, tuned, False, device, "", plain)


def _name(cut: Cut, tensors: list[Tensor], precision: Precision, device: torch.device) -> str:
    shapes = " ".join(str(tuple(t.shape[1:])) for t in tensors)
    return f"{cut.key['prefix']} {cut.key['tensors']} {shapes} {precision} on {machine(device)}"
