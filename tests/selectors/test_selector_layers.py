"""Layers that hide or share their tensors: tied, weight-normed, parametrized, lazy, attention."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import frostline as fl
from frostline.selectors.stages import stage_paths


class Tied(nn.Module):
    """A language model whose head shares the embedding's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5)
        self.head.weight = self.embed.weight


def old_weight_norm(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # superseded, and still in many models
        return nn.utils.weight_norm(layer)


def old_spectral_norm(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.spectral_norm(layer)


REWEIGHTED = {
    "weight_norm hook": old_weight_norm,
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm hook": old_spectral_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
}


@pytest.fixture(params=REWEIGHTED.values(), ids=REWEIGHTED.keys())
def reweighted(request: pytest.FixtureRequest) -> nn.Module:
    return nn.ModuleDict({"conv": request.param(nn.Conv2d(4, 4, 1)), "fc": nn.Linear(4, 4)})


def test_a_tied_parameter_is_counted_once() -> None:
    assert fl.select(Tied(), "all").numel == 5 * 4 + 4 * 4 + 4 + 5


@pytest.mark.parametrize("name", ["embed", "embed.weight", "head.weight", "re:^head.w"])
def test_a_tied_parameter_is_found_under_each_of_its_names(name: str) -> None:
    assert fl.select(Tied(), name).names == ("embed.weight",)


def test_all_but_the_head_excludes_the_embedding_tied_to_it() -> None:
    assert fl.select(Tied(), "~head").names == ("body.weight", "body.bias")


def test_a_selection_contains_a_tied_parameter_under_each_name() -> None:
    chosen = fl.select(Tied(), "embed")
    assert "embed.weight" in chosen
    assert "head.weight" in chosen
    assert "head.bias" not in chosen


def test_a_shared_module_is_found_under_each_path_and_counted_once() -> None:
    layer = nn.Linear(2, 2)
    net = nn.ModuleDict({"a": layer, "b": layer, "c": nn.Linear(2, 2)})
    assert fl.select(net, "b").names == ("a.weight", "a.bias")
    assert fl.select(net, "b").modules == ("a", "b")


def test_a_reweighted_tensor_is_found_under_its_own_name(reweighted: nn.Module) -> None:
    chosen = fl.select(reweighted, "conv.weight").names
    assert chosen
    assert chosen == tuple(
        n for n, _ in reweighted.named_parameters() if n[:4] == "conv" and "bias" not in n
    )


def test_a_reweighted_tensor_does_not_bring_its_bias(reweighted: nn.Module) -> None:
    assert fl.select(reweighted, "conv.bias").names == ("conv.bias",)


def test_a_glob_over_weights_finds_reweighted_tensors(reweighted: nn.Module) -> None:
    assert set(fl.select(reweighted, "*.weight").names) == {
        name for name, _ in reweighted.named_parameters() if not name.endswith("bias")
    }


def test_a_reweighted_convolution_is_still_a_convolution(reweighted: nn.Module) -> None:
    assert fl.select(reweighted, "kind:conv").names == fl.select(reweighted, "conv").names


def test_a_reweighted_convolution_is_no_norm(reweighted: nn.Module) -> None:
    with pytest.raises(fl.SelectorError, match=r"'kind:norm' matches no parameter"):
        fl.select(reweighted, "kind:norm")


def test_type_finds_a_parametrized_layer_by_its_plain_class(reweighted: nn.Module) -> None:
    assert fl.select(reweighted, "type:Conv2d").names == fl.select(reweighted, "conv").names


def test_reweighting_does_not_change_the_stages() -> None:
    def net(wrap: object) -> nn.Module:
        convs = [nn.Conv2d(2, 2, 1) for _ in range(3)]
        body = nn.Sequential(*(wrap(conv) if callable(wrap) else conv for conv in convs))
        return nn.ModuleDict({"body": body, "head": nn.Linear(2, 2)})

    for wrap in (None, *REWEIGHTED.values()):
        assert fl.select(net(wrap), "stage:0..2").modules == ("body",)
        assert fl.select(net(wrap), "stage:1").modules == ("body.1",)


def test_a_parametrized_layer_is_not_opened_into_its_parts() -> None:
    layer = parametrizations.spectral_norm(nn.Conv2d(2, 2, 1, bias=False))
    assert stage_paths(nn.Sequential(layer)) == (("0",),)


def test_a_parameter_that_only_ends_like_a_weight_norm_keeps_its_name() -> None:
    net = nn.ParameterDict(
        {"gate_g": nn.Parameter(torch.ones(1)), "b": nn.Parameter(torch.ones(1))}
    )
    assert fl.select(net, "gate_g").names == ("gate_g",)


def test_a_lazy_module_before_its_first_call_says_what_to_do() -> None:
    net = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2))
    message = r"0\.weight of Sequential has no shape yet.*Run one batch through the model"
    with pytest.raises(fl.SelectorError, match=message):
        fl.select(net, "1")


def test_a_lazy_module_is_like_any_other_after_its_first_call() -> None:
    net = nn.Sequential(nn.LazyConv2d(3, 1), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(2))
    net(torch.zeros(2, 3, 4, 4))
    assert fl.select(net, "type:Conv2d").names == ("0.weight", "0.bias")


def test_multihead_attention_is_selected_with_its_projections() -> None:
    net = nn.ModuleDict(
        {"attn": nn.MultiheadAttention(4, 2, add_bias_kv=True), "fc": nn.Linear(4, 4)}
    )
    assert fl.select(net, "kind:attention").names == (
        "attn.in_proj_weight",
        "attn.in_proj_bias",
        "attn.bias_k",
        "attn.bias_v",
        "attn.out_proj.weight",
        "attn.out_proj.bias",
    )
