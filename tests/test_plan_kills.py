"""Runs in three phases on real photos, killed at random moments: each resume ends at the same bits.

A process that has imported everything, but computed nothing, forks a child for each run; the
child is killed by SIGKILL after a random time or, every second one, at a random step, since stored
features make steps short beside the rest; another goes on with `resume`. The moments are drawn one
from each equal part of the run, so that few kills fall into its beginning, its end and all phases.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

KILLS = 6
PHOTOS_OF_A_CLASS = 8

# The lower layers of a network with its own weights on small crops, so that a run takes a second.
NET = """
from torch import nn
from torchvision.models import squeezenet1_1

from frostline.preprocessing import Preprocessing


def small():
    net = squeezenet1_1()
    net.features = net.features[:5]
    net.classifier[1] = nn.Conv2d(128, 10, 1)
    return net, Preprocessing(resize=72, crop=(64, 64))
"""


def lower_weights(file: Path) -> dict[str, Tensor]:
    """Of SqueezeNet, for the layers that are left; the head is made anew."""
    weights = torch.load(file, weights_only=True)
    kept = {name: t for name, t in weights.items() if name.split(".")[1] in ("0", "3", "4")}
    head = {"classifier.1.weight": torch.zeros(10, 128, 1, 1), "classifier.1.bias": torch.zeros(10)}
    return kept | head


PLAN = """
[[phase]]
name = "head"
train = "stage:-1"
epochs = 2
lr = 3e-3

[[phase]]
name = "top"
train = "stage:-2..-1"
epochs = 2
lr = 1e-3
start = "best"

[[phase]]
name = "head again"
train = "stage:-1"
steps = 3
lr = 1e-3
"""

RUNS = '''
"""Runs, kills and resumes; prints what each resume ended with, as JSON."""

import gc
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy
import torch
import torch.export._trace
import torchvision
import frostline.models.torchvision_source
from frostline.callbacks import saving
from frostline.config import DataSettings, FeatureSettings, ModelSettings, RunSettings
from frostline.deltas import read_delta
from frostline.engine import Hook
from frostline.plans import Plan
from frostline.recipe import Recipe
from frostline.runs import open_run, prepare

torch.set_num_threads(1)
_, root, weights, store, kills, seed = sys.argv
root, kills = Path(root), int(kills)
saving.SAVE_SECONDS, saving._SHARE_OF_TIME = 0.0, 0
settings = RunSettings(
    model=ModelSettings(name=f"{root / 'net.py'}:small", weights=weights),
    data=DataSettings(path=str(root / "photos"), batch_size=5),
    plan=Plan.load(root / "plan.toml").phases,
    training=Recipe(precision="exact", optimizer="adam", keep=2),
    features=FeatureSettings(store=store),
    device="cpu",
)


STEPS = 19  # 4 batches in each of 2 + 2 epochs, and 3 steps


class KillAt(Hook):
    def __init__(self, step):
        self.left = step

    def on_step(self, training):
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)


gc.freeze()  # a child whose collector looks at this has each page of it copied


def child(out, hooks=()):
    pid = os.fork()
    if pid:
        return pid
    try:
        sys.stdout = open(os.devnull, "w")
        prepare(settings).run(out, resume=(out / "run.toml").exists(), hooks=hooks)
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)


def result(out):
    last, best = (read_delta(out / name / "delta.safetensors") for name in ("last", "best"))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    lines = [{k: v for k, v in line.items() if "second" not in k} for line in lines]
    phases = json.loads((out / "result.json").read_text())["phases"]
    proofs = [(p["steps"], p["best_epoch"], p["frozen"]["fingerprint"]) for p in phases]
    bits = [{n: t.numpy().tobytes().hex() for n, t in d.tensors.items()} for d in (last, best)]
    return json.dumps([bits, lines, proofs], sort_keys=True)


def to_the_end(out):
    start = time.monotonic()
    _, status = os.waitpid(child(out), 0)
    assert status == 0, status
    return time.monotonic() - start


draw = random.Random(int(seed))
to_the_end(root / "warm")
seconds = to_the_end(root / "whole")
whole, killed, equal = result(root / "whole"), 0, 0
marks = set()
for number in range(kills):
    out = root / f"cut-{number}"
    # In the first of `kills / 2` equal parts of the run, then in the second, and so on.
    moment = (number // 2 + draw.random()) / (kills // 2)
    if number % 2:
        pid = child(out, [KillAt(1 + int(moment * STEPS))])
    else:
        pid = child(out)
        time.sleep(moment * seconds)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    killed += os.WIFSIGNALED(status)
    last = out / "last" / "delta.safetensors"
    marks.add(read_delta(last).about["position"] if last.exists() else "")
    to_the_end(out)
    equal += result(out) == whole
print(json.dumps({"killed": killed, "equal": equal, "marks": sorted(marks), "seconds": seconds}))
'''


@pytest.mark.parametrize("store", ["off", "stored"])
def test_a_run_killed_at_any_moment_of_a_plan_resumes_to_the_same_bits(
    tmp_path: Path, data_dir: Path, store: str
) -> None:
    for part in ("train", "val"):
        for name in ("ants", "bees"):
            photos = sorted((data_dir / "hymenoptera" / part / name).iterdir())[:PHOTOS_OF_A_CLASS]
            (tmp_path / "photos" / part / name).mkdir(parents=True)
            for photo in photos:  # smaller, since to decode them took most of a run
                with Image.open(photo) as image:
                    small = image.convert("RGB").resize((96, 80))
                small.save(tmp_path / "photos" / part / name / photo.name)
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "plan.toml").write_text(PLAN)
    (tmp_path / "runs.py").write_text(RUNS)
    weights = tmp_path / "lower.pth"
    torch.save(lower_weights(data_dir / "weights" / "squeezenet1_1.pth"), weights)
    features = "off" if store == "off" else tmp_path / "features"
    done = subprocess.run(
        [sys.executable, tmp_path / "runs.py", tmp_path, weights, features, str(KILLS), "7"],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["equal"] == KILLS
    assert found["killed"] > KILLS // 2, "most runs were over before they were killed"
    assert len(found["marks"]) > 3, f"all kills fell into the same moments: {found['marks']}"
    assert any("." in mark for mark in found["marks"]), "no kill fell within an epoch"
