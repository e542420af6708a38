"""One forward sweep over the graph: which values depend on the sample and frozen computation alone.

A value is frozen if all it is computed from is, and the operation draws no random number, moves
no state and does not mix samples. In-place operations are followed through everything that shares
their memory: what is written to becomes another value at that place in the graph's order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import final

from torch import Tensor, fx

from frostline.cutting import effects
from frostline.cutting.layouts import is_row_each
from frostline.cutting.tracing import Traced, module_path, operation, own_name
from frostline.cutting.trial import Trial


@final
@dataclass(frozen=True)
class Swept:
    """The verdict on each node.

    Attributes:
        reasons: node -> why it is not frozen, in words; frozen nodes are absent.
        free: frozen nodes that depend on no sample's numbers, at most on how many there are.
        together: groups of frozen nodes that must lie on one side of the line, since one writes
            into what the others read.
    """

    reasons: Mapping[fx.Node, str]
    free: frozenset[fx.Node]
    together: tuple[frozenset[fx.Node], ...]

    def is_frozen(self, node: fx.Node) -> bool:
        return node not in self.reasons


def sweep(traced: Traced, trial: Trial, *, mixed: Collection[fx.Node] = ()) -> Swept:
    """Judge every node of the graph.

    Args:
        mixed: nodes that were seen to give a sample what depends on its batch.
    """
    memory = _Memory.of(traced, trial)
    pinned = {node: _mixing(node) for node in mixed}
    while True:
        reasons = _reasons(traced, trial, memory, pinned)
        more = {n: why for n, why in _to_pin(memory, reasons) if n not in pinned}
        if not more:
            free = _free(traced, reasons, memory)
            return Swept(reasons, free, tuple(_together(memory, reasons)))
        pinned |= more


@final
@dataclass
class _Memory:
    """Who shares memory with whom, and who writes into it."""

    order: dict[fx.Node, int]
    members: dict[int, list[fx.Node]] = field(default_factory=lambda: defaultdict(list))
    writes: dict[int, list[fx.Node]] = field(default_factory=lambda: defaultdict(list))
    state: set[int] = field(default_factory=set)
    moving: set[int] = field(default_factory=set)
    storage: Mapping[fx.Node, int] = field(default_factory=dict)

    @classmethod
    def of(cls, traced: Traced, trial: Trial) -> _Memory:
        nodes = traced.nodes
        memory = cls({node: place for place, node in enumerate(nodes)}, storage=trial.storage)
        for node in nodes:
            if node in trial.storage and node.op != "output":
                memory.members[trial.storage[node]].append(node)
            if node.op == "get_attr" and traced.tensor(node) is not None:
                memory.state.add(trial.storage[node])
        for node in nodes:
            for base in effects.written(node):
                if base in trial.storage:
                    memory.writes[trial.storage[base]].append(node)
            if effects.moves_statistics(node):
                memory.moving |= {
                    trial.storage[a] for a in node.all_input_nodes if a.op == "get_attr"
                } & _buffers(traced, trial)
        memory.moving |= memory.state & set(memory.writes)
        return memory

    def readers(self, storage: int) -> set[fx.Node]:
        """Nodes that read this memory's numbers."""
        return {
            user
            for member in self.members[storage]
            for user in member.users
            if not effects.reads_only_shape(user)
        }


def _buffers(traced: Traced, trial: Trial) -> set[int]:
    """Storages of the statistics: the float tensors that no one trains."""
    names = {name for name, _ in traced.module.named_buffers()}
    return {
        trial.storage[node]
        for node in traced.module.graph.find_nodes(op="get_attr")
        if str(node.target) in names and node in trial.storage
    }


def _reasons(
    traced: Traced, trial: Trial, memory: _Memory, pinned: Mapping[fx.Node, str]
) -> dict[fx.Node, str]:
    reasons: dict[fx.Node, str] = {}
    spoilt: dict[int, str] = {}  # memory that holds unfrozen numbers from here on
    for node in traced.nodes:
        why = _why_not(node, traced, trial, memory, reasons, spoilt) or pinned.get(node)
        if why is None:
            continue
        reasons[node] = why
        for base in effects.written(node):
            if base in trial.storage:
                spoilt[trial.storage[base]] = why
    return reasons


def _why_not(
    node: fx.Node,
    traced: Traced,
    trial: Trial,
    memory: _Memory,
    reasons: Mapping[fx.Node, str],
    spoilt: Mapping[int, str],
) -> str | None:
    if node.op == "placeholder":
        return None if is_row_each(node) else f"{operation(node)} has no row for each sample"
    if node.op == "output":
        return "the model's output"
    storage = trial.storage.get(node)
    if node.op == "get_attr":
        tensor = traced.tensor(node)
        if tensor is not None and tensor.requires_grad:
            return f"{own_name(node.target)} is trainable"
        if storage in memory.moving:
            return f"{own_name(node.target)} moves in training"
        return None
    if effects.reads_only_shape(node):
        return None
    for argument in node.all_input_nodes:
        if argument in reasons:
            return reasons[argument]
        found = trial.storage.get(argument)
        if found is not None and found in spoilt:
            return spoilt[found]
    return _own_reason(node, trial, memory)


def _own_reason(node: fx.Node, trial: Trial, memory: _Memory) -> str | None:
    where = module_path(node)
    place = f" in {where}" if where else ""
    if effects.moves_statistics(node):
        return f"a norm{place} uses the statistics of the batch"
    if effects.is_random(node):
        return f"{_word(node)}{place} is random in training"
    if any(trial.storage.get(base) in memory.state for base in effects.written(node)):
        return f"{_word(node)}{place} writes into the model's state"
    return None


def _mixing(node: fx.Node) -> str:
    place = f" in {where}" if (where := module_path(node)) else ""
    return f"{_word(node)}{place} gives a sample what depends on its batch or on chance"


def _word(node: fx.Node) -> str:
    name = str(getattr(node.target, "__name__", node.target))
    return name.partition(".")[0]


def _to_pin(memory: _Memory, reasons: Mapping[fx.Node, str]) -> Iterator[tuple[fx.Node, str]]:
    """Frozen nodes that must be computed above the line, for the sake of in-place operations."""
    for storage, writes in memory.writes.items():
        if storage in memory.state:
            continue
        others = memory.members[storage][1:]
        unfrozen = [w for w in writes if w in reasons]
        if unfrozen:
            # The line may be crossed by the memory's root alone: a view stored beside it would
            # not see what is written into it above the line.
            why = reasons[unfrozen[0]]
            for member in others:
                if member not in reasons and member not in writes:
                    yield member, why
        for write in writes:
            early = [
                reader
                for reader in memory.readers(storage)
                if reader in reasons and memory.order[reader] < memory.order[write]
            ]
            if early and write not in reasons:
                yield write, f"{_word(write)} writes into what was read above the line before"


def _together(memory: _Memory, reasons: Mapping[fx.Node, str]) -> Iterator[frozenset[fx.Node]]:
    for storage, writes in memory.writes.items():
        frozen = [w for w in writes if w not in reasons]
        if not frozen or storage in memory.state:
            continue
        last = max(memory.order[w] for w in frozen)
        group = {m for m in memory.members[storage] if memory.order[m] <= last}
        group |= {r for r in memory.readers(storage) if memory.order[r] <= last}
        yield frozenset(n for n in group | set(frozen) if n not in reasons)


def _free(traced: Traced, reasons: Mapping[fx.Node, str], memory: _Memory) -> frozenset[fx.Node]:
    """Frozen nodes that no sample's numbers reach, be it through memory they share."""
    reached: set[fx.Node] = set()
    grew = True
    while grew:
        before = len(reached)
        for node in traced.nodes:
            inputs = [] if effects.reads_only_shape(node) else node.all_input_nodes
            if node.op == "placeholder" or any(a in reached for a in inputs):
                reached.add(node)
                for base in effects.written(node):
                    reached.update(memory.members.get(memory.storage.get(base, 0), ()))
        grew = len(reached) > before
    return frozenset(n for n in traced.nodes if n not in reached and n not in reasons)


def is_constant(node: fx.Node, fixed: frozenset[fx.Node], value: object) -> bool:
    """Whether a tensor is the same for any batch: all it is computed from is fixed, no size."""
    pending, seen = [node], set()
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        if effects.is_symbolic(current) or current not in fixed:
            return False
        pending.extend(current.all_input_nodes)
    return isinstance(value, Tensor)
