"""The command line as a process: how it begins, what of dynamo it spares, and how it ends."""

from __future__ import annotations

import subprocess
import sys

import pytest

STAND_INS = """
import sys
from frostline.cli._dynamo import let_dynamo_wait
let_dynamo_wait()
import torch, torchvision


def steps(kind):
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = kind([weight], lr=0.5)
    weight.grad = torch.ones(3)
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))]})
    optimizer.zero_grad()
    assert weight.grad is None
    assert not torch.equal(weight, torch.ones(3))
    return optimizer


@torch.compiler.disable(reason="ours")
def unfollowed(x):
    seen.append(torch.compiler.is_compiling())
    return x + 1


seen = []
for kind in (torch.optim.Adam, torch.optim.SGD, torch.optim.AdamW):
    optimizer = steps(kind)
assert unfollowed(torch.ones(1)) == 2
assert "torch._dynamo.eval_frame" not in sys.modules, "dynamo was imported"

import torch._dynamo.config as config  # a part, by its path

assert "torch._dynamo.eval_frame" in sys.modules
assert torch._dynamo is sys.modules["torch._dynamo"]
assert config is torch._dynamo.config is sys.modules["torch._dynamo.config"]
assert config.__spec__.origin, config.__spec__
assert type(torch._dynamo).__name__ == type(torch).__name__
config.recompile_limit = 9
assert torch._dynamo.config.recompile_limit == 9


def forward(x):
    return unfollowed(x) * 2


compiled = torch.compile(forward, backend="eager")
assert compiled(torch.ones(1)) == compiled(torch.ones(1)) == 4
assert seen == [False] * 3, seen
stepping = torch.compile(optimizer.step, backend="eager")
optimizer.param_groups[0]["params"][0].grad = torch.ones(3)
before = optimizer.param_groups[0]["params"][0].detach().clone()
stepping()
assert not torch.equal(before, optimizer.param_groups[0]["params"][0])
steps(torch.optim.Adam)
rows = torchvision.ops.roi_align(torch.rand(1, 3, 8, 8), [torch.tensor([[0.0, 0, 4, 4]])], 2)
assert rows.shape == (1, 3, 2, 2)
print("done")
"""

LATER = """
import atexit, sys, threading, time
atexit.register(print, "at the end")
from frostline.__main__ import start
def late():
    time.sleep(0.2)
    print("a thread")
threading.Thread(target=late, daemon={daemon}).start()
sys.argv = ["frostline", *{arguments}]
start()
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_dynamo_waits_until_something_asks_for_it_and_then_knows_all() -> None:
    found = run(STAND_INS)
    assert found.returncode == 0, found.stderr
    assert found.stdout.endswith("done\n")


@pytest.mark.parametrize(
    ("arguments", "status"), [(["--version"], 0), (["train"], 2), (["report", "nowhere"], 1)]
)
def test_a_process_ends_with_its_status_and_what_was_to_be_done(
    arguments: list[str], status: int
) -> None:
    found = run(LATER.format(arguments=arguments, daemon=True))
    assert found.returncode == status, found.stderr
    assert found.stdout.endswith("at the end\n")


def test_a_thread_that_is_at_work_is_waited_for() -> None:
    found = run(LATER.format(arguments=["--version"], daemon=False))
    assert found.returncode == 0
    assert found.stdout.endswith("a thread\nat the end\n")
