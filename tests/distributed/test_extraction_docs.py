"""docs/processes.md: what it shows of features runs, alone and in two processes."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stdout
from pathlib import Path

from extraction_world import Noise, pictures_net
from ranks import on_ranks

import frostline as fl

PAGE = (Path(__file__).parents[2] / "docs" / "processes.md").read_text(encoding="utf-8")


def _shown(folder: Path) -> str:
    section = PAGE.partition("\n## Features\n")[2].partition("\n## ")[0]
    (code,) = re.findall(r"^```python\n(.*?)^```$", section, flags=re.DOTALL | re.MULTILINE)
    data = Noise(48)
    names = {"fl": fl, "model": pictures_net(), "data": data}
    names["inputs"] = data.collate([data.load(row) for row in range(4)])
    with redirect_stdout(io.StringIO()) as said:
        exec(code.replace('"features"', repr(str(folder))), names)
    return said.getvalue()


def test_what_the_page_shows_of_features_runs_in_one_process_and_in_two(tmp_path: Path) -> None:
    assert _shown(tmp_path / "alone") == "(48,)\n"
    first, second = on_ranks(_shown, tmp_path / "shared")
    assert first == second
    assert sum(map(int, re.findall(r"\d+", first))) == 48
