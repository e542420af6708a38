"""A draft in another floating dtype: constants, explicit dtypes, and numbers out of range."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_aggregate

from frostline.tuning.drafts import Draft, calls, sample_of, use_instead


def cast(draft: Draft, dtype: torch.dtype) -> None:
    """Compute in `dtype` what the draft computes in float32; integers and booleans stay.

    Statistics and weights of batch norms stay float32, which its kernels mix with `dtype`: half
    the rounding, at no cost. Numbers beyond the range of `dtype`, such as a mask's lowest float32,
    become its largest, since infinities would turn into NaN.
    """
    kept = {str(n.target) for n in draft.graph.nodes if n.op == "get_attr" and _only_in_norms(n)}
    for name, value in draft.values.items():
        if name not in kept and isinstance(value, Tensor) and value.dtype == torch.float32:
            draft.values[name] = _in_range(value.detach(), dtype).to(dtype)
    for node in list(draft.graph.nodes):
        if node.op == "call_function":
            _cast_call(draft, node, dtype)


def _only_in_norms(node: Node) -> bool:
    return all(calls(user, "batch_norm") and user.args[0] is not node for user in node.users)


def _cast_call(draft: Draft, node: Node, dtype: torch.dtype) -> None:
    def replaced(argument: Any) -> Any:
        if argument is torch.float32:
            return dtype
        return _clamped(argument, dtype) if isinstance(argument, float) else argument

    born = _is_born_float32(node)
    node.args = map_aggregate(node.args, replaced)
    node.kwargs = map_aggregate(node.kwargs, replaced)
    if born:
        with draft.graph.inserting_after(node):
            to = draft.graph.call_function(torch.ops.aten.to.dtype, (node, dtype))
        use_instead(node, to)


def _is_born_float32(node: Node) -> bool:
    """Whether floats come from no float here: `arange`, `zeros`, a quotient of integers."""
    given = sample_of(node)
    if given is None or given.dtype != torch.float32:
        return False
    sources = [sample_of(source) for source in node.all_input_nodes]
    return not any(s is not None and s.is_floating_point() for s in sources)


def _clamped(number: float, dtype: torch.dtype) -> float:
    limit = torch.finfo(dtype).max
    return min(max(number, -limit), limit) if math.isfinite(number) else number


def _in_range(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    limit = torch.finfo(dtype).max
    low, high = torch.aminmax(tensor) if tensor.numel() else (torch.zeros(()), torch.zeros(()))
    if -limit <= float(low) and float(high) <= limit:
        return tensor
    return torch.where(tensor.isfinite(), tensor.clamp(-limit, limit), tensor)
