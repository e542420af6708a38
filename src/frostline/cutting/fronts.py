"""What PyTorch's functions in Python check before the operator runs, which a graph has lost.

A norm refuses to take the variance of a single value; its operator gives NaN without a word.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

_aten = torch.ops.aten
_functional: Any = torch.nn.functional  # its checks are in no stub


def add_check(graph: fx.Graph, copied: fx.Node) -> None:
    """Put before an operation in `graph` the check that its Python front makes, if it has one."""
    front = _FRONTS.get(copied.target)
    if front is not None:
        with graph.inserting_before(copied):
            graph.call_function(front, (copied.args, dict(copied.kwargs)))


def check_batch_norm(given: tuple[Any, ...], named: dict[str, Any]) -> None:
    """Raises ValueError for one value in a channel, in training."""
    value, training = _arguments(given, named, ("input", 0), ("training", 5))
    if training:
        _functional._verify_batch_size(value.size())


def check_instance_norm(given: tuple[Any, ...], named: dict[str, Any]) -> None:
    """Raises ValueError for one place in a sample, where its own statistics are used."""
    value, own_statistics = _arguments(given, named, ("input", 0), ("use_input_stats", 5))
    if own_statistics:
        _functional._verify_spatial_size(value.size())


def check_group_norm(given: tuple[Any, ...], named: dict[str, Any]) -> None:
    """Raises ValueError for one value in a group, where the batch has one group."""
    value, groups = _arguments(given, named, ("input", 0), ("num_groups", 1))
    sizes = [value.size(0) * value.size(1) // groups, groups, *value.size()[2:]]
    _functional._verify_batch_size(sizes)


def _arguments(
    given: tuple[Any, ...], named: dict[str, Any], *wanted: tuple[str, int]
) -> list[Any]:
    return [given[place] if place < len(given) else named[name] for name, place in wanted]


_FRONTS: dict[object, Callable[[tuple[Any, ...], dict[str, Any]], None]] = {
    _aten.batch_norm.default: check_batch_norm,
    _aten.instance_norm.default: check_instance_norm,
    _aten.group_norm.default: check_group_norm,
}
