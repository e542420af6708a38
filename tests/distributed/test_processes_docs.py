"""docs/processes.md: its script runs on two processes, its options are there."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ranks import on_ranks

import frostline as fl
from small_world import call

PAGE = (Path(__file__).parents[2] / "docs" / "processes.md").read_text(encoding="utf-8")


def run_script(script: str, folder: Path) -> int:
    os.chdir(folder)
    names: dict[str, object] = {}
    exec(script, names)
    run = names["run"]
    assert isinstance(run, fl.Run)
    return len(run.history)


def test_the_script_trains_on_two_processes(tmp_path: Path) -> None:
    (script,) = re.findall(
        r"^```python\n(# train\.py.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE
    )
    assert on_ranks(run_script, script, tmp_path) == [2, 2]
    assert (tmp_path / "run" / "result.json").exists()


def test_its_options_are_those_of_train() -> None:
    offered = call("train", "--help").out
    own = {"--nproc-per-node", "--multi_gpu", "--num_processes", "--max-restarts"}
    for option in set(re.findall(r"--[a-z][a-z_-]+", PAGE)) - own:
        assert option in offered, option
