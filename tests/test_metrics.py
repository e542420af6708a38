"""Figures of an evaluation, against scikit-learn; and their tables in 80 columns."""

from __future__ import annotations

import json

import pytest
import torch

from frostline.tasks import Evaluation, evaluate_logits

sklearn_metrics = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn to compare")


def judged(classes: int, samples: int = 300, *, present: int | None = None) -> Evaluation:
    logits, targets = drawn(classes, samples, present=present)
    return evaluate_logits(logits, targets, classes=[f"class {n}" for n in range(classes)])


def drawn(
    classes: int, samples: int, *, present: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that are right more often than not; only the first `present` classes occur."""
    generator = torch.Generator().manual_seed(classes)
    targets = torch.randint(present or classes, (samples,), generator=generator)
    logits = torch.randn(samples, classes, generator=generator)
    logits[:, present or classes :] = -9
    logits[torch.arange(samples), targets] += 1.5
    return logits, targets


def widest(table: object) -> int:
    return max(len(line) for line in str(table).splitlines())


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_figures_are_those_of_scikit_learn(classes: int) -> None:
    logits, targets = drawn(classes, 300)
    found, told = judged(classes), logits.argmax(1)
    precision, recall, f1, support = sklearn_metrics.precision_recall_fscore_support(targets, told)
    assert found.accuracy == pytest.approx(sklearn_metrics.accuracy_score(targets, told))
    assert found.macro_f1 == pytest.approx(f1.mean())
    assert found.loss == pytest.approx(
        sklearn_metrics.log_loss(targets, logits.double().softmax(1).numpy())
    )
    assert [c.precision for c in found.per_class] == pytest.approx(list(precision))
    assert [c.recall for c in found.per_class] == pytest.approx(list(recall))
    assert [c.f1 for c in found.per_class] == pytest.approx(list(f1))
    assert [c.samples for c in found.per_class] == list(support)
    confusion = sklearn_metrics.confusion_matrix(targets, told).tolist()
    assert [list(row) for row in found.confusion] == confusion


def test_a_class_that_does_not_occur_is_in_no_mean() -> None:
    logits, targets = drawn(5, 200, present=3)
    f1 = sklearn_metrics.f1_score(targets, logits.argmax(1), average="macro")
    assert judged(5, 200, present=3).macro_f1 == pytest.approx(f1)


def test_a_class_that_is_told_but_does_not_occur_counts_as_zero() -> None:
    logits = torch.eye(3)[[0, 1, 2, 2]]
    found = evaluate_logits(logits, torch.tensor([0, 1, 0, 1]), classes=["a", "b", "c"])
    assert found.macro_f1 == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    assert found.per_class[2].precision == 0.0
    assert found.per_class[2].samples == 0


def test_all_right_gives_ones() -> None:
    found = evaluate_logits(torch.eye(3) * 50, torch.arange(3), classes=["a", "b", "c"])
    assert (found.accuracy, found.macro_f1, found.loss) == (1.0, 1.0, 0.0)


def test_the_dictionary_is_json() -> None:
    found = json.loads(json.dumps(judged(3).as_dict()))
    assert set(found) == {"loss", "accuracy", "macro_f1", "samples", "per_class", "confusion"}


@pytest.mark.parametrize("classes", [2, 12, 40])
def test_tables_fit_80_columns(classes: int) -> None:
    names = [f"a class with a long name, number {n}" for n in range(classes)]
    found = evaluate_logits(*drawn(classes, 30_000), classes=names)
    assert widest(found.class_table()) <= 80
    assert widest(found.confusion_table()) <= 80


def test_no_count_is_broken_over_lines() -> None:
    names = [f"golden retriever {n}" for n in range(12)]
    found = evaluate_logits(*drawn(12, 500), classes=names)
    text = str(found.confusion_table())
    assert "Most often confused" not in text
    assert all(str(count) in text.split() for row in found.confusion for count in row)


def test_names_that_do_not_fit_over_columns_stand_in_rows_with_a_number() -> None:
    names = [f"golden retriever {n}" for n in range(12)]
    table = evaluate_logits(*drawn(12, 300), classes=names).confusion_table()
    assert [column.heading for column in table.columns[1:]] == [str(n) for n in range(12)]
    assert "7 golden retriever 7 " in str(table)


def test_counts_that_do_not_fit_give_the_pairs() -> None:
    logits, targets = drawn(12, 300)
    many = evaluate_logits(
        logits.repeat(1000, 1), targets.repeat(1000), classes=[f"c{n}" for n in range(12)]
    )
    assert "Most often confused" in str(many.confusion_table())


def test_many_classes_show_the_pairs_most_often_confused_first() -> None:
    targets = torch.tensor([3] * 5 + [7] * 2 + [0])
    told = torch.tensor([4] * 5 + [8] * 2 + [0])
    found = evaluate_logits(torch.eye(20)[told], targets, classes=[f"c{n}" for n in range(20)])
    rows = found.confusion_table().rows
    assert rows == (("c3", "c4", "5"), ("c7", "c8", "2"))


def test_the_columns_of_a_confusion_are_predictions() -> None:
    found = evaluate_logits(torch.eye(2)[[1]], torch.tensor([0]), classes=["ant", "bee"])
    assert found.confusion_table().rows == (("ant", "0", "1"), ("bee", "0", "0"))


@pytest.mark.parametrize("name", ["[red]", "[/]", "[/red]ants", "蚂蚁", "fire ant"])
def test_a_class_name_stands_in_the_tables_as_it_is(name: str) -> None:
    found = evaluate_logits(torch.eye(2), torch.arange(2), classes=[name, "bees"])
    assert name in str(found.class_table())
    assert str(found.confusion_table()).count(name) == 2
