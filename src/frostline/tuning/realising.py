"""A prefix and a form become a function from input tensors to features."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast as as_type
from typing import final

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from frostline.narrowing import narrow
from frostline.tuning.drafts import Draft, draft_of, protect, sample_of
from frostline.tuning.forms import PLAIN, Form
from frostline.tuning.rewriting import cast, fold, lay_out_channels_last, make_linear_inputs_dense

Realised = Callable[..., tuple[Tensor, ...]]
# For torch.compile, whatever the process has set: with TORCHINDUCTOR_FREEZING=1 inductor writes
# weights into the code of passes without gradients, and a model that is trained after its first
# validation is then judged by the weights of that time (2.9 to 2.15).
WEIGHTS_STAY_WEIGHTS: dict[str, str | int | bool | Callable[..., object]] = {"freezing": False}


def realise(prefix: GraphModule, form: Form = PLAIN) -> Realised:
    """The function `prefix` in `form`: `realise(prefix, form)(*inputs)` gives its outputs.

    In the plain form the outputs equal `prefix(*inputs)` bit for bit. In every form they have its
    shapes and dtypes, are contiguous, and are ordinary tensors that autograd takes as inputs.
    Neither the inputs nor the model's tensors are written into; converted weights are copies.
    Autocast around the call has no effect.

    Args:
        prefix: takes flat tensors `(batch, ...)` and gives a tuple of tensors `(batch, ...)`.
        form: how to compute it; what of it does not apply to the prefix is left out.
    """
    module = _written_anew(prefix, form)
    run = as_type(Realised, module)
    if form.compiled:
        run = as_type(Realised, torch.compile(module, dynamic=True, options=WEIGHTS_STAY_WEIGHTS))
    return _Function(form, run, _output_dtypes(prefix))


@final
@dataclass(frozen=True, slots=True)
class _Function:
    """A form of a prefix, ready to be called."""

    form: Form
    run: Realised
    dtypes: tuple[torch.dtype | None, ...]

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        device_type = inputs[0].device.type if inputs else "cpu"
        # inference_mode would be no faster, and autograd refuses the tensors it makes.
        with torch.no_grad(), torch.autocast(device_type, enabled=False):
            outputs = self.run(*map(self._enter, inputs))
            return tuple(map(self._leave, outputs, self.dtypes))

    def _enter(self, tensor: Tensor) -> Tensor:
        if tensor.dtype == torch.float32:
            tensor = tensor.to(self.form.torch_dtype)
        if self.form.channels_last and tensor.ndim == 4 and tensor.is_floating_point():
            return tensor.contiguous(memory_format=torch.channels_last)
        return tensor

    def _leave(self, output: Tensor, dtype: torch.dtype | None) -> Tensor:
        if dtype is None:  # the graph does not say
            reduced = self.form != PLAIN and output.dtype == self.form.torch_dtype
            dtype = torch.float32 if reduced else output.dtype
        return output.to(dtype).contiguous()


def _written_anew(prefix: GraphModule, form: Form) -> GraphModule:
    draft = draft_of(prefix)
    if form != PLAIN:
        narrow(draft.graph)
    protect(draft)
    _convert_modules(draft, form)
    if form.folded:
        fold(draft)
    if form.channels_last:
        lay_out_channels_last(draft)
    if form != PLAIN:
        make_linear_inputs_dense(draft)
    if form.torch_dtype != torch.float32:
        cast(draft, form.torch_dtype)
    return draft.build()


def _convert_modules(draft: Draft, form: Form) -> None:
    """Graphs inside the graph are rewritten likewise; modules called as they are, converted."""
    for name, value in draft.values.items():
        if isinstance(value, GraphModule):
            draft.values[name] = _written_anew(value, form)
        elif isinstance(value, nn.Module) and form != PLAIN:
            converted = copy.deepcopy(value).to(form.torch_dtype)
            layout = torch.channels_last if form.channels_last else torch.preserve_format
            draft.values[name] = converted.to(memory_format=layout)


def _output_dtypes(prefix: GraphModule) -> tuple[torch.dtype | None, ...]:
    (outputs,) = next(iter(reversed(prefix.graph.nodes))).args
    seen = map(sample_of, outputs) if isinstance(outputs, list | tuple) else ()
    return tuple(None if sample is None else sample.dtype for sample in seen)
