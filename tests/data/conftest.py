"""Pictures and data sets on disk for the tests of `frostline.data`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torchvision  # noqa: F401 - its import sets TORCHINDUCTOR_CACHE_DIR; here, no test is blamed
from PIL import Image

MakeImage = Callable[..., Path]


@pytest.fixture
def make_image() -> MakeImage:
    """Write a small picture whose content follows from `shade`; its folders are made."""

    def write(path: Path, shade: int = 0, size: tuple[int, int] = (12, 10)) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (shade % 256, shade // 256 % 256, 90)).save(path)
        return path

    return write


@pytest.fixture
def make_folder(tmp_path: Path, make_image: MakeImage) -> Callable[[dict[str, int]], Path]:
    """Write a folder from `{"train/ants": 6}`: so many different pictures in each folder."""

    def write(counts: dict[str, int], name: str = "set") -> Path:
        root = tmp_path / name
        shade = 0
        for folder, count in counts.items():
            (root / folder).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                shade += 1
                make_image(root / folder / f"{index}.png", shade)
        return root

    return write


@pytest.fixture(scope="session")
def photos() -> Path:
    """The folder of real ant and bee photos."""
    beside = Path(__file__).parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("FROSTLINE_DATA", beside)) / "hymenoptera"
    if not folder.is_dir():
        pytest.skip("no hymenoptera photos: neither ../shared/data nor $FROSTLINE_DATA has them")
    return folder
