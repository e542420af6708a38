"""A model -> the graph of operations of one forward, over its own parameters, by torch.export."""

from __future__ import annotations

import linecache
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, final

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.graph import CodeGen

from frostline.cutting.effects import is_assertion, is_pure, word
from frostline.cutting.following import followable
from frostline.cutting.outside import numbers_kept, writes_into
from frostline.cutting.regions import open_regions
from frostline.cutting.structures import (
    InputSpec,
    Rebuild,
    flatten_output,
    varying_inputs,
)
from frostline.cutting.watching import Reads, reads_recorded
from frostline.errors import CutError, one_line
from frostline.schemas import aliased

# Kernels that count in 32 bits may bound a batch too, but not below this.
_LARGEST_BATCH = 2**12
_BOUND = (
    "Often something made a number of how many there are, as len(x) does: "
    "x.shape[0] leaves it open."
)


@final
class Unfollowed(CutError):  # noqa: N818 - named for what happened
    """No line could be drawn by following the forward; behind a named submodule one may run."""


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
        reads: what of the modules the forward read.
    """

    module: fx.GraphModule
    rebuild: Rebuild = field(repr=False)
    constants: frozenset[str]
    reads: Reads = field(repr=False)

    @property
    def nodes(self) -> list[fx.Node]:
        return list(self.module.graph.nodes)

    def tensor(self, node: fx.Node) -> Tensor:
        """What a `get_attr` node reads."""
        found: Tensor = attrgetter(str(node.target))(self.module)
        return found


class _Flat(nn.Module):
    """The model with flat tensors in and out, so that any of its signatures can be exported."""

    def __init__(self, model: nn.Module, spec: InputSpec) -> None:
        super().__init__()
        self.model = model
        self.spec = spec
        # What a forward leaves behind; of lists and dicts export would put the former content back.
        self.note = SimpleNamespace(rebuild=None, reads=Reads())

    def forward(self, flat: list[Tensor]) -> list[Tensor]:
        try:
            with _caches_kept(self.model), reads_recorded(self.model) as self.note.reads:
                tensors, rebuild = flatten_output(self.spec.call(self.model, flat))
        except CutError:
            raise
        except Exception as error:
            raise _ForwardError from error
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


class _ForwardError(Exception):
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
        with numbers_kept(model):  # as no weight is real here, whatever is noted of them
            module, program = _export(flat, tensors)
    except CutError:
        raise
    except Exception as raised:  # export raises whatever the model's own code does with fakes
        error = (raised.__cause__ or raised) if isinstance(raised, _ForwardError) else raised
        raise Unfollowed(
            f"torch.export cannot follow {type(model).__name__}: {_why(error)}{_place(error)}."
            f"{_drawn(model)}"
        ) from error
    _mark_inputs(module, spec, tensors)
    if (most := _most_samples(module, program, tensors)) is not None:
        raise Unfollowed(
            f"the forward of {type(model).__name__} only holds for batches of {most} samples."
            + ("" if most.startswith("up to") else _drawn(model) or f" {_BOUND}")
        )
    _tidy(module.graph)
    for node in module.graph.find_nodes(op="get_attr"):
        found = attrgetter(str(node.target))(module)
        if isinstance(found, torch.Generator):
            raise Unfollowed(
                f"the forward of {type(model).__name__} draws from a torch.Generator of its own, "
                "and a cut would not keep it in step. Draw without one, from torch's."
            )
        if isinstance(found, fx.GraphModule):
            (by, *_) = map(word, node.users)
            raise Unfollowed(
                f"the forward of {type(model).__name__} chooses or repeats a part of itself by "
                f"torch's {by}, and no line is drawn through such a part."
            )
    if written := _weights_written(module):
        raise CutError(writes_into(model, written))
    assert flat.note.rebuild is not None
    constants = frozenset(program.graph_signature.lifted_tensor_constants)
    return Traced(module, flat.note.rebuild, constants, flat.note.reads)


def _why(error: BaseException) -> str:
    if type(error).__name__ == "GuardOnDataDependentSymNode":
        return "what it does depends on numbers of the batch, or on drawn ones"
    return one_line(error, first=True)


def _drawn(model: nn.Module) -> str:
    """What transformers draws in training by Python and NumPy, as far as its config says so."""
    known = getattr(getattr(model, "config", None), "__dict__", {})
    rates = ("layerdrop", "encoder_layerdrop", "decoder_layerdrop")
    found = [f"{name} = 0.0" for name in rates if known.get(name) not in (None, 0)]
    masked = ("mask_time_prob", "mask_feature_prob")
    if known.get("apply_spec_augment") is True and any(known.get(name) for name in masked):
        found.append("apply_spec_augment = False")
    if not found or not model.training:
        return ""
    return (
        " It may be what its config skips or masks at random: try config."
        f"{', config.'.join(found)}."
    )


def _place(error: BaseException) -> str:
    """Where in the model's own code, or that of its library, it was raised."""
    inside = {Path(torch.__file__).parent, Path(__file__).parents[1]}
    frames = (
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if Path(frame.f_code.co_filename).is_file()
    )
    own = [(file, line) for file, line in frames if inside.isdisjoint(Path(file).parents)]
    if not own:
        return ""
    file, line = own[-1]
    return f" ({Path(file).name}, line {line}: `{linecache.getline(file, line).strip()[:80]}`)"


def _weights_written(module: fx.GraphModule) -> list[str]:
    """Frozen parameters that an operation of the graph writes into, by the model's own names."""
    weights = {name for name, p in module.named_parameters() if not p.requires_grad}
    written = (
        base
        for node in module.graph.nodes
        for base in aliased(node, written=True)
        if base.op == "get_attr" and str(base.target) in weights
    )
    return list(dict.fromkeys(own_name(str(base.target)) for base in written))


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


def _export(
    flat: _Flat, tensors: list[Tensor]
) -> tuple[fx.GraphModule, torch.export.ExportedProgram]:
    auto, rows = torch.export.Dim.AUTO, tensors[0].shape[0]
    batch = [{0: auto} if t.dim() and t.shape[0] == rows else {} for t in tensors]
    # Samples may vary in length as well; where that does not go, the batch alone.
    vary = varying_inputs(tensors)
    lengths = [{**dims, 1: auto} if i in vary else dims for i, dims in enumerate(batch)]
    for dynamic in (lengths, batch):
        try:
            with followable():
                program = torch.export.export(
                    flat, (tensors,), dynamic_shapes=(dynamic,), strict=False
                )
                module = program.module(check_guards=False)
            break
        except Exception as error:
            if isinstance(error, CutError) or dynamic == batch:
                raise
    assert isinstance(module, fx.GraphModule)
    module.graph.set_codegen(CodeGen())  # export's own packs arguments as the signature has them
    output: Any = module.graph.output_node()
    output.args = (tuple(output.args[0]),)  # a list before
    open_regions(module)
    module.recompile()
    return module, program


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
    """Drop what computes nothing that is used: assertions and dead, harmless operations.

    Not torch's `eliminate_dead_code`, which (2.15) takes writes within inner graphs for harmless.
    """
    for node in reversed(list(graph.nodes)):
        if node.users or node.op not in ("call_function", "get_attr"):
            continue
        if node.op == "get_attr" or is_assertion(node) or is_pure(node):
            graph.erase_node(node)


def module_paths(node: fx.Node) -> list[str]:
    """Dotted paths in the model of the modules whose forwards the operation stands in."""
    stack = node.meta.get("nn_module_stack") or {}
    return [own_name(path) for path, _ in stack.values()]


def module_path(node: fx.Node) -> str:
    """The innermost of these; "" for the model's own forward."""
    return (module_paths(node) or [""])[-1]


def operation(node: fx.Node) -> str:
    """`layer4.1.relu (relu_)`: the module and what it does, or what the model's forward does.

    An input goes by its name.
    """
    if node.op == "placeholder":
        return str(node.meta["name"])
    where = module_path(node)
    return f"{where} ({word(node)})" if where else f"{word(node)} in the forward"


def own_name(target: object) -> str:
    """The model's own name of a tensor that a `get_attr` node reads, or of a module."""
    return str(target).removeprefix("model").removeprefix(".")


def target_of(name: str) -> str:
    """What a graph calls the tensor that the model knows by this name."""
    return f"model.{name}"


def forget_symbols(*graphs: fx.Graph) -> None:
    """Let go of the worlds of symbols that these graphs were traced in, which nobody needs then.

    PyTorch (2.15) keeps them twice: in caches on methods, by their last 256 arguments, and by the
    inputs that a world tracks, whose sizes refer back to it where no garbage collector looks.
    """
    from torch.fx.experimental.symbolic_shapes import ShapeEnv  # and with it sympy

    for graph in graphs:
        for node in graph.find_nodes(op="placeholder"):
            seen = node.meta.get("val")
            if isinstance(seen, FakeTensor) and seen.fake_mode.shape_env is not None:
                seen.fake_mode.shape_env.tracked_fakes = None
    for method in vars(ShapeEnv).values():
        clear = getattr(method, "cache_clear", None)
        if clear is not None:
            clear()
