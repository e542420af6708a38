"""One small file of each format, with content that follows from this file.

    PYTHONPATH=src:tests:tests/release python tests/release/written.py FOLDER

`formats_of_0_1` was written so by version 0.1. A new version adds a folder and changes none.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

import frostline as fl
from frostline.features.computing import Decisions
from frostline.session import save_checkpoint
from frostline.session.attached import Attached
from frostline.store import FeatureKey, ValueSpec
from frostline.store.sealing import Sealed
from frostline.tuning import Form, Tuned
from small_world import call, write_net, write_pictures

PLAN = fl.Plan(
    [
        fl.Phase(
            name="head", train="2", epochs=2, lr=0.1, until=fl.Until(monitor="loss", patience=1)
        ),
        fl.Phase(
            train="2 | rows:0.weight[0:1]", steps=3, lr_mult={"2": 0.5}, start="best", state="fresh"
        ),
    ]
)
KEY = FeatureKey({"prefix": "stem", "tensors": "abc"})
VALUES = (
    ValueSpec("map", (2,), torch.float32),
    ValueSpec("tokens", (None, 2), torch.float32, "bfloat16"),
)
IDS = [bytes(15) + bytes([number]) for number in range(2)]
MAPS = torch.tensor([[0.5, 1.5], [2.5, -3.5]])
TOKENS = [torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0]])]
SEALED = Sealed(rows=2, files={"rows": 112, "value0.npy": 144})
TUNED = Tuned(Form("bfloat16", channels_last=True), 0.0078125, 64, (), 0.5, 2.0)
RUN = "run"  # of the command line
NUMBERS = "numbers"  # of `fl.fit`, with a task that has no classes


def net() -> nn.Sequential:
    """Weights that count up in eighths."""
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.arange(parameter.numel()).view_as(parameter) / 8)
    return model


def trained() -> nn.Sequential:
    """`net` with the first module frozen, and one added to each weight of the last."""
    model = net()
    fl.freeze(model, "0")
    with torch.no_grad():
        model[2].weight += 1
    return model


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """By a gradient of ones."""
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    optimizer.zero_grad()


def write(folder: Path) -> None:
    """Write all of them into a new folder, which becomes the working directory."""
    folder.mkdir(parents=True)
    os.chdir(folder)
    fl.save_delta(trained(), "delta.safetensors", about={"model": "net"})
    PLAN.save("plan.toml")
    _write_store(Path("features"))
    _write_states()
    write_net(Path())
    write_pictures(Path("photos"), train=2, val=1)
    network = ("--model", "small_net.py:net", "--weights", "none", "--freeze", "features")
    length = ("--epochs", 1, "--device", "cpu", "--features", "off")
    answers = call("train", "photos", *network, *length, "--out", RUN)
    assert not answers.status, answers.err
    assert not call("export", RUN, "--to", "safetensors", "--out", "exported.safetensors").status
    inputs = torch.arange(32.0).view(8, 4) / 32
    data = TensorDataset(inputs, inputs.sum(dim=1, keepdim=True))
    model = nn.Sequential(net()[0], nn.Linear(3, 1))
    fl.freeze(model, "0")
    fl.fit(model, data, data, task="regression", out=NUMBERS, epochs=1, features="off")
    shutil.rmtree("photos")
    Path("small_net.py").unlink()
    for run in map(Path, (RUN, NUMBERS)):
        (run / "report.html").unlink()
        shutil.rmtree(run / "tensorboard", ignore_errors=True)


def _write_store(root: Path) -> None:
    with fl.FeatureStore(root).open(KEY, VALUES).writer() as writer:
        writer.put(IDS, [MAPS, TOKENS])
    Decisions(root).keep("of this machine", TUNED)
    Path("sealed").mkdir()
    SEALED.write(Path("sealed"))


def _write_states() -> None:
    model = net()
    fl.freeze(model, "0")
    optimizer = torch.optim.AdamW(fl.param_groups(model, lr=0.5))
    step(model, optimizer)
    torch.save(fl.optimizer_state(optimizer, model), "optimizer.pt")

    model = net()
    session = fl.Session(model, PLAN, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    session.enter()
    step(model, session.optimizer)
    session.after_step()
    torch.save(session.state_dict(), "session.pt")
    save_checkpoint(session, "checkpoint")

    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attached = Attached(model, "0", optimizer=optimizer)
    attached.begin()
    torch.save(attached.state_dict(), "attached.pt")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
