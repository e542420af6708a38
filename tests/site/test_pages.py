"""Every page: its Python runs, its commands run, both print what the page shows."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from page_world import PAGES, Block, blocks_of, lines_of, type_in, write_weights, write_world
from torch import nn
from torch.utils.data import TensorDataset

import frostline as fl
from phased_net import net, rows

# What is not run here, and why.
NOT_RUN = {
    r"(python3? -m venv|\. \S+/activate|pip (install|wheel)|git clone) ?": "sets up a machine",
    r"scripts/(docs|test|demo)\b": "makes an environment; `scripts/demo` has test_demo.py",
    r"frostline --show-completion": "writes into the home folder; tests/release",
    r"docker ": "needs a daemon; what the Dockerfile runs is tested in tests/release",
    r"frostline demo$": "test_demo.py",
    r"frostline studio ": "goes on until it is ended; tests/studio",
    r"(torchrun|accelerate launch) ": "tests/distributed",
    r"frostline .*s3://": "tests/store, against a server of its own",
    r"python (examples|benchmarks)/": "test_examples.py",
}
# Blocks of these languages are run by a test of their own, which knows what they need.
ELSEWHERE = {
    ("adapters.md", "python"): "loops/test_adapters_docs.py",
    ("loops.md", "python"): "loops/test_loops_docs.py and loops/test_trainer_docs.py",
    ("plans.md", "python"): "plans/test_plans_docs.py",
    ("plans.md", "sh"): "plans/test_plans_docs.py",
    ("processes.md", "python"): "distributed/test_processes_docs.py and its neighbours",
}
LEFT_OUT = {("sounds.md", "sh"): "downloads recordings; test_examples.py runs the example"}
FIRST_RUNS = ("start.md",)  # pages that show what is printed where nothing is stored yet
WORDS = ("text", "toml", "")  # blocks of words, which nobody runs


def checkup_names() -> dict[str, Any]:
    model = net()
    fl.train_only(model, "head")
    optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
    return {"fl": fl, "model": model, "example": rows().tensors[0], "optimizer": optimizer}


def task_names() -> dict[str, Any]:
    """A network for pictures with two numbers each, and such data."""
    size = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    data = TensorDataset(torch.randn(12, 3, 16, 16), torch.randn(12, 2))

    def mae(outputs: torch.Tensor, targets: torch.Tensor) -> float:
        return (outputs - targets).abs().mean().item()

    names = {"fl": fl, "model": size, "train": data, "val": data, "mae": mae, "cost": mae}
    return names | {"preprocessing": fl.Preprocessing(resize=16, crop=(16, 16))}


def probe_names() -> dict[str, Any]:
    return {"fl": fl, "model": net(), "train": rows(), "val": rows(12, seed=2)}


# What a page of fragments takes as given.
GIVEN: dict[str, Callable[[], dict[str, Any]]] = {
    "doctor.md": checkup_names,
    "tasks.md": task_names,
    "probe.md": probe_names,
    "sounds.md": lambda: {"fl": fl},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("world")
    write_weights(root / "torch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(root / "torch"))
        patch.setenv(
            "FROSTLINE_FEATURES", str(root / "features")
        )  # what a page computed, others read
        yield write_world(root / "here")


def shown(block: Block, page: str, names: dict[str, Any]) -> str:
    """What a block prints."""
    if block.language == "python":
        with redirect_stdout(io.StringIO()) as said:
            exec(compile(block.code, page, "exec"), names)
        return said.getvalue()
    answers = [(line, type_in(line)) for line in lines_of(block.code) if not why_not(line)]
    for line, answer in answers:
        wanted = re.search(r"# .*exit status (\d)", line)
        assert answer.status == int(wanted[1] if wanted else 0), f"{line}\n{answer.err}"
    return "".join(answer.out for _, answer in answers)


def agrees(printed: str, said: str) -> bool:
    """Whether a block prints what the page says, where `...` is anything, or nothing."""
    parts = " ".join(printed.split()).split("...")
    form = ".*".join(re.escape(part.strip()) for part in parts)
    return re.fullmatch(form, " ".join(said.split())) is not None


def why_not(line: str) -> str | None:
    return next((why for form, why in NOT_RUN.items() if re.match(form, line)), None)


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_is_what_happens(
    page: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = shutil.copytree(world, tmp_path / "here")
    monkeypatch.chdir(here)
    if page in FIRST_RUNS:
        monkeypatch.setenv("FROSTLINE_FEATURES", str(tmp_path / "features"))
    names: dict[str, Any] = {"__name__": "page"} | GIVEN.get(page, dict)()
    for block in blocks_of(page):
        if block.language in WORDS or (page, block.language) in {**ELSEWHERE, **LEFT_OUT}:
            continue
        said = shown(block, page, names)
        if block.printed is not None:
            assert agrees(block.printed, said), f"{block.code}\n{said}"


@pytest.mark.parametrize("page", PAGES)
def test_no_block_of_a_page_is_left_out(page: str) -> None:
    for block in blocks_of(page):
        assert block.language in ("python", "sh", *WORDS), block.language
        if block.language == "sh" and (page, "sh") not in {**ELSEWHERE, **LEFT_OUT}:
            for line in lines_of(block.code):
                assert line.startswith("frostline ") or why_not(line), line


@pytest.mark.parametrize(("page", "language"), ELSEWHERE)
def test_what_another_test_runs_is_there(page: str, language: str) -> None:
    tests = Path(__file__).parents[1]
    assert any(block.language == language for block in blocks_of(page))
    for name in re.findall(r"\S+\.py", ELSEWHERE[page, language]):
        assert f'"{page}"' in (tests / name).read_text(encoding="utf-8")
