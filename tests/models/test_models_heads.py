"""New heads: where they go, what they keep, and what cannot be done."""

from __future__ import annotations

import copy
import pickle
import re
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from frostline.errors import ConfigError, ModelError
from frostline.models import (
    Stacked,
    build,
    build_head,
    find_classifier,
    logits_of,
    put_head,
    replace_classifier,
    stack_head,
)
from frostline.models.spec import ModelSpec

Net = Callable[..., nn.Module]
NoMemory = Callable[[], AbstractContextManager[Any]]

WHERE = {
    "alexnet": "classifier.6",
    "vgg11": "classifier.6",
    "resnet18": "fc",
    "densenet121": "classifier",
    "squeezenet1_1": "classifier.1",
    "mobilenet_v2": "classifier.1",
    "mobilenet_v3_small": "classifier.3",
    "convnext_tiny": "classifier.2",
    "maxvit_t": "classifier.5",
    "vit_b_16": "heads.head",
    "swin_t": "head",
    "regnet_x_400mf": "fc",
    "inception_v3": "fc",
    "googlenet": "fc",
}
TIMM = [
    "resnet10t",
    "resnetv2_18",
    "convnext_atto",
    "efficientnet_b0",
    "mobilenetv3_small_050",
    "dla46_c",
    "dpn68",
    "mobilenetv4_conv_small",
    "vit_tiny_patch16_224",
    "deit_tiny_patch16_224",
    "beit_base_patch16_224",
    "swin_tiny_patch4_window7_224",
    "mixer_s32_224",
    "gmlp_s16_224",
    "resmlp_12_224",
    "poolformer_s12",
    "maxvit_pico_rw_256",
    "coatnet_nano_rw_224",
    "edgenext_xx_small",
    "fastvit_t8",
    "ghostnet_050",
    "nfnet_f0",
    "regnety_002",
    "pvt_v2_b0",
    "twins_pcpvt_small",
    "cait_xxs24_224",
    "xcit_nano_12_p16_224",
    "rexnet_100",
    "repvgg_a0",
    "mobilevit_xxs",
    "hiera_tiny_224",
    "tiny_vit_5m_224",
    "lcnet_035",
    "mambaout_femto",
    "botnet26t_256",
]


def torchvision_names() -> list[str]:
    """One of each family: others are of the same class, deeper or wider."""
    from torchvision import models

    families: dict[str, str] = {}
    for name in [*WHERE, *models.list_models(module=models)]:
        family = re.match(r"[a-z]+(_v\d)?", name)
        assert family is not None
        families.setdefault(family[0], name)
    return list(families.values())


@pytest.mark.parametrize("name", torchvision_names())
def test_torchvision_classifiers_make_as_many_logits_as_asked(
    name: str, without_memory: NoMemory
) -> None:
    with without_memory():
        built = build(ModelSpec.parse(name), weights="none")
    path = replace_classifier(built.model, classes=7)
    assert path == WHERE.get(name, path)
    model = built.model.to("meta").eval()
    assert model(torch.empty(2, 3, *built.preprocessing.crop, device="meta")).shape == (2, 7)


@pytest.mark.parametrize("name", TIMM)
def test_timm_classifiers_make_as_many_logits_as_asked(name: str, without_memory: NoMemory) -> None:
    timm = pytest.importorskip("timm")
    with without_memory():
        model = timm.create_model(name)
    path = replace_classifier(model, classes=7)
    assert path == model.pretrained_cfg["classifier"]
    assert model.num_classes == 7
    size = model.pretrained_cfg["input_size"]
    assert model.to("meta").eval()(torch.empty(2, *size, device="meta")).shape == (2, 7)


def test_the_other_names_of_the_model_stay(tiny_net: Net) -> None:
    model = tiny_net()
    before = {name for name in model.state_dict() if not name.startswith("fc.")}
    replace_classifier(model, classes=5, hidden=(8,))
    after = {name for name in model.state_dict() if not name.startswith("fc.")}
    assert before == after
    assert "fc.2.bias" in model.state_dict()


def test_the_new_head_takes_device_dtype_and_mode_of_the_old(tiny_net: Net) -> None:
    model = tiny_net().to(torch.float64).eval().requires_grad_(False)
    replace_classifier(model, classes=5)
    head = model.get_submodule("fc")
    assert not head.training
    assert head.get_parameter("weight").dtype == torch.float64
    assert head.get_parameter("weight").requires_grad


def test_a_named_layer_is_replaced_where_the_last_is_another(tiny_net: Net) -> None:
    model = tiny_net()
    model.extra = nn.LayerNorm(3)
    assert replace_classifier(model, classes=5, path="fc") == "fc"
    assert model(torch.ones(1, 3, 4, 4)).shape == (1, 5)


def test_a_convolutional_classifier_is_replaced_by_convolutions() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 9, 1), nn.AdaptiveAvgPool2d(1))
    replace_classifier(model, classes=2, hidden=(5,))
    assert model(torch.ones(1, 3, 8, 8)).shape == (1, 2, 1, 1)


def test_a_weight_normed_classifier_is_found_and_replaced(tiny_net: Net) -> None:
    model = tiny_net()
    nn.utils.parametrizations.weight_norm(model.get_submodule("fc"))
    assert find_classifier(model) == ("fc",)
    replace_classifier(model, classes=5)
    assert model(torch.ones(1, 3, 4, 4)).shape == (1, 5)


def test_counts_of_classes_kept_by_other_libraries_follow(tiny_net: Net) -> None:
    model: Any = tiny_net()
    model.num_labels, model.config = 3, SimpleNamespace(num_labels=3, num_classes="three")
    replace_classifier(model, classes=5)
    assert (model.num_labels, model.config.num_labels) == (5, 5)
    assert model.config.num_classes == "three"


@pytest.mark.parametrize(
    ("model", "last"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), "1, a LayerNorm"),
        (nn.Sequential(nn.Conv2d(3, 4, 3)), "0, a 3x3 Conv2d"),
        (nn.Sequential(nn.MultiheadAttention(2, 1)), "0.out_proj, a NonDyn"),
        (nn.Sequential(nn.ReLU()), "it has no layers"),
    ],
)
def test_a_model_without_classifier_is_told_to_stack_a_head(model: nn.Module, last: str) -> None:
    with pytest.raises(ModelError, match=rf"no classifier to be found: .*{last}.*on='logits'"):
        find_classifier(model)


def test_timm_s_word_is_ignored_where_it_names_no_module(tiny_net: Net) -> None:
    model: Any = tiny_net()
    model.pretrained_cfg = {"classifier": "head"}
    assert find_classifier(model) == ("fc",)


def test_a_timm_model_built_without_classifier_is_told_apart(tiny_net: Net) -> None:
    model: Any = tiny_net()
    model.fc, model.pretrained_cfg = nn.Identity(), {"classifier": "fc"}
    with pytest.raises(ModelError, match=r"built without a classifier: fc is empty.*on='logits'"):
        find_classifier(model)


def test_a_headless_timm_model_gets_a_head_on_its_features() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("test_resnet", num_classes=0).eval()
    headed = put_head(model, classes=4, on="logits")
    assert headed.model(torch.ones(1, 3, 160, 160)).shape == (1, 4)


def test_several_classifiers_are_refused_but_can_be_stacked_on() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("deit_tiny_distilled_patch16_224").eval()
    assert find_classifier(model) == ("head", "head_dist")
    with pytest.raises(ModelError, match=r"has 2 classifiers \(head, head_dist\).*on='logits'"):
        replace_classifier(model, classes=4)
    assert stack_head(model, classes=4)(torch.ones(1, 3, 224, 224)).shape == (1, 4)


def test_a_tied_classifier_is_refused(tiny_net: Net) -> None:
    model: Any = tiny_net()
    model.embed = nn.Embedding(3, 4)
    model.embed.weight = model.fc.weight
    with pytest.raises(ModelError, match=r"fc of TinyNet is shared with embed\.weight.*on='logi"):
        replace_classifier(model, classes=5, path="fc")


def test_a_classifier_that_stands_in_two_places_is_refused(tiny_net: Net) -> None:
    model: Any = tiny_net()
    model.again = model.fc
    with pytest.raises(ModelError, match="is shared with"):
        replace_classifier(model, classes=5, path="fc")


def test_a_wrong_path_is_told_with_the_nearest(tiny_net: Net) -> None:
    with pytest.raises(ModelError, match=r"has no module 'fcc'. Nearest: fc"):
        replace_classifier(tiny_net(), classes=5, path="fcc")
    with pytest.raises(ModelError, match=r"bn, a BatchNorm2d, not a Linear or a 1x1 Conv2d"):
        replace_classifier(tiny_net(), classes=5, path="bn")


def segmenter(*, padding: int = 1, name: str = "segmentation_head") -> nn.Module:
    """As segmentation_models_pytorch builds them."""
    head = nn.Sequential(nn.Conv2d(4, 1, 3, padding=padding), nn.Identity())
    return nn.Sequential(OrderedDict([("encoder", nn.Conv2d(3, 4, 3, padding=1)), (name, head)]))


def test_a_wide_convolution_in_a_head_is_replaced_by_one_of_its_kernel() -> None:
    model: Any = segmenter()
    assert replace_classifier(model, classes=5, hidden=(6,)) == "segmentation_head.0"
    first, _, last = model.segmentation_head[0]
    assert (first.kernel_size, last.kernel_size) == ((3, 3), (1, 1))
    assert model(torch.ones(2, 3, 7, 9)).shape == (2, 5, 7, 9)


@pytest.mark.parametrize("other", [{"padding": 0}, {"name": "decoder"}])
def test_a_wide_convolution_elsewhere_is_no_classifier(other: Any) -> None:
    with pytest.raises(ModelError, match=r"its last layer is .*, a 3x3 Conv2d"):
        find_classifier(segmenter(**other))


def test_hidden_widths_give_layers_with_relu_between() -> None:
    head = build_head(8, 2, (6, 4))
    kinds = [type(layer) for layer in head.children()]
    assert kinds == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert head(torch.ones(3, 8)).shape == (3, 2)


@pytest.mark.parametrize("bad", [0, -1, 2.5, True])
def test_a_width_that_is_no_positive_whole_number_is_refused(bad: Any) -> None:
    for widths in ((bad, 2, ()), (8, bad, ()), (8, 2, (bad,))):
        with pytest.raises(ConfigError, match="must be a whole number from 1 upwards"):
            build_head(*widths)


def test_a_stacked_head_computes_head_of_backbone(tiny_net: Net) -> None:
    model = tiny_net().eval()
    stacked = stack_head(model, classes=5, hidden=(6,))
    images = torch.ones(2, 3, 4, 4)
    assert [name for name, _ in stacked.named_children()] == ["backbone", "head"]
    assert torch.equal(stacked(images), stacked.head(model(images)))


def test_stacking_leaves_the_backbone_s_modes_and_takes_its_dtype(tiny_net: Net) -> None:
    model = tiny_net().to(torch.float64).train()
    model.get_submodule("bn").eval()
    stacked = stack_head(model, classes=5)
    assert (stacked.training, model.training, model.get_submodule("bn").training) == (1, 1, 0)
    assert stacked.head.get_parameter("weight").dtype == torch.float64


def test_a_stacked_head_takes_the_width_it_is_told() -> None:
    stacked = stack_head(nn.Flatten(), classes=2, features=12)
    assert stacked(torch.ones(1, 3, 2, 2)).shape == (1, 2)


def test_a_stacked_model_can_be_copied_and_pickled() -> None:
    stacked = Stacked(nn.Linear(2, 3), nn.Linear(3, 2))
    expected = stacked(torch.ones(1, 2))
    for twin in (copy.deepcopy(stacked), pickle.loads(pickle.dumps(stacked))):
        assert torch.equal(twin(torch.ones(1, 2)), expected)


@dataclass
class Output:
    logits: Tensor


Named = namedtuple("Named", ["logits", "aux"])
ONES = torch.ones(1, 2)


@pytest.mark.parametrize(
    "output", [ONES, Output(ONES), Named(ONES, None), {"logits": ONES}, (ONES, None), [ONES]]
)
def test_logits_are_found_in_what_models_return(output: object) -> None:
    assert logits_of(output) is ONES


@pytest.mark.parametrize(
    ("output", "found"),
    [
        ({"boxes": ONES}, "a dict with the keys boxes"),
        ((None, ONES), "a tuple of NoneType, Tensor"),
        (None, "a NoneType"),
    ],
)
def test_an_output_without_logits_is_described(output: object, found: str) -> None:
    with pytest.raises(ModelError, match=rf"returned {found}, in which there are no logits"):
        logits_of(output)


def test_new_heads_depend_on_the_seed_alone_and_leave_the_generator(tiny_net: Net) -> None:
    heads = []
    for caller_seed in (1, 2):
        model = tiny_net()
        torch.manual_seed(caller_seed)
        before = torch.get_rng_state()
        heads.append(put_head(model, classes=5, seed=3).model.get_parameter("fc.weight"))
        assert torch.equal(before, torch.get_rng_state())
    other = put_head(tiny_net(), classes=5, seed=4).model.get_parameter("fc.weight")
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], other)


def test_without_a_seed_heads_follow_the_caller_s_generator(tiny_net: Net) -> None:
    model = tiny_net()
    heads = []
    for _ in range(2):
        torch.manual_seed(0)
        heads.append(put_head(copy.deepcopy(model), classes=5).model.get_parameter("fc.weight"))
    assert torch.equal(*heads)


def test_a_classifier_of_the_right_width_is_kept_as_it_is(tiny_net: Net) -> None:
    model = tiny_net()
    weight = model.get_parameter("fc.weight")
    headed = put_head(model, classes=3, on="keep")
    assert (headed.model, headed.head) == (model, "fc")
    assert model.get_parameter("fc.weight") is weight


def test_a_classifier_of_another_width_cannot_be_kept(tiny_net: Net) -> None:
    with pytest.raises(ModelError, match=r"fc of TinyNet makes 3 logits.* 5 classes.*on='class"):
        put_head(tiny_net(), classes=5, on="keep")


def test_a_kept_classifier_gets_no_hidden_layers(tiny_net: Net) -> None:
    with pytest.raises(ConfigError, match=r"no hidden layers \(8,\).*on='classifier'"):
        put_head(tiny_net(), classes=3, on="keep", hidden=(8,))


def test_an_unknown_place_is_refused(tiny_net: Net) -> None:
    with pytest.raises(ConfigError, match=r"put on 'top'. Use classifier, logits or keep"):
        put_head(tiny_net(), classes=3, on="top")  # type: ignore[arg-type]


def test_a_relu_behind_the_classifier_clamps_nothing_but_classes() -> None:
    images = torch.randn(4, 3, 64, 64)
    for clamped in (True, False):
        model = build(ModelSpec.parse("squeezenet1_1"), weights="none").model.eval()
        names = [name for name, _ in model.named_modules()]
        assert replace_classifier(model, classes=3, clamped=clamped) == "classifier.1"
        assert [name for name, _ in model.named_modules()] == names
        model.classifier[1].bias.data.fill_(-1.0)
        assert bool((model(images) < 0).any()) is not clamped
