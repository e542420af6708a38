"""The user's own split: the prefix ends with the output of a named frozen submodule.

For models that torch.export cannot follow. The prefix runs the model until the submodule has
answered; the suffix runs it with that answer given, and with inputs that can be handed to the
submodule and asked for their shape, but not read. Frozen modules that had answered before are not
run again (`unread.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from typing import final

import torch
from torch import Tensor, nn

from frostline.cutting.halves import trainable_below
from frostline.cutting.structures import InputSpec, Rebuild, flatten_output, rows_of
from frostline.cutting.trial import REARRANGED, few_samples, is_close, rows_at
from frostline.cutting.unread import (
    CALL,
    Skipped,
    Unread,
    is_frozen,
    put,
    reads_input,
    unread,
)
from frostline.cutting.watching import reads_recorded, upwards
from frostline.errors import CutError, nearest
from frostline.fingerprints.parts import same_bits
from frostline.freezing.modes import modes_kept
from frostline.sharding import can_be_cut_short, cut_short
from frostline.wrappers import units


@final
class ModuleSplit:
    """A model divided at the output of one of its submodules."""

    def __init__(self, model: nn.Module, spec: InputSpec, path: str, tensors: list[Tensor]) -> None:
        """Divide `model` behind its submodule `path`.

        Raises:
            CutError: there is no such submodule, it is trainable, random or unused, or what is put
                into it depends on trainable parts.
        """
        self._model = model
        self._spec = spec
        self._path = path
        self._shapes = [(t.shape[1:], t.dtype) for t in tensors]
        self._rebuild: Rebuild | None = None
        self._below: list[str] = []
        self._skipped: list[Skipped] = []
        self._check_fixed(tensors)

    def prefix(self, tensors: list[Tensor]) -> tuple[Tensor, ...]:
        """The submodule's output, flat; as in train mode, since one set of rows serves both."""
        flat, self._rebuild = self._answer(tensors)
        return tuple(flat)

    def suffix(self, features: Sequence[Tensor]) -> object:
        """The model's output, with `features` as the submodule's answer."""
        assert self._rebuild is not None
        trainable = [name for name in self._below if self._model.get_parameter(name).requires_grad]
        if trainable:
            raise trainable_below(trainable)
        rows = features[0].shape[0]
        stubs = [unread((rows, *shape), dtype) for shape, dtype in self._shapes]
        answer = self._rebuild(iter(f.clone() for f in features))
        calls: list[int] = []

        def forward(*_: object, **__: object) -> object:
            calls.append(1)
            return answer

        with ExitStack() as replaced:
            # With its hooks: what they change is in the answer, and those of `fully_shard` would
            # gather parameters for a forward that it does not run.
            replaced.enter_context(put(self._module, CALL, forward))
            for one in self._skipped:
                replaced.enter_context(one.skipping(self._model, rows))
            output = self._spec.call(self._model, stubs)
        for value in flatten_output(output)[0]:
            if isinstance(value, Unread):
                raise reads_input(value.mixed_by or "giving it back")
        if len(calls) != 1:
            raise CutError(
                f"{self._path} is used {len(calls)} times in one forward, and one answer cannot "
                "stand for all. Name a submodule that is used once."
            )
        return output

    @property
    def _module(self) -> nn.Module:
        """The one that stands there now."""
        try:
            return self._model.get_submodule(self._path)
        except AttributeError:
            names = nearest(self._path, [name for name, _ in self._model.named_modules() if name])
            raise CutError(
                f"{type(self._model).__name__} has no submodule '{self._path}' to cut behind. "
                f"Nearest: {', '.join(names) or 'none'}."
            ) from None

    def _check_fixed(self, tensors: list[Tensor]) -> None:
        """The answer depends on nothing trainable, on no chance and not on the mode."""
        if any(p.requires_grad for p in self._module.parameters()):
            raise CutError(f"{self._path} is not wholly frozen. Freeze it, or name another part.")
        if units(self._model):  # whose first forward goes through all modules, to get ready
            self._answers(tensors)
        answered: list[object] = []
        with reads_recorded(self._model, until=answered) as reads:
            first = self._answers(tensors, seed=0, answered=answered)
        self._skipped = list(self._run_below(tensors))
        second = self._answers(tensors, seed=1)
        self._below = list(self._parameters_below(reads))
        if any(t.requires_grad for t in first):
            raise CutError(f"what goes into {self._path} is trainable. Name a lower part.")
        if not all(map(same_bits, first, second)):
            raise CutError(
                f"{self._path} answers differently each time in training: something "
                f"{self._why_random()}"
            )
        self._check_batches(tensors)
        evaluated, _ = self._answer([t.clone() for t in tensors], training=False)
        if len(first) != len(evaluated) or not all(map(is_close, first, evaluated)):
            raise CutError(
                f"{self._path} answers otherwise in evaluation than in training, and one set of "
                "features serves both. Freeze what is below it with fl.freeze, which holds its "
                "mode, or name a lower part."
            )

    def _why_random(self) -> str:
        if not any(module.training for module in self._module.modules()):
            return "below it is random, as in the model's own forward. Take that out of it."
        if any(True for _ in self._module.parameters()):
            do = "Freeze it with fl.freeze, which holds dropout and norms."
        else:
            do = "It has no parameters to freeze: a dropout is off at the rate 0."
        return f"in it or below is random. {do}"

    def _parameters_below(self, reads: Mapping[str, Collection[str]]) -> Iterator[str]:
        """Those that the submodule's answer hangs on: its own, and all of what ran before it.

        What is still running when it answers has parts above the line too: there, what was read.
        """
        for name, _ in self._model.named_parameters(remove_duplicate=False):
            path, _, leaf = name.rpartition(".")
            read = reads[path]
            running = not path or f"{self._path}.".startswith(f"{path}.")
            inside = f"{path}.".startswith(f"{self._path}.")
            if inside or leaf in read or ("forward" in read and not running):
                yield name

    def _run_below(self, tensors: list[Tensor]) -> Iterator[Skipped]:
        """The frozen modules that have answered when the submodule does, the outermost ones."""
        apart = {*self._module.modules(), *map(self._model.get_submodule, upwards(self._path))}
        frozen = {
            module: path
            for path, module in self._model.named_modules()
            if module not in apart and is_frozen(module)
        }
        answers: dict[str, list[object]] = {}
        running, answered = list[nn.Module](), list[object]()

        def begin(module: nn.Module, _: object) -> None:
            running.append(module)

        def end(module: nn.Module, _: object, output: object) -> None:
            running.pop()
            if not running and not answered:
                answers.setdefault(frozen[module], []).append(output)

        with ExitStack() as hooks:
            for module in frozen:
                hooks.callback(module.register_forward_pre_hook(begin).remove)
                hooks.callback(module.register_forward_hook(end).remove)
            self._answers(tensors, answered=answered)
        rows = rows_of(tensors)
        for path, outputs in answers.items():
            with suppress(CutError):  # what cannot be taken apart is run all the same
                yield Skipped.of(path, outputs, rows)

    def _check_batches(self, tensors: list[Tensor]) -> None:
        """A sample's answer is the same in whatever batch."""
        samples = few_samples(tensors)
        whole, rows = self._answers(samples), samples[0].shape[0]
        for places in REARRANGED:
            for one, other in zip(whole, self._answers(rows_at(samples, places)), strict=True):
                if one.dim() == 0 or one.shape[0] != rows:
                    continue
                if not is_close(one[torch.tensor(places, device=one.device)], other):
                    raise CutError(
                        f"{self._path} gives a sample what depends on its batch. Freeze it with "
                        "fl.freeze, which holds norms, or name a lower part."
                    )

    def _answers(
        self, tensors: list[Tensor], *, seed: int = 0, answered: list[object] | None = None
    ) -> list[Tensor]:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            return self._answer([t.clone() for t in tensors], answered=answered)[0]

    def _answer(
        self,
        tensors: list[Tensor],
        *,
        training: bool = True,
        answered: list[object] | None = None,
    ) -> tuple[list[Tensor], Rebuild]:
        """What the submodule answers in a mode of the model, flat, and what makes it of that.

        Args:
            answered: takes the answer as soon as it is there.
        """
        answered = [] if answered is None else answered

        stops = can_be_cut_short(self._model)

        def stop(_module: nn.Module, _inputs: object, output: object) -> None:
            answered.append(output)
            if stops:
                raise _ReachedError

        devices = [t.device for t in tensors[:1] if t.device.type == "cuda"]
        # Above the line a forward that goes on may draw, which is not the prefix's to do.
        undrawn = nullcontext() if stops else torch.random.fork_rng(devices=devices)
        handle = self._module.register_forward_hook(stop)
        try:
            with modes_kept(self._model), suppress(_ReachedError), cut_short(self._model), undrawn:
                self._model.train(training)
                self._spec.call(self._model, tensors)
        finally:
            handle.remove()
        if not answered:
            raise CutError(f"{self._path} is not used in the forward. Name one that is.")
        return flatten_output(answered[0])


class _ReachedError(Exception):
    """The submodule has answered; the rest of the forward is not wanted."""
