"""Each row of the language: what a term matches, and that it matches nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import frostline as fl


class Block(nn.Module):
    """Attention, norm and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2)
        self.norm = nn.LayerNorm(8)
        self.mlp = nn.Linear(8, 8)


class Backbone(nn.Module):
    """A stem and two series of blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3)
        self.bn1 = nn.BatchNorm2d(8)
        self.layer3 = nn.Sequential(Block(), Block())
        self.layer4 = nn.Sequential(Block(), Block())
        self.layer40 = nn.Linear(8, 8)


class Net(nn.Module):
    """An embedding, a backbone and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.pos_embed = nn.Parameter(torch.zeros(1, 4, 8))
        self.backbone = Backbone()
        self.head = nn.Linear(8, 3)


@pytest.fixture(scope="module")
def net() -> Net:
    return Net()


def names(net: nn.Module, selector: fl.Selector | str) -> set[str]:
    return set(fl.select(net, selector).names)


def starting(net: nn.Module, *prefixes: str) -> set[str]:
    return {name for name, _ in net.named_parameters() if name.startswith(prefixes)}


def test_a_path_matches_the_module_and_all_below_it(net: Net) -> None:
    assert names(net, "backbone.layer4") == starting(net, "backbone.layer4.")


def test_a_path_does_not_match_a_longer_name_that_starts_alike(net: Net) -> None:
    assert "backbone.layer40.weight" not in fl.select(net, "backbone.layer4")


def test_a_path_matches_a_parameters_own_full_name(net: Net) -> None:
    assert names(net, "head.bias") == {"head.bias"}


def test_a_star_stays_inside_one_segment(net: Net) -> None:
    assert names(net, "backbone.layer3.0.*.weight") == {
        "backbone.layer3.0.norm.weight",
        "backbone.layer3.0.mlp.weight",
    }


def test_two_stars_cross_segments(net: Net) -> None:
    wanted = {name for name, _ in net.named_parameters() if name.endswith(".bias")}
    assert names(net, "**.bias") == wanted


def test_a_character_class_in_a_glob_matches_one_of_its_characters(net: Net) -> None:
    found = names(net, "backbone.layer[34].*.norm.weight")
    assert found == {f"backbone.layer{n}.{m}.norm.weight" for n in (3, 4) for m in (0, 1)}


def test_a_negated_character_class_matches_the_other_characters(net: Net) -> None:
    assert names(net, "backbone.layer[!3]") == starting(net, "backbone.layer4.")


def test_a_negated_character_class_does_not_cross_segments() -> None:
    net = nn.ModuleDict({"a": nn.ModuleDict({"c": nn.Linear(1, 1)}), "a-c": nn.Linear(1, 1)})
    assert names(net, "a[!b]c") == {"a-c.weight", "a-c.bias"}


def test_a_question_mark_matches_one_character(net: Net) -> None:
    assert names(net, "backbone.layer?") == starting(net, "backbone.layer3.", "backbone.layer4.")


def test_a_glob_that_ends_at_a_module_matches_all_below_it(net: Net) -> None:
    assert names(net, "back*.layer3") == starting(net, "backbone.layer3.")


def test_a_question_mark_does_not_match_a_dot(net: Net) -> None:
    with pytest.raises(fl.SelectorError, match=r"'head\?bias' matches no parameter of Net"):
        fl.select(net, "head?bias")


def test_an_unclosed_bracket_in_a_glob_is_itself() -> None:
    net = nn.ModuleDict({"a[b": nn.Linear(1, 1), "ab": nn.Linear(1, 1)})
    assert names(net, "a[b") == {"a[b.weight", "a[b.bias"}


def test_a_regular_expression_is_searched_in_the_full_name(net: Net) -> None:
    assert names(net, r"re:conv\d+") == {"backbone.conv1.weight", "backbone.conv1.bias"}


def test_a_regular_expression_keeps_the_operators_inside_its_brackets(net: Net) -> None:
    assert names(net, r"re:(conv1|bn1)\.bias$ & all") == {
        "backbone.conv1.bias",
        "backbone.bn1.bias",
    }


def test_a_quoted_regular_expression_keeps_bare_operators(net: Net) -> None:
    assert names(net, r"re:'conv1\.bias|bn1\.bias'") == {"backbone.conv1.bias", "backbone.bn1.bias"}


def test_type_matches_layers_of_the_class(net: Net) -> None:
    assert names(net, "type:BatchNorm2d") == {"backbone.bn1.weight", "backbone.bn1.bias"}


def test_type_matches_by_the_name_of_a_base_class(net: Net) -> None:
    assert names(net, "type:_BatchNorm") == names(net, "type:BatchNorm2d")


def test_type_of_a_composite_matches_all_below_it(net: Net) -> None:
    assert names(net, "type:Block") == starting(net, "backbone.layer3.", "backbone.layer4.")


def test_of_type_takes_the_class_itself() -> None:
    assert fl.of_type(nn.LayerNorm) == fl.of_type("LayerNorm")


def test_kind_norm_matches_every_kind_of_norm(net: Net) -> None:
    wanted = {n for n, _ in net.named_parameters() if ".bn1." in n or ".norm." in n}
    assert names(net, "kind:norm") == wanted


def test_kind_norm_matches_a_foreign_norm_class_by_its_name() -> None:
    class LlamaRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))

    net = nn.ModuleDict({"norm": LlamaRMSNorm(), "fc": nn.Linear(2, 2)})
    assert names(net, "kind:norm") == {"norm.weight"}


def test_kind_bias_matches_the_biases_of_attention_too(net: Net) -> None:
    wanted = {n for n, _ in net.named_parameters() if n.endswith(("bias", "in_proj_bias"))}
    assert names(net, "kind:bias") == wanted
    assert "backbone.layer3.0.attn.in_proj_bias" in wanted


def test_kind_bias_matches_all_biases_of_an_lstm() -> None:
    net = nn.ModuleDict({"lstm": nn.LSTM(2, 2, bidirectional=True), "fc": nn.Linear(2, 2)})
    found = names(net, "kind:bias")
    assert found == {n for n, _ in net.named_parameters() if "bias" in n}


def test_kind_conv_matches_transposed_convolutions() -> None:
    net = nn.Sequential(nn.ConvTranspose1d(2, 2, 1), nn.Conv3d(2, 2, 1), nn.Linear(2, 2))
    assert names(net, "kind:conv") == starting(net, "0.", "1.")


def test_kind_linear_matches_no_norm_and_no_convolution(net: Net) -> None:
    owners = {name: module for name, module in net.named_modules() if isinstance(module, nn.Linear)}
    assert names(net, "kind:linear") == starting(net, *(f"{name}." for name in owners))


def test_kind_embedding_matches_position_embeddings(net: Net) -> None:
    assert names(net, "kind:embedding") == {"embed.weight", "pos_embed"}


def test_kind_attention_matches_all_below_an_attention_layer(net: Net) -> None:
    assert names(net, "kind:attention") == {n for n, _ in net.named_parameters() if ".attn." in n}


def test_stage_zero_and_minus_one_are_the_first_and_the_last(net: Net) -> None:
    assert "embed.weight" in fl.select(net, "stage:0")
    assert names(net, "stage:-1") == {"head.weight", "head.bias"}


def test_a_range_of_stages_includes_both_its_ends() -> None:
    net = nn.Sequential(*(nn.Linear(2, 2) for _ in range(5)))
    assert names(net, "stage:1..3") == starting(net, "1.", "2.", "3.")


def test_a_range_of_stages_may_count_from_the_end() -> None:
    net = nn.Sequential(*(nn.Linear(2, 2) for _ in range(5)))
    assert names(net, "stage:-2..-1") == starting(net, "3.", "4.")


@pytest.mark.parametrize(("percent", "count"), [("60", 3), ("100", 5), ("10", 1), ("49.9", 2)])
def test_depth_is_the_first_share_of_the_stages(percent: str, count: int) -> None:
    net = nn.Sequential(*(nn.Linear(2, 2) for _ in range(5)))
    assert names(net, f"depth:{percent}%") == starting(net, *(f"{n}." for n in range(count)))


def test_all_matches_every_parameter(net: Net) -> None:
    assert names(net, "all") == {name for name, _ in net.named_parameters()}


def test_none_matches_nothing_and_is_no_error(net: Net) -> None:
    assert len(fl.select(net, "none")) == 0


def test_a_module_called_all_is_reached_by_quoting() -> None:
    net = nn.ModuleDict({"all": nn.Linear(1, 1), "fc": nn.Linear(1, 1)})
    assert names(net, "'all'") == {"all.weight", "all.bias"}


def test_a_name_with_a_space_and_an_operator_is_reached_by_quoting() -> None:
    net = nn.ModuleDict({"odd | name": nn.Linear(1, 1), "fc": nn.Linear(1, 1)})
    assert names(net, "'odd | name.weight'") == {"odd | name.weight"}


def test_a_glob_over_names_with_spaces_is_reached_by_its_prefix() -> None:
    net = nn.ModuleDict({"odd name": nn.Linear(1, 1), "fc": nn.Linear(1, 1)})
    assert names(net, "glob:'odd *.weight'") == {"odd name.weight"}


def test_names_keep_the_models_order_whatever_the_order_asked(net: Net) -> None:
    assert fl.select(net, "head | embed").names == ("embed.weight", "head.weight", "head.bias")


def test_a_selection_sums_numbers_and_bytes(net: Net) -> None:
    selection = fl.select(net, "head")
    assert (selection.numel, selection.nbytes) == (8 * 3 + 3, 4 * (8 * 3 + 3))


def test_modules_are_the_largest_wholly_matched_ones(net: Net) -> None:
    assert fl.select(net, "backbone.layer3 | head | embed").modules == (
        "embed",
        "backbone.layer3",
        "head",
    )


def test_modules_of_everything_is_the_model_itself(net: Net) -> None:
    assert fl.select(net, "all").modules == ("",)


def test_a_report_names_shapes_and_totals(net: Net) -> None:
    text = str(fl.select(net, "head"))
    assert "head in Net" in text
    assert "3x8" in text
    assert "27 numbers, 108 B" in text
