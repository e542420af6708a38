"""The floor of `memory.py`: the bytes that the mathematics of the wanted gradients needs.

The forward is followed once, by `torch.export`, as a graph of torch's operations, and each that
a wanted gradient passes through names what its backward formula reads, given which of its inputs
want a gradient:

- convolution, linear, matrix product, product, quotient: the other factor, for each that wants one;
  so the input where the weight is wanted, and nothing of a bias or a sum;
- a norm in train mode, layer and group norm: its input, and the statistics of each channel, row or
  group; a norm in eval mode its input where its weight is wanted, else nothing;
- ReLU, ReLU6, leaky ReLU, hard tanh, hard sigmoid: one bit an element;
- GELU, SiLU, hard swish: the input, or one bit an element where the output is kept anyway (each has
  two branches, and the bit tells which);
- max pooling: the position within the window, in whole bits; dropout: one bit an element;
- sigmoid, tanh, exponential, root and softmax: the output;
- attention: query, key, value and one number a row (the softmax is computed anew, as all kernels
  do that are worth using), with dropout one bit a weight;
- LSTM: four gates and the cell of each step, its inputs and outputs where their weights are wanted;
- the loss: its log-softmax.

Each tensor is counted once, whoever reads it: views, copies, layer inputs and outputs are the same
values. Bits that a kept tensor tells are free: a ReLU in front of a convolution whose weight is
wanted costs nothing. Parameters, buffers and the batch itself are there anyway.

Nothing is computed a second time here. `fl.lean` lies below the floor where it does so: the outputs
of SiLU, GELU and layer norm, and what a frozen first layer makes of the batch.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from memory_models import Subject
from torch import Tensor, fx, nn

_SAME = (
    "view reshape permute transpose t flatten unflatten squeeze unsqueeze expand contiguous clone "
    "alias detach_ lift_fresh_copy unbind chunk split split_with_sizes unsafe_chunk movedim "
    "numpy_T feature_dropout_ identity _unsafe_view expand_as view_as type_as "
)
_PART = "select slice narrow"
_NOTHING = (
    "add sub rsub neg sum mean cat stack pad roll avg_pool1d avg_pool2d avg_pool3d "
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d constant_pad_nd where "
    "upsample_nearest2d upsample_bilinear2d masked_fill to _to_copy"
)
_BIT = "relu relu6 hardtanh leaky_relu hardsigmoid"
_BENT = "gelu silu hardswish"
_OUTPUT = "sigmoid tanh exp sqrt rsqrt softmax _softmax log_softmax"
_PRODUCT = "mul matmul bmm mm"
_LAYER = "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear"


@final
@dataclass(slots=True)
class Floor:
    """What is kept, by value.

    Attributes:
        whole: values that are kept as they are.
        bits: a value to be told by so many bits, or by one of these values if it is kept.
        either: the input of a bent function and its output.
        rest: bytes of statistics.
    """

    whole: set[fx.Node] = field(default_factory=set)
    bits: list[tuple[int, tuple[fx.Node, ...]]] = field(default_factory=list)
    either: list[tuple[fx.Node, fx.Node]] = field(default_factory=list)
    rest: int = 0


def floor_bytes(subject: Subject) -> int:
    """Bytes that a step of `subject` has to keep between forward and backward.

    Raises:
        NotImplementedError: an operation that gradients pass through has no rule; names it.
    """
    graph = _Graph.of(subject.model, subject.inputs)
    floor = Floor()
    for node in graph.passing:
        _rule(node)(_Op(graph, floor, node))
    logits = next(iter(graph.outputs()))
    loss = logits.meta["val"].nbytes if logits in graph.wanting else 0
    return _sum(floor, graph) + loss


def _sum(floor: Floor, graph: _Graph) -> int:
    kept = set(floor.whole)
    bits = list(floor.bits)
    for before, after in floor.either:
        if before in kept or not graph.tells(after, kept):
            kept.add(before)
        else:
            bits.append((_elements(after), (before,)))
    size = sum(graph.value(node).nbytes for node in kept if not graph.is_free(node, kept))
    told = (count for count, tellers in bits if not any(graph.tells(t, kept) for t in tellers))
    return size + floor.rest + math.ceil(sum(told) / 8)


@final
@dataclass(slots=True)
class _Graph:
    """One forward with what wants a gradient in it."""

    nodes: list[fx.Node]
    given: set[fx.Node]
    wanting: set[fx.Node]

    @classmethod
    def of(cls, model: nn.Module, inputs: Tensor) -> _Graph:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an LSTM's flat weights, which export puts back
            program = torch.export.export(model, (inputs.detach(),), strict=False)
        wanted = {name for name, p in model.named_parameters() if p.requires_grad}
        names = program.graph_signature.inputs_to_parameters
        users = program.graph_signature.user_inputs
        nodes = list(program.graph.nodes)
        given = {node for node in nodes if node.op == "placeholder"}
        wanting = {node for node in given if names.get(node.name) in wanted}
        if inputs.requires_grad:
            wanting |= {node for node in given if node.name in users}
        graph = cls(nodes, given, wanting)
        for node in nodes:
            if node.op == "call_function" and graph._passes(node):
                wanting.add(node)
        return graph

    @property
    def passing(self) -> list[fx.Node]:
        return [n for n in self.nodes if n.op == "call_function" and n in self.wanting]

    def outputs(self) -> Sequence[fx.Node]:
        return self.nodes[-1].all_input_nodes

    def value(self, node: fx.Node) -> Tensor:
        found: Any = node.meta["val"]
        return found if isinstance(found, Tensor) else found[0]

    def base(self, node: fx.Node) -> fx.Node:
        """The node whose numbers these are, all of them, in whatever order."""
        while node.op == "call_function" and (_is_same(node) or _name(node) == "getitem"):
            source = node.args[0]
            assert isinstance(source, fx.Node)
            if _name(node) == "getitem" and not _is_same(source):
                break
            node = source
        return node

    def tells(self, node: fx.Node, kept: set[fx.Node]) -> bool:
        base = self.base(node)
        return base in kept or base in self.given

    def is_free(self, node: fx.Node, kept: set[fx.Node]) -> bool:
        """Given anyway, or part of what is kept."""
        if node in self.given:
            return True
        if _name(node) in _PART.split():
            source = self.base(node.all_input_nodes[0])
            return source in kept or self.is_free(source, kept)
        return False

    def _passes(self, node: fx.Node) -> bool:
        found: Any = node.meta.get("val")
        first = found[0] if isinstance(found, tuple | list) and found else found
        floats = isinstance(first, Tensor) and first.is_floating_point()
        return floats and any(source in self.wanting for source in node.all_input_nodes)


@final
@dataclass(frozen=True, slots=True)
class _Op:
    """One operation that a gradient passes through, and where to note what it reads."""

    graph: _Graph
    floor: Floor
    node: fx.Node

    def wants(self, place: int) -> bool:
        args = self.node.args
        return place < len(args) and args[place] in self.graph.wanting

    def keep(self, node: object) -> None:
        if isinstance(node, fx.Node):
            self.floor.whole.add(self.graph.base(node))

    def keep_place(self, place: int) -> None:
        if place < len(self.node.args):
            self.keep(self.node.args[place])

    def tell(self, count: int, *tellers: object) -> None:
        nodes = tuple(teller for teller in tellers if isinstance(teller, fx.Node))
        self.floor.bits.append((count, nodes))

    def argument(self, place: int, name: str, default: object = None) -> Any:
        args, named = self.node.args, self.node.kwargs
        return args[place] if place < len(args) else named.get(name, default)


def _rule(node: fx.Node) -> Callable[[_Op], None]:
    name = _name(node)
    for words, rule in _GROUPS:
        if name in words.split():
            return rule
    if _is_same(node) or name == "getitem":
        return _nothing
    raise NotImplementedError(
        f"the floor has no rule for aten::{name}; add one to benchmarks/memory_floor.py."
    )


def _nothing(_: _Op) -> None:
    pass


def _layer(op: _Op) -> None:
    if op.wants(1):
        op.keep_place(0)
    if op.wants(0):
        op.keep_place(1)


def _addmm(op: _Op) -> None:
    if op.wants(2):
        op.keep_place(1)
    if op.wants(1):
        op.keep_place(2)


def _quotient(op: _Op) -> None:
    op.keep_place(1)
    if op.wants(1):
        op.keep_place(0)


def _power(op: _Op) -> None:
    op.keep_place(0)


def _output(op: _Op) -> None:
    op.keep(op.node)


def _bit(op: _Op) -> None:
    op.tell(_elements(op.node), op.node, op.node.args[0])


def _bent(op: _Op) -> None:
    before = op.node.args[0]
    assert isinstance(before, fx.Node)
    if not op.graph.tells(before, set()):
        op.floor.either.append((op.graph.base(before), op.graph.base(op.node)))


def _batch_norm(op: _Op) -> None:
    """`(input, weight, bias, mean, variance, training, ...)`, likewise instance norm's."""
    training = bool(op.argument(5, "training"))
    if op.wants(1) or (training and op.wants(0)):
        op.keep_place(0)
    if training and (op.wants(0) or op.wants(1)):
        channels = op.graph.value(op.node).shape[1]
        op.floor.rest += 2 * channels * _itemsize(op.node)


def _layer_norm(op: _Op) -> None:
    """`(input, shape, weight, bias, ...)`: mean and deviation of each row."""
    if op.wants(0) or op.wants(2):
        op.keep_place(0)
        width = math.prod(op.node.args[1])  # type: ignore[arg-type]
        op.floor.rest += 2 * _elements(op.node) // width * _itemsize(op.node)


def _group_norm(op: _Op) -> None:
    if op.wants(0) or op.wants(2):
        op.keep_place(0)
        rows = op.graph.value(op.node).shape[0] * int(op.node.args[1])  # type: ignore[arg-type]
        op.floor.rest += 2 * rows * _itemsize(op.node)


def _max_pool(op: _Op) -> None:
    size = op.node.args[1]
    sides = list(size) if isinstance(size, Sequence) else [size]
    dims = int(_name(op.node).removeprefix("max_pool")[0])
    window = math.prod(sides * dims if len(sides) == 1 else sides)  # type: ignore[operator, arg-type]
    op.tell(_elements(op.node) * math.ceil(math.log2(window)), op.node.args[0])


def _adaptive_max_pool(op: _Op) -> None:
    before = op.graph.value(op.node.all_input_nodes[0])
    window = max(2, math.ceil(before.numel() / _elements(op.node)))
    op.tell(_elements(op.node) * math.ceil(math.log2(window)), op.node.args[0])


def _dropout(op: _Op) -> None:
    op.tell(_elements(op.node))


def _attention(op: _Op) -> None:
    """`(query, key, value, mask, dropout, ...)`."""
    query, key = (op.graph.value(node) for node in op.node.args[:2])  # type: ignore[arg-type]
    for place in range(3):
        op.keep_place(place)
    rows = query.numel() // query.shape[-1]
    op.floor.rest += rows * query.dtype.itemsize
    if op.argument(4, "dropout_p", 0.0):
        op.tell(rows * key.shape[-2])


def _embedding(_: _Op) -> None:
    """`(weight, ids)`: the ids are the batch's own."""


def _lstm(op: _Op) -> None:
    """`(input, states, parameters, has_biases, layers, ..., bidirectional, ...)` of one layer."""
    args: Any = op.node.args
    if args[4] != 1 or args[7]:
        raise NotImplementedError("the floor knows LSTMs of one layer and one direction only.")
    steps = _elements(op.node)
    op.floor.rest += 5 * steps * _itemsize(op.node)
    inner, recurrent = args[2][:2]
    if inner in op.graph.wanting:
        op.keep(args[0])
    if recurrent in op.graph.wanting:
        op.keep(next(user for user in op.node.users if user.args[1] == 0))


_GROUPS: tuple[tuple[str, Callable[[_Op], None]], ...] = (
    (_NOTHING, _nothing),
    (_PART, _nothing),
    (_LAYER, _layer),
    (_PRODUCT, _layer),
    (_BIT, _bit),
    (_BENT, _bent),
    (_OUTPUT, _output),
    ("addmm", _addmm),
    ("div", _quotient),
    ("pow", _power),
    ("batch_norm", _batch_norm),
    ("layer_norm rms_norm", _layer_norm),
    ("group_norm", _group_norm),
    ("max_pool1d max_pool2d max_pool3d", _max_pool),
    ("adaptive_max_pool1d adaptive_max_pool2d", _adaptive_max_pool),
    ("scaled_dot_product_attention", _attention),
    ("embedding", _embedding),
    ("lstm", _lstm),
    ("dropout", _dropout),
)


def _is_same(node: fx.Node) -> bool:
    """Whether the operation gives the numbers it got: views, copies, dropout that is off."""
    name = _name(node)
    if name in ("dropout", "feature_dropout"):
        return not (node.args[1] and node.args[2])
    if name in ("to", "_to_copy"):
        source = node.all_input_nodes[0].meta["val"]
        return bool(source.dtype == node.meta["val"].dtype)
    return name in _SAME.split()


def _name(node: fx.Node) -> str:
    """`relu` of `aten.relu_.default`."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return str(getattr(node.target, "__name__", node.target))
    name = str(schema.name).partition("::")[2]
    return name.rstrip("_") if name.rstrip("_") else name


def _elements(node: fx.Node) -> int:
    found: Any = node.meta["val"]
    return int((found if isinstance(found, Tensor) else found[0]).numel())


def _itemsize(node: fx.Node) -> int:
    found: Any = node.meta["val"]
    return int((found if isinstance(found, Tensor) else found[0]).dtype.itemsize)
