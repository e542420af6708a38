"""Full checkpoints from deltas, and runs by a plan from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import frostline as fl
from frostline.deltas import VERSION, merge_tensors, read_delta
from frostline.models import load_model
from frostline.runs import open_run
from small_world import Answer, call, write_net, write_pictures

PLAN = """
[[phase]]
name = "head"
train = "head"
epochs = 2
lr = 0.02

[[phase]]
name = "middle"
train = "middle | head"
epochs = 2
lr = 0.01
start = "best"
"""


class World:
    """Pictures, a network with a file of weights, and a plan."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.photos = write_pictures(root / "photos")
        self.model = write_net(root)
        self.weights = root / "weights.safetensors"
        loaded = load_model(self.model, weights="none", classes=5, on="keep", seed=3)
        save_file(loaded.model.state_dict(), self.weights)
        self.plan = root / "plan.toml"
        self.plan.write_text(PLAN)
        self.run = root / "run"

    def train(self, *options: object) -> Answer:
        arguments = [self.photos, "--model", self.model, "--weights", self.weights]
        arguments += ["--out", self.run, "--device", "cpu", "--batch-size", 6]
        return call("train", *arguments, *options)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture(scope="module")
def phased(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world with a finished run of two phases; read it only."""
    made = World(tmp_path_factory.mktemp("phased"))
    answer = made.train("--plan", made.plan)
    assert answer.status == 0, answer.err
    return made


# Runs by a plan, from the command line


def test_a_plan_is_trained_phase_by_phase(world: World) -> None:
    answer = world.train("--plan", world.plan)
    assert answer.status == 0, answer.err
    for words in ("Phase     1 of 2, head: trains", "Phase     2 of 2, middle: trains", "2 epochs"):
        assert words in answer.out
    lines = [line for line in answer.out.splitlines() if str(world.root) not in line]
    assert max(map(len, lines)) <= 80
    result = json.loads((world.run / "result.json").read_text())
    assert [(p["name"], p["epochs"], p["frozen"]["tensors"]) for p in result["phases"]] == [
        ("head", 2, 14),
        ("middle", 2, 7),
    ]


def test_json_of_a_phased_run_has_a_record_for_each_phase(world: World) -> None:
    found = world.train("--plan", world.plan, "--json").json
    assert [phase["name"] for phase in found["phases"]] == ["head", "middle"]
    assert [epoch["phase"] for epoch in found["history"]] == [1, 1, 2, 2]


def test_a_phased_run_verifies_evaluates_and_predicts(phased: World) -> None:
    assert call("verify", phased.run).status == 0
    told = json.loads((phased.run / "result.json").read_text())
    found = call("evaluate", phased.run, phased.photos, "--json").json
    assert found["accuracy"] == told["accuracy"]
    assert found["loss"] == pytest.approx(told["loss"], rel=1e-6)
    picture = phased.photos / "val" / "dark" / "0.png"
    assert call("predict", phased.run, picture).status == 0


def test_a_delta_of_the_second_phase_without_its_layers_is_a_broken_promise(
    world: World,
) -> None:
    world.train("--plan", world.plan)
    last = world.run / "last" / "delta.safetensors"
    delta = read_delta(last)
    model = open_run(world.run).built_for(delta).model
    fl.train_only(model, "head")
    fl.save_delta(model, last, about=delta.about)
    answer = call("verify", world.run)
    assert answer.status == 3
    assert "last/delta.safetensors lacks tensors that this run trained: middle.0" in answer.message


def test_what_a_plan_says_for_itself_is_wrong_usage_beside_it(world: World) -> None:
    for option in (("--train", "head"), ("--freeze", "features"), ("--epochs", 3)):
        answer = world.train("--plan", world.plan, *option)
        assert answer.status == 2
        assert f"leave out {option[0]}" in " ".join(answer.err.split()).replace("│ ", "")
    assert not world.run.exists()


def test_a_plan_that_is_missing_says_so(world: World) -> None:
    answer = world.train("--plan", world.root / "none.toml")
    assert answer.status == 1
    assert "none.toml" in answer.message
    assert not world.run.exists()


def test_a_plan_with_a_typo_is_refused_before_anything_is_written(world: World) -> None:
    world.plan.write_text(PLAN.replace("middle | head", "midle | head"))
    answer = world.train("--plan", world.plan)
    assert answer.status == 1
    assert "phase 2 (middle): 'midle' matches no parameter" in answer.message
    assert not world.run.exists()


def test_a_plan_that_never_trains_the_new_head_is_refused(world: World) -> None:
    world.plan.write_text('[[phase]]\ntrain = "middle"\nepochs = 1\n')
    answer = world.train("--plan", world.plan)
    assert answer.status == 1
    assert "the new head at head would stay frozen" in answer.message


# Merging


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
@pytest.mark.parametrize("which", ["best", "last"])
def test_a_merged_run_is_the_whole_state_of_its_model(
    phased: World, tmp_path: Path, ending: str, which: str
) -> None:
    out = tmp_path / f"whole{ending}"
    assert call("merge", phased.run, "--which", which, "--out", out).status == 0
    found = torch.load(out) if ending == ".pth" else load_file(out)
    delta = read_delta(phased.run / which / "delta.safetensors")
    model = open_run(phased.run).built_for(delta).model
    fl.load_delta(model, phased.run / which / "delta.safetensors")
    expected = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_delta_alone_says_how_to_get_its_base(phased: World, tmp_path: Path) -> None:
    by_run, by_delta = tmp_path / "run.safetensors", tmp_path / "delta.safetensors"
    assert call("merge", phased.run, "--out", by_run).status == 0
    assert call("merge", phased.run / "best" / "delta.safetensors", "--out", by_delta).status == 0
    assert by_run.read_bytes() == by_delta.read_bytes()


def test_a_delta_and_a_file_of_its_base_give_the_same(phased: World, tmp_path: Path) -> None:
    out = tmp_path / "whole.safetensors"
    delta = phased.run / "best" / "delta.safetensors"
    assert call("merge", delta, "--base", phased.weights, "--out", out).status == 0
    by_run = tmp_path / "run.safetensors"
    call("merge", phased.run, "--out", by_run)
    expected, found = load_file(by_run), load_file(out)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_another_base_is_refused_by_the_names_of_its_tensors(phased: World, tmp_path: Path) -> None:
    tensors = load_file(phased.weights)
    tensors["features.0.weight"][0, 0, 0, 0] += 1
    save_file(tensors, tmp_path / "other.safetensors")
    delta = phased.run / "best" / "delta.safetensors"
    out = tmp_path / "whole.pth"
    answer = call("merge", delta, "--base", tmp_path / "other.safetensors", "--out", out)
    assert answer.status == 1
    assert "is not the base that this delta was trained on: 1 of " in answer.message
    assert "features.0.weight" in answer.message
    assert not out.exists()


@pytest.mark.parametrize(
    ("out", "message"),
    [("whole.zip", "does not end like a checkpoint"), ("there.pth", "is there already")],
)
def test_a_checkpoint_goes_to_a_new_file_of_a_known_kind(
    phased: World, tmp_path: Path, out: str, message: str
) -> None:
    (tmp_path / "there.pth").write_text("mine")
    answer = call("merge", phased.run, "--out", tmp_path / out)
    assert answer.status == 1
    assert message in answer.message
    assert (tmp_path / "there.pth").read_text() == "mine"


def test_a_delta_of_a_model_from_python_asks_for_its_base(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    save_file(model.state_dict(), tmp_path / "base.safetensors")
    fl.freeze(model, "0")
    fl.save_delta(model, tmp_path / "d.safetensors")
    arguments = ["merge", tmp_path / "d.safetensors", "--out", tmp_path / "whole.pth"]
    answer = call(*arguments)
    assert answer.status == 1
    assert "does not say how its base was built. Give the file of the base" in answer.message
    assert call(*arguments, "--base", tmp_path / "base.safetensors").status == 0
    assert torch.load(tmp_path / "whole.pth").keys() == model.state_dict().keys()


class Tied(nn.Module):
    """Shared weights, and a buffer that a state_dict does not hold."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.body = nn.Linear(3, 3)
        self.out = nn.Linear(3, 5, bias=False)
        self.out.weight = self.embed.weight
        self.register_buffer("places", torch.arange(4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(self.embed(x)))


def test_tied_weights_are_whole_under_each_of_their_names(tmp_path: Path) -> None:
    model = Tied()
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fl.freeze(model, "body")
    with torch.no_grad():
        model.embed.weight.mul_(2)
    fl.save_delta(model, tmp_path / "d.safetensors")
    merged = merge_tensors(read_delta(tmp_path / "d.safetensors"), base, where="the base")
    assert merged.keys() == model.state_dict().keys()
    assert all(torch.equal(merged[name], value) for name, value in model.state_dict().items())


# What a delta says besides tensors


def test_a_delta_says_what_was_trainable(tmp_path: Path) -> None:
    model = Tied()
    fl.freeze(model, "body.weight")
    fl.save_delta(model, tmp_path / "d.safetensors")
    assert read_delta(tmp_path / "d.safetensors").trainable == ("embed.weight", "body.bias")


def frozen_of(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if not p.requires_grad}


@pytest.mark.parametrize(
    ("freeze", "expected"),
    [("as saved", {"body.weight"}), ("as it is", {"embed.weight"})],
)
def test_loading_freezes_as_saved_only_where_it_is_asked(
    tmp_path: Path, freeze: str, expected: set[str]
) -> None:
    torch.manual_seed(0)
    model = Tied()
    fl.freeze(model, "body.weight")
    fl.save_delta(model, tmp_path / "d.safetensors")
    torch.manual_seed(0)
    other = Tied()
    fl.freeze(other, "embed")
    fl.load_delta(other, tmp_path / "d.safetensors", freeze=freeze)
    assert frozen_of(other) == expected


def test_rows_that_were_held_are_held_again_where_it_is_asked(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Tied()
    fl.freeze(model, "body | rows:embed.weight[0:2] | rows:embed.weight[4]")
    with torch.no_grad():
        model.embed.weight[2:4] += 1
    fl.save_delta(model, tmp_path / "d.safetensors")
    torch.manual_seed(0)
    other = Tied()
    fl.load_delta(other, tmp_path / "d.safetensors", freeze="as saved")
    before = other.embed.weight.detach().clone()
    optimizer = torch.optim.AdamW(other.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(3):
        other(torch.arange(5)).logsumexp(1).sum().backward()
        optimizer.step()
    assert torch.equal(before, model.embed.weight.detach())
    moved = (other.embed.weight != before).any(dim=1)
    assert moved.tolist() == [False, False, True, True, False]


def test_a_delta_of_the_first_version_is_read(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    fl.freeze(model, "0")
    file = tmp_path / "d.safetensors"
    fl.save_delta(model, file)
    later = ("trainable", "held_rows", "tied", "unsaved", "header")
    rewrite(file, lambda header: [header.pop(key) for key in later])
    rewrite(file, lambda header: header.update(version="1"))
    assert fl.load_delta(model, file).trainable == ()
    with pytest.raises(
        fl.DeltaError, match=r"does not say what was trainable in this model\. Freeze"
    ):
        fl.load_delta(model, file, freeze="as saved")
    assert VERSION == "2"


def rewrite(file: Path, change: Callable[[dict[str, str]], object]) -> None:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as content:
        header = dict(content.metadata())
    tensors = load_file(file)
    change(header)
    save_file(tensors, file, metadata=header)


def test_the_notes_of_a_phased_delta_hold_plan_and_position(phased: World) -> None:
    about = read_delta(phased.run / "last" / "delta.safetensors").about
    assert (about["phase"], about["position"], about["epoch"]) == ("2", "4", "4")
    assert fl.Plan.loads(about["plan"]) == fl.Plan.load(phased.plan)
    assert about["model"].endswith("small_net.py:net")
    assert about["weights"] == str(phased.weights)


def test_a_misspelt_word_for_the_freeze_is_refused(tmp_path: Path) -> None:
    model = Tied()
    fl.save_delta(model, tmp_path / "d.safetensors")
    told = r"freeze='as_saved' is unknown\. Use freeze='as it is' or freeze='as saved'"
    with pytest.raises(fl.ConfigError, match=told):
        fl.load_delta(model, tmp_path / "d.safetensors", freeze="as_saved")
