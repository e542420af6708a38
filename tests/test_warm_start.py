"""A run whose features are stored follows no model and imports no more than it needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from small_world import NET, write_pictures
from warm_process import Start

# In the place of `python -m frostline`; tells in the end what was imported.
PROCESS = """
import atexit, sys
atexit.register(lambda: print("imported", *sys.modules, file=sys.stderr))
from frostline.__main__ import start
start()
"""
SPARED = {
    *("torch._dynamo.eval_frame", "torch._inductor", "torch._functorch.aot_autograd"),
    *("torch.export._trace", "torch.utils.flop_counter", "sympy", "triton", "networkx"),
    *("sklearn", "matplotlib", "pandas", "scipy", "timm", "transformers", "lightning"),
    *("tensorboard.summary", "boto3", "accelerate", "frostline.estimates", "frostline.exports"),
}

NEIGHBOUR = """
import os

from torch import nn


class Backbone(nn.Sequential):
    def forward(self, x):
        return super().forward(x) * float(os.environ.get("TEST_FACTOR", "1"))
"""
OF_NEIGHBOUR = NET.replace(
    "from torch import nn", "from torch import nn\nimport neighbour"
).replace("self.features = nn.Sequential(", "self.features = neighbour.Backbone(")
# Says where the model is followed.
FOLLOWED = """
from frostline.cutting import tracing
export = tracing._export
def followed(*given):
    print("followed", file=sys.stderr)
    return export(*given)
tracing._export = followed
import sys
"""


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "FROSTLINE_FEATURES": str(folder / "features")}


def content(run: Path) -> str:
    with safe_open(run / "best/delta.safetensors", framework="pt") as file:
        found: str = file.metadata()["content"]
    return found


def test_a_warm_run_imports_no_more_than_it_needs(start: Start, tmp_path: Path) -> None:
    photos = write_pictures(tmp_path / "photos", train=2, val=2)
    command = ["train", photos, "--model", "mobilenet_v3_small", "--weights", "none"]
    command += ["--epochs", "1", "--features", tmp_path / "features", "--out"]
    cold = start([*command, tmp_path / "cold"], environment(tmp_path), code=FOLLOWED)
    assert cold.returncode == 0, cold.stderr
    assert "followed" in cold.stderr
    words = list(map(str, [sys.executable, "-c", PROCESS, *command, tmp_path / "warm"]))
    warm = subprocess.run(
        words, env=environment(tmp_path), capture_output=True, text=True, check=True
    )
    assert "no forward pass of the frozen part" in warm.stdout
    imported = set(warm.stderr.partition("imported ")[2].split())
    assert {"torch", "torchvision", "frostline.fitting"} <= imported
    assert not SPARED & imported
    assert content(tmp_path / "warm") == content(tmp_path / "cold")


@pytest.fixture(scope="module")
def own(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in a file that imports its neighbour, and a run of it, with its line kept."""
    root = tmp_path_factory.mktemp("own")
    write_pictures(root / "photos")
    (root / "net.py").write_text(OF_NEIGHBOUR)
    (root / "neighbour.py").write_text(NEIGHBOUR)
    assert is_followed(start, root, "first")
    return root


def is_followed(start: Start, root: Path, out: str, **more: str) -> bool:
    command = ["train", root / "photos", "--model", f"{root / 'net.py'}:net", "--freeze"]
    command += ["features", "--epochs", "1", "--features", root / "features", "--out", root / out]
    found = start(command, {**environment(root), **more}, code=FOLLOWED)
    assert found.returncode == 0, found.stderr
    return "followed" in found.stderr


def test_a_model_of_ones_own_is_not_followed_twice(start: Start, own: Path) -> None:
    assert not is_followed(start, own, "second")
    assert content(own / "second") == content(own / "first")
    lines = [(own / run / "metrics.jsonl").read_text() for run in ("first", "second")]
    first, second = ({n: v for n, v in json.loads(t).items() if "second" not in n} for t in lines)
    assert first == second


def test_what_a_neighbour_says_is_part_of_the_model(start: Start, own: Path) -> None:
    # Of another length, or Python takes one written in the same second for the one before.
    (own / "neighbour.py").write_text(NEIGHBOUR.replace("* float", "+ 0 + float"))
    assert is_followed(start, own, "neighbour")
    (own / "neighbour.py").write_text(NEIGHBOUR)
    assert not is_followed(start, own, "neighbour again")


def test_what_a_forward_reads_unseen_is_found_by_a_sample(start: Start, own: Path) -> None:
    assert is_followed(start, own, "factor", TEST_FACTOR="2")
