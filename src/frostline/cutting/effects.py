"""What an operation does besides computing: draw random numbers, write in place, move statistics.

Read from the operation's schema; where torch's schemas do not tell (batch norm moves its
statistics without saying so), from the tables here.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, fx

from frostline.schemas import aliased, arguments, calls

_aten = torch.ops.aten
_functional: Any = torch.nn.functional  # its checks are in no stub
# Arguments that switch an operation's randomness off: by a false mode, or by a zero probability.
_MODES = frozenset({"train", "training", "is_training"})
_PROBABILITIES = frozenset({"p", "dropout", "dropout_p"})
_DROPOUTS = [
    f"{kind}dropout{end}"
    for kind in ("", "alpha_", "feature_", "feature_alpha_")
    for end in ("", "_")
]
# Operations that move the running statistics they are given, when told to use the batch's own.
_BATCH_NORMS = ("batch_norm", "native_batch_norm", "cudnn_batch_norm")


def word(node: fx.Node) -> str:
    """What the operation is called: `relu_`."""
    return str(getattr(node.target, "__name__", node.target)).partition(".")[0]


def is_assertion(node: fx.Node) -> bool:
    """Whether the operation only checks something."""
    name = str(getattr(node.target, "__name__", ""))  # a name of the model's is plain text
    return "_assert" in name or "sym_constrain_range" in name


def is_pure(node: fx.Node) -> bool:
    """Whether leaving the operation out changes nothing but its own value."""
    return not (is_random(node) or aliased(node, written=True) or moves_statistics(node))


def is_random(node: fx.Node) -> bool:
    """Whether the operation draws random numbers, given its arguments, or may do so."""
    if node.op != "call_function":
        return False
    target: Any = node.target
    if not isinstance(target, torch._ops.OpOverload):
        # Arithmetic on numbers and sizes, or an element of a tuple; of anything else, as what runs
        # a graph of its own, it is not known.
        plain = target.__module__ in (operator.__name__, "_operator", "math", "builtins")
        return not (plain or str(getattr(target, "__name__", "")).startswith("sym_"))
    if torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    # Dropout carries the tag in evaluation and with p = 0 too.
    return not any(
        (name in _MODES and value is False)
        or (name in _PROBABILITIES and isinstance(value, int | float) and value == 0)
        for name, value in arguments(node).items()
    )


def hands_on(node: fx.Node) -> bool:
    """Whether the operation is a dropout that drops nothing: its value is its input, no copy."""
    return calls(node, *_DROPOUTS) and not is_random(node)


def moves_statistics(node: fx.Node) -> bool:
    """Whether the operation uses the batch's own statistics, and moves running ones."""
    given = arguments(node)
    if calls(node, "instance_norm"):
        # Without running statistics each sample is normalised by its own, in training as ever.
        return given["use_input_stats"] is True and given["running_mean"] is not None
    if not calls(node, *_BATCH_NORMS) or given["training"] is not True:
        return False
    # Weights may be standardised by such a norm too, which then has no statistics of any batch.
    return given["running_mean"] is not None or any(
        above.op == "placeholder" for above in upwards([node])
    )


def upwards(starts: Iterable[fx.Node]) -> Iterator[fx.Node]:
    """The nodes and all that they are computed from, found as they are asked for."""
    pending, seen = list(starts), set[fx.Node]()
    while pending:
        node = pending.pop()
        if node not in seen:
            seen.add(node)
            yield node
            pending.extend(node.all_input_nodes)


def is_symbolic(node: fx.Node) -> bool:
    """Whether the node's value is a size or a number computed from sizes."""
    value = node.meta.get("val")
    return isinstance(value, int | float | bool | torch.SymInt | torch.SymFloat | torch.SymBool)


def reads_only_shape(node: fx.Node) -> bool:
    """Whether the operation looks at its tensor's shape alone."""
    return node.target in (_aten.sym_size.int, _aten.sym_numel.default)


def add_check(graph: fx.Graph, copied: fx.Node) -> None:
    """Put before an operation in `graph` the check that PyTorch's own function makes in Python.

    A norm refuses to take the variance of a single value; its operator gives NaN without a word.
    """
    if copied.target not in _CHECKS:
        return
    check, switch, names = _CHECKS[copied.target]
    given = arguments(copied)
    if given.get(switch, True):
        with graph.inserting_before(copied):
            graph.call_function(check, tuple(given[name] for name in names))


_is_part = ContextVar("_is_part", default=False)


@contextmanager
def parts_of_batches() -> Iterator[None]:
    """In it what is computed is part of a batch, of which norms take the statistics of all."""
    token = _is_part.set(True)
    try:
        yield
    finally:
        _is_part.reset(token)


def is_part() -> bool:
    """Whether a single value in a channel is none, since others are computed elsewhere."""
    return _is_part.get()


def check_batch_norm(given: Tensor) -> None:
    """Raises ValueError for one value in a channel, in training."""
    if not is_part():
        _functional._verify_batch_size(given.size())


def check_instance_norm(given: Tensor) -> None:
    """Raises ValueError for one place in a sample, where its own statistics are used."""
    _functional._verify_spatial_size(given.size())


def check_group_norm(given: Tensor, groups: int) -> None:
    """Raises ValueError for one value in a group, where the batch has one group."""
    rows, channels, *places = given.size()
    _functional._verify_batch_size([rows * channels // groups, groups, *places])


# Operator -> check, the argument that has to be true for it, and the arguments that it takes.
_CHECKS: dict[object, tuple[Callable[..., None], str, tuple[str, ...]]] = {
    _aten.batch_norm.default: (check_batch_norm, "training", ("input",)),
    _aten.instance_norm.default: (check_instance_norm, "use_input_stats", ("input",)),
    _aten.group_norm.default: (check_group_norm, "", ("input", "num_groups")),
}
