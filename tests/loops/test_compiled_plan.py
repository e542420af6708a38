"""torch.compile over a plan of many phases: two compilations for each, and none runs in eager."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils.data import TensorDataset

import frostline as fl

BLOCKS = 5  # one more phase than torch's limit of 8 has room for
SETS = [
    " | ".join(["head", *(f"blocks.{n}" for n in range(first, BLOCKS))]) for first in range(BLOCKS)
]
EACH_PHASE = 2  # for training and for validation, which records no gradients


class Counted:
    """A backend that compiles nothing, and counts what it was given and what it ran."""

    def __init__(self) -> None:
        self.compiled = self.runs = 0

    def __call__(self, graph: fx.GraphModule, *_: Any, **__: Any) -> Callable[..., Any]:
        self.compiled += 1

        def run(*inputs: Any) -> Any:
            self.runs += 1
            return graph(*inputs)

        return run


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(self.block() for _ in range(BLOCKS))
        self.head = nn.Linear(8, 3)

    @staticmethod
    def block() -> nn.Sequential:
        return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.2))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(x)
        return out


@pytest.fixture
def counted() -> Iterator[Counted]:
    torch._dynamo.reset()
    yield Counted()
    torch._dynamo.reset()


def batch() -> Tensor:
    return torch.randn(16, 8, generator=torch.Generator().manual_seed(1))


def data(count: int) -> TensorDataset:
    x = torch.randn(count, 8, generator=torch.Generator().manual_seed(count))
    return TensorDataset(x, (x[:, 0] > 0).long())


def epoch(model: nn.Module) -> tuple[Tensor, Tensor]:
    """The loss of a training pass with its backward, and the output of a validation pass."""
    torch.manual_seed(2)
    loss = model.train()(batch()).square().mean()
    loss.backward()
    with torch.no_grad():
        return loss.detach(), model.eval()(batch())


def compiles_of(model: nn.Module, train: str, counted: Counted, plain: nn.Module) -> int:
    """How often a phase of two epochs is compiled; it computes what the plain model does."""
    before = counted.compiled
    handle = fl.train_only(model, train)
    fl.train_only(plain, train)
    for _ in range(2):
        for one, other in zip(epoch(model), epoch(plain), strict=True):
            assert torch.equal(one, other)
    handle.verify()
    buffers = zip(model.buffers(), plain.buffers(), strict=True)
    assert all(torch.equal(one, other) for one, other in buffers)
    return counted.compiled - before


def test_a_phase_compiles_once_for_each_mode_and_a_set_that_was_there_before_not_again(
    counted: Counted,
) -> None:
    plain, limit = Tower(), EACH_PHASE * BLOCKS
    model = torch.compile(Tower(), backend=counted, recompile_limit=limit)
    sets = [*reversed(SETS), *SETS[:2]]
    compiles = [compiles_of(model, train, counted, plain) for train in sets]
    assert compiles == [EACH_PHASE] * BLOCKS + [0, 0]
    assert counted.runs == 4 * len(sets)


def test_beyond_the_limit_torch_runs_in_eager_and_the_doctor_has_said_so(counted: Counted) -> None:
    assert torch._dynamo.config.recompile_limit == EACH_PHASE * (BLOCKS - 1)
    model, plain = torch.compile(Tower(), backend=counted), Tower()
    compiles = [compiles_of(model, train, counted, plain) for train in SETS]
    assert compiles == [EACH_PHASE] * (BLOCKS - 1) + [0]
    assert counted.runs == 4 * (BLOCKS - 1)
    phases = [fl.Phase(train=train, epochs=1) for train in SETS]
    for count, level in ((BLOCKS - 1, "note"), (BLOCKS, "warning")):
        checkup = fl.doctor(model, plan=fl.Plan(phases[:count]))
        (found,) = (finding for finding in checkup if finding.code == "recompiles")
        assert found.level == level


@pytest.mark.parametrize("features", ["off", "stored"])
def test_every_batch_of_a_session_of_many_phases_runs_compiled(
    counted: Counted, features: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counted))
    phases = [fl.Phase(train=train, epochs=1, lr=0.01) for train in SETS]
    session = fl.Session(Tower(), fl.Plan(phases))
    asked, compiles, where = 0, [], "off" if features == "off" else tmp_path
    while not session.is_over:
        session.enter()
        before = counted.compiled
        made = session.data(data(32), data(16), batch_size=16, features=where, compile=True)
        for part in session.epoch(made.train):
            nn.functional.cross_entropy(made(part), part.targets).backward()
            session.optimizer.step()
            session.optimizer.zero_grad()
            session.after_step()
            asked += 1
        session.model.eval()
        with torch.no_grad():
            for part in made.validation.epoch(0):
                made(part)
                asked += 1
        compiles.append(counted.compiled - before)
        session.end_epoch({"loss": 1.0})
        session.leave()
    assert compiles == [EACH_PHASE] * len(SETS)
    assert counted.runs == asked == 3 * len(SETS)
