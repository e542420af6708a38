"""Files of 0.1 are read to what was written; those of a later version are refused in words.

What docs/formats.md promises. `formats_of_0_1` is as that version wrote it, by `written.py`.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from written import (
    IDS,
    KEY,
    MAPS,
    NUMBERS,
    PLAN,
    RUN,
    SEALED,
    TOKENS,
    TUNED,
    VALUES,
    net,
    trained,
)

import frostline as fl
from frostline._files import json_checked, json_sum, json_with_sum
from frostline.config import RunSettings
from frostline.deltas import read_delta
from frostline.exports.notes import Notes
from frostline.features.computing import Decisions
from frostline.records import RunFolder, read_records
from frostline.records.predictions import read_judged
from frostline.session import load_checkpoint
from frostline.session.attached import Attached
from frostline.store.sealing import read_sealed
from small_world import without_sum

OLD = Path(__file__).with_name("formats_of_0_1")
PAGE = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy, since some readers lock and repair what they open."""
    return Path(shutil.copytree(OLD, tmp_path / "old"))


def state_of(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def bits(model: torch.nn.Module) -> dict[str, str]:
    return dict(fl.fingerprint(model).tensors)


def session_of(model: torch.nn.Module) -> fl.Session:
    return fl.Session(model, PLAN, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))


def test_a_delta_fills_its_base(folder: Path) -> None:
    model = net()
    found = fl.load_delta(model, folder / "delta.safetensors", freeze="as saved")
    assert bits(model) == bits(trained())
    assert (found.about["model"], found.trainable) == ("net", ("2.weight", "2.bias"))
    assert not model[0].weight.requires_grad


def test_a_plan_is_the_one_that_was_written(folder: Path) -> None:
    assert fl.Plan.load(folder / "plan.toml").phases == PLAN.phases


def test_stored_features_are_found_under_their_key(folder: Path) -> None:
    features = fl.FeatureStore(folder / "features").open(KEY, VALUES)
    assert features.missing(IDS) == []
    maps, tokens = features.read(IDS).gather(torch.arange(2))  # padded
    assert torch.equal(maps, MAPS)
    assert torch.equal(tokens, torch.nn.utils.rnn.pad_sequence(TOKENS, batch_first=True))


def test_a_sealed_segment_and_the_choice_of_a_form_are_read(folder: Path) -> None:
    assert read_sealed(folder / "sealed") == SEALED
    decided = Decisions(folder / "features").find("of this machine", tolerance=0.02)
    assert decided == TUNED


def test_an_optimizer_goes_on(folder: Path) -> None:
    model = trained()
    optimizer = torch.optim.AdamW(fl.param_groups(model, lr=0.1))
    fl.load_optimizer_state(optimizer, model, state_of(folder / "optimizer.pt"))
    found = fl.optimizer_state(optimizer, model)["parameters"]
    assert found.keys() == {"2.weight", "2.bias"}
    for one in found.values():
        assert one["state"]["step"] == 1
        assert torch.allclose(one["state"]["exp_avg"], torch.tensor(0.1))
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_a_session_goes_on_where_it_was(folder: Path) -> None:
    session = session_of(net())
    session.load_state_dict(state_of(folder / "session.pt"))
    session.enter()
    assert (session.position.phase_steps, session.phase.name) == (1, "head")


def test_a_checkpoint_gives_the_weights_of_its_step(folder: Path) -> None:
    model = net()
    session = session_of(model)
    load_checkpoint(session, folder / "checkpoint")
    session.enter()
    assert session.position.phase_steps == 1
    assert torch.allclose(model[2].bias, net()[2].bias - 0.1)


def test_the_state_of_a_callback_goes_on(folder: Path) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attached = Attached(model, "0", optimizer=optimizer)
    attached.begin(state_of(folder / "attached.pt"))
    assert not model[0].weight.requires_grad
    attached.close()


def test_a_run_of_classes_is_read_whole(folder: Path) -> None:
    run = RunFolder(folder / RUN)
    settings, found = RunSettings.read(run.settings), read_records(run)
    assert (settings.frostline, settings.data.classes) == ("0.1.0", ("dark", "light"))
    assert [lack for lack in found.lacks if "answers" not in lack] == []
    assert found.result is not None
    assert found.result.metrics.keys() == {"loss", "accuracy", "macro_f1"}
    assert found.judged is not None
    assert [name.rpartition("/")[2] for name in found.judged.names] == ["0.png", "0.png"]
    assert found.data is not None
    assert found.data.train == {"dark": 2, "light": 2}
    assert len(run.read_trained_on()) == 4
    assert "features.0.weight" in run.read_frozen().tensors


def test_a_run_of_numbers_is_read_whole(folder: Path) -> None:
    found = read_records(RunFolder(folder / NUMBERS))
    assert found.answers is not None
    assert (found.answers.samples, len(found.answers.every)) == (8, 8)
    assert RunSettings.read(folder / NUMBERS / "run.toml").as_task() is not None
    assert found.sessions[0].versions.startswith("Frostline 0.1.0, torch ")


def test_an_export_says_its_classes(folder: Path) -> None:
    file = folder / "exported.safetensors"
    with safe_open(file, framework="pt") as content:
        notes = Notes.read(content.metadata(), file)
    assert notes.classes == ("dark", "light")
    assert "head.weight" in load_file(file)


# --- files of a later version -------------------------------------------------------------------


def header_of_next(file: Path) -> None:
    """A safetensors file of the version after its own, with the checksum that belongs to it."""
    with safe_open(file, framework="pt") as content:
        header = dict(content.metadata())
    header["version"] = str(int(header["version"]) + 1)
    header.pop("header", None)
    save_file(load_file(file), file, metadata={**header, "header": json_sum(header)})


def state_of_next(file: Path) -> Any:
    """A state whose format ends with the next number."""
    state = dict(state_of(file))
    words, _, number = state["format"].rpartition(" ")
    return {**state, "format": f"{words} {int(number) + 1}"}


def with_line(file: Path, line: str) -> None:
    """A text with a line that no reader knows yet, as a later version may write it."""
    file.write_text(f"{line}\n{without_sum(file.read_text())}")


def later_delta(folder: Path) -> None:
    header_of_next(folder / "delta.safetensors")
    read_delta(folder / "delta.safetensors")


def later_predictions(folder: Path) -> None:
    file = folder / RUN / "best/predictions.safetensors"
    header_of_next(file)
    read_judged(file)


def later_export(folder: Path) -> None:
    header_of_next(folder / "exported.safetensors")
    with safe_open(folder / "exported.safetensors", framework="pt") as content:
        Notes.read(content.metadata(), folder / "exported.safetensors")


def later_settings(folder: Path) -> None:
    file = folder / RUN / "run.toml"
    with_line(file, 'thawing = "by hand"')
    file.write_text(file.read_text().replace('"0.1.0"', '"9.0.0"'))
    RunSettings.read(file)


def later_plan(folder: Path) -> None:
    file = folder / "plan.toml"
    file.write_text(file.read_text().replace('name = "head"', 'name = "head"\nthawing = "late"'))
    fl.Plan.load(file)


def later_optimizer(folder: Path) -> None:
    model = trained()
    optimizer = torch.optim.AdamW(fl.param_groups(model, lr=0.1))
    fl.load_optimizer_state(optimizer, model, state_of_next(folder / "optimizer.pt"))


def later_session(folder: Path) -> None:
    session_of(net()).load_state_dict(state_of_next(folder / "session.pt"))


def later_attached(folder: Path) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Attached(model, "0", optimizer=optimizer).begin(state_of_next(folder / "attached.pt"))


def later_features(folder: Path) -> None:
    features = fl.FeatureStore(folder / "features").open(KEY, VALUES)
    file = features.path / "manifest.json"
    content = {**json.loads(file.read_text()), "version": 2}
    content.pop("checksum")
    file.write_text(json.dumps({"checksum": _sum(content), **content}))
    fl.FeatureStore(folder / "features").open(KEY, VALUES).missing(IDS)


def _sum(content: dict[str, object]) -> str:
    import xxhash

    from frostline.store.keys import canonical_json

    return xxhash.xxh3_128_hexdigest(canonical_json(content))


LATER: dict[Callable[[Path], None], str] = {
    later_delta: r"delta version 3, this Frostline reads 2\. Use the Frostline that wrote it",
    later_predictions: r"is of version 2, this Frostline reads 1, .* Use the Frostline that wrote",
    later_export: r"an export of version 2, this Frostline \(.+\) reads 1\. Use the Frostline",
    later_settings: r"does not fit this Frostline \(.+; it was written by 9\.0\.0\): .*thawing",
    later_plan: r"no option 'thawing'",
    later_optimizer: r"no optimizer state by name that this version reads",
    later_session: r"no state of a session that this version reads",
    later_attached: r"no state of a freeze that this version reads",
    later_features: r"of format version 2; this Frostline reads version 1\. Use the Frostline",
}


@pytest.mark.parametrize("read", LATER, ids=lambda read: read.__name__.removeprefix("later_"))
def test_a_file_of_a_later_version_is_refused_in_words(
    read: Callable[[Path], None], folder: Path
) -> None:
    with pytest.raises(fl.FrostlineError, match=LATER[read]):
        read(folder)


def test_later_seals_and_choices_count_as_none(folder: Path) -> None:
    """A segment is then read without its seal, and a form is chosen anew: nothing is lost."""
    seal = folder / "sealed" / "sealed.json"
    content = {**json.loads(seal.read_text()), "version": 2}
    content.pop("checksum")
    seal.write_text(json.dumps({"checksum": _sum(content), **content}))
    assert read_sealed(folder / "sealed") is None
    (folder / "features" / "forms.json").write_text('{"of this machine": {"shape": "wide"}}')
    assert Decisions(folder / "features").find("of this machine", tolerance=0.02) is None


@pytest.mark.parametrize("name", ["result.json", "data.json", "course.json", "frozen.json"])
def test_what_a_later_version_notes_besides_is_passed_over(name: str, folder: Path) -> None:
    file = folder / RUN / name
    content = {**json_checked(file.read_text()), "moon": "full"}
    file.write_text(json_with_sum(content))
    found = read_records(RunFolder(folder / RUN))
    assert [lack for lack in found.lacks if name in lack] == []
    assert RunFolder(folder / RUN).read_frozen().tensors


def test_the_page_names_each_file_that_was_written() -> None:
    named = {name for cell in re.findall(r"^\| (.+?) \|", PAGE, re.M) for name in cell.split("`")}
    for file in (path for path in OLD.rglob("*") if path.is_file()):
        within = file.relative_to(OLD).parts
        if within[0] in (RUN, NUMBERS):
            assert re.sub(r"\d+", "N", file.name) in named, file
    assert {"plan.toml", "manifest.json", "sealed.json", "forms.json"} <= named
