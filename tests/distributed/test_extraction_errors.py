"""What stops one of several processes that extract stops all, with the same words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from extraction_world import Noise, extracted
from ranks import on_ranks

import frostline as fl
from frostline.world import world_here


def _refused(root: Path, what: str) -> str:
    second = world_here("cpu").rank == 1
    samples, options = Noise(), dict[str, Any]()
    store: Any = root / "store"
    if what == "weights":
        options["seed"] = int(second)
    elif what == "data":
        samples = Noise(20 if second else 21)
    elif what == "sample":
        samples = Noise(broken=70)
    elif what == "budget":
        store = fl.FeatureStore(root / "store", budget_bytes=100 if second else None)
    elif second:
        store = root / "file"
    try:
        extracted(samples, store, **options)
    except fl.FrostlineError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (
            "weights",
            "ConfigError: process 1 would compute other features than process 0: they "
            "differ in tensors. Give all processes the same data",
        ),
        (
            "data",
            "ConfigError: process 1 would compute other features than process 0: they "
            "differ in samples",
        ),
        ("sample", "DataError: picture 70 is torn"),
        ("budget", "StoreError: "),
        ("folder", "OutputError: cannot write features to "),
    ],
)
def test_an_error_of_one_process_is_one_of_all(tmp_path: Path, what: str, words: str) -> None:
    (tmp_path / "file").touch()
    first, second = (
        found.replace("process 0: ", "", 1).replace("process 1: ", "", 1)
        if "would compute" not in found
        else found
        for found in on_ranks(_refused, tmp_path, what)
    )
    assert first == second
    assert first.startswith(words)
