"""The report of a run: written at its end, right in every figure, and inert whatever the names."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import TensorDataset

import frostline as fl
from frostline.deltas import read_delta
from frostline.engine import Hook, Training
from frostline.fitting import fitting
from frostline.plans import Phase
from frostline.records import read_judged
from frostline.records.certainty import calibration
from frostline.runs import open_run
from report_world import HOSTILE_CLASSES, HOSTILE_FILE, World, page_of
from small_world import call, write_picture

SECTIONS = (
    *("What was frozen", "Data", "Curves", "What was taken for what", "Class by class"),
    *("Calibration", "Most confident mistakes", "Least confident hits", "Where the time went"),
    *("Repeat it", "Use the model"),
)
NEW_FILES = ("data.json", "course.json", "best/predictions.safetensors")


class Notes(Hook):
    """Keeps what is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def on_notice(self, text: str, /) -> None:
        self.lines.append(text)


class StopAfter(Hook):
    """Ends the run at the end of an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_epoch(self, training: Training) -> None:
        if training.position.epochs == self.epoch:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world with a finished `run`; read it only."""
    made = World(tmp_path_factory.mktemp("world"), val=10)
    made.run("run")
    return made


@pytest.fixture
def copied(world: World, tmp_path: Path) -> Path:
    """A copy of the finished run, to be changed."""
    return Path(shutil.copytree(world.root / "run", tmp_path / "run"))


def test_a_finished_run_has_a_report_with_every_part(world: World) -> None:
    page = page_of(world.root / "run" / "report.html")
    assert [part for part in SECTIONS if part not in page.text] == []
    assert "What was to stay frozen did" in page.text
    assert "What is not known" not in page.text


def test_a_report_holds_no_script_and_asks_for_nothing(world: World) -> None:
    page = page_of(world.root / "run" / "report.html")
    assert not page.tags & {"script", "iframe", "object", "embed", "form", "base"}
    policy = next(a["content"] for t, a in page.elements if "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")
    links = [v for _, a in page.elements for k, v in a.items() if k in {"src", "href", "srcset"}]
    assert links
    assert [link for link in links if not str(link).startswith("data:")] == []


def test_hostile_names_make_no_element_and_no_attribute(tmp_path: Path) -> None:
    plain = World(tmp_path / "plain")
    plain.run("run")
    usual = page_of(plain.root / "run" / "report.html")
    hostile = World(tmp_path / "hostile", names=HOSTILE_CLASSES)
    for part in ("train", "val"):
        for name, level in zip(HOSTILE_CLASSES, (50, 200), strict=True):
            write_picture(hostile.photos / part / name / HOSTILE_FILE, level)
            write_picture(hostile.photos / part / name / "\x1b[31m\u202egpj.png", level)
    out = "run <i onload=alert(3)>"
    hostile.run(out)
    page = page_of(hostile.root / out / "report.html")
    assert page.tags <= usual.tags | {"br", "span"}
    assert "script" not in page.tags
    known = {name for _, attributes in usual.elements for name in attributes}
    assert {name for _, attributes in page.elements for name in attributes} <= known
    assert not [v for _, a in page.elements for v in a.values() if v and "\u202e" in v]
    assert "\u202e" not in page.text
    assert "\x1b" not in page.text
    assert HOSTILE_FILE in page.text
    assert "<b onclick=alert(1)>dark" in page.text


def test_every_figure_of_the_confusion_and_of_the_classes_is_that_of_the_records(
    world: World,
) -> None:
    judged = read_judged(world.root / "run" / "best" / "predictions.safetensors")
    page = page_of(world.root / "run" / "report.html")
    pairs = list(zip(judged.targets.tolist(), judged.predicted.tolist(), strict=True))
    counts = [[pairs.count((true, told)) for told in (0, 1)] for true in (0, 1)]
    for number, name in enumerate(("dark", "light")):
        assert f"{number} {name} {counts[number][0]} {counts[number][1]}" in page.text
        hits, told = counts[number][number], counts[0][number] + counts[1][number]
        samples = sum(counts[number])
        precision, recall = hits / max(1, told), hits / samples
        f1 = 2 * hits / (told + samples)
        assert f"{name} {precision:.3f} {recall:.3f} {f1:.3f} {samples}" in page.text
    accuracy = sum(true == told for true, told in pairs) / len(pairs)
    assert f"Accuracy {100 * accuracy:.1f} %" in page.text


def test_the_calibration_error_is_the_mean_gap_of_the_bins(world: World) -> None:
    judged = read_judged(world.root / "run" / "best" / "predictions.safetensors")
    gap = 0.0
    for number in range(15):
        low, high = number / 15, (number + 1) / 15
        inside = [
            (p, hit)
            for p, hit in zip(judged.confidence.tolist(), judged.hits.tolist(), strict=True)
            if low < p <= high
        ]
        if inside:
            mean = sum(p for p, _ in inside) / len(inside)
            share = sum(hit for _, hit in inside) / len(inside)
            gap += abs(mean - share) * len(inside) / len(judged)
    found = calibration(judged)
    assert found.expected_error == pytest.approx(gap, abs=1e-9)
    assert sum(part.samples for part in found.bins) == len(judged)
    text = page_of(world.root / "run" / "report.html").text
    assert f"Expected calibration error {gap:.3f} over 15 bins" in text


def test_kept_predictions_are_those_of_the_kept_weights(world: World) -> None:
    run = open_run(world.root / "run")
    judged = read_judged(run.folder.predictions)
    found = run.predict([Path(name) for name in judged.names], top=2)
    for place, prediction in enumerate(found):
        names = [run.settings.data.classes[i] for i in judged.ranked[place].tolist()]
        assert [name for name, _ in prediction.classes] == names
        chances = [chance for _, chance in prediction.classes]
        assert chances == pytest.approx(judged.probabilities[place].tolist(), abs=1e-5)


def test_pictures_are_shown_and_a_missing_or_changed_one_is_told(tmp_path: Path) -> None:
    run = World(tmp_path).run("run")
    shown = [a for t, a in page_of(run / "report.html").elements if t == "img"]
    assert shown
    assert all(str(a["src"]).startswith("data:image/jpeg;base64,") for a in shown)
    gone, other = (tmp_path / "photos" / one.file for one in open_run(run).report().doubts[:2])
    gone.unlink()
    Image.new("RGB", (9, 9)).save(other)
    assert call("report", run).status == 0
    page = page_of(run / "report.html")
    assert "the file is not there any more" in page.text
    assert "the file is not the one that the run saw" in page.text
    assert len([t for t, _ in page.elements if t == "img"]) == len(shown) - 2


def test_the_command_line_of_a_report_trains_the_same_run_again(world: World) -> None:
    command = open_run(world.root / "run").report().repeat
    words = shlex.split(command.replace("\\\n", " "))
    assert words[:2] == ["frostline", "train"]
    answer = call(*words[1:])
    assert answer.status == 0, answer.err
    again = Path(words[words.index("--out") + 1])
    first, second = (
        read_delta(run / "best" / "delta.safetensors").tensors
        for run in (
            world.root / "run",
            again,
        )
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first.keys() == second.keys()
    assert f"Report: {again / 'report.html'}" in answer.out
    assert (again / "report.html").exists()
    assert answer.out.index("Best epoch") < answer.out.index("Report: ")  # which waits for no page


def test_the_python_lines_of_a_report_predict(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = open_run(world.root / "run").report().use_python
    picture = next((world.photos / "val" / "dark").iterdir())
    shutil.copy(picture, tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    exec(lines, scope)
    assert isinstance(scope["model"], nn.Module)


def test_an_older_run_gets_a_report_that_says_what_is_not_known(copied: Path) -> None:
    for name in NEW_FILES:
        (copied / name).unlink()
    lines = [json.loads(line) for line in (copied / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        for key in [k for k in line if k.endswith("_seconds")]:
            del line[key]
    (copied / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    answer = call("report", copied)
    assert answer.status == 0, answer.err
    text = page_of(copied / "report.html").text
    assert "What is not known" in text
    assert "Not known: this run did not note its seconds by kind" in text
    assert "Class by class" in text


@pytest.mark.parametrize(
    "file", [*NEW_FILES, "metrics.jsonl", "result.json", "trained_on.txt", "validated_on.txt"]
)
def test_a_damaged_record_is_told_and_the_rest_reported(copied: Path, file: str) -> None:
    content = (copied / file).read_bytes()
    (copied / file).write_bytes(content[: len(content) // 2] + b"\xff\x00")
    answer = call("report", copied)
    assert answer.status == 0, answer.err
    if not file.endswith(".txt"):
        assert f"{file} is damaged" in page_of(copied / "report.html").text


def test_a_run_from_python_gets_a_report(tmp_path: Path) -> None:
    inputs, targets = torch.randn(40, 6), torch.arange(40) % 3
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    fl.freeze(model, "0")
    data = TensorDataset(inputs, targets)
    fl.fit(model, data, data, out=tmp_path / "run", epochs=2, device="cpu", classes="abc")
    page = page_of(tmp_path / "run" / "report.html")
    assert "handed over in Python" in page.text
    assert "fl.load_delta(model," in page.text
    assert "sample " in page.text
    made = fl.open_run(tmp_path / "run").report()
    assert made.promise.state == "proven"
    assert any("fl.fingerprint" in check for check in made.promise.checks)


def test_a_report_that_fails_is_one_warning_and_the_run_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fitting, "make_report", broken)
    notes = Notes()
    run = World(tmp_path).run("run", hooks=(notes,))
    told = [line for line in notes.lines if line.startswith("Warning")]
    assert len(told) == 1
    assert "No space left on device" in told[0]
    assert f"fl.open_run('{run}').report().save(path) tries again" in told[0]
    assert (run / "result.json").exists()
    assert not (run / "report.html").exists()


def test_a_resumed_run_reports_both_sessions_and_all_epochs(tmp_path: Path) -> None:
    world = World(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        world.run("run", hooks=(StopAfter(2),))
    unfinished = open_run(tmp_path / "run").report()
    assert "the run has not ended" in unfinished.page
    world.run("run", resume=True)
    records = open_run(tmp_path / "run").report().records
    assert [session.position for session in records.sessions] == ["0", "2"]
    assert [line.epoch for line in records.epochs] == [1, 2, 3]
    assert "2 sessions" in page_of(tmp_path / "run" / "report.html").text


def test_a_plan_is_reported_phase_by_phase_and_can_be_repeated(tmp_path: Path) -> None:
    world = World(tmp_path)
    plan = (
        Phase(name="head first", train="head", epochs=2, lr=0.02),
        Phase(name="more", train="head | middle", epochs=1, lr=0.01, layer_decay=0.5),
    )
    run = world.run("run", plan=plan)
    page = page_of(run / "report.html")
    assert "1 head first" in page.text
    assert "2 more" in page.text
    facts = open_run(run).report()
    assert len({lr for line in facts.records.epochs for lr in line.lrs}) > 2
    assert f"--plan {run / 'plan.toml'}" in facts.repeat
    answer = call(*shlex.split(facts.repeat.replace("\\\n", " "))[1:])
    assert answer.status == 0, answer.err


def test_times_by_kind_add_up_to_the_whole(world: World) -> None:
    answer = call("report", world.root / "run", "--json", "--out", world.root / "other.html")
    seconds = answer.json["seconds"]
    parts = sum(value for kind, value in seconds.items() if kind != "total")
    assert parts == pytest.approx(seconds["total"])
    assert all(value >= 0 for value in seconds.values())
    assert answer.json["report"] == str(world.root / "other.html")
    assert answer.json["promise"]["state"] == "proven"
