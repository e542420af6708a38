"""Stored features from the command line: what train says of them, and the verbs that keep them."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import frostline as fl
from frostline.deltas import read_delta
from frostline.runs import open_run
from frostline.session import default_store
from small_world import Answer, call, write_net, write_pictures


class World:
    """Pictures, a network in a file, and a store that is named."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.photos = write_pictures(root / "photos")
        self.model = write_net(root)
        self.run = root / "run"
        self.store = root / "store"

    def train(self, *more: object, out: Path | None = None) -> Answer:
        arguments = ["--model", self.model, "--weights", "none", "--epochs", 2, "--batch-size", 6]
        arguments += ["--freeze", "features", "--features", self.store, "--device", "cpu"]
        return call("train", self.photos, *arguments, "--out", out or self.run, *more)

    def features(self, verb: str, *more: object) -> Answer:
        return call("features", verb, self.store, *more)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world with a finished run; read it only."""
    made = World(tmp_path_factory.mktemp("world"))
    assert made.train().status == 0
    return made


@pytest.fixture
def filled(finished: World, tmp_path: Path) -> World:
    """A copy of the finished world's store, to be changed."""
    shutil.copytree(finished.store, tmp_path / "store")
    made = World(tmp_path)
    made.run = finished.run
    return made


def notes(text: str) -> dict[str, str]:
    """What `train` says of the frost line and the features, by its first word."""
    found = re.findall(r"^(Frost|Features|Saved) +(.+(?:\n {10}.+)*)", text, flags=re.MULTILINE)
    return {word: " ".join(told.split()) for word, told in found}


# Training


def test_train_says_where_the_line_runs_and_what_was_computed(world: World) -> None:
    said = notes(world.train().out)
    assert "behind features" in said["Frost"]
    told = r"24 rows computed in .*; 768 B float32.* computed, since nothing stored yet"
    assert re.match(told, said["Features"])


def test_a_second_run_makes_no_forward_pass_of_the_frozen_part(world: World) -> None:
    world.train()
    again = world.train("--lr", 0.1, "--epochs", 3, out=world.root / "again")
    assert again.status == 0
    assert "no forward pass of the frozen part" in notes(again.out)["Features"]
    assert "computed" not in notes(again.out)["Features"]


def test_runs_of_two_machines_share_what_is_at_an_address(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, told = f"file://{world.root}/there", []
    for machine in ("one", "two"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(world.root / machine))
        answer = world.train("--features", address, out=world.root / f"run {machine}")
        assert answer.status == 0
        told.append(notes(answer.out)["Features"])
    assert told[0].startswith("24 rows computed in ")
    assert told[1].startswith("all in the store, no forward pass")
    settings = tomllib.loads((world.root / "run two" / "run.toml").read_text())
    assert settings["features"]["store"] == address


def test_a_new_picture_is_the_only_row_that_is_computed(world: World) -> None:
    world.train()
    shutil.move(world.photos / "train/dark/0.png", world.photos / "train/dark/renamed.png")
    (world.photos / "train/dark/1.png").unlink()
    more = write_pictures(world.root / "more", train=9)
    shutil.copy(more / "train/dark/8.png", world.photos / "train/dark/8.png")
    answer = world.train(out=world.root / "again")
    assert notes(answer.out)["Features"].startswith(
        "23 of 24 rows were in the store; 1 rows computed"
    )


def test_no_picture_is_hashed_again_after_the_audit(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture of training is opened by the audit, to be decoded, and a few to try the cut on."""
    opened: Counter[str] = Counter()
    plain = Path.open

    def counting(path: Path, *how: Any, **options: Any) -> Any:
        opened[path.parent.parent.name] += path.suffix == ".png"
        return plain(path, *how, **options)

    monkeypatch.setattr(Path, "open", counting)
    monkeypatch.setattr("frostline.data.image_samples.file_digest", None)  # nothing may call it
    assert world.train().status == 0
    assert opened["train"] <= 2 * len(list(world.photos.rglob("train/*/*.png"))) + 8


def test_features_off_says_nothing_of_features(world: World) -> None:
    answer = world.train("--features", "off")
    assert answer.status == 0
    assert notes(answer.out) == {}
    assert not world.store.exists()


def test_exact_features_print_the_figures_of_the_plain_loop(world: World) -> None:
    runs = [
        world.train("--precision", "exact", "--json", *more, out=world.root / name).json
        for name, more in (("stored", ()), ("plain", ("--features", "off")))
    ]
    stored, plain = (
        [{k: v for k, v in epoch.items() if "second" not in k} for epoch in run["history"]]
        for run in runs
    )
    assert stored == plain
    assert runs[0]["loss"] == runs[1]["loss"]


@pytest.mark.parametrize("precision", ["auto", "exact", "0.01"])
def test_a_run_is_evaluated_and_predicts_in_the_form_it_was_trained_in(
    world: World, precision: str
) -> None:
    found = world.train("--precision", precision, "--json").json
    settings = tomllib.loads((world.run / "run.toml").read_text())
    assert settings["training"]["precision"] == precision
    assert settings["features"]["store"] == str(world.store)
    assert re.match(r"float32|bfloat16|float16", settings["features"]["forms"][0])
    judged = call("evaluate", world.run, world.photos, "--json").json
    assert (judged["accuracy"], judged["loss"]) == pytest.approx((found["accuracy"], found["loss"]))
    files = sorted((world.photos / "val").rglob("*.png"))
    told = call("predict", world.run, *files, "--json").json
    assert len(told["predictions"] if isinstance(told, dict) else told) == len(files)
    right = judged["accuracy"] * len(files)
    shown = json.dumps(told)
    assert shown.count('"dark"') + shown.count('"light"') >= len(files) >= right


def test_a_run_is_repeated_in_the_form_that_it_noted(world: World, tmp_path: Path) -> None:
    form = "float32 folded"  # not what is chosen first
    world.train("--form", form, "--json")
    assert tomllib.loads((world.run / "run.toml").read_text())["features"]["forms"] == [form]
    facts = open_run(world.run).report()
    told = "On the same machine, with the same versions and number of threads, it gives the same "
    assert facts.repeat_notes == (f"{told}bits.",)
    command = facts.repeat.replace("\\\n", " ").replace(str(world.store), str(tmp_path / "fresh"))
    words = shlex.split(command)
    assert words[words.index("--form") + 1] == form
    answer = call(*words[1:])
    assert answer.status == 0, answer.err
    again = world.run.with_name(f"{world.run.name}-again")
    assert tomllib.loads((again / "run.toml").read_text())["features"]["forms"] == [form]
    first, second = (read_delta(run / "last" / "delta.safetensors") for run in (world.run, again))
    assert all(torch.equal(first.tensors[name], t) for name, t in second.tensors.items())


@pytest.mark.parametrize(
    ("options", "status", "told"),
    [
        (["--form", "bfloat17"], 2, "'bfloat17' is no form of a prefix"),
        (["--form", "model", "--form", "model"], 1, "got 2 forms for 1 phase. Give one for each"),
        (
            ["--form", "bfloat16", "--precision", "exact"],
            1,
            "precision 'exact' keeps every bit, and the form 'bfloat16' does not; leave one out",
        ),
        (
            ["--form", "bfloat16", "--features", "off"],
            1,
            "the form 'bfloat16' would not be heeded; leave out the form, or 'off'",
        ),
    ],
)
def test_a_form_that_cannot_be_heeded_is_refused(
    world: World, options: list[str], status: int, told: str
) -> None:
    answer = world.train(*options)
    assert answer.status == status
    assert told in " ".join(answer.err.replace("│", " ").split())
    assert ".." not in answer.err
    assert not world.run.exists()


def test_one_form_may_be_given_in_python_without_a_list() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    fl.freeze(model, "0")
    data = TensorDataset(torch.randn(4, 4), torch.tensor([0, 1, 0, 1]))
    with pytest.raises(fl.ConfigError, match=r"precision 'exact'.* the form 'bfloat16' does not"):
        fl.fit(model, data, data, epochs=1, precision="exact", forms="bfloat16")


@pytest.mark.parametrize("form", ["bfloat16 channels-last folded", "float32 channels-last folded"])
def test_a_run_resumed_or_evaluated_uses_the_form_it_began_with(
    world: World, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    from frostline.tuning import Form, Realised, Tuned

    module = sys.modules["frostline.features.computing"]  # the package has a function of that name

    def tuned(*_: object, batch_size: int, **__: object) -> tuple[Tuned, Realised | None]:
        return Tuned(Form.parse(form), 0.001, batch_size, (), 1e-6, 2e-6), None

    monkeypatch.setattr(module, "tune_and_realise", tuned)
    found = world.train("--json").json
    assert tomllib.loads((world.run / "run.toml").read_text())["features"]["forms"] == [form]
    (entry,) = call("features", "ls", world.store, "--json").json["keys"]
    assert entry["parts"]["form"] == form
    assert entry["parts"]["storage"] == form.split()[0]
    monkeypatch.setattr(module, "tune_and_realise", None)  # it is not asked again
    (world.store / "forms.json").unlink()
    judged = call("evaluate", world.run, world.photos, "--json")
    assert judged.status == 0, judged.err
    assert judged.json["accuracy"] == found["accuracy"]
    assert judged.json["loss"] == pytest.approx(found["loss"], rel=1e-3)
    shutil.rmtree(world.run / "last")  # as if it had been killed in its first epoch
    resumed = call("train", "--resume", world.run)
    assert resumed.status == 0, resumed.err
    said = notes(resumed.out)["Features"]
    assert "no forward pass" in said
    assert f"{form}, as chosen before" in said


@pytest.mark.parametrize("precision", ["nonsense", "0", "-1", "fp64"])
def test_a_precision_that_is_none_is_wrong_usage(world: World, precision: str) -> None:
    answer = world.train("--precision", precision)
    assert answer.status == 2
    assert "auto, exact, bf16, fp16 or the relative error to allow" in " ".join(
        re.sub("[│╭╰─╮╯]", " ", answer.err).split()
    )
    assert not world.run.exists()


def test_a_storage_of_fewer_bits_is_kept_apart_and_named(world: World) -> None:
    world.train()
    answer = world.train("--storage", "int8", out=world.root / "small")
    assert "storage: float32 -> int8" in notes(answer.out)["Features"]
    keys = world.features("ls", "--json").json["keys"]
    assert {entry["parts"]["storage"] for entry in keys} == {"float32", "int8"}
    assert tomllib.loads((world.root / "small/run.toml").read_text())["features"]["storage"] == (
        "int8"
    )


def test_an_unknown_storage_is_wrong_usage(world: World) -> None:
    assert world.train("--storage", "int4").status == 2


# frostline features


def test_ls_shows_each_key_with_rows_and_bytes(finished: World) -> None:
    answer = finished.features("ls")
    assert answer.status == 0
    assert str(finished.store) in answer.out
    assert re.search(r"\b24\b", answer.out)
    (entry,) = finished.features("ls", "--json").json["keys"]
    assert entry["rows"] == 24
    assert entry["key"][:12] in answer.out
    assert {"prefix", "tensors", "form", "torch", "transform", "storage"} <= set(entry["parts"])
    assert entry["note"]["model"] == "Net"
    assert entry["damage"] == ""


def test_an_empty_folder_holds_no_keys(tmp_path: Path) -> None:
    assert call("features", "ls", tmp_path, "--json").json["keys"] == []
    assert "0 keys" in call("features", "ls", tmp_path).out
    assert call("features", "verify", tmp_path).status == 0
    assert "Removed 0 keys" in call("features", "prune", tmp_path, "--max-size", "1GB").out


@pytest.mark.parametrize("arguments", [["ls"], ["verify"], ["prune", "--damaged"]])
def test_a_folder_that_is_not_there_is_named(tmp_path: Path, arguments: list[str]) -> None:
    verb, *more = arguments
    answer = call("features", verb, tmp_path / "none", *more)
    assert (answer.status, answer.out) == (1, "")
    assert f"there is no feature store at {tmp_path / 'none'}" in answer.message
    assert "named with --features" in answer.message


def test_without_a_folder_it_is_the_one_of_the_user() -> None:
    default_store().mkdir(parents=True, exist_ok=True)
    assert call("features", "ls", "--json").json["store"] == str(default_store())


def test_the_store_of_the_user_may_be_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROSTLINE_FEATURES", "memory://of the user")
    assert call("features", "ls", "--json").json == {"store": "memory://of the user", "keys": []}


def test_verify_reads_every_row(finished: World) -> None:
    answer = finished.features("verify")
    assert answer.status == 0
    assert answer.out.startswith("Verified: 24 rows in ")
    assert finished.features("verify", "--json").json == {
        "verified": True,
        "rows": 24,
        "damages": [],
    }


def test_a_damaged_row_is_found_told_mended_or_removed(filled: World) -> None:
    (file,) = filled.store.glob("*/segment-*/*.npy")
    content = bytearray(file.read_bytes())
    content[-8] ^= 1
    file.write_bytes(content)
    answer = filled.features("verify")
    assert answer.status == 3
    assert "do not match their checksum" in answer.out.replace("\n", " ")
    assert "1 of 24 rows or files in" in answer.message
    assert "frostline features prune --damaged" in answer.message
    document = filled.features("verify", "--json")
    assert (document.status, document.json["verified"]) == (3, False)
    assert len(document.json["damages"]) == 1
    gone = filled.features("prune", "--damaged", "--json").json["removed"]
    assert [entry["rows"] for entry in gone] == [24]
    assert filled.features("verify").status == 0
    assert filled.features("ls", "--json").json["keys"] == []


def test_prune_keeps_what_fits(filled: World) -> None:
    assert filled.features("prune", "--max-size", "1GB", "--json").json["removed"] == []
    answer = filled.features("prune", "--max-size", "1B")
    assert answer.out.startswith("Removed 1 keys, ")
    assert filled.features("ls", "--json").json["keys"] == []


def test_prune_removes_what_was_not_used_for_so_long(filled: World) -> None:
    assert filled.features("prune", "--older-than", "1", "--json").json["removed"] == []
    assert len(filled.features("prune", "--older-than", "0", "--json").json["removed"]) == 1


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], "say what to remove: --max-size, --older-than or --damaged"),
        (["--max-size", "much"], "much"),
        (["--older-than", "-1"], "--older-than"),
    ],
)
def test_prune_that_does_not_say_what_is_wrong_usage(
    filled: World, more: list[str], words: str
) -> None:
    answer = filled.features("prune", *more)
    assert answer.status == 2
    assert words in " ".join(re.sub("[│╭╰─╮╯]", " ", answer.err).split())
    assert len(filled.features("ls", "--json").json["keys"]) == 1


def test_features_alone_shows_its_verbs() -> None:
    answer = call("features", "--help")
    assert answer.status == 0
    assert all(verb in answer.out for verb in ("ls", "verify", "prune"))
    assert max(map(len, answer.out.splitlines())) <= 80
