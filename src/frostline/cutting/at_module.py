"""The user's own split: the prefix ends with the output of a named frozen submodule.

For models that torch.export cannot follow. The prefix runs the model until the submodule has
answered; the suffix runs it with that answer given, and with inputs that can be handed to the
submodule and asked for their shape, but not read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from frostline.cutting.halves import trainable_below
from frostline.cutting.structures import InputSpec, Rebuild, flatten_output, rows_of
from frostline.cutting.trial import REARRANGED, few_samples, is_close, rows_at
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
        self._skipped: list[_Skipped] = []
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
        stubs = [_unread((rows, *shape), dtype) for shape, dtype in self._shapes]
        answer = self._rebuild(iter(f.clone() for f in features))
        calls: list[int] = []

        def forward(*_: object, **__: object) -> object:
            calls.append(1)
            return answer

        module = self._module
        # Hooks of `fully_shard` would gather its parameters for a forward that it does not run.
        name = _CALL if module in units(module) else "forward"
        with ExitStack() as replaced:
            replaced.enter_context(_put(module, name, forward))
            for one in self._skipped:
                replaced.enter_context(one.skipping(self._model, rows))
            output = self._spec.call(self._model, stubs)
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
        with reads_recorded(self._model) as reads:
            first = self._answers(tensors, seed=0)
        self._skipped = list(self._run_below(tensors))
        second = self._answers(tensors, seed=1)
        self._below = list(self._parameters_below(reads))
        if any(t.requires_grad for t in first):
            raise CutError(f"what goes into {self._path} is trainable. Name a lower part.")
        if not all(map(same_bits, first, second)):
            raise CutError(
                f"{self._path} answers differently each time in training: something in it or below "
                "is random. Freeze it with fl.freeze, which holds dropout and norms."
            )
        self._check_batches(tensors)
        evaluated, _ = self._answer([t.clone() for t in tensors], training=False)
        if len(first) != len(evaluated) or not all(map(is_close, first, evaluated)):
            raise CutError(
                f"{self._path} answers otherwise in evaluation than in training, and one set of "
                "features serves both. Freeze what is below it with fl.freeze, which holds its "
                "mode, or name a lower part."
            )

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

    def _run_below(self, tensors: list[Tensor]) -> Iterator[_Skipped]:
        """The frozen modules that have answered when the submodule does, the outermost ones."""
        apart = {*self._module.modules(), *map(self._model.get_submodule, upwards(self._path))}
        frozen = {
            module: path
            for path, module in self._model.named_modules()
            if module not in apart and _is_frozen(module)
        }
        answers: dict[str, list[object]] = {}
        running: list[nn.Module] = []

        def begin(module: nn.Module, _: object) -> None:
            running.append(module)

        def end(module: nn.Module, _: object, output: object) -> None:
            running.pop()
            if not running:
                answers.setdefault(frozen[module], []).append(output)

        with ExitStack() as hooks:
            for module in frozen:
                hooks.callback(module.register_forward_pre_hook(begin).remove)
                hooks.callback(module.register_forward_hook(end).remove)
            self._answers(tensors)
        rows = rows_of(tensors)
        for path, outputs in answers.items():
            with suppress(CutError):  # what cannot be taken apart is run all the same
                yield _Skipped(path, [_Answer.of(output, rows) for output in outputs])

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

    def _answers(self, tensors: list[Tensor], *, seed: int = 0) -> list[Tensor]:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            return self._answer([t.clone() for t in tensors])[0]

    def _answer(
        self, tensors: list[Tensor], *, training: bool = True
    ) -> tuple[list[Tensor], Rebuild]:
        """What the submodule answers in a mode of the model, flat, and what makes it of that."""
        answered: list[object] = []

        def stop(_module: nn.Module, _inputs: object, output: object) -> None:
            answered.append(output)
            if can_be_cut_short():
                raise _ReachedError

        handle = self._module.register_forward_hook(stop)
        try:
            with modes_kept(self._model), suppress(_ReachedError), cut_short(self._model):
                self._model.train(training)
                self._spec.call(self._model, tensors)
        finally:
            handle.remove()
        if not answered:
            raise CutError(f"{self._path} is not used in the forward. Name one that is.")
        return flatten_output(answered[0])


# What stands for a module's call with its hooks; torch.compile puts its own there (torch 2.15).
_CALL = "_compiled_call_impl"


@final
@dataclass(frozen=True, slots=True)
class _Answer:
    """Of what form a module's answer was, to a batch of `rows`."""

    forms: tuple[tuple[tuple[int, ...], torch.dtype], ...]
    rebuild: Rebuild
    rows: int

    @classmethod
    def of(cls, output: object, rows: int) -> _Answer:
        tensors, rebuild = flatten_output(output)
        return cls(tuple((tuple(t.shape), t.dtype) for t in tensors), rebuild, rows)

    def unread(self, rows: int) -> Any:
        """The same for a batch of `rows`, without numbers to read."""
        shapes = ((rows, *s[1:]) if s[:1] == (self.rows,) else s for s, _ in self.forms)
        pairs = zip(shapes, (dtype for _, dtype in self.forms), strict=True)
        return self.rebuild(iter(_unread(shape, dtype) for shape, dtype in pairs))


@final
@dataclass(frozen=True, slots=True)
class _Skipped:
    """A module below the line, which need not run where it is given what nobody may read.

    Attributes:
        answers: to its calls, in their order.
    """

    path: str
    answers: list[_Answer]

    def skipping(self, model: nn.Module, rows: int) -> AbstractContextManager[None]:
        """While in the block, calls with unread inputs give unread outputs, and run nothing."""
        module, left = model.get_submodule(self.path), iter(self.answers)
        run = vars(module).get(_CALL) or module._call_impl

        def call(*args: Any, **kwargs: Any) -> Any:
            leaves = pytree.tree_leaves((args, kwargs))
            is_below = any(isinstance(leaf, _Unread) for leaf in leaves)
            known = next(left, None) if is_below else None
            return run(*args, **kwargs) if known is None else known.unread(rows)

        return _put(module, _CALL, call)


@contextmanager
def _put(module: nn.Module, name: str, function: Callable[..., object]) -> Iterator[None]:
    """While in the block, `function` is this attribute of the module."""
    own = vars(module)
    former = own.get(name)
    own[name] = function
    try:
        yield
    finally:
        own.pop(name)
        if former is not None:
            own[name] = former


def _is_frozen(module: nn.Module) -> bool:
    wanted = [parameter.requires_grad for parameter in module.parameters()]
    return bool(wanted) and not any(wanted)


def _unread(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta").as_subclass(_Unread)


class _ReachedError(Exception):
    """The submodule has answered; the rest of the forward is not wanted."""


class _Unread(Tensor):
    """Stands for an input above the line: it has a shape, but no numbers to read."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.to:  # its device, as `fully_shard` moves what goes into a model
            return args[0]
        try:
            return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]  # torch's own
        except (RuntimeError, NotImplementedError) as error:
            name = getattr(func, "__name__", str(func))
            raise CutError(
                f"what stands above the line reads the model's input itself (by {name}), so the "
                "features alone do not do. Name another submodule, or train with features off."
            ) from error
