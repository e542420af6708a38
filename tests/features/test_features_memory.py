"""Features larger than the memory a process may take are extracted and trained on."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from warm_process import Start

# Prints the largest memory of its own (not the page cache's, which the system takes back) in bytes.
PROGRAM = """
import json, re, sys
import torch
from torch import nn
import frostline as fl
from frostline.engine import Hook

SAMPLES, COPIES, STORE = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]

def own_bytes():
    status = open("/proc/self/status").read()
    return 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", status)[1])

class Lazy(torch.utils.data.Dataset):
    def __len__(self):
        return SAMPLES
    def __getitem__(self, index):
        return torch.full((3, 64, 64), index // COPIES / SAMPLES) + self.rows, index % 2
    rows = torch.randn(3, 1, 64)

class Most(Hook):
    most = 0
    def on_batch(self, stage, done, total):
        if done % 20 == 0:
            self.most = max(self.most, own_bytes())

def fit(data, few, store, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 4, stride=4), nn.Flatten(), nn.Linear(4096, 2))
    fl.freeze(model, "0")
    options |= {"features": store, "epochs": 2, "batch_size": 64, "device": "cpu"}
    return fl.fit(model, data, few, **options)

data = Lazy()
some = torch.stack([data[i][0] for i in range(64)])
few = torch.utils.data.TensorDataset(some, torch.arange(64) % 2)
fit(few, few, STORE + "/warm")  # all that is imported and built once
before, most = own_bytes(), Most()
run = fit(data, few, STORE + "/all", hooks=[most], precision="exact")
stored = sum(entry.nbytes for entry in fl.FeatureStore(STORE + "/all").ls())
print(json.dumps({"grown": most.most - before, "stored": stored, "computed": run.computed}))
raise SystemExit
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's own account")
@pytest.mark.parametrize(("samples", "copies"), [(8_000, 1), (7_000, 5)])
def test_a_process_holds_a_fraction_of_the_features_it_makes_and_reads(
    start: Start, tmp_path: Path, samples: int, copies: int
) -> None:
    done = start([samples, copies, tmp_path], dict(os.environ), code=PROGRAM)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    rows = samples // copies
    assert rows <= found["computed"] <= rows + 64
    assert found["stored"] > 16_384 * rows
    assert found["grown"] < 100e6  # of inputs and features of 400 to 500 MB
