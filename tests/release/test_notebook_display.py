"""What a notebook shows of our objects: tables as tables, texts as printed, names as text."""

from __future__ import annotations

import re
from html import unescape

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import frostline as fl
from frostline.callbacks.notebook import NotebookProgress, in_notebook, notebook_hooks
from frostline.tables import Displayed, Table, columns

HOSTILE = "<img src=x onerror=alert(1)>"
TAGS = {"div", "pre", "table", "caption", "thead", "tbody", "tr", "th", "td"}
IMAGES, LABELS = torch.randn(8, 3, 8, 8), torch.arange(8) % 2


def net(name: str = "backbone") -> nn.Sequential:
    model = nn.Sequential()
    model.add_module(name, nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    model.add_module("head", nn.Sequential(nn.Flatten(), nn.Linear(144, 2)))
    return model


@pytest.fixture(scope="module")
def shown() -> dict[str, Displayed]:
    """One of each kind, as a cell ends with it."""
    model = net()
    frozen = fl.freeze(model, "backbone")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = TensorDataset(IMAGES, LABELS)
    found = {
        "frozen": frozen,
        "summary": fl.summary(model),
        "selection": fl.select(model, "head"),
        "cut": fl.cut(model, IMAGES),
        "estimate": fl.estimate(model, IMAGES, calibration_seconds=0.01),
        "checkup": fl.doctor(model, IMAGES, targets=LABELS, optimizer=optimizer),
        "plan": fl.Plan([fl.Phase(train="head", epochs=1)]),
        "proof": frozen.verify(),
    }
    optimizer = torch.optim.SGD(fl.param_groups(model, lr=0.1))
    fl.thaw(model, "backbone.0")
    found["synced"] = fl.sync(optimizer, model)
    found["run"] = fl.fit(model, data, data, epochs=1, features="off")
    return found


KINDS = (
    *("frozen", "summary", "selection", "cut", "estimate"),
    *("checkup", "plan", "proof", "synced", "run"),
)
TABLES = ("frozen", "summary", "selection", "estimate", "plan")


def text_of(page: str) -> str:
    """What a reader sees, in words."""
    return unescape(re.sub(r"<[^>]*>", " ", page))


@pytest.mark.parametrize("kind", KINDS)
def test_a_cell_shows_every_word_that_is_printed(kind: str, shown: dict[str, Displayed]) -> None:
    page = shown[kind]._repr_html_()
    assert ("<table>" in page) == (kind in TABLES)
    printed = re.sub(r"[─\s]+", "", str(shown[kind]))
    seen = re.sub(r"\s+", "", text_of(page))
    if kind in ("frozen", "summary", "proof", "cut", "checkup", "synced", "run"):
        assert seen == printed
    else:  # of which print folds cells at 80 columns
        assert sorted(seen) == sorted(printed)


@pytest.mark.parametrize("kind", KINDS)
def test_ipython_in_a_terminal_shows_what_is_printed(
    kind: str, shown: dict[str, Displayed]
) -> None:
    from IPython.core.formatters import DisplayFormatter

    bundle, _ = DisplayFormatter().format(shown[kind])
    assert bundle["text/plain"] == str(shown[kind])
    assert bundle["text/html"] == shown[kind]._repr_html_()


def test_names_of_others_are_text_wherever_they_stand() -> None:
    model = net(HOSTILE)
    frozen = fl.freeze(model, fl.where(lambda name, *_: not name.startswith("head")))
    table = Table(columns(HOSTILE), ((HOSTILE,),), title=HOSTILE, notes=(HOSTILE,))
    pages = (
        frozen._repr_html_(),
        fl.cut(model, IMAGES)._repr_html_(),
        fl.estimate(model, IMAGES, calibration_seconds=0.01)._repr_html_(),
        fl.doctor(model, IMAGES, train="head")._repr_html_(),
        table._repr_html_(),
    )
    assert sum(HOSTILE in text_of(page) for page in pages) >= 3
    for page in pages:
        assert "<img" not in page
        assert set(re.findall(r"</?(\w+)", page)) <= TAGS


def test_marks_that_turn_text_round_are_written_out() -> None:
    assert r"\u202e" in Table(columns("name"), (("\u202egpj.exe",),))._repr_html_()


def test_numbers_stand_to_the_right_and_indents_stay() -> None:
    page = fl.summary(net())._repr_html_()
    assert '<td style="text-align: left; white-space: pre">  backbone</td>' in page
    assert re.search(r'<td style="text-align: right; white-space: pre">[\d,]+</td>', page)


class Drawn:
    """In place of what a page shows: all that was drawn, one over the other."""

    def __init__(self) -> None:
        self.pages: list[dict[str, str]] = []

    def show(self, page: dict[str, str], **_: object) -> Drawn:
        self.pages.append(page)
        return self

    update = show


def test_progress_is_drawn_into_one_output_and_takes_names_for_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn, progress = Drawn(), NotebookProgress()
    monkeypatch.setattr("IPython.display.display", drawn.show)
    progress.on_notice(f"Note {HOSTILE}")
    progress._drawn_at = 0.0  # long ago
    progress.on_batch(HOSTILE, 1, 4)
    progress.on_batch(HOSTILE, 2, 4)  # at once: not drawn
    progress.on_end()
    shown = [page["text/html"] for page in drawn.pages]
    assert ['value="1" max="4"' in page for page in shown] == [False, True, False]
    assert not any("<img" in page for page in shown)
    assert drawn.pages[-1]["text/plain"] == f"Note {HOSTILE}"


def test_a_run_outside_of_notebooks_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert not in_notebook()
    assert notebook_hooks() == ()
    model = net()
    fl.freeze(model, "backbone")
    data = TensorDataset(IMAGES, LABELS)
    fl.fit(model, data, data, epochs=1, features="off")
    assert capsys.readouterr() == ("", "")
