"""A model -> the graph of operations of one forward, over its own parameters, by torch.export."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, final

import torch
import torch.utils.checkpoint
from torch import Tensor, fx, nn
from torch.fx.graph import CodeGen

from frostline.cutting.offering import Unfollowed
from frostline.cutting.regions import open_regions
from frostline.cutting.structures import InputSpec, Rebuild, flatten_output
from frostline.errors import CutError
from frostline.freezing.modes import is_held

_PREFIX = "model."
# Kernels that count in 32 bits may bound a batch too, but not below this.
_LARGEST_BATCH = 2**12


@final
@dataclass(frozen=True)
class Traced:
    """One forward of a model in one mode.

    Attributes:
        module: flat tensors in, a tuple of tensors out; its parameters and buffers are the
            model's own objects.
        rebuild: makes the model's output from that tuple.
        constants: names of tensors that are neither parameters nor buffers; those that the forward
            makes are other objects in each trace.
        live: names of buffers of modules that are not held. One that this graph only reads may be
            moved by the graph of the other mode, or by whoever trains.
    """

    module: fx.GraphModule
    rebuild: Rebuild = field(repr=False)
    constants: frozenset[str] = frozenset()
    live: frozenset[str] = frozenset()

    @property
    def nodes(self) -> list[fx.Node]:
        return list(self.module.graph.nodes)

    def tensor(self, node: fx.Node) -> Tensor | None:
        """What a `get_attr` node reads, if that is a tensor."""
        found: Any = self.module
        for part in str(node.target).split("."):
            found = getattr(found, part)
        return found if isinstance(found, Tensor) else None


class _Note:
    """What a forward leaves behind. An object of its own: export puts lists and dicts back."""

    rebuild: Rebuild | None = None


class _Flat(nn.Module):
    """The model with flat tensors in and out, so that any of its signatures can be exported."""

    def __init__(self, model: nn.Module, spec: InputSpec) -> None:
        super().__init__()
        self.model = model
        self.spec = spec
        self.note = _Note()

    def forward(self, flat: list[Tensor]) -> list[Tensor]:
        try:
            with _caches_kept(self.model):
                tensors, rebuild = flatten_output(self.spec.call(self.model, flat))
        except CutError:
            raise
        except Exception as error:
            raise _RefusedError from error
        self.note.rebuild = rebuild
        return tensors


@contextmanager
def _caches_kept(model: nn.Module) -> Iterator[None]:
    """Dicts of the modules' own are as they were: export (2.9) runs twice, and finds its fakes."""
    plain = vars(nn.Module())
    caches = [
        (cache, dict(cache))
        for module in model.modules()
        for name, cache in vars(module).items()
        if type(cache) is dict and name not in plain
    ]
    try:
        yield
    finally:
        for cache, before in caches:
            cache.clear()
            cache.update(before)


class _RefusedError(Exception):
    """The forward failed. torch (2.15) prints the graph so far if it can hang it on the error."""

    def __setattr__(self, name: str, value: object) -> None:
        if name != "partial_fx_graph":
            super().__setattr__(name, value)


def trace(model: nn.Module, spec: InputSpec, tensors: list[Tensor]) -> Traced:
    """The graph of one forward of `model` in the modes it is in now.

    Raises:
        CutError: torch.export cannot follow the model; says why in one line.
    """
    flat = _Flat(model, spec)
    try:
        module, program = _export(flat, tensors)
    except CutError:
        raise
    except Exception as raised:  # export raises whatever the model's own code does with fakes
        error = (raised.__cause__ or raised) if isinstance(raised, _RefusedError) else raised
        raise Unfollowed(
            f"torch.export cannot follow {type(model).__name__}: {one_line(error)}."
        ) from error
    _mark_inputs(module, spec, tensors)
    if (most := _most_samples(module, program, tensors)) is not None:
        raise Unfollowed(
            f"the forward of {type(model).__name__} only holds for batches of {most} samples."
        )
    _tidy(module.graph)
    assert flat.note.rebuild is not None
    constants = frozenset(program.graph_signature.lifted_tensor_constants)
    return Traced(module, flat.note.rebuild, constants, frozenset(_live(module, model)))


def _most_samples(
    module: fx.GraphModule, program: torch.export.ExportedProgram, tensors: list[Tensor]
) -> str | None:
    """How many samples the forward was bound to when it was followed; None for any number."""
    counts = [node.meta["batch"] for node in module.graph.find_nodes(op="placeholder")]
    if counts[0] is None:
        return str(tensors[0].shape[0])
    bounds = (program.range_constraints[c] for c in counts if c in program.range_constraints)
    most = min((bound.upper for bound in bounds), default=_LARGEST_BATCH)
    return f"up to {most}" if most < _LARGEST_BATCH else None


def _live(module: fx.GraphModule, model: nn.Module) -> Iterator[str]:
    live = {
        id(b) for part in model.modules() if not is_held(part) for b in part.buffers(recurse=False)
    }
    for name, buffer in module.named_buffers(remove_duplicate=False):
        if id(buffer) in live:
            yield name


def _export(
    flat: _Flat, tensors: list[Tensor]
) -> tuple[fx.GraphModule, torch.export.ExportedProgram]:
    rows = tensors[0].shape[0]
    last: Exception | None = None
    for dynamic in _dynamic_shapes(tensors, rows):
        try:
            with _quiet(), _checkpoints_undone():
                program = torch.export.export(
                    flat, (tensors,), dynamic_shapes=(dynamic,), strict=False
                )
                module = program.module(check_guards=False)
        except CutError:
            raise
        except Exception as error:
            last = error
            continue
        assert isinstance(module, fx.GraphModule)
        graph = module.graph
        graph.set_codegen(CodeGen())
        _flatten_output_node(graph)
        open_regions(module)
        module.recompile()
        return module, program
    assert last is not None
    raise last


def _dynamic_shapes(tensors: list[Tensor], rows: int) -> Iterator[list[dict[int, Any]]]:
    """Token ids and masks vary in length as well; where that does not go, the batch alone."""
    auto = torch.export.Dim.AUTO
    batch = [{0: auto} if t.dim() and t.shape[0] == rows else {} for t in tensors]
    lengths = [
        {**dims, 1: auto} if t.dim() == 2 and not t.is_floating_point() and t.shape[1] > 1 else dims
        for t, dims in zip(tensors, batch, strict=True)
    ]
    if lengths != batch:
        yield lengths
    yield batch


def _flatten_output_node(graph: fx.Graph) -> None:
    """`((a, b),)` of the exported list -> `(a, b)`."""
    output = graph.output_node()
    values = output.args[0]
    assert isinstance(values, tuple | list)
    output.args = (tuple(values),)


def _mark_inputs(module: fx.GraphModule, spec: InputSpec, tensors: list[Tensor]) -> None:
    """Note on each input its name, and the symbol that counts its samples if one does."""
    rows = tensors[0].shape[0]
    inputs = module.graph.find_nodes(op="placeholder")
    for node, tensor, name in zip(inputs, tensors, spec.names, strict=True):
        first = node.meta["val"].shape[0] if tensor.dim() and tensor.shape[0] == rows else None
        counted = first.node.expr if isinstance(first, torch.SymInt) else None
        node.meta["batch"] = None if counted is None or counted.is_number else counted
        node.meta["name"] = name


def _tidy(graph: fx.Graph) -> None:
    """Drop what computes nothing that is used: assertions and dead, harmless operations."""
    from frostline.cutting.effects import is_assertion, is_pure

    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and not node.users:
            if is_assertion(node) or is_pure(node):
                graph.erase_node(node)
        elif node.op == "get_attr" and not node.users:
            graph.erase_node(node)


def module_path(node: fx.Node) -> str:
    """Dotted path in the model of the module that the operation stands in; "" for its forward."""
    stack = node.meta.get("nn_module_stack") or {}
    path = ""
    for name, _ in stack.values():
        path = str(name)
    return path.removeprefix("model").removeprefix(".")


def operation(node: fx.Node) -> str:
    """`layer4.1.relu (relu_)`: the module and what it does, or what the model's forward does.

    An input goes by its name.
    """
    if node.op == "placeholder":
        return str(node.meta["name"])
    word = str(getattr(node.target, "__name__", node.target)).partition(".")[0]
    where = module_path(node)
    return f"{where} ({word})" if where else f"{word} in the forward"


def own_name(target: object) -> str:
    """The model's own name of a parameter or buffer that a `get_attr` node reads."""
    return str(target).removeprefix(_PREFIX)


@contextmanager
def _checkpoints_undone() -> Iterator[None]:
    """Reentrant checkpoints run without gradients, and export (2.15) would keep it so."""
    own = torch.utils.checkpoint.CheckpointFunction
    torch.utils.checkpoint.CheckpointFunction = _Unchecked  # type: ignore[assignment, misc]  # its stand-in
    try:
        yield
    finally:
        torch.utils.checkpoint.CheckpointFunction = own  # type: ignore[misc]  # a class


class _Unchecked:
    @staticmethod
    def apply(function: Any, _preserve: bool, *inputs: Any) -> Any:
        return function(*inputs)


@contextmanager
def _quiet() -> Iterator[None]:
    """What export warns of and logs while it traces is no matter of the user's."""
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)


def one_line(error: BaseException) -> str:
    """The first line of what an error says, with its class."""
    text = str(error).strip().partition("\n")[0].rstrip(".")
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__
