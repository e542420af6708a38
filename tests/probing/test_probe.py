"""`fl.probe`: it names the stage whose features serve, computes once, and leaves all as it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from probe_nets import Pictures, Squares, Tokens, bright, products
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torchvision.models.resnet import BasicBlock, ResNet

import frostline as fl
from frostline.errors import ConfigError, DataError, ModelError
from frostline.estimates.by_depth import costs_by_depth
from frostline.estimates.steps import Setup
from frostline.probing import probing
from frostline.records.certainty import r2_interval
from frostline.world import World

Probing = Callable[..., fl.Probe]


@pytest.fixture
def probed(tmp_path: Path) -> Probing:
    """Into a store of the test's own, without timing."""

    def work_out(model: nn.Module, train: object, val: object, **options: Any) -> fl.Probe:
        given = {"features": tmp_path / "features", "calibration_seconds": 0.0, **options}
        return fl.probe(model, train, val, **given)

    return work_out


def test_it_names_the_stage_in_which_the_class_becomes_linear(probed: Probing) -> None:
    found = probed(Squares(), products(200, seed=0), products(100, seed=1))
    first, second, third = (stage.score for stage in found.stages)
    assert first < 0.7
    assert second > 0.95
    assert third < 0.7
    assert found.best is found.cut_after is found.stages[1]
    assert found.cut_after.train == "stage:2..-1"


def scored(*scores: float, width: float = 0.4) -> fl.Probe:
    """A probe of stages with these scores, each in the middle of an interval so wide."""
    stage = probing.StageScore(0, "a", (4,), "none", 4, 0.0, 0.0, 1.0, 16, 160, 0.1, 1.0, 9, "")
    stages = tuple(
        replace(
            stage,
            stage=number,
            name=f"block.{number}",
            score=score,
            low=score - width / 2,
            high=score + width / 2,
        )
        for number, score in enumerate(scores)
    )
    return fl.Probe("Net", "accuracy", stages, (10, 5), 32, "float32", 0)


@pytest.mark.parametrize(
    ("scores", "chosen", "best"),
    [
        ([0.60, 0.74, 0.90], 1, 2),  # within 0.168
        ([0.60, 0.72, 0.90], 2, 2),  # not
        ([0.85, 0.50, 0.90], 0, 2),  # the earliest, whatever lies between
        ([0.60, 0.90, 0.90], 1, 2),  # of equal ones the later is the best
        ([0.90, 0.30], 0, 0),
    ],
)
def test_the_stage_is_the_earliest_that_is_not_clearly_worse_than_the_best(
    scores: list[float], chosen: int, best: int
) -> None:
    found = scored(*scores)
    assert (found.cut_after.stage, found.best.stage) == (chosen, best)
    marked = [line for line in str(found).splitlines() if line.startswith(">")]
    assert len(marked) == 1
    assert f"block.{chosen}" in marked[0]


def test_a_second_probe_computes_nothing_and_finds_the_same(probed: Probing) -> None:
    model, train, val = Pictures(), bright(40, seed=0), bright(30, seed=1)
    first = probed(model, train, val)
    model.head.reset_parameters()  # no part of what is probed
    again = probed(model, train, val)
    assert (first.computed, again.computed) == (70, 0)
    assert [s.score for s in again.stages] == [s.score for s in first.stages]
    with torch.no_grad():
        model.stem.weight.mul_(0.5)
    assert probed(model, train, val).computed == 70


def test_the_model_is_afterwards_what_it_was(probed: Probing) -> None:
    model = Pictures()
    fl.freeze(model, "stem")
    model.body.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    drawn = torch.get_rng_state()
    probed(model, bright(20, seed=0), bright(10, seed=1))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), drawn)


def test_exactly_the_models_own_vectors_are_judged(
    probed: Probing, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[list[Tensor]] = []
    inner = probing.matrices

    def seen(*given: Any) -> list[Tensor]:
        kept.append(inner(*given))
        return kept[-1]

    monkeypatch.setattr(probing, "matrices", seen)
    model, train = Pictures().eval(), bright(70, seed=0)
    probed(model, train, bright(20, seed=1), precision="exact", batch_size=70)
    with torch.no_grad():
        stem = model.pool(model.norm(model.stem(train.tensors[0])).relu())
        body = model.body(stem.clone())
    torch.testing.assert_close(kept[0], [stem.mean((2, 3)), body.mean((2, 3))])


def test_numbers_are_told_by_r2(probed: Probing) -> None:
    def numbers(samples: int, seed: int) -> TensorDataset:
        (inputs,) = products(samples, seed=seed).tensors[:1]
        return TensorDataset(inputs, inputs[:, 0] * 30 + 100)

    model = Squares()
    model.head = nn.Linear(8, 1)
    found = probed(model, numbers(200, 0), numbers(50, 1), task="regression")
    assert found.metric == "R2"
    assert found.stages[0].score > 0.999
    assert found.stages[2].score < 0.1  # nothing is left
    assert all(one.low <= one.score <= one.high for one in found.stages)
    assert found.cut_after.stage == 0


def test_the_interval_of_r2_narrows_with_samples() -> None:
    draw = torch.Generator().manual_seed(0)
    true = torch.randn(400, 2, generator=draw).double()
    told = true + 0.5 * torch.randn(400, 2, generator=draw)
    wide, narrow = (r2_interval(true[:n].numpy(), told[:n].numpy()) for n in (40, 400))
    assert narrow[0] == pytest.approx(0.75, abs=0.05)
    assert narrow[1] < 0.75 < narrow[2]
    assert narrow[2] - narrow[1] < (wide[2] - wide[1]) / 2


UP_TO = [f"stage:0..{n}" if n else "stage:0" for n in range(5)]


def test_bytes_are_those_that_cross_the_frost_line(probed: Probing) -> None:
    model = ResNet(BasicBlock, [1, 1, 1, 1], 2)
    pictures = torch.randn(4, 3, 32, 32)
    data = TensorDataset(pictures, torch.arange(4) % 2)
    found = probed(model, data, data, precision="exact")
    for depth in (0, 3, 4):
        stage = found.stages[depth]
        with fl.frozen(model, UP_TO[depth]):
            assert stage.feature_bytes == fl.cut(model, pictures).frontier.nbytes
        assert stage.stored_bytes == 8 * stage.feature_bytes


def test_what_a_step_keeps_is_what_a_step_of_that_depth_keeps() -> None:
    """As traced with all below frozen, from the memory that the whole model's trace tells."""
    model, pictures = ResNet(BasicBlock, [1, 1, 1, 1], 2), torch.randn(2, 3, 32, 32)
    stages = ["layer1", "layer2", "layer3", "layer4", "fc"]
    above = [stages[n:] for n in range(5)]
    costs, _ = costs_by_depth(Setup(model, pictures, batch_size=8), above, [64] * 5, seconds=0.0)
    for frozen, cost in zip(UP_TO, costs, strict=True):
        with fl.frozen(model, frozen):
            memory = fl.estimate(model, pictures, batch_size=8, calibration_seconds=0).step.memory
        assert cost.memory.gradients == memory.gradients
        assert cost.memory.state == memory.state
        # What the first trainable layers read from below is kept there, and is the batch here.
        assert abs(cost.memory.saved - memory.saved) <= 8 * 64 * 8 * 8 * 4
    seconds = [cost.step_seconds for cost in costs]
    assert seconds == sorted(seconds, reverse=True)
    parts = {round((cost.forward_seconds + cost.below_seconds) / seconds[0], 9) for cost in costs}
    assert len(parts) == 1


class Texts(fl.Samples):
    """Rows of numbers that are as long as they are; the class is whether a word is in it."""

    transform = "none"

    def __init__(self, count: int) -> None:
        self.rows = [torch.randint(3, 20, (3 + n % 5,)) for n in range(count)]
        for number in range(0, count, 2):
            self.rows[number][1] = 2
        self.targets = [int(2 in row) for row in self.rows]
        self.lengths = list(map(len, self.rows))

    def __len__(self) -> int:
        return len(self.rows)

    def load(self, row: int) -> Tensor:
        return self.rows[row]

    def collate(self, loaded: Any) -> Mapping[str, Tensor]:
        ids = nn.utils.rnn.pad_sequence(list(loaded), batch_first=True)
        mask = nn.utils.rnn.pad_sequence([torch.ones_like(r) for r in loaded], batch_first=True)
        return {"input_ids": ids, "attention_mask": mask}


def test_texts_of_different_lengths_are_averaged_over_their_own_tokens(probed: Probing) -> None:
    model = Tokens()
    with torch.no_grad():
        model.embed.weight[2] = 9.0
    found = probed(model, Texts(60), Texts(40), precision="exact")
    assert [one.pooled for one in found.stages] == ["masked tokens", "masked tokens", "none"]
    assert found.stages[0].score > 0.85
    assert found.stages[0].feature_bytes == 5 * 6 * 4  # of the mean length
    assert "tokens that are no padding" in str(found)


def test_the_table_fits_into_80_columns_and_shows_as_html(probed: Probing) -> None:
    model = ResNet(BasicBlock, [1, 1, 1, 1], 2)
    data = TensorDataset(torch.randn(6, 3, 32, 32), torch.arange(6) % 2)
    found = probed(model, data, data, features="off")
    assert max(map(len, str(found).splitlines())) <= 80
    assert "ResNet by stage: 6 samples to train on, 6 to validate" in str(found)
    assert f"Next: fl.train_only(model, '{found.cut_after.train}')" in str(found)
    page = found._repr_html_()
    assert "<table><caption>ResNet by stage" in page
    assert page.count("<tr>") == 6
    assert "layer3" in page
    fl.train_only(model, found.cut_after.train)  # as it says


def test_a_busy_machine_is_said() -> None:
    found = replace(scored(0.5), core_share=0.4)
    assert "too busy to time on" in str(found)
    assert "too busy" not in str(scored(0.5))


ONE = TensorDataset(torch.randn(8, 4), torch.zeros(8).long())
ODD = TensorDataset(torch.randn(8, 4), torch.tensor([0.0, 1, 2, 3, 4, 5, 6, float("nan")]))
MISTAKES: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"val": None}, ConfigError, r"got no samples to judge them on\. Give `val`"),
    ({"train": None}, ConfigError, r"got no samples to fit probes on\. Give `train`"),
    ({"model": nn.Linear(4, 2)}, ModelError, "Linear has one stage"),
    ({"model": nn.Sequential(nn.ReLU())}, ModelError, "has one stage"),
    ({"task": "multilabel"}, ConfigError, "a probe of MultiLabel is not known"),
    ({"train": ONE}, DataError, "all samples to train on are of one class"),
    ({"train": ONE, "task": "regression"}, DataError, "all targets to train on are the same"),
    ({"train": ODD, "task": "regression"}, DataError, "the target of sample 7 is no finite"),
]


@pytest.mark.parametrize(("given", "kind", "told"), MISTAKES)
def test_mistakes_are_said_in_words(
    probed: Probing, given: dict[str, Any], kind: type[Exception], told: str
) -> None:
    right = {"model": Squares(), "train": products(20, seed=0), "val": products(20, seed=1)}
    options = {**right, **given}
    with pytest.raises(kind, match=told):
        probed(options.pop("model"), options.pop("train"), options.pop("val"), **options)


def test_several_processes_are_refused(probed: Probing, monkeypatch: pytest.MonkeyPatch) -> None:
    class Two(World):
        rank, size = 0, 2

    monkeypatch.setattr(probing, "world_here", lambda _: Two)
    with pytest.raises(ConfigError, match="a probe runs in one process, and 2 were started"):
        probed(Squares(), products(20, seed=0), products(20, seed=1))
