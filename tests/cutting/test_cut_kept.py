"""A line that was kept on disk is that of the model, and a changed thing does not slip past."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import frostline as fl
from frostline._files import json_sum
from frostline.cutting import Cut, KeptLines, Origin, keep_cut, kept_cut, tracing

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.scale = 2.0

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu().mean((2, 3)) * self.scale


def net() -> nn.Sequential:
    torch.manual_seed(3)
    model = nn.Sequential(Backbone(), nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
    model.append(nn.Linear(8, 2))
    fl.train_only(model, "4 | 2 | 1")
    return model


def lines(folder: Path, text: str = "net", *, is_own: bool = False) -> KeptLines:
    return KeptLines(folder, Origin(text, is_own))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the line of `net`."""
    model, found = net(), lines(tmp_path_factory.mktemp("drawn"))
    fl.cut(model, X)
    keep_cut(model, X, found, {"seconds": 0.5})
    return found.folder


@pytest.fixture
def kept(drawn: Path, tmp_path: Path) -> KeptLines:
    """With the line of `net` in it."""
    return lines(shutil.copytree(drawn, tmp_path / "lines"))


def found(model: nn.Module, kept: KeptLines, example: Any = X) -> Cut | None:
    """The cut along a kept line; that nothing is followed for it is made sure of."""
    with mock.patch.object(tracing, "_export", side_effect=AssertionError("followed")):
        answer = kept_cut(model, example, kept)
    return None if answer is None else answer[0]


def same(made: Cut, model: nn.Module, example: Any) -> None:
    """The halves give the model's bits in both modes, gradients and buffers included."""
    inputs = example if isinstance(example, tuple) else (example,)
    for training in (False, True):
        model.train(training)
        states = []
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        for forward in (model, lambda *given: made.suffix(*made.prefix(*given))):
            for name, buffer in model.named_buffers():
                buffer.copy_(before[name])
            model.zero_grad()
            torch.manual_seed(5)
            output = forward(*inputs)
            output.square().sum().backward()
            gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
            states.append([output, *gradients, *(b.clone() for b in model.buffers())])
        assert all(map(torch.equal, *states))


def test_a_kept_line_follows_nothing_and_gives_the_bits_of_the_model(kept: KeptLines) -> None:
    model = net()
    answer = kept_cut(model, X, kept)
    assert answer is not None
    made, facts = answer
    assert facts == {"seconds": 0.5}
    drawn = fl.cut(net(), X)
    assert made.key == drawn.key
    assert str(made) == str(drawn)
    same(made, model, X)


def test_a_kept_line_runs_no_frozen_part(kept: KeptLines) -> None:
    model, ran = net(), list[str]()

    class Noting(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            ran.append(str(func))
            return func(*args, **(kwargs or {}))

    with Noting():
        assert found(model, kept) is not None
        assert any("addmm" in name for name in ran)  # the head, on made-up numbers
        assert not any("convolution" in name for name in ran)


def test_a_new_head_is_trained_behind_the_kept_line(kept: KeptLines) -> None:
    model = net()
    with torch.no_grad():
        model[4].weight.add_(1.0)
    made = found(model, kept)
    assert made is not None
    same(made, model, X)


class Other(Backbone):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


def other_backbone(model: nn.Sequential) -> None:
    swapped = Other()
    swapped.load_state_dict(model[0].state_dict())
    model[0] = swapped
    fl.train_only(model, "4 | 2 | 1")


def own_forward(model: nn.Sequential) -> None:
    model[0].forward = lambda x: Backbone.forward(model[0], x) + 1


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model[0].conv.weight.data.add_(1e-6),
        lambda model: model[0].norm.running_var.add_(1e-6),
        lambda model: setattr(model[0], "scale", 3.0),
        lambda model: setattr(model[3], "p", 0.25),
        lambda model: model[0].register_forward_hook(lambda *given: given[2] + 1),
        lambda model: model.__setitem__(4, nn.Linear(8, 2, bias=False)),
        lambda model: model.append(nn.ReLU()),
        lambda model: fl.train_only(model, "4"),
        lambda model: model.double(),
        other_backbone,
        own_forward,
    ],
    ids=[
        *("frozen weight", "frozen buffer", "attribute", "dropout", "hook", "head without bias"),
        *("module more", "less trains", "double", "another class", "forward of its own"),
    ],
)
def test_what_has_changed_does_not_slip_past(
    kept: KeptLines, change: Callable[[nn.Sequential], Any]
) -> None:
    model = net()
    change(model)
    example = X.to(model[4].weight.dtype)
    assert found(model, kept, example) is None
    same(fl.cut(model, example), model, example)


@pytest.mark.parametrize(
    "asked",
    [
        lambda folder: found(net(), lines(folder, "other")),
        lambda folder: found(net(), lines(folder), torch.randn(4, 3, 9, 9)),
        lambda folder: found(net(), lines(folder), {"input": X}),
    ],
    ids=["another maker", "another size", "by name"],
)
def test_a_line_of_another_origin_or_input_is_none(
    kept: KeptLines, asked: Callable[[Path], object]
) -> None:
    assert found(net(), kept) is not None
    assert asked(kept.folder) is None


class Reading(nn.Module):
    """Hangs on what no one sees."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * _HIDDEN["factor"]


_HIDDEN = {"factor": 1.0}


def test_a_model_of_ones_own_is_tried_on_a_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = torch.randn(4, 4)

    def own() -> nn.Sequential:
        torch.manual_seed(0)
        model = nn.Sequential(Reading(), nn.ReLU(), nn.Linear(4, 2))
        fl.train_only(model, "2")
        return model

    model, kept = own(), lines(tmp_path, is_own=True)
    fl.cut(model, example)
    keep_cut(model, example, kept, {})
    assert found(own(), kept, example) is not None
    monkeypatch.setitem(_HIDDEN, "factor", 2.0)
    assert found(own(), kept, example) is None


def files(kept: KeptLines) -> list[Path]:
    return list(kept.folder.iterdir())


def test_a_damaged_file_is_none(kept: KeptLines) -> None:
    (path,) = files(kept)
    content = bytearray(path.read_bytes())
    for place in (20, len(content) // 2, len(content) - 20):
        damaged = bytearray(content)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        assert found(net(), kept) is None
    path.write_bytes(content[: len(content) // 2])
    assert found(net(), kept) is None
    path.write_bytes(content)
    assert found(net(), kept) is not None


def rewritten(kept: KeptLines, change: Callable[[Any], object]) -> None:
    """Change what a file says, with the right sum, as someone may who means harm."""
    (path,) = files(kept)
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    line = json.loads(header["line"])
    change(line)
    header = {**header, "line": json.dumps(line)}
    del header["header"]
    save_file(tensors, path, metadata={**header, "header": json_sum(header)})


def rows(line: Any) -> Any:
    return line["graphs"]["eval"]["rows"]


def call(line: Any) -> Any:
    return next(row for row in rows(line) if row[0] == "call_function")


@pytest.mark.parametrize(
    "change",
    [
        lambda line: call(line).__setitem__(2, "os.system"),
        lambda line: call(line).__setitem__(2, "=os.system"),
        lambda line: call(line).__setitem__(2, "torch.ops.load_library"),
        lambda line: call(line).__setitem__(1, "x = __import__('os')"),
        lambda line: rows(line)[0].__setitem__(2, 'a"); __import__("os")#'),
        lambda line: call(line).__setitem__(0, "call_module"),
        lambda line: call(line).__setitem__(3, {"torch": "load"}),
        lambda line: line.__setitem__("outputs", [{"named": ["os.system", []]}] * 2),
        lambda line: line.__setitem__("refusals", [["exit", "0"], None]),
    ],
    ids=[
        *("function", "known function", "library", "name", "input", "module", "constant"),
        *("output", "error"),
    ],
)
def test_nothing_in_a_file_can_run_code(kept: KeptLines, change: Callable[[Any], object]) -> None:
    rewritten(kept, lambda _: None)
    assert found(net(), kept) is not None
    rewritten(kept, change)
    assert found(net(), kept) is None


def test_another_graph_with_the_right_names_is_found_out(kept: KeptLines) -> None:
    def other_slope(line: Any) -> None:
        norm = next(row for row in rows(line) if "batch_norm" in row[2])
        norm[3]["tuple"][-2] = 0.5  # epsilon

    rewritten(kept, other_slope)
    assert found(net(), kept) is None


def test_a_few_lines_are_kept_and_those_used_last(kept: KeptLines) -> None:
    model = net()
    fl.cut(model, X)
    with mock.patch("frostline.cutting.kept._MOST", 3):
        for number in range(5):
            keep_cut(model, X, lines(kept.folder, str(number)), {})
    assert len(files(kept)) == 3
    assert found(net(), lines(kept.folder, "4")) is not None
    assert found(net(), lines(kept.folder, "0")) is None


def test_where_nothing_can_be_written_nothing_is_kept(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    model, kept = net(), lines(tmp_path / "file")
    fl.cut(model, X)
    keep_cut(model, X, kept, {})
    assert found(net(), kept) is None


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        doubled: Tensor = torch.ops.frostline_test.twice(x)
        return doubled


def test_a_line_with_an_operation_of_ones_own_is_not_kept(tmp_path: Path) -> None:
    library = torch.library.Library("frostline_test", "FRAGMENT")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: x * 2, "CompositeExplicitAutograd")
    model, example = nn.Sequential(nn.Linear(4, 4), Twice(), nn.Linear(4, 2)), torch.randn(3, 4)
    fl.train_only(model, "2")
    fl.cut(model, example)
    keep_cut(model, example, lines(tmp_path / "lines"), {})
    assert not (tmp_path / "lines").exists()
