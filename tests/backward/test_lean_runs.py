"""`lean=True` in `freeze` and `fit`, `--lean`: the same bits, and the model plain again."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

import frostline as fl
from frostline.backward import is_lean, saved_bytes
from small_world import call, write_net, write_pictures


class Net(nn.Module):
    """A frozen body, a trainable part low above it, and frozen layers that gradients must cross."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.middle = nn.Conv2d(8, 8, 3, padding=1)
        self.upper = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.upper(self.middle(self.body(x))).mean((2, 3)))


def samples(count: int) -> list[tuple[Tensor, int]]:
    drawn = torch.Generator().manual_seed(count)
    pictures = torch.randn(count, 3, 40, 40, generator=drawn)
    return [(picture, index % 2) for index, picture in enumerate(pictures)]


def test_a_freeze_may_lean_the_model_and_its_handle_undoes_it() -> None:
    torch.manual_seed(0)
    model = Net()
    batch = torch.randn(32, 3, 40, 40)
    with fl.frozen(model, "upper"):
        plain = saved_bytes(lambda: model(batch).sum())
    frozen = fl.freeze(model, "upper", lean=True)
    assert is_lean(model)
    assert saved_bytes(lambda: model(batch).sum()) < plain
    assert frozen.leaned is not None
    frozen.leaned.remove()
    assert not is_lean(model)


NARROW = {
    "a convolution": (lambda: [nn.Conv2d(8, 64, 3, padding=1), nn.ReLU()], (16, 8, 24, 24)),
    "layers behind what is computed again": (
        lambda: [nn.LayerNorm(64), nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)],
        (64, 32, 64),
    ),
    "a transformer": (
        lambda: [nn.TransformerEncoderLayer(64, 4, 256, batch_first=True, norm_first=True)],
        (64, 32, 64),
    ),
}


@pytest.mark.parametrize("name", NARROW)
def test_narrow_weights_stay_narrow_in_a_leaned_model(name: str) -> None:
    build, sizes = NARROW[name]
    torch.manual_seed(0)
    model = nn.Sequential(*build())
    fl.freeze(model, "all", dtype="bfloat16", leaving="nothing")
    inputs = torch.randn(sizes, requires_grad=True)

    def gradient() -> Tensor:
        model(inputs).square().sum().backward()
        found, inputs.grad = inputs.grad, None
        return found

    wide: list[StorageWeakRef] = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_pre_hook(
                lambda one, _: wide.append(StorageWeakRef(one.weight.untyped_storage()))
            )
    plain = gradient()
    with fl.lean(model, at_least_bytes=0):
        assert torch.equal(gradient(), plain)
        wide.clear()
        loss = model(inputs).square().sum()
        assert wide
        assert all(weight.expired() for weight in wide)
        loss.backward()


def test_a_leaned_model_is_not_leaned_twice() -> None:
    model = Net()
    fl.lean(model)
    assert fl.freeze(model, "upper", lean=True).leaned is None
    assert is_lean(model)


@pytest.mark.parametrize("features", ["off", "stored"])
def test_a_lean_run_trains_to_the_same_bits(
    tmp_path: Path, features: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Short runs are not worth a store otherwise.
    monkeypatch.setattr("frostline.session.pipelines.WORTH_OPERATIONS", {"cpu": 0.0})
    torch.manual_seed(0)
    plain = Net()
    fl.train_only(plain, "middle | head")
    lean = copy.deepcopy(plain)
    leaned: list[bool] = []

    class Look:
        def __getattr__(self, name: str) -> Any:
            if not name.startswith("on_"):
                raise AttributeError(name)
            return lambda *_: leaned.append(any(is_lean(m) for m in lean.modules()))

    store = "off" if features == "off" else tmp_path / "store"
    common: dict[str, Any] = {"epochs": 2, "precision": "exact", "features": store}
    fl.fit(plain, samples(64), samples(32), **common)
    run = fl.fit(lean, samples(64), samples(32), lean=True, hooks=[Look()], **common)
    for (name, one), (_, two) in zip(
        plain.state_dict().items(), lean.state_dict().items(), strict=True
    ):
        assert torch.equal(one, two), name
    assert any(leaned)
    assert not is_lean(lean)
    assert run.best.epoch


def test_the_suffix_of_a_cut_is_leaned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frostline.session.pipelines.WORTH_OPERATIONS", {"cpu": 0.0})
    seen: list[nn.Module] = []

    def watched(model: nn.Module) -> Any:
        seen.append(model)
        return fl.lean(model)

    monkeypatch.setattr("frostline.session.session.lean", watched)
    model = Net()
    fl.train_only(model, "middle | head")
    fl.fit(
        model, samples(64), samples(32), lean=True, epochs=1, precision="exact",
        features=tmp_path / "store",
    )  # fmt: skip
    assert len(seen) == 1
    assert seen[0] is not model
    assert not is_lean(seen[0])


def test_the_command_line_trains_lean_and_remembers_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    net = write_net(tmp_path)
    write_pictures(tmp_path / "photos")
    for run, flag in (("plain", []), ("lean", ["--lean"])):
        answer = call(
            "train", "photos", "--model", net, "--train", "middle | head",
            "--epochs", 2, "--out", run, *flag,
        )  # fmt: skip
        assert answer.status == 0, answer.err
    assert "lean = true" in Path("lean/run.toml").read_text()
    deltas = [sorted(Path(run).rglob("*.safetensors")) for run in ("plain", "lean")]
    assert deltas[0]
    from safetensors.torch import load_file

    for one, two in zip(*deltas, strict=True):
        first, second = load_file(one), load_file(two)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
