"""Stages in forward order, for the families of models that people fine-tune."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
import timm
import torch
from torch import nn
from torchvision import models

import frostline as fl
from frostline.selectors import inventory, stages
from frostline.selectors.stages import stage_paths

# torchvision's name -> number of stages, paths of the first stage, paths of the last
FAMILIES = {
    "alexnet": (8, ("features.0",), ("classifier.6",)),
    "vgg11": (11, ("features.0",), ("classifier.6",)),
    "vgg16_bn": (16, ("features.0", "features.1"), ("classifier.6",)),
    "resnet18": (6, ("conv1", "bn1"), ("fc",)),
    "resnet50": (6, ("conv1", "bn1"), ("fc",)),
    "resnet101": (6, ("conv1", "bn1"), ("fc",)),  # layer3 holds two thirds of all its layers
    "densenet121": (9, ("features.conv0", "features.norm0"), ("classifier",)),
    "mobilenet_v2": (20, ("features.0",), ("classifier",)),
    "mobilenet_v3_small": (15, ("features.0",), ("classifier.3",)),
    "squeezenet1_0": (10, ("features.0",), ("classifier",)),
    "vit_b_16": (14, ("conv_proj",), ("heads",)),
    "swin_t": (9, ("features.0",), ("head",)),
    "convnext_tiny": (9, ("features.0",), ("classifier.2",)),
    "inception_v3": (18, ("Conv2d_1a_3x3",), ("fc",)),
    "efficientnet_b0": (10, ("features.0",), ("classifier",)),
    "shufflenet_v2_x0_5": (6, ("conv1",), ("fc",)),
}


def build(name: str) -> nn.Module:
    options = {"init_weights": False} if name == "inception_v3" else {}
    model: nn.Module = models.get_model(name, weights=None, **options)
    return model


class Stacked(nn.Module):
    """A head stacked on a whole network."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head


@pytest.fixture(autouse=True)
def _no_memory() -> Iterator[None]:
    with torch.device("meta"):
        yield


@pytest.mark.parametrize("name", FAMILIES)
def test_the_stages_of_a_family_run_from_stem_to_head(name: str) -> None:
    found = stage_paths(build(name))
    assert (len(found), found[0], found[-1]) == FAMILIES[name]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_entry_of_a_family_is_in_exactly_one_stage(name: str) -> None:
    stock = inventory(build(name))
    counted = Counter(index for members in stages(stock) for index in members)
    assert counted == Counter(range(len(stock.entries)))


@pytest.mark.parametrize("name", FAMILIES)
def test_no_stage_of_a_family_is_empty(name: str) -> None:
    assert all(stages(inventory(build(name))))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("head", ["linear", "sequential"])
def test_a_stacked_head_is_the_last_stage_whatever_it_is_made_of(name: str, head: str) -> None:
    layers = [nn.Linear(1000, 100), nn.ReLU(), nn.Linear(100, 2)]
    model = Stacked(build(name), nn.Linear(1000, 2) if head == "linear" else nn.Sequential(*layers))
    assert fl.select(model, "stage:-1").modules == ("head",)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_first_stage_of_a_stacked_model_is_that_of_its_backbone(name: str) -> None:
    first = FAMILIES[name][1]
    model = Stacked(build(name), nn.Linear(1000, 2))
    assert stage_paths(model)[0] == tuple(f"backbone.{path}" for path in first)


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "convnext_atto", "swin_tiny_patch4_window7_224"]
)
def test_timms_models_end_in_their_head(name: str) -> None:
    with torch.device("cpu"):
        model = timm.create_model(name)
    assert stage_paths(model)[-1] == ("head",)


def test_class_token_and_position_embedding_are_not_in_the_head() -> None:
    model = build("vit_b_16")
    head = fl.select(model, "stage:-1")
    assert set(head.names) == {"heads.head.weight", "heads.head.bias"}


def test_a_norm_without_parameters_is_in_the_stage_of_the_layer_before_it() -> None:
    model = nn.Sequential(
        nn.Linear(2, 2),
        nn.BatchNorm1d(2, affine=False),
        nn.Linear(2, 2),
        nn.BatchNorm1d(2, affine=False),
        nn.Linear(2, 2),
    )
    assert stage_paths(model) == (("0", "1"), ("2", "3"), ("4",))


def test_a_model_of_one_layer_is_one_stage() -> None:
    assert fl.select(nn.Linear(2, 2), "stage:0").modules == ("",)


def test_a_wrapper_with_a_single_child_adds_no_stage() -> None:
    inner = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert stage_paths(nn.ModuleDict({"model": inner})) == (("model.0",), ("model.1",))


def test_a_shared_layer_is_in_one_stage() -> None:
    shared = nn.Linear(2, 2)
    stock = inventory(nn.Sequential(shared, nn.Linear(2, 2), shared, nn.Linear(2, 2)))
    counted = Counter(index for members in stages(stock) for index in members)
    assert counted == Counter(range(len(stock.entries)))


class Tied(nn.Module):
    """A head that shares the embedding's weight."""

    def __init__(self, *, bias: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.block = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5, bias=bias)
        self.head.weight = self.embed.weight


@pytest.mark.parametrize("bias", [True, False])
def test_a_tied_weight_is_in_the_stage_of_each_of_its_names(bias: bool) -> None:
    model = Tied(bias=bias)
    assert fl.select(model, "stage:-1").names == fl.select(model, "head").names
    assert fl.select(model, "stage:0").names == fl.select(model, "embed").names


def test_a_tied_weight_is_as_deep_as_its_first_name() -> None:
    model = Tied()
    stock = inventory(model)
    counted = Counter(index for members in stages(stock) for index in members)
    assert counted == Counter(range(len(stock.entries)))
    assert fl.select(model, "depth:33%").names == ("embed.weight",)
    assert fl.select(model, "~depth:67%").names == ("head.bias",)


def test_a_shared_layer_adds_nothing_to_other_stages() -> None:
    shared = nn.Linear(2, 2)
    model = nn.Sequential(nn.Linear(2, 2), shared, nn.Linear(2, 2), shared, nn.Linear(2, 2))
    assert fl.select(model, "stage:0").modules == ("0",)
    assert "1.weight" in fl.select(model, "stage:1").names


def test_a_stage_without_parameters_is_refused() -> None:
    with pytest.raises(fl.SelectorError, match=r"'stage:0' matches no parameter of ReLU"):
        fl.select(nn.ReLU(), "stage:0")


def test_a_compiled_backbone_keeps_its_stages() -> None:
    compiled = torch.compile(build("resnet18"), backend="eager")
    assert len(stage_paths(Stacked(compiled, nn.Linear(1000, 2)))) == 7


class Shuffled(nn.Module):
    """Registered in another order than its forward has."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2)
        self.position = nn.Linear(2, 2)
        self.second = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
        self.first = nn.Sequential(nn.Linear(2, 2), self.position, nn.Linear(2, 2))
        self.stem = nn.Linear(2, 2)
        self.extra: nn.Module | None = None

    def features(self, x: torch.Tensor) -> torch.Tensor:
        if self.head is not None and len(self.second) > 1:
            x = self.second(self.first(self.stem(x)))
        for layer in [self.position]:
            x = layer(x)
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x))


class Heir(Shuffled):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)


class Noted(Shuffled):
    notes: list[str] = []  # noqa: RUF012 - as adapters have them

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x + len(self.notes))


@pytest.mark.parametrize("kind", [Shuffled, Heir, Noted])
def test_stages_follow_the_forward_and_not_the_registration(kind: type[nn.Module]) -> None:
    order = [path for group in stage_paths(kind()) for path in group]
    assert order == ["stem", "position", "first", "second", "head"]


def test_without_source_stages_follow_the_registration() -> None:
    code = "class Net(nn.Module):\n    def forward(self, x):\n        return self.b(self.a(x))\n"
    space = {"nn": nn, "__name__": "nowhere"}
    exec(code, space)
    net = space["Net"]()
    net.b, net.a = nn.Linear(2, 2), nn.Linear(2, 2)
    assert stage_paths(net) == (("b",), ("a",))


def test_coats_scales_follow_each_other() -> None:
    with torch.device("cpu"):
        paths = [path for group in stage_paths(timm.create_model("coat_tiny")) for path in group]
    scales = [n for n in paths if n.startswith(("patch_embed", "serial_blocks"))]
    assert scales == [f"{n}{i}" for i in (1, 2, 3, 4) for n in ("patch_embed", "serial_blocks")]
    assert paths[-1] == "head"


def test_a_decoder_embeds_before_its_layers() -> None:
    transformers = pytest.importorskip("transformers")
    small = {"vocab_size": 60, "d_model": 8, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    layers = {"encoder_layers": 2, "decoder_layers": 2}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    model = transformers.BartForSequenceClassification(
        transformers.BartConfig(**small, **layers, **heads)
    )
    paths = [path for group in stage_paths(model) for path in group]
    assert paths.index("model.decoder.layernorm_embedding") < paths.index("model.decoder.layers.0")


def test_an_auxiliary_head_that_is_used_behind_the_head_is_not_the_last_stage() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(2, 2)
            self.aux = nn.Linear(2, 2)
            self.head = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.body(x)
            return self.head(x) + self.aux(x)

    assert stage_paths(Net()) == (("body",), ("aux",), ("head",))
