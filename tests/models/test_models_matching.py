"""Where in a file a model's names stand: behind one prefix that fits, found and never guessed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from frostline.errors import WeightsError
from frostline.models import WeightsReport, load_model, load_weights

Net = Callable[..., nn.Module]
Tensors = dict[str, Tensor]
JUNK = torch.ones(1)


def behind(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: value for name, value in tensors.items()}


def loads(net: nn.Module, wanted: Tensors, content: object, folder: Path, **how: Any) -> str:
    """Load a file of `content` into `net`, see that all of `wanted` came, and give the line."""
    torch.save(content, folder / "w.pth")
    report: WeightsReport = load_weights(net, folder / "w.pth", **how)
    state = net.state_dict()
    gone = tuple(f"{path}." for path in how.get("replaced", ()))
    kept = {name: value for name, value in wanted.items() if not name.startswith(gone)}
    assert all(torch.equal(state[name], value) for name, value in kept.items())
    return str(report)


@pytest.mark.parametrize(
    "prefix",
    ["model.", "net.", "backbone.", "encoder_q.", "module.backbone.", "_orig_mod.module.", "a.b."],
)
def test_names_behind_one_prefix_are_found_and_it_is_said(
    tiny_net: Net, tmp_path: Path, prefix: str
) -> None:
    state = tiny_net().state_dict()
    line = loads(tiny_net(), state, {"state_dict": behind(prefix, state)}, tmp_path)
    assert line == f"w.pth: 9 tensors loaded from state_dict.{prefix[:-1]}"


def test_a_part_of_the_network_that_was_wrapped_is_found(tmp_path: Path) -> None:
    def net() -> nn.Module:
        return nn.ModuleDict({"features": nn.Linear(2, 2), "classifier": nn.Linear(2, 3)})

    source = net()
    state = source.state_dict()
    source["features"] = nn.DataParallel(source["features"])  # type: ignore[operator]
    assert "features.module.weight" in source.state_dict()
    line = loads(net(), state, {"state_dict": source.state_dict()}, tmp_path)
    assert line == "w.pth: 4 tensors loaded from state_dict"


def test_an_averaged_model_s_own_count_is_left(tiny_net: Net, tmp_path: Path) -> None:
    average = torch.optim.swa_utils.AveragedModel(tiny_net())
    line = loads(tiny_net(), average.module.state_dict(), average.state_dict(), tmp_path)
    assert line.endswith("9 tensors loaded from module; beside them in the file: n_averaged")


def test_old_names_are_read_behind_a_prefix_too(tmp_path: Path) -> None:
    from torchvision.models import DenseNet

    source, target = (DenseNet(4, (2, 2), 8, num_classes=3) for _ in range(2))
    state = source.state_dict()
    old = {f"module.{n.replace('norm1.', 'norm.1.')}": value for n, value in state.items()}
    assert loads(target, state, old, tmp_path).endswith("loaded from module")


def test_momentum_contrast_gives_its_encoder(tiny_net: Net, tmp_path: Path) -> None:
    query, key = tiny_net().state_dict(), tiny_net().state_dict()
    for state in (query, key):
        del state["fc.weight"], state["fc.bias"]
    content = {
        "epoch": 200,
        "state_dict": {
            **behind("module.encoder_k.", key),
            **behind("module.encoder_q.", query),
            "module.encoder_q.fc.2.weight": JUNK,
            "module.queue": JUNK,
            "module.queue_ptr": JUNK,
        },
        "optimizer": {"state": {0: {"momentum_buffer": JUNK}}},
    }
    line = loads(tiny_net(), query, content, tmp_path, replaced=["fc"])
    assert line.startswith("w.pth: 7 tensors loaded from state_dict.module.encoder_q; no weights")
    assert line.endswith("beside them in the file: encoder_k, queue, queue_ptr")
    line = loads(tiny_net(), key, content, tmp_path, replaced=["fc"], within="encoder_k")
    assert "from state_dict.module.encoder_k" in line


@pytest.mark.parametrize(
    ("trained", "average"),
    [
        ("state_dict.", "state_dict_ema."),
        ("model.", "model_ema.module."),
        ("net.", "ema."),
        ("backbone.", "momentum_backbone."),
        ("backbone.", "backbone_momentum."),
        ("module.base_encoder.", "module.momentum_encoder."),
        ("online_encoder.net.", "target_encoder.net."),
    ],
)
def test_the_trained_network_is_taken_and_not_its_running_average(
    tiny_net: Net, tmp_path: Path, trained: str, average: str
) -> None:
    state, other = tiny_net().state_dict(), tiny_net().state_dict()
    content = {**behind(average, other), **behind(trained, state)}
    assert f"loaded from {trained[:-1]}; beside" in loads(tiny_net(), state, content, tmp_path)


def test_an_average_alone_is_taken(tiny_net: Net, tmp_path: Path) -> None:
    state = tiny_net().state_dict()
    assert "from ema" in loads(tiny_net(), state, {"ema": state}, tmp_path)


def test_two_networks_that_fit_are_both_named_and_nothing_is_loaded(
    tiny_net: Net, tmp_path: Path
) -> None:
    student, teacher = tiny_net().state_dict(), tiny_net().state_dict()
    content = {"student": behind("module.", student), "teacher": teacher}
    net = tiny_net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    told = (
        r"w\.pth holds 2 networks that fit, behind teacher and student\.module\. "
        r"Say which, as in weights='w\.pth:teacher'\.$"
    )
    with pytest.raises(WeightsError, match=told):
        loads(net, teacher, content, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert loads(net, teacher, content, tmp_path, within="teacher").endswith("from teacher")
    assert loads(net, student, content, tmp_path, within="student").endswith("student.module")
    with pytest.raises(WeightsError, match=r"holds nothing behind 'teach'. It has student, teach"):
        loads(net, teacher, content, tmp_path, within="teach")


def test_two_copies_of_one_network_are_one(tiny_net: Net, tmp_path: Path) -> None:
    state = tiny_net().state_dict()
    content = {**behind("net.", state), **behind("online_encoder.net.", state)}
    assert "loaded from net;" in loads(tiny_net(), state, content, tmp_path)


@pytest.mark.parametrize("change", [Tensor.half, lambda value: value.to("meta")])
def test_a_copy_of_which_the_numbers_differ_or_lack_is_another_network(
    tiny_net: Net, tmp_path: Path, change: Callable[[Tensor], Tensor]
) -> None:
    state = tiny_net().state_dict()
    content = {"a": state, "b": {name: change(value) for name, value in state.items()}}
    with pytest.raises(WeightsError, match="2 networks that fit, behind a and b"):
        loads(tiny_net(), state, content, tmp_path)


def test_what_methods_train_beside_the_network_is_left(tiny_net: Net, tmp_path: Path) -> None:
    state = tiny_net().state_dict()
    beside = {
        "projection_head.0.weight": JUNK,
        "prototypes.weight": JUNK,
        "decoder_pred.bias": JUNK,
    }
    line = loads(tiny_net(), state, behind("module.", {**state, **beside}), tmp_path)
    assert line.endswith("beside them in the file: projection_head, prototypes, decoder_pred")


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_a_larger_network_that_has_all_the_names_is_refused(
    tiny_net: Net, tmp_path: Path, prefix: str
) -> None:
    state = {**tiny_net().state_dict(), "layer5.weight": JUNK}
    with pytest.raises(WeightsError, match=r"it has, but the model has not, 1: layer5\.weight"):
        loads(tiny_net(), state, behind(prefix, state), tmp_path)


def test_a_misfit_behind_a_prefix_is_named_with_it(tiny_net: Net, tmp_path: Path) -> None:
    state = behind("net.", tiny_net().state_dict())
    del state["net.fc.bias"]
    told = r"TinyNet: of its names, those behind net\. are nearest; it lacks 1: fc\.bias\. Use"
    with pytest.raises(WeightsError, match=told):
        loads(tiny_net(), {}, state, tmp_path)


def test_one_file_of_several_is_refused_with_their_index(tiny_net: Net, tmp_path: Path) -> None:
    save_file({"fc.bias": torch.ones(3)}, tmp_path / "m-00001-of-00002.safetensors")
    (tmp_path / "m.safetensors.index.json").touch()
    with pytest.raises(
        WeightsError, match=r"one file of several: give m\.safetensors\.index\.json"
    ):
        load_weights(tiny_net(), tmp_path / "m-00001-of-00002.safetensors")


def test_a_place_in_a_file_is_named_with_it(tmp_path: Path) -> None:
    nets = [load_model("squeezenet1_1", weights="none", classes=2, seed=s).model for s in (1, 2)]
    student, teacher = (net.state_dict() for net in nets)
    torch.save({"student": student, "teacher": teacher}, tmp_path / "w.pth")
    loaded = load_model("squeezenet1_1", weights=f"{tmp_path}/w.pth:student", classes=2, on="keep")
    state = loaded.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in student.items())
