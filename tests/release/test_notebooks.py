"""The notebooks run as they stand, in one kernel, on small data of their own kind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

from small_world import write_pictures
from text_world import write_sentence_encoder

FOLDER = Path(__file__).parents[2] / "examples" / "notebooks"
NAMES = ("own_photos", "texts", "which_layers")
MOST_BYTES = 100_000  # of a notebook with its outputs
# Which cell outputs must be shown as tables, by what the cell ends with.
TABLES = ("frozen", "plan", "fl.summary(", "fl.select(", "fl.estimate(")


def cells_of(name: str) -> list[Any]:
    cells: list[Any] = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells
    return cells


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of two classes, reviews, and an encoder of sentences."""
    folder = tmp_path_factory.mktemp("notebooks")
    write_pictures(folder / "photos", train=6, val=4)
    write_sentence_encoder(folder / "encoder")
    words = (("good", "fine"), ("bad", "dull"))
    lines = [f"a {words[n % 2][n // 2 % 2]} film {n}\t{1 - n % 2}" for n in range(40)]
    (folder / "reviews.tsv").write_text("text\tlabel\n" + "\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def kernel() -> Iterator[KernelManager]:
    # Messages stay within this machine's file system: no port is opened.
    manager = KernelManager(kernel_name="python3", transport="ipc")
    manager.start_kernel(env={**os.environ, "OMP_NUM_THREADS": "1"})
    yield manager
    manager.shutdown_kernel(now=True)


GIVEN = {
    "own_photos": {"weights": "none", "epochs": 2},
    "texts": {"reviews": "reviews.tsv", "encoder": "hf:encoder", "epochs": 2},
    "which_layers": {"weights": "none", "epochs": 1},
}


def executed(name: str, world: Path, kernel: KernelManager) -> list[Any]:
    """The cells with what they showed; parameters are given below the cell that has them."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    (place,) = [
        n for n, c in enumerate(notebook.cells) if "parameters" in c.metadata.get("tags", [])
    ]
    given = "\n".join(f"{key} = {value!r}" for key, value in GIVEN[name].items())
    fresh = f"%reset -f\nimport os\nos.chdir({str(world)!r})"
    for at, text in ((place + 1, given), (0, fresh)):
        notebook.cells.insert(at, nbformat.v4.new_code_cell(text))
    client = NotebookClient(notebook, km=kernel, timeout=300)
    try:
        client.execute()
    finally:
        client.kc.stop_channels()  # which nbclient does for a kernel of its own alone
    cells: list[Any] = notebook.cells
    return cells


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_and_shows_its_objects_as_such(
    name: str, world: Path, kernel: KernelManager
) -> None:
    for cell in executed(name, world, kernel):
        if cell.cell_type != "code":
            continue
        last = cell.source.rstrip().splitlines()[-1] if cell.source else ""
        pages = [o.data["text/html"] for o in cell.outputs if "text/html" in o.get("data", {})]
        if last.startswith(TABLES):
            assert "<table>" in pages[-1], last
        if " = fl.fit(" in cell.source and "hooks=[]" not in cell.source:
            progress, ended = pages
            assert "epoch</th>" in progress
            assert "<progress" not in progress  # of an epoch that has ended
            assert "are bit for bit as they were" in ended
        streams = [output.text for output in cell.outputs if output.output_type == "stream"]
        assert not any("frostline/" in text for text in streams), streams  # of a warning of ours


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_kept_with_small_outputs_of_a_whole_run(name: str) -> None:
    assert (FOLDER / f"{name}.ipynb").stat().st_size < MOST_BYTES
    counts = [cell.execution_count for cell in cells_of(name) if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    outputs = [output for cell in cells_of(name) for output in cell.get("outputs", ())]
    assert not [output for output in outputs if output.output_type == "error"]
    assert any("text/html" in output.get("data", {}) for output in outputs)
    assert "/tmp/" not in (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")


def test_every_notebook_is_run() -> None:
    assert sorted(NAMES) == sorted(path.stem for path in FOLDER.glob("*.ipynb"))
