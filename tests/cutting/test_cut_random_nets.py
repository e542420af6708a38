"""Small random networks train the same bit for bit through both halves as in one piece."""

from __future__ import annotations

import copy
import os

import torch
from cut_random_nets import CHANNELS, LENGTH, Drawn, drawn_nets
from cut_training import both_trainings, differences, loss_of, prefix_of, rows
from hypothesis import HealthCheck, assume, event, given, settings
from torch import Tensor

import frostline as fl
from frostline.cutting import Cut, cut
from frostline.cutting.structures import flatten_output
from frostline.fingerprints.parts import same_bits

BATCHES = [[0, 5, 3], [4, 1, 2], [3, 0, 1]]
EXAMPLES = int(os.environ.get("FROSTLINE_RANDOM_NETS", "40"))


def inputs() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(7)
    shape = (6, CHANNELS, LENGTH)
    return torch.randn(shape, generator=draw), torch.randn(shape, generator=draw)


def frozen_net(drawn: Drawn) -> torch.nn.Module:
    net = drawn.build()
    names = [f"layers.{place}" for place in drawn.frozen] + ["head"] * drawn.head_frozen
    assume(len(names) < len(drawn.kinds) + 1)
    fl.freeze(net, " | ".join(names), norm=drawn.norm)
    return net


def is_trainable_at_all(net: torch.nn.Module) -> bool:
    """Not all that is drawn can be: some writes destroy what a backward needs."""
    twin = copy.deepcopy(net).train()
    try:
        loss = loss_of(twin(*rows(inputs(), range(4))))
        if loss.requires_grad:
            loss.backward()
    except RuntimeError:
        return False
    return bool(loss.isfinite())


def cut_if_any(net: torch.nn.Module) -> Cut | None:
    try:
        return cut(net, rows(inputs(), range(4)))
    except fl.NothingFrozen:
        return None


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize="FROSTLINE_RANDOM_NETS" not in os.environ,
    database=None,
)
@given(drawn_nets())
def test_a_random_net_trains_the_same_through_both_halves(drawn: Drawn) -> None:
    net = frozen_net(drawn)
    assume(is_trainable_at_all(net))
    made = cut_if_any(net)
    event("cut" if made else "nothing frozen")
    if made is None:
        return
    assert made.error == 0
    whole = prefix_of(made, inputs())
    parts = [prefix_of(made, rows(inputs(), places)) for places in ([3, 4], [0, 0], [5, 1, 2])]
    for places, part in zip(([3, 4], [0, 0], [5, 1, 2]), parts, strict=True):
        for all_of_it, some in zip(whole, part, strict=True):
            torch.testing.assert_close(all_of_it[places], some, rtol=1e-4, atol=1e-4)
    plain, through = both_trainings(net, made, inputs(), BATCHES, optimizer=drawn.optimizer)
    assert differences(plain, through) == []
    assert evaluated(net, made) == []


def evaluated(net: torch.nn.Module, made: Cut) -> list[int]:
    """Outputs that differ in evaluation."""
    net.eval()
    some = [1, 4, 2, 0]
    with torch.no_grad():
        torch.manual_seed(1)
        expected, _ = flatten_output(net(*rows(inputs(), some)))
        torch.manual_seed(1)
        found, _ = flatten_output(made.suffix(*prefix_of(made, rows(inputs(), some))))
    pairs = enumerate(zip(expected, found, strict=True))
    return [i for i, pair in pairs if not same_bits(*pair)]
