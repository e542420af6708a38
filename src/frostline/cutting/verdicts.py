"""One forward pass over the graph: which values depend on the sample and frozen computation alone.

A value is frozen if all it is computed from is, and the operation draws no random number, moves
no state and does not mix samples. In-place operations are followed through everything that shares
their memory: what is written to becomes another value at that place in the graph's order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import final

from torch import fx

from frostline.cutting import effects
from frostline.cutting.layouts import ROWS_FIRST, layouts_of
from frostline.cutting.tracing import module_path, operation, own_name
from frostline.cutting.trial import Observed

LABELS = "labels"
"""The input that a model computes its loss with, as transformers' models call it."""


@final
@dataclass(frozen=True)
class Verdicts:
    """The verdict on each node.

    Attributes:
        reasons: node -> why it is not frozen, in words; frozen nodes are absent.
        carriers: frozen nodes that samples reach, in the graph's order.
        free: frozen nodes that depend on no sample's numbers, at most on how many there are.
        together: groups of frozen nodes that must lie on one side of the line, since one writes
            into what the others read.
    """

    reasons: Mapping[fx.Node, str]
    carriers: list[fx.Node]
    free: frozenset[fx.Node]
    together: tuple[frozenset[fx.Node], ...]


def verdicts_on(trial: Observed, *, mixed: Collection[fx.Node] = ()) -> Verdicts:
    """Judge every node of the graph.

    Args:
        mixed: nodes that were seen to give a sample what depends on its batch.
    """
    why = "gives a sample what depends on its batch or on chance"
    return _Pass(trial).verdicts({node: f"{_placed(node)} {why}" for node in mixed})


@final
class _Pass:
    """The verdicts, over the graph's memory: who shares it with whom, and who writes into it."""

    def __init__(self, trial: Observed) -> None:
        self._trial = trial
        self._nodes = nodes = trial.traced.nodes
        self._order = {node: place for place, node in enumerate(nodes)}
        self._writes = defaultdict[int, list[fx.Node]](list)
        for node in nodes:
            for storage in trial.written(node):
                self._writes[storage].append(node)
        read = {n for n in nodes if n.op == "get_attr" and n in trial.storage}
        self._state = {trial.storage[n] for n in read}
        # Statistics are float tensors that no one trains; norms read weights as well.
        names = {name for name, _ in trial.traced.module.named_buffers()}
        buffers = {trial.storage[n] for n in read if str(n.target) in names}
        norms = [n for n in nodes if effects.moves_statistics(n)]
        moved = {trial.storage[a] for n in norms for a in n.all_input_nodes if a in read}
        self._moving = moved & buffers | self._state & self._writes.keys()

    def verdicts(self, pinned: Mapping[fx.Node, str]) -> Verdicts:
        """The verdict, with reasons for some nodes given."""
        while True:
            reasons = self._reasons(pinned)
            more = {n: why for n, why in self._to_pin(reasons) if n not in pinned}
            if not more:
                frozen = [node for node in self._nodes if node not in reasons]
                reached = self._reached()
                carriers = [node for node in frozen if node in reached]
                free = frozenset(frozen) - reached
                return Verdicts(reasons, carriers, free, tuple(self._together(reasons)))
            pinned = {**pinned, **more}  # what is computed of these is not frozen either

    def _readers(self, storage: int) -> set[fx.Node]:
        """Nodes that read this memory's numbers."""
        users = {user for member in self._trial.members[storage] for user in member.users}
        return {user for user in users if not effects.reads_only_shape(user)}

    def _reasons(self, pinned: Mapping[fx.Node, str]) -> dict[fx.Node, str]:
        reasons: dict[fx.Node, str] = {}
        spoilt: dict[int, str] = {}  # memory that holds unfrozen numbers from here on
        for node in self._nodes:
            why = self._why_not(node, reasons, spoilt) or pinned.get(node)
            if why is not None:
                reasons[node] = why
                spoilt |= dict.fromkeys(self._trial.written(node), why)
        return reasons

    def _why_not(
        self, node: fx.Node, reasons: Mapping[fx.Node, str], spoilt: Mapping[int, str]
    ) -> str | None:
        if node.op == "placeholder":
            row_each = layouts_of(node) == (ROWS_FIRST,)
            return None if row_each else f"{operation(node)} has no row for each sample"
        if node.op == "output":
            return "the model's output"
        if node.op == "get_attr":
            if self._trial.traced.tensor(node).requires_grad:
                return f"{own_name(node.target)} is trainable"
            moves = self._trial.storage.get(node) in self._moving
            return f"{own_name(node.target)} moves in training" if moves else None
        if effects.reads_only_shape(node):
            return None
        for argument in node.all_input_nodes:
            if argument in reasons:
                return reasons[argument]
            if argument.op == "placeholder" and operation(argument) == LABELS:
                return "it reads the labels"  # which cross as they are, by their own name
            # A view from before the write is frozen, and holds the new numbers all the same.
            if (why := spoilt.get(self._trial.storage.get(argument, 0))) is not None:
                return why
        return self._own_reason(node)

    def _own_reason(self, node: fx.Node) -> str | None:
        if effects.moves_statistics(node):
            return f"a norm{_place(node)} uses the statistics of the batch"
        if effects.is_random(node):
            return f"{_placed(node)} is random in training"
        if not self._state.isdisjoint(self._trial.written(node)):
            return f"{_placed(node)} writes into the model's state"
        return None

    def _to_pin(self, reasons: Mapping[fx.Node, str]) -> Iterator[tuple[fx.Node, str]]:
        """Frozen nodes that must be computed above the line because of in-place operations."""
        for storage, writes in self._writes.items():
            if storage in self._state:
                continue
            if unfrozen := [write for write in writes if write in reasons]:
                # The line may be crossed by the memory's root alone: a view stored beside it would
                # not see what is written into it above the line.
                for member in self._trial.members[storage][1:]:
                    if member not in reasons and member not in writes:
                        yield member, reasons[unfrozen[0]]
            above = [self._order[r] for r in self._readers(storage) if r in reasons]
            for write in writes:
                if write not in reasons and any(place < self._order[write] for place in above):
                    why = f"{effects.word(write)} writes into what was read above the line before"
                    yield write, why

    def _together(self, reasons: Mapping[fx.Node, str]) -> Iterator[frozenset[fx.Node]]:
        for storage, writes in self._writes.items():
            frozen = [self._order[write] for write in writes if write not in reasons]
            if frozen and storage not in self._state:
                # Kept between two writes it would be neither what was read before nor after.
                group = {*self._trial.members[storage], *self._readers(storage)} - reasons.keys()
                last = max(frozen)
                yield frozenset(node for node in group if self._order[node] <= last)

    def _reached(self) -> set[fx.Node]:
        """Nodes that samples' numbers reach, be it through memory they share."""
        reached: set[fx.Node] = set()
        before = -1
        while len(reached) > before:  # again, since a write reaches views from before it
            before = len(reached)
            for node in self._nodes:
                inputs = [] if effects.reads_only_shape(node) else node.all_input_nodes
                if node.op == "placeholder" or not reached.isdisjoint(inputs):
                    reached.add(node)
                    for storage in self._trial.written(node):
                        reached.update(self._trial.members[storage])
        return reached


def _place(node: fx.Node) -> str:
    return f" in {where}" if (where := module_path(node)) else ""


def _placed(node: fx.Node) -> str:
    return effects.word(node) + _place(node)
