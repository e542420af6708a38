"""Which rule of dropping keeps a sweep's winner? Members trained to the end, replayed under each.

    python benchmarks/dropping.py --curves FOLDER [--model FOLDER] [--seeds 4] [--samples 3000]
        [--json FILE]

Sweeps of 32 members, as those of `sweep.py` (*grid*) and of mixed heads, dropout and learning rates
(*mixed*), with several seeds, are trained to the end once. What the validation data made of each
member after each epoch is kept in FOLDER, and read from there the next time. Then each sweep is
played again from it with losers dropped: by several rules of how many go on, and by the lowest loss
so far or by the rule that ranks them at the end. Told is how often the winner is the same, its mean
and worst place among all trained to the end, and the share of all epochs that is trained. The rule
was chosen on even seeds; odd ones stand beside them. Nothing depends on time.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import torch
from shared import options, report, table, threads
from sweep import BATCH, EPOCHS, GRID, subjects
from torch import Tensor, nn

import frostline as fl
from frostline.recipe import Recipe
from frostline.sweeps import Setting, ranking, together
from frostline.sweeps.heads import copied
from frostline.sweeps.stacks import Ground, Judged, Stack
from frostline.sweeps.together import Together

MIXED: dict[str, Any] = {
    "lr": [3e-4, 1e-3, 5e-3, 2e-2],
    "heads": [(), 50, 100, (100, 50)],
    "dropout": [0.0, 0.5],
}
GRIDS: dict[str, dict[str, Any]] = {"grid": {**GRID, "heads": [100]}, "mixed": MIXED}
Rungs = Callable[[int, int], dict[int, int]]


def main() -> None:
    chosen = options(__doc__, curves="", model="", samples=3000, seeds=4)
    threads()
    curves = Path(chosen.curves)
    curves.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, model, train, val in subjects(chosen, Path(folder)):
            for grid in GRIDS:
                for seed in range(chosen.seeds):
                    file = curves / f"{name} {grid} {seed}.pt"
                    if not file.exists():
                        store = Path(folder) / "features"
                        torch.save(record(model, train, val, store, grid, seed), file)
    every = {file.stem: Curves(torch.load(file)) for file in sorted(curves.glob("*.pt"))}
    result: dict[str, Any] = {"sweeps": list(every), "rules": {}}
    rows = [("rule", "order", "same", "even seeds", "odd seeds", "mean", "worst", "work")]
    for rule, rungs in RULES.items():
        for order in ("loss", "ranked"):
            played = {name: one.play(rungs, by_loss=order == "loss") for name, one in every.items()}
            result["rules"][f"{rule}, {order}"] = played
            rows.append((rule, order, *_row(played)))
    table(rows)
    report(result, chosen.json)


def _row(played: Mapping[str, tuple[int, float]]) -> tuple[str, ...]:
    places = [place for place, _ in played.values()]
    shown = []
    for parity in (None, 0, 1):
        own = [place for name, (place, _) in played.items() if _counts(name, parity)]
        shown.append(f"{sum(place == 1 for place in own)} of {len(own)}")
    work = sum(work for _, work in played.values()) / len(played)
    return *shown, f"{sum(places) / len(places):.2f}", str(max(places)), f"{work:.2f}"


def _counts(name: str, parity: int | None) -> bool:
    return parity is None or int(name.split()[-1]) % 2 == parity


def record(
    model: nn.Module, train: Any, val: Any, store: Path, grid: str, seed: int
) -> dict[str, Any]:
    """A sweep trained to the end: settings, losses and what was right after each epoch."""
    judged: dict[int, list[Judged]] = {}
    targets: list[Tensor] = []
    plain_epoch, plain_train = Stack.epoch, Together.train

    def epoch(self: Stack, number: int) -> list[Judged]:
        found = plain_epoch(self, number)
        for member, one in zip(self.numbers, found, strict=True):
            judged.setdefault(member, []).append(one)
        return found

    def train_all(self: Together, *, drop: bool) -> None:
        targets.append(self._targets)
        plain_train(self, drop=drop)

    asked = {"epochs": EPOCHS, "batch_size": BATCH, "features": store, "seeds": [seed]}
    with patch.object(Stack, "epoch", epoch), patch.object(Together, "train", train_all):
        found = fl.sweep(copied(model), train, val, drop=False, **asked, **GRIDS[grid])
    members = sorted(found.members, key=lambda member: member.number)
    numbers = sorted(judged)
    return {
        "settings": [member.setting.as_dict() for member in members],
        "losses": torch.tensor([[one.loss for one in judged[n]] for n in numbers]).double(),
        "right": torch.stack(
            [torch.stack([one.predicted == targets[0] for one in judged[n]]) for n in numbers]
        ),
    }


class Curves:
    """What the validation data made of each member after each epoch."""

    def __init__(self, kept: Mapping[str, Any]) -> None:
        self._settings = [Setting(**one) for one in kept["settings"]]
        losses, right = kept["losses"].tolist(), kept["right"].long()
        self._judged = [
            [Judged(0.0, loss, hits) for loss, hits in zip(*pair, strict=True)]
            for pair in zip(losses, right, strict=True)
        ]
        task = fl.tasks.Classification("ab")
        self._ground = SimpleNamespace(recipe=Recipe(epochs=len(losses[0])), task=task)
        self._targets = torch.ones(right.shape[2], dtype=torch.long)
        self._order = self._winners(at(), by_loss=True)[0]

    def play(self, rungs: Rungs, *, by_loss: bool) -> tuple[int, float]:
        """The winner's place among all trained to the end, and the share of the work."""
        order, work = self._winners(rungs, by_loss=by_loss)
        return self._order.index(order[0]) + 1, work

    def _winners(self, rungs: Rungs, *, by_loss: bool) -> tuple[list[int], float]:
        stack = cast(Stack, Recorded(self._judged))
        replay = Together(cast(Ground, self._ground), [stack], self._targets, lambda _: None)

        def by_rank(histories: Mapping[int, object], monitor: str) -> list[int]:
            return ranking.ranked({n: replay._courses[n].standing for n in histories}, monitor)

        order = ranking.leading if by_loss else by_rank
        with patch.object(together, "rungs", rungs), patch.object(together, "leading", order):
            replay.train(drop=True)
        members = replay.members(self._settings)
        found = ranking.ranked({m.number: m.standing for m in members}, "auto")
        return found, sum(m.epochs for m in members) / sum(map(len, self._judged))


class Recorded:
    """A stack that was trained to the end, played again."""

    def __init__(self, judged: Sequence[Sequence[Judged]]) -> None:
        self.numbers, self._judged = list(range(len(judged))), judged

    def epoch(self, number: int) -> list[Judged]:
        return [self._judged[member][number] for member in self.numbers]

    def keep(self, numbers: Sequence[int]) -> None:
        self.numbers = list(numbers)


def at(*shares: tuple[float, float]) -> Rungs:
    """After these shares of the epochs these shares of all members go on."""

    def found(epochs: int, members: int) -> dict[int, int]:
        return {math.ceil(epochs * at - 1e-9): math.ceil(members * to) for at, to in shares}

    return found


def constant(whole: float) -> Rungs:
    """Members times epochs stay the same past this share of the epochs."""

    def found(epochs: int, members: int) -> dict[int, int]:
        kept = {e: math.ceil(members * whole * epochs / e - 1e-9) for e in range(1, epochs)}
        return {e: keep for e, keep in kept.items() if keep < members}

    return found


RULES = {
    "a quarter after 20 %, an eighth after 40 %": at((0.2, 0.25), (0.4, 0.125)),
    "half after 20 %, a quarter after 40 %": at((0.2, 0.5), (0.4, 0.25)),
    "half, a quarter, an eighth after 20, 40, 60 %": at((0.2, 0.5), (0.4, 0.25), (0.6, 0.125)),
    "members x epochs the same past 1/10": constant(1 / 10),
    "members x epochs the same past 1/8": constant(1 / 8),
    "members x epochs the same past 1/7": constant(1 / 7),
}


if __name__ == "__main__":
    main()
