"""The examples run as they stand."""

from __future__ import annotations

import re
import runpy
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from small_world import call, write_net, write_pictures

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_freezing_alexnet_trains_a_head_and_proves_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = write_pictures(tmp_path, train=4, val=2)
    script = str(EXAMPLES / "01_freeze_alexnet.py")
    monkeypatch.setattr(sys, "argv", [script, str(photos), "--weights", "none", "--epochs", "1"])
    runpy.run_path(script, run_name="__main__")
    out = capsys.readouterr().out
    assert "epoch 1: training loss" in out
    assert "16 frozen tensors (244 MB) are bit for bit as they were" in out
    trainable = re.findall(r"^(\S+) +trainable$", out, flags=re.MULTILINE)
    assert trainable == ["head.0.weight", "head.0.bias", "head.2.weight", "head.2.bias"]


def test_a_task_of_ones_own_learns_and_proves_what_was_frozen(
    capsys: pytest.CaptureFixture[str],
) -> None:
    runpy.run_path(str(EXAMPLES / "02_own_task.py"), run_name="__main__")
    first, *_, best, proof = capsys.readouterr().out.splitlines()
    errors = [float(line.split("mean error ")[1].split(",")[0]) for line in (first, best)]
    assert errors[1] < errors[0] / 10
    assert re.fullmatch(r"2 frozen tensors \(.*\) are bit for bit as they were", proof)


def test_data_of_ones_own_go_through_the_frozen_part_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = np.random.default_rng(0)
    classes = np.arange(60) // 2 % 2
    rows = draw.normal(size=(60, 8)).astype(np.float32) + 2 * classes[:, None].astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    np.save(tmp_path / "classes.npy", classes)
    (tmp_path / "names.txt").write_text("\n".join(f"probe {n}" for n in range(60)))
    script = str(EXAMPLES / "03_own_data.py")
    monkeypatch.setattr(sys, "argv", [script, str(tmp_path)])
    for computed in (30, 0):
        runpy.run_path(script, run_name="__main__")
        out = capsys.readouterr().out
        assert f"{computed} rows computed" in out
        assert "best epoch" in out
    assert "all in the store, no forward pass of the frozen part" in out


def test_a_loop_of_ones_own_trains_in_phases_and_proves_each(
    capsys: pytest.CaptureFixture[str],
) -> None:
    runpy.run_path(str(EXAMPLES / "04_own_loop.py"), run_name="__main__")
    head, proof, last, other = capsys.readouterr().out.splitlines()
    assert (head, last) == ("head: 250 features computed", "last stage: 0 features computed")
    assert re.fullmatch(r"14 frozen tensors \(.*\) are bit for bit as they were", proof)
    assert re.fullmatch(r"7 frozen tensors \(.*\) are bit for bit as they were", other)


def test_two_threads_share_an_epoch_as_two_processes_would(
    capsys: pytest.CaptureFixture[str],
) -> None:
    runpy.run_path(str(EXAMPLES / "05_world_of_two.py"), run_name="__main__")
    out = capsys.readouterr().out
    assert out == "of 11 samples this process had 7; 4 right in all\neach once: True\n"


@pytest.mark.filterwarnings("ignore:.torch.jit.load. is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("form", "model"),
    [
        ("safetensors", "shufflenet_v2_x0_5"),
        ("pt2", "small_net.py:net"),
        ("torchscript", "small_net.py:net"),
        ("onnx", "small_net.py:net"),
    ],
)
def test_an_exported_file_predicts_without_frostline_as_the_run_does(
    form: str,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    photos, run, file = (
        write_pictures(tmp_path / "photos", train=2, val=2),
        tmp_path / "run",
        f"model.{form}",
    )
    write_net(tmp_path)
    monkeypatch.chdir(tmp_path)
    options = ["--weights", "none", "--epochs", 1, "--precision", "exact", "--device", "cpu"]
    assert call("train", photos, "--model", model, *options, "--out", run).status == 0
    assert call("export", run, "--to", form, "--out", file).status == 0
    pictures = sorted((photos / "val").rglob("*.png"))
    expected = call("predict", run, *pictures, "--json").json
    monkeypatch.setattr(sys, "argv", ["", file, *map(str, pictures)])
    monkeypatch.setitem(sys.modules, "frostline", None)  # importing it is an error
    runpy.run_path(str(EXAMPLES / "06_exported_files.py"), run_name="__main__")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [(file, name) for file, name, _ in lines] == [(p["file"], p["class"]) for p in expected]
    shares = [p["probability"] for p in expected]
    assert [float(share) for *_, share in lines] == pytest.approx(shares, abs=6e-4)


# Of Lightning 2.6 with torch 2.15, and its remark on loaders without workers.
@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.:FutureWarning")
@pytest.mark.filterwarnings("ignore:The .*_dataloader' does not have many workers")
def test_a_lightning_module_is_trained_by_a_plan_and_proved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # where Lightning puts checkpoints
    runpy.run_path(str(EXAMPLES / "08_lightning.py"), run_name="__main__")
    *_, head, stage = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"head \(3 epochs\): 14 frozen tensors .* bit for bit .*", head)
    assert re.fullmatch(r"last stage \(2 epochs\): 7 frozen tensors .* bit for bit .*", stage)
    assert len(list(tmp_path.rglob("*.ckpt"))) == len(list(tmp_path.rglob("*.delta.safetensors")))


def test_a_trainer_goes_by_a_plan_and_then_on_features(
    capsys: pytest.CaptureFixture[str],
) -> None:
    runpy.run_path(str(EXAMPLES / "09_trainer.py"), run_name="__main__")
    lines = [line for line in capsys.readouterr().out.splitlines() if "bit for bit" in line]
    head, block, stored = lines
    assert re.fullmatch(r"head \(3 epochs\): 38 frozen tensors .* bit for bit .*", head)
    assert re.fullmatch(r"last block \(2 epochs\): 22 frozen tensors .* bit for bit .*", block)
    assert stored.startswith("on 200 stored rows: 38 frozen tensors")


def test_every_example_is_run_by_a_test() -> None:
    text = Path(__file__).read_text()
    assert all(path.name in text for path in EXAMPLES.glob("*.py"))


def _write_tone(path: Path, *, hertz: float, rate: int = 16000, width: int = 2) -> Path:
    """Half a second of one tone, in whole numbers of `width` bytes."""
    wave_form = np.sin(2 * np.pi * hertz * np.arange(rate // 2) / rate)
    numbers = np.round(wave_form * (2 ** (8 * width - 1) - 1)).astype("<i4")
    raw = numbers.view(np.uint8).reshape(-1, 4)[:, :width]
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, width, rate, 0, "NONE", ""))
        file.writeframes((raw ^ 128 if width == 1 else raw).tobytes())
    return path


def test_a_sound_has_the_same_picture_in_any_width_and_nearly_so_at_any_rate(
    tmp_path: Path,
) -> None:
    made = runpy.run_path(str(EXAMPLES / "07_sounds.py"))
    files = [_write_tone(tmp_path / f"{w}.wav", hertz=440, width=w) for w in (1, 2, 3, 4)]
    sounds = [made["read_wav"](file)[0] for file in files]
    assert max(float((a - sounds[-1]).abs().max()) for a in sounds) < 1 / 64  # two steps of 8 bits
    brightest = {
        (hertz, rate): int(made["as_picture"](*made["read_wav"](file))[0].sum(dim=1).argmax())
        for hertz in (440, 880)
        for rate in (16000, 44100)
        for file in [_write_tone(tmp_path / "tone.wav", hertz=hertz, rate=rate)]
    }
    assert abs(brightest[440, 16000] - brightest[440, 44100]) <= 2
    assert brightest[880, 16000] < brightest[440, 16000] - 10  # the higher pitch further up


def test_sounds_go_through_a_frozen_network_for_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Small(nn.Module):
        last_channel = 4

        def __init__(self, **_: object) -> None:
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
            self.classifier = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.classifier(self.features(x).flatten(1))

    for n, part in enumerate(("train", "train", "val")):
        for name, hertz in (("low", 300), ("high", 3000)):
            _write_tone(tmp_path / part / name / f"{n}.wav", hertz=hertz + 50 * n)
    save_file(Small().state_dict(), tmp_path / "weights.safetensors")
    monkeypatch.setattr("torchvision.models.mobilenet_v2", Small)
    script = str(EXAMPLES / "07_sounds.py")
    monkeypatch.setattr(sys, "argv", [script, str(tmp_path), str(tmp_path / "weights.safetensors")])
    runpy.run_path(script, run_name="__main__")
    out = capsys.readouterr().out
    assert "2 frozen tensors" in out
    assert "6 rows computed" in out
    assert re.search(r"^high +\d", out, flags=re.MULTILINE)


def test_a_hook_logs_to_mlflow_and_another_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    script = str(EXAMPLES / "10_mlflow.py")
    monkeypatch.setattr(sys, "argv", [script, str(tmp_path)])
    runpy.run_path(script, run_name="__main__")
    length, proof, logged = capsys.readouterr().out.splitlines()
    epochs = int(re.match(r"(\d+) epochs of 50; stopped: accuracy 0.8", length)[1])  # type: ignore[index]  # else it fails
    assert epochs < 50
    assert proof.startswith("2 frozen tensors")
    assert logged.count("0.") == epochs
    assert list(tmp_path.rglob("val/accuracy"))
