"""Fitting a file of weights to a model: all of it or none, and every misfit named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from frostline.errors import ModelError, WeightsError
from frostline.models import WeightsReport, build, load_model, load_weights
from frostline.models.spec import ModelSpec

Net = Callable[..., nn.Module]


def saved(tensors: dict[str, Tensor], path: Path) -> Path:
    torch.save(tensors, path)
    return path


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


def test_loaded_tensors_equal_the_file_s(tiny_net: Net, tmp_path: Path) -> None:
    source, target = tiny_net(), tiny_net()
    report = load_weights(target, saved(source.state_dict(), tmp_path / "w.pth"))
    assert same(source.state_dict(), target.state_dict())
    assert (report.loaded, report.missing, report.ignored) == (len(source.state_dict()), (), ())


def test_parameters_stay_the_same_objects_with_their_flags(tiny_net: Net, tmp_path: Path) -> None:
    model = tiny_net()
    model.get_parameter("conv.weight").requires_grad_(False)
    before = {name: id(value) for name, value in model.named_parameters()}
    load_weights(model, saved(tiny_net().state_dict(), tmp_path / "w.pth"))
    assert before == {name: id(value) for name, value in model.named_parameters()}
    assert not model.get_parameter("conv.weight").requires_grad


def test_the_model_keeps_its_own_dtype(tiny_net: Net, tmp_path: Path) -> None:
    model = tiny_net().to(torch.bfloat16)
    load_weights(model, saved(tiny_net().state_dict(), tmp_path / "w.pth"))
    assert model.get_parameter("fc.weight").dtype == torch.bfloat16


@pytest.mark.parametrize("fault", ["missing", "unknown", "shape", "nan"])
def test_a_file_that_does_not_fit_leaves_the_model_untouched(
    tiny_net: Net, tmp_path: Path, fault: str
) -> None:
    state = snapshot(tiny_net())
    if fault == "missing":
        del state["fc.bias"]
    elif fault == "unknown":
        state["fc.scale"] = torch.ones(1)
    elif fault == "shape":
        state["fc.bias"] = torch.ones(7)
    else:
        state["fc.bias"][0] = float("nan")
    model = tiny_net()
    before = snapshot(model)
    with pytest.raises(WeightsError):
        load_weights(model, saved(state, tmp_path / "w.pth"))
    assert same(before, model.state_dict())


def test_missing_unknown_and_misshapen_tensors_are_all_named(tiny_net: Net, tmp_path: Path) -> None:
    state = snapshot(tiny_net())
    state["fc.wieght"] = state.pop("fc.weight")
    state["conv.bias"] = torch.ones(9)
    with pytest.raises(
        WeightsError,
        match=r"w\.pth does not fit TinyNet: it lacks 1: fc\.weight; it has, but the model has "
        r"not, 1: fc\.wieght \(nearest: fc\.weight\); of another shape are 1: conv\.bias is "
        r"\(9,\) in the file and \(4,\) here\. Use other weights, made for this network; if only",
    ):
        load_weights(tiny_net(), saved(state, tmp_path / "w.pth"))


def test_of_many_misfits_five_are_named_and_the_rest_counted(tmp_path: Path) -> None:
    model = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(12)))
    with pytest.raises(WeightsError, match=r"it lacks 12: 0\.weight, .*, 4\.weight and 7 more;"):
        load_weights(model, saved({"x": torch.ones(1)}, tmp_path / "w.pth"))


def test_nan_in_a_parameter_is_refused_by_name(tiny_net: Net, tmp_path: Path) -> None:
    state = snapshot(tiny_net())
    state["fc.weight"][0, 0] = float("nan")
    with pytest.raises(WeightsError, match=r"holds NaN in fc\.weight: .* Give another checkpoint"):
        load_weights(tiny_net(), saved(state, tmp_path / "w.pth"))


def test_what_is_missing_of_a_replaced_classifier_is_reported(
    tiny_net: Net, tmp_path: Path
) -> None:
    state = snapshot(tiny_net())
    del state["fc.weight"], state["fc.bias"]
    report = load_weights(tiny_net(), saved(state, tmp_path / "w.pth"), replaced=["fc"])
    assert report.missing == ("fc.weight", "fc.bias")
    assert str(report) == "w.pth: 7 tensors loaded; no weights for fc (it is replaced)"


def test_a_replaced_classifier_of_another_width_is_left_in_the_file(
    tiny_net: Net, tmp_path: Path
) -> None:
    path = saved(tiny_net(classes=9).state_dict(), tmp_path / "w.pth")
    report = load_weights(tiny_net(), path, replaced=["fc"])
    assert report.ignored == ("fc.weight", "fc.bias")
    assert "not used of the file: fc (it is replaced)" in str(report)


def test_a_path_that_only_begins_like_the_replaced_one_is_not_excused(tmp_path: Path) -> None:
    model = nn.ModuleDict({"fc": nn.Linear(1, 1), "fc2": nn.Linear(1, 1)})
    with pytest.raises(WeightsError, match=r"it lacks 2: fc2\.weight, fc2\.bias\. .*network\.$"):
        load_weights(model, saved({"fc.bias": torch.ones(1)}, tmp_path / "w.pth"), replaced=["fc"])


def test_old_files_without_batch_counters_load(tiny_net: Net, tmp_path: Path) -> None:
    state = snapshot(tiny_net())
    del state["bn.num_batches_tracked"]
    report = load_weights(tiny_net(), saved(state, tmp_path / "w.pth"))
    assert report.missing == ("bn.num_batches_tracked",)
    assert "1 batch counters start at their present value" in str(report)


def test_one_name_of_a_tied_tensor_is_enough(tmp_path: Path) -> None:
    model = nn.ModuleDict(
        {"embed": nn.Linear(2, 2, bias=False), "out": nn.Linear(2, 2, bias=False)}
    )
    model["out"].weight = model["embed"].weight
    save_file({"embed.weight": torch.full((2, 2), 5.0)}, tmp_path / "w.safetensors")
    load_weights(model, tmp_path / "w.safetensors")
    assert torch.equal(model.get_parameter("out.weight"), torch.full((2, 2), 5.0))


def test_a_lazy_model_is_refused_with_the_cure(tmp_path: Path) -> None:
    path = saved({"0.weight": torch.ones(1)}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"lazy layers without shapes yet \(0\.weight\). Run it"):
        load_weights(nn.Sequential(nn.LazyLinear(2)), path)


def test_the_digest_follows_the_content_alone(tiny_net: Net, tmp_path: Path) -> None:
    state = tiny_net().state_dict()
    save_file(state, tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes())
    save_file(tiny_net().state_dict(), tmp_path / "c.safetensors")
    first, copy, other = (
        load_weights(tiny_net(), tmp_path / f"{name}.safetensors").digest for name in "abc"
    )
    assert first == copy != other
    assert len(first) == 32


def test_a_report_without_weights_says_so() -> None:
    assert str(WeightsReport.none()) == "no weights loaded: the values are random"


def test_names_of_old_vision_transformers_are_read_as_today_s(tmp_path: Path) -> None:
    from torchvision.models import VisionTransformer

    def vit() -> nn.Module:
        net: nn.Module = VisionTransformer(32, 16, 2, 2, 8, 16, num_classes=3)
        return net

    source, target = vit(), vit()
    old = {
        name.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): value
        for name, value in source.state_dict().items()
    }
    assert old.keys() != source.state_dict().keys()
    load_weights(target, saved(old, tmp_path / "w.pth"))
    assert same(source.state_dict(), target.state_dict())


def test_names_of_old_densenets_are_read_as_today_s(tmp_path: Path) -> None:
    from torchvision.models import DenseNet

    source, target = (DenseNet(4, (2, 2), 8, num_classes=3) for _ in range(2))
    old = {
        name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): value
        for name, value in source.state_dict().items()
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    load_weights(target, saved(old, tmp_path / "w.pth"))
    assert same(source.state_dict(), target.state_dict())


def test_real_squeezenet_weights_load_strictly(weights_folder: Path) -> None:
    path = weights_folder / "squeezenet1_1.pth"
    built = build(ModelSpec.parse("squeezenet1_1"), weights=str(path))
    state = torch.load(path, weights_only=True)
    assert same(state, built.model.state_dict())
    assert str(built.weights) == "squeezenet1_1.pth: 52 tensors loaded"


def test_real_features_without_classifier_are_refused_unless_it_is_replaced(
    weights_folder: Path,
) -> None:
    weights = str(weights_folder / "mobilenet_v2.features.safetensors")
    for on in ("logits", "keep"):
        with pytest.raises(
            WeightsError, match=r"lacks 2: classifier\.1\.weight, classifier\.1\.bias.*on='class"
        ):
            load_model("mobilenet_v2", weights=weights, classes=1000, on=on)


def test_real_features_move_into_the_model_whose_classifier_is_replaced(
    weights_folder: Path,
) -> None:
    weights = str(weights_folder / "mobilenet_v2.features.safetensors")
    plain = load_model("mobilenet_v2", weights="none", classes=2).model.state_dict()
    loaded = load_model("mobilenet_v2", weights=weights, classes=2)
    moved = loaded.model.state_dict()
    assert not torch.equal(plain["features.0.0.weight"], moved["features.0.0.weight"])
    assert torch.equal(plain["classifier.1.weight"], moved["classifier.1.weight"])
    assert str(loaded.weights).endswith(
        "312 tensors loaded; no weights for classifier.1 (it is replaced)"
    )


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: torch.empty(2, 3, device="meta"), "without data"),
        (lambda: torch.eye(2, 3).to_sparse(), "of the layout torch.sparse_coo"),
        (lambda: torch.eye(2, 3).to_sparse_csr(), "of the layout torch.sparse_csr"),
        (lambda: torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.qint8), "quantised"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tensors_of_another_kind_are_refused_by_name(tmp_path: Path, make: Any, kind: str) -> None:
    torch.save({"weight": make(), "bias": torch.zeros(2)}, tmp_path / "odd.pt")
    with pytest.raises(WeightsError, match=rf"weight in odd.pt is {kind}.*plain dense tensors"):
        load_weights(nn.Linear(3, 2), tmp_path / "odd.pt")
