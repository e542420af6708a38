"""Freeze, thaw, sync, step, save and load in any order, against sets of what must be frozen.

Each parameter has a twin: a copy that is alone with an optimizer of its own. Whatever happens to
the others, the model's optimizer must move the parameter and its state bit for bit as the twin's.
"""

from __future__ import annotations

import copy
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from torch import Tensor
from torch.optim import lr_scheduler

import frostline as fl
from frostline.deltas import delta_content
from frostline.optimizer_sync import Synced
from frozen_ledger import (
    BELOW,
    NORMS,
    SIZES,
    Cells,
    Ledger,
    Make,
    Net,
    Policy,
    Twin,
    assert_frozen,
    bits_of,
    buffers_of,
    loss_of,
    net,
    same_states,
    selections,
    whole,
)

Kept = Literal["nothing", "last", "all"]

_optim = torch.optim
OPTIMIZERS: dict[str, Make] = {
    "sgd": partial(_optim.SGD, lr=0.02, momentum=0.9),
    "sgd-fused": partial(_optim.SGD, lr=0.02, momentum=0.9, fused=True),
    "adam": partial(_optim.Adam, lr=0.02),
    "adam-fused": partial(_optim.Adam, lr=0.02, fused=True),
    "adamw": partial(_optim.AdamW, lr=0.02, amsgrad=True),
    "adamw-fused": partial(_optim.AdamW, lr=0.02, fused=True),
    "rmsprop": partial(_optim.RMSprop, lr=0.02, momentum=0.9),
    "adagrad": partial(_optim.Adagrad, lr=0.02, initial_accumulator_value=0.1),
    "adagrad-fused": partial(_optim.Adagrad, lr=0.02, fused=True),
    "nadam": partial(_optim.NAdam, lr=0.02),
    "radam": partial(_optim.RAdam, lr=0.02),
}
# Share of the base rate after so many steps, and the scheduler that makes it so.
SCHEDULES: dict[str, tuple[Callable[[int], float], Callable[..., Any]]] = {
    "lambda": (
        lambda step: 1 / (1 + step / 20),
        partial(lr_scheduler.LambdaLR, lr_lambda=lambda step: 1 / (1 + step / 20)),
    ),
    "step": (lambda step: 0.8 ** (step // 3), partial(lr_scheduler.StepLR, step_size=3, gamma=0.8)),
    "cosine": (
        lambda step: (1 + math.cos(math.pi * step / 200)) / 2,
        partial(lr_scheduler.CosineAnnealingLR, T_max=200),
    ),
}
RULE: dict[str, Any] = {"lr": 0.02, "weight_decay": 0.1, "lr_mult": {"body": 0.5, "head.bias": 2.0}}
ONE_FOR_ALL: dict[str, Any] = {"lr": 0.02, "weight_decay": 0.1, "no_decay": "none"}

CHOICES = selections()
SELECTOR = st.sampled_from(list(CHOICES))
PART = st.sampled_from(["", "body", "body.1", "neck", "neck.2", "head"])
NORM = st.sampled_from(["hold", "hold", "adapt"])
KEPT = st.sampled_from(["nothing", "last", "all"])
ZERO = st.sampled_from([None, True, False])


@dataclass
class Watched:
    """A handle, what it froze (buffers count as one row), and what of that was let go since."""

    handle: fl.Frozen
    froze: Cells
    owed: Cells
    gone: Cells = field(default=frozenset())

    def follows(self, now: Cells) -> bool:
        """Whether it still can vouch: no rows that it once let go were frozen again beside others.

        A tensor that was let go whole, and maybe frozen again, is no business of its any more.
        """
        frozen = {name for name, _ in now}
        self.owed = frozenset(cell for cell in self.owed if cell[0] in frozen)
        self.gone = frozenset(cell for cell in self.gone if cell[0] in frozen) | self.owed - now
        return self.gone.isdisjoint(now)


class FreezingMachine(RuleBasedStateMachine):
    """A model, its optimizer and scheduler, beside a ledger, twins and all bits as they were."""

    def __init__(self, make: Make) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.make = make
        self.place = Path(tempfile.mkdtemp())
        self.net = net()
        self.ledger = Ledger()
        self.bits = bits_of(self.net)
        self.keys = list(self.net.state_dict())
        self.batch = 0
        self.steps = 0
        self.watched: list[Watched] = []
        self.last: Synced | None = None
        self.left: dict[str, Mapping[str, Any]] = {}
        self.copies: dict[str, Mapping[str, Any]] = {}

    @initialize(
        schedule=st.sampled_from([None, *SCHEDULES]),
        ruled=st.booleans(),
        first=st.none() | SELECTOR,
    )
    def begin(self, schedule: str | None, ruled: bool, first: str | None) -> None:
        self.schedule = schedule
        self.ruled = ruled
        if first is not None:
            self.train_only(first, "hold")
        if ruled:
            self.optimizer = self.make(fl.param_groups(self.net, **RULE))
        else:
            trainable = [p for p in self.net.parameters() if p.requires_grad]
            self.optimizer = self.make([{"params": trainable, "weight_decay": 0.1}])
        self.scheduler = None if schedule is None else SCHEDULES[schedule][1](self.optimizer)
        self.twins = {name: self.twin(name) for name in self.ledger.trainable}

    def teardown(self) -> None:
        shutil.rmtree(self.place)

    # What is frozen

    @rule(selector=SELECTOR, norm=NORM)
    def freeze(self, selector: str, norm: Policy) -> None:
        cells = CHOICES[selector]
        if self.ledger.free <= cells:
            with pytest.raises(fl.FreezeError, match="would leave nothing trainable in Net"):
                fl.freeze(self.net, selector, norm=norm)
        else:
            handle = fl.freeze(self.net, selector, norm=norm)
            self.ledger.freeze(cells, norm=norm)
            self.watch(handle, cells)

    @rule(selector=SELECTOR)
    def thaw(self, selector: str) -> None:
        fl.thaw(self.net, selector)
        self.ledger.thaw(CHOICES[selector])

    @rule(selector=SELECTOR, norm=NORM)
    def train_only(self, selector: str, norm: Policy) -> None:
        handle = fl.train_only(self.net, selector, norm=norm)
        self.ledger.train_only(CHOICES[selector], norm=norm)
        self.watch(handle, whole(*SIZES) - CHOICES[selector])

    @precondition(lambda self: self.watched)
    @rule(which=st.integers(0, 9), selector=st.none() | SELECTOR)
    def thaw_by_the_handle(self, which: int, selector: str | None) -> None:
        one = self.watched[which % len(self.watched)]
        froze = frozenset(cell for cell in one.froze if cell[0] in SIZES)
        cells = froze if selector is None else froze & CHOICES[selector]
        if cells:
            one.handle.thaw(selector)
            self.ledger.thaw(cells)

    @rule(name=st.sampled_from(list(SIZES)), kept=KEPT)
    def switch_by_hand(self, name: str, kept: Kept) -> None:
        on = name in self.ledger.by_hand
        if on:
            self.ledger.by_hand -= {name}
        elif not self.ledger.is_whole(name) and not self.ledger.free <= whole(name):
            self.ledger.by_hand |= {name}
        self.net.get_parameter(name).requires_grad_(self.ledger.wants(name))
        self.sync(kept, hand_over=True)

    @rule(selector=SELECTOR, norm=NORM, zero=ZERO, first=st.booleans())
    def train_within_a_context(
        self, selector: str, norm: Policy, zero: bool | None, first: bool
    ) -> None:
        before = self.ledger.copied()
        with fl.frozen(self.net, selector, norm=norm) as handle:
            self.ledger.freeze(CHOICES[selector], norm=norm)
            self.watch(handle, CHOICES[selector])
            self.step(zero, first=first, mode=True)
            self.everything_is_as_it_must_be()
        self.ledger.back_to(before)

    # What trains

    @rule(kept=KEPT, hand_over=st.booleans(), count=st.integers(0, 2), zero=ZERO)
    def sync_and_train(self, kept: Kept, hand_over: bool, count: int, zero: bool | None) -> None:
        self.sync(kept, hand_over=hand_over)
        self.everything_is_as_it_must_be()
        self.optimizer_holds_whom_it_held_with_state_and_rate()
        for _ in range(count):
            self.step(zero, first=True, mode=True)

    @rule(selector=SELECTOR, kept=KEPT, hand_over=st.booleans(), zero=ZERO)
    def freeze_for_a_while(
        self, selector: str, kept: Kept, hand_over: bool, zero: bool | None
    ) -> None:
        self.freeze(selector, "hold")
        self.sync_and_train("nothing", hand_over=True, count=1, zero=zero)
        self.thaw(selector)
        self.sync_and_train(kept, hand_over=hand_over, count=2, zero=zero)

    @rule(count=st.integers(1, 3), zero=ZERO, first=st.booleans(), mode=st.booleans())
    def train(self, count: int, zero: bool | None, first: bool, mode: bool) -> None:
        for _ in range(count):
            self.step(zero, first=first, mode=mode)

    @rule(part=PART, mode=st.booleans())
    def switch_mode(self, part: str, mode: bool) -> None:
        self.net.get_submodule(part).train(mode)
        self.ledger.train(part, mode)
        if not any(self.ledger.in_training(path) for path in self.ledger.modes):
            with torch.no_grad():
                assert torch.equal(loss_of(self.net, 0), loss_of(self.net, 0))

    # What lasts

    @rule()
    def save_and_load(self) -> None:
        if self.schedule and self.twins.keys() != set(self.ledger.trainable):
            self.sync("nothing", hand_over=True)
        file = self.place / "state.pt"
        torch.save(fl.optimizer_state(self.optimizer, self.net), file)
        parts = self.ledger.partly
        self.net = self._loaded_net()
        self.ledger = self.ledger.loaded()
        self.watched.clear()
        self._load_optimizer(torch.load(file, weights_only=True))
        self.everything_is_as_it_must_be()
        selector = " | ".join(f"rows:{n}[{r}]" for n, held in parts.items() for r in held)
        if selector:  # a delta says of each parameter whether it was trainable, not of its rows
            cells = frozenset((n, r) for n, held in parts.items() for r in held)
            handle = fl.freeze(self.net, selector)
            self.ledger.freeze(cells, norm="hold")
            self.watch(handle, cells)

    @rule(mode=st.booleans())
    def copy_and_train_the_copy(self, mode: bool) -> None:
        twin = copy.deepcopy(self.net).train(mode)
        trainable = [p for p in twin.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trainable, lr=0.1, momentum=0.9, weight_decay=0.5)
        loss_of(twin, self.batch).backward()
        optimizer.step()
        assert_frozen(twin, self.ledger, self.bits)
        moved = {n for n, p in twin.named_parameters() if not torch.equal(p, self.bits[n])}
        assert moved <= set(self.ledger.trainable)
        assert moved

    @precondition(lambda self: self.ledger.cells)
    @rule(which=st.integers(0, 99))
    def find_what_something_else_wrote(self, which: int) -> None:
        name, row = sorted(self.ledger.cells)[which % len(self.ledger.cells)]
        parameter = self.net.get_parameter(name)
        parameter.data[row] += 1
        for one in self.watched:
            if (name, row) in one.owed - one.gone:
                with pytest.raises(fl.DriftError, match=rf"{name}.*: moved by up to"):
                    one.handle.verify()
        if self.ledger.wants(name) and name in self.twins:
            with pytest.raises(fl.DriftError, match="other than an optimizer's step"):
                self.optimizer.step()
        parameter.data[row] = self.bits[name][row]

    # What must be so

    @invariant()
    def everything_is_as_it_must_be(self) -> None:
        now = bits_of(self.net)
        assert list(self.net.state_dict()) == self.keys
        assert [name for name in now if not torch.equal(now[name], self.bits[name])] == []
        assert_frozen(self.net, self.ledger, self.bits)
        cells = self.ledger.cells | self._held_buffers()
        self.watched = [one for one in self.watched if one.follows(cells)]
        for one in self.watched:
            one.handle.verify()

    @invariant()
    def optimizer_holds_whom_it_held_with_state_and_rate(self) -> None:
        names = {id(p): name for name, p in self.net.named_parameters()}
        held = [(names[id(p)], p, g) for g in self.optimizer.param_groups for p in g["params"]]
        assert sorted(name for name, _, _ in held) == sorted(self.twins)
        for group in self.optimizer.param_groups:
            told = group.get("param_names", [names[id(p)] for p in group["params"]])
            assert told == [names[id(p)] for p in group["params"]]
        for name, parameter, group in held:
            state = self.optimizer.state.get(parameter, {})
            assert same_states({name: state}, {name: self.twins[name].state})
            base, decay = self._due(name)
            assert group["weight_decay"] == decay
            assert group["lr"] == pytest.approx(base * self._share(), rel=1e-5)
        assert same_states(self.left, self.copies)
        assert {id(p) for p in self.optimizer.state} <= {id(p) for _, p, _ in held}

    @invariant()
    def held_modules_are_in_eval_and_others_as_they_were_set(self) -> None:
        found = {path: module.training for path, module in self.net.named_modules()}
        assert found == {path: self.ledger.in_training(path) for path in found}

    # How it is done

    def step(self, zero: bool | None, *, first: bool, mode: bool) -> None:
        """A training step; the model and each twin in the optimizer end at the same bits."""
        if any(is_uneven(self.optimizer, group) for group in self.optimizer.param_groups):
            return
        if mode:
            self.net.train()
            self.ledger.train("", True)
        if zero is not None and first:
            self.optimizer.zero_grad(set_to_none=zero)
        loss = loss_of(self.net, self.batch)
        assert loss.isfinite()
        if loss.requires_grad:
            loss.backward()
        assert_frozen(self.net, self.ledger, self.bits)
        expected, must_move = self._expected()
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        now = bits_of(self.net)
        moved = {name for name in now if not torch.equal(now[name], self.bits[name])}
        assert [name for name in expected if not torch.equal(now[name], expected[name])] == []
        assert must_move <= moved
        in_training = frozenset(path for path in NORMS if self.ledger.in_training(path))
        assert moved - SIZES.keys() == buffers_of(in_training, now)
        if zero is not None and not first:
            self.optimizer.zero_grad(set_to_none=zero)
        self.bits = now
        self.batch += 1
        self.steps += 1

    def sync(self, kept: Kept, *, hand_over: bool) -> None:
        """Who joins and leaves, with which state; the twins follow."""
        given = {"nothing": None, "last": self.last, "all": self.left}[kept]
        due = self.ledger.trainable
        joined = tuple(name for name in due if name not in self.twins)
        left = self.twins.keys() - due
        synced = self._synced(given, joined, hand_over=hand_over)
        assert synced.joined == joined
        assert set(synced.left) == left
        states = {name: self.twins.pop(name).state for name in left}
        assert same_states(synced.states, states)
        known = {"nothing": {}, "last": self.last.states if self.last else {}, "all": self.left}
        for name in joined:
            self.twins[name] = self.twin(name)
            if name in known[kept]:
                self.twins[name].begin(known[kept][name])
        self.last = synced
        self.left |= synced.states
        self.copies |= copy.deepcopy(dict(synced.states))
        assert self.twins.keys() == set(due)
        came = {id(self.net.get_parameter(name)) for name in joined}
        for group in self.optimizer.param_groups:
            if not came.isdisjoint(id(p) for p in group["params"]):
                assert not is_uneven(self.optimizer, group)

    def twin(self, name: str) -> Twin:
        """A twin that begins fresh."""
        return Twin(self.make, self.bits[name], decay=self._due(name)[1])

    def watch(self, handle: fl.Frozen, cells: Cells) -> None:
        names = {name for name, _ in cells}
        norms = frozenset(
            path for path in NORMS if path in self.ledger.held and names & BELOW[path]
        )
        held = frozenset((name, 0) for name in buffers_of(norms, self.bits))
        self.watched = [*self.watched[-5:], Watched(handle, cells, cells | held)]

    def _expected(self) -> tuple[dict[str, Tensor], set[str]]:
        """Each parameter as it is to be after the step, and those that had a gradient."""
        rates = {id(p): g["lr"] for g in self.optimizer.param_groups for p in g["params"]}
        expected = {name: self.bits[name] for name in SIZES}
        had = set()
        for name, twin in self.twins.items():
            parameter = self.net.get_parameter(name)
            if parameter.grad is not None:
                lr, held = rates[id(parameter)], self.ledger.partly.get(name, ())
                expected[name] = twin.step(self.bits[name], parameter.grad, lr=lr, held=held)
                if parameter.grad.abs().max() > 1e-3:  # below a batch norm a bias has but noise
                    had.add(name)
        return expected, had

    def _synced(self, kept: Any, joiners: tuple[str, ...], *, hand_over: bool) -> Synced:
        scheduler = self.scheduler
        if scheduler is not None and not hand_over:
            if self._has_seats_for(joiners):
                return fl.sync(self.optimizer, self.net, kept=kept)
            with pytest.raises(fl.ConfigError, match="a new group has to join it"):
                fl.sync(self.optimizer, self.net, kept=kept)
            self.optimizer_holds_whom_it_held_with_state_and_rate()
        schedulers = [] if scheduler is None else [scheduler]
        return fl.sync(self.optimizer, self.net, kept=kept, schedulers=schedulers)

    def _has_seats_for(self, joiners: tuple[str, ...]) -> bool:
        there = {(g["initial_lr"], g["weight_decay"]) for g in self.optimizer.param_groups}
        return {self._due(name) for name in joiners} <= there

    def _loaded_net(self) -> Net:
        """A fresh model with the delta of the present one, frozen as it is."""
        file, model = self.place / "delta", net()
        now, fresh = bits_of(self.net), bits_of(model)
        off = {name for name in SIZES if not self.ledger.wants(name)}
        still = off | buffers_of(self.ledger.held, now)
        trained = {name for name in still if not torch.equal(now[name], fresh[name])}
        fl.save_delta(self.net, file)
        if trained:
            with pytest.raises(fl.DeltaError, match="was trained on another base"):
                fl.load_delta(model, file, freeze="as saved")
            fl.save_delta(self.net, file, content=delta_content(self.net, also=trained))
        fl.load_delta(model, file, freeze="as saved")
        return model

    def _load_optimizer(self, state: Mapping[str, Any]) -> None:
        """A new optimizer, its groups and all in them the other way round."""
        groups = fl.param_groups(self.net, **(RULE if self.ruled else ONE_FOR_ALL))
        for group in groups:
            group["params"].reverse()
            group["param_names"].reverse()
        self.optimizer = self.make(reversed(groups))
        if self.schedule is not None:  # before the state, which says where the rates stand now
            self.scheduler = SCHEDULES[self.schedule][1](self.optimizer)
            self.scheduler.last_epoch = self.steps
        missing: Literal["refuse", "fresh"] = "refuse"
        if self.twins.keys() != set(self.ledger.trainable):
            message = "knows nothing of|which this optimizer does not"
            with pytest.raises(fl.ConfigError, match=message):
                fl.load_optimizer_state(self.optimizer, self.net, state)
            missing = "fresh"
        fl.load_optimizer_state(self.optimizer, self.net, state, missing=missing)
        self.twins = {n: self.twins.get(n) or self.twin(n) for n in self.ledger.trainable}

    def _due(self, name: str) -> tuple[float, float]:
        """Base rate and weight decay."""
        if not self.ruled:
            return 0.02, 0.1
        factor = 2.0 if name == "head.bias" else 0.5 if name.startswith("body") else 1.0
        decays = name.endswith("weight") and name.rpartition(".")[0] not in NORMS
        return 0.02 * factor, 0.1 if decays else 0.0

    def _share(self) -> float:
        return 1.0 if self.schedule is None else SCHEDULES[self.schedule][0](self.steps)

    def _held_buffers(self) -> Cells:
        return frozenset((name, 0) for name in buffers_of(self.ledger.held, self.bits))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_whatever_is_frozen_thawed_synced_saved_and_loaded_trains_as_if_alone(name: str) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]  # hypothesis has no types here
        seed(list(OPTIMIZERS).index(name))(partial(FreezingMachine, OPTIMIZERS[name])),
        settings=settings(
            max_examples=5,
            stateful_step_count=30,
            database=None,  # with the seed: the same runs each time
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def is_uneven(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> bool:
    """Whether some of a group have a momentum buffer that fused SGD wants for all or none.

    A step while others were frozen leaves it so; torch 2.15 then fails at the next step.
    """
    if not (isinstance(optimizer, torch.optim.SGD) and group["fused"]):
        return False
    states = [optimizer.state.get(p, {}) for p in group["params"] if p.requires_grad]
    return len({state.get("momentum_buffer") is None for state in states}) > 1
