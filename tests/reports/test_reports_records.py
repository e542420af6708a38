"""What a run keeps of its predictions and its times, read back as it was written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from frostline.errors import ConfigError
from frostline.records import (
    EpochLine,
    PipelineFacts,
    RunPart,
    RunRecords,
    Spent,
    judged_of,
    read_judged,
    write_judged,
)
from frostline.records.spending import spending


def test_probabilities_are_the_softmax_and_classes_its_order(tmp_path: Path) -> None:
    logits, targets = torch.randn(50, 12), torch.randint(12, (50,))
    names = [f"/photos/a b/{n}.png" for n in range(50)]
    write_judged(judged_of(logits, targets, names=names, epoch=4), tmp_path / "file")
    found = read_judged(tmp_path / "file")
    chances, order = logits.double().softmax(1).sort(dim=1, descending=True)
    assert found.epoch == 4
    assert found.names == tuple(names)
    assert torch.equal(found.ranked.long(), order[:, :5])
    assert torch.equal(found.probabilities, chances[:, :5].float())
    assert torch.equal(found.predicted, logits.argmax(1))
    of_target = logits.double().softmax(1)[torch.arange(50), targets].float()
    assert torch.equal(found.target_chance, of_target)


def test_of_two_alike_the_one_that_accuracy_counts_comes_first() -> None:
    logits = torch.zeros(40, 7)
    logits[::2, 3] = logits[::2, 5] = 1.0
    logits[1, 2] = logits[1, 6] = torch.inf
    found = judged_of(logits, torch.zeros(40, dtype=torch.long), names=["x"] * 40, epoch=1)
    assert torch.equal(found.predicted, logits.argmax(1))
    assert all(len(set(row)) == 5 for row in found.ranked.tolist())


def test_mistakes_come_first_by_how_sure_they_are_and_hits_after_them_from_the_least_sure() -> None:
    logits = torch.tensor([[9.0, 0], [1, 0], [0, 1], [0, 9], [2, 0], [torch.inf, torch.inf]])
    targets = torch.tensor([0, 0, 0, 0, 1, 0])
    found = judged_of(logits, targets, names=["x"] * 6, epoch=1)
    assert found.hits.tolist() == [True, True, False, False, False, True]
    assert found.worst_first.tolist() == [3, 4, 2, 5, 1, 0]


def test_names_that_are_no_text_are_kept(tmp_path: Path) -> None:
    names = ["/a/\udcff.png", "/a/<b>.png", "/a/\n.png"]
    judged = judged_of(torch.randn(3, 2), torch.zeros(3, dtype=torch.long), names=names, epoch=1)
    write_judged(judged, tmp_path / "file")
    assert read_judged(tmp_path / "file").names == tuple(names)


@pytest.mark.parametrize("kept", [0, 10, 200])
def test_a_cut_file_is_told(tmp_path: Path, kept: int) -> None:
    judged = judged_of(
        torch.randn(9, 2), torch.zeros(9, dtype=torch.long), names=["x"] * 9, epoch=1
    )
    write_judged(judged, tmp_path / "file")
    (tmp_path / "file").write_bytes((tmp_path / "file").read_bytes()[:kept])
    with pytest.raises(ConfigError, match="missing or damaged"):
        read_judged(tmp_path / "file")


def records(note: PipelineFacts, *, total: float) -> RunRecords:
    spent = Spent(0.5, 0.25, 4.0, 2.0)
    line = EpochLine(1, 1, 1e-3, {"loss": 1.0}, {"loss": 1.0}, 9.0, True, (1e-3,), spent)
    session = RunPart("", "0", total, "", "", (), (note,))
    return RunRecords(epochs=(line, line), sessions=(session,))


def test_seconds_by_kind_are_those_of_the_notes() -> None:
    note = PipelineFacts(1, "bfloat16", 10.0, 3.0, 6.0, 100, 10, 0.1, 100)
    found = spending(records(note, total=30.0))
    assert found is not None
    assert dict(found.parts) == {
        "preparing": 1.0,
        "decode": 3.0,
        "prefix": 6.5,
        "suffix": 8.0,
        "idle": 1.0,
        "validation": 4.0,
        "rest": pytest.approx(6.5),
    }
    assert found.total == 30.0
    assert found.own == 3.0 + 6.5 + 8.0 + 1.0 + 4.0
    # Two epochs of a hundred samples at 0.1 s each, and the same steps and validation.
    assert found.plain == pytest.approx(2 * 100 * 0.1 + 8.0 + 4.0 + 0.5)


def test_a_plain_loop_is_estimated_as_itself() -> None:
    found = spending(records(PipelineFacts(1, "model", 0.0, 0.0, 0.0, 0, 0, 0.0, 0), total=1.0))
    assert found is not None
    assert found.plain == pytest.approx(found.own)
    assert found.parts["rest"] == 0  # a killed session counted less than its epochs took


def test_an_untimed_plain_loop_is_not_guessed() -> None:
    found = spending(
        records(PipelineFacts(1, "bfloat16", nbytes=1, stored_samples=100), total=99.0)
    )
    assert found is not None
    assert found.plain is None
