"""docs/adapters.md: its Python runs, block after block, and its table names codes there are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from peft_world import ASKS_BY_AN_OLD_NAME

from frostline.checkup import CODES

PAGE = (Path(__file__).parents[2] / "docs" / "adapters.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)


@ASKS_BY_AN_OLD_NAME
def test_python_in_the_page_runs_and_shows_what_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("torchao")
    names: dict[str, Any] = {"__name__": "adapters"}
    for code in BLOCKS:
        exec(compile(code, "adapters.md", "exec"), names)
    shown = capsys.readouterr().out
    assert "encoder.layer.0" in names["run"].says[0]
    assert "Nothing found" in shown
    assert (tmp_path / "delta.safetensors").stat().st_size < 30_000
    assert names["kept"].verify().tensors == 4


def test_codes_that_the_page_names_are_those_of_the_doctor() -> None:
    named = re.findall(r"`([a-z]+(?:-[a-z]+)+)`", PAGE)
    assert {"merged-adapter", "idle-adapter", "adapter-dropout"} <= set(named) <= set(CODES)
