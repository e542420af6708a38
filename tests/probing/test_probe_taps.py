"""Where each stage's features are taken, and how they become vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from probe_nets import Pictures, Squares, Tokens, Towers, Twice
from torch import Tensor, nn
from torchvision.models import AlexNet, SwinTransformer, VisionTransformer
from torchvision.models.resnet import BasicBlock, ResNet

import frostline as fl
from frostline.calling import call_with
from frostline.errors import ModelError
from frostline.probing.readout import Readout, Taps, cut_behind
from frostline.probing.taps import Tap, find_taps


def taps_of(model: nn.Module, inputs: Any, rows: int) -> tuple[tuple[Tap, ...], tuple[str, ...]]:
    mask = inputs.get("attention_mask") if isinstance(inputs, dict) else None
    model.eval()
    with fl.frozen(model, "all"):
        return find_taps(model, lambda: call_with(model, inputs), rows=rows, mask=mask)


def vectors(model: nn.Module, inputs: Any, rows: int) -> list[Tensor]:
    taps, _ = taps_of(model, inputs, rows)
    with torch.no_grad():
        found: list[Tensor] = list(call_with(Taps(model, taps), inputs))
    return found


def test_a_stage_hands_on_what_the_next_one_reads() -> None:
    """Behind the norm, the activation and the pooling that follow the convolution."""
    model, pictures = Pictures().eval(), torch.randn(4, 3, 8, 8)
    stem, body = vectors(model, pictures, 4)
    with torch.no_grad():
        pooled = model.pool(model.norm(model.stem(pictures)).relu())
        after = model.body(pooled.clone())
    torch.testing.assert_close(stem, pooled.mean((2, 3)))
    torch.testing.assert_close(body, after.mean((2, 3)))  # and not the 160 numbers of the map


def test_nothing_is_left_on_the_model() -> None:
    model = Pictures()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    taps_of(model, torch.randn(4, 3, 8, 8), 4)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_tokens_of_the_padding_do_not_count() -> None:
    model, ids = Tokens().eval(), torch.randint(0, 20, (3, 5))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    embedded, *_ = vectors(model, {"input_ids": ids, "attention_mask": mask}, 3)
    torch.testing.assert_close(embedded[1], model.embed(ids[1, :2]).mean(0))
    torch.testing.assert_close(embedded[2], model.embed(ids[2, 0]))


def test_the_second_of_two_towers_gives_its_own_output() -> None:
    model, inputs = Towers().eval(), torch.randn(3, 4)
    left, right = vectors(model, inputs, 3)
    torch.testing.assert_close(left, model.left(inputs))
    both = torch.cat([model.left(inputs), model.right(inputs)], dim=1)
    torch.testing.assert_close(right, both)  # what the head reads is computed from it


def test_a_stage_that_runs_twice_is_left_out_with_a_line() -> None:
    taps, left = taps_of(Twice(), torch.randn(3, 4), 3)
    assert [tap.stage for tap in taps] == [0, 2]
    assert left == ("Stage 1 (again) is left out: it runs more than once in a forward.",)


MAPS: dict[str, tuple[Callable[[], nn.Module], int, list[int]]] = {
    "ResNet": (lambda: ResNet(BasicBlock, [1, 1, 1, 1], 2), 32, [64, 64, 128, 256, 512]),
    "AlexNet": (lambda: AlexNet(2), 64, [64, 192, 384, 256, 256, 4096, 4096]),
    "ViT": (lambda: VisionTransformer(32, 16, 2, 2, 8, 16, num_classes=2), 32, [8, 8, 8]),
    "Swin": (
        lambda: SwinTransformer([4, 4], 12, [1, 1], [1, 2], [4, 4], num_classes=2),
        32,
        [12, 12, 24, 24],
    ),
}


@pytest.mark.parametrize("name", MAPS)
def test_channels_are_what_is_kept_of_each_networks_maps(name: str) -> None:
    make, side, widths = MAPS[name]
    found = vectors(make(), torch.randn(2, 3, side, side), 2)
    assert [vector.shape[1] for vector in found] == widths


def test_a_model_of_one_layer_is_refused() -> None:
    with pytest.raises(ModelError, match="Linear has one stage, so there is nothing to freeze up"):
        taps_of(nn.Linear(4, 2), torch.randn(3, 4), 3)


def test_a_model_without_numbers_by_sample_is_refused() -> None:
    class Mixed(Squares):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.T.contiguous()[:4].T[:1])

    with pytest.raises(ModelError, match=r"no stage of Mixed gives features to probe\. Stage 0 "):
        taps_of(Mixed(), torch.randn(3, 4), 3)


def test_the_cut_behind_the_vectors_gives_them_bit_for_bit() -> None:
    model, pictures = Pictures(), torch.randn(6, 3, 8, 8)
    taps, _ = taps_of(model, pictures, 6)
    with fl.frozen(model, "all"):
        readout = Readout(model.eval(), taps)
        made = cut_behind(readout, pictures[:4])
        with torch.no_grad():
            ours, theirs = made.suffix(*made.prefix(pictures)), readout(pictures)
        assert made.prefix.graph is not None
    assert all(map(torch.equal, ours, theirs))
    assert max(value.nbytes for value in made.frontier.values) <= 10 * 4


def test_a_model_that_cannot_be_followed_is_cut_at_its_vectors() -> None:
    class Asking(Squares):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if float(x.sum()) > -1e9 else -x)

    model, inputs = Asking(), torch.randn(6, 4)
    taps, _ = taps_of(model, inputs, 6)
    with fl.frozen(model, "all"):
        readout = Readout(model.eval(), taps)
        made = cut_behind(readout, inputs)
        with torch.no_grad():
            ours, theirs = made.suffix(*made.prefix(inputs)), readout(inputs)
    assert made.prefix.graph is None
    assert all(map(torch.equal, ours, theirs))
