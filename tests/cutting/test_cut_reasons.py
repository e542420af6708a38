"""What a refusal says of a model is true of it, and what it advises works."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import frostline as fl
from frostline.cutting import cut
from frostline.cutting.outside import draws_of
from frostline.cutting.watching import Reads, reads_recorded


def refusal(model: nn.Module, example: Any, **options: Any) -> str:
    with pytest.raises(fl.CutError) as refused:
        cut(model, example, **options)
    return str(refused.value)


class FixedRow(nn.Module):
    """Sets each sample off against the fifth of its batch, above or below what is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.head = nn.Linear(6, 12), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.below(x)
        out: Tensor = self.head(y - y[4])
        return out


def test_a_forward_that_reads_a_fixed_row_is_refused_with_a_cut_that_works() -> None:
    net = FixedRow()
    fl.freeze(net, "below")
    example = torch.randn(6, 6)
    message = refusal(net, example)
    assert "does not hold for batches of 2 or 3 samples: IndexError" in message
    [path] = re.findall(r'at="(.*)"', message)
    assert torch.equal(cut(net, example, at=path).prefix(example)[0], net.below(example))


def test_no_submodule_is_offered_where_none_does() -> None:
    net = FixedRow()
    fl.freeze(net, "below.bias")
    assert "at=" not in refusal(net, torch.randn(6, 6))


class Detector(nn.Module):
    """Takes a list with an image for each sample, and a target for each."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> Tensor:
        assert len(images) == len(targets)
        assert all(image.shape[0] == 3 for image in images), "wants three channels"
        scores = self.head(self.backbone(torch.stack(images))).mean((2, 3))
        labels = torch.stack([target["label"][0] for target in targets])
        return nn.functional.cross_entropy(scores, labels)


@pytest.mark.parametrize("options", [{}, {"at": "backbone"}])
def test_samples_in_a_list_are_refused_in_words(options: dict[str, str]) -> None:
    net = Detector()
    fl.freeze(net, "backbone")
    images = [torch.randn(3, 8, 8) for _ in range(2)]
    targets = [{"label": torch.tensor([1])} for _ in range(2)]
    message = refusal(net, (images, targets), **options)
    if options:
        assert "cannot be cut behind backbone" in message
        assert "a list with a tensor for each sample" in message
    else:
        assert "at=" not in message  # would not do either


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.middle = nn.Embedding(20, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.head(self.middle(self.embed(ids)))
        return out


def test_a_tied_head_is_named_as_what_trains_at_the_input() -> None:
    net = Tied()
    fl.train_only(net, "head")
    with pytest.raises(fl.NothingFrozen) as refused:
        cut(net, torch.randint(0, 20, (4, 5)))
    assert "is one tensor with" in str(refused.value)
    assert {"embed.weight", "head.weight"} <= set(re.findall(r"\w+\.weight", str(refused.value)))
    assert "stage:-1" not in str(refused.value)


class Adapted(nn.Module):
    """A base whose gradients someone switched off, with live dropout, and an adapter in it."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.ModuleDict(
            {
                "stem": nn.Sequential(nn.Dropout(0.1), nn.Linear(6, 6)),
                "layer": nn.Linear(6, 6),
            }
        )
        self.adapter, self.head = nn.Linear(6, 6), nn.Linear(6, 2)
        self.base.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.base["stem"](x)
        out: Tensor = self.head(self.base["layer"](y) + self.adapter(y))
        return out


def test_a_base_that_is_not_held_is_named_with_the_call_that_holds_it() -> None:
    net = Adapted()
    with pytest.raises(fl.NothingFrozen, match=r"dropout in base\.stem\.0 is random") as refused:
        cut(net, torch.randn(4, 6))
    [path] = re.findall(r'fl\.freeze\(model, "(.*)"\)', str(refused.value))
    fl.freeze(net, path)
    made = cut(net, torch.randn(4, 6))
    assert made.error == 0
    assert made.why.startswith("behind base.stem.1, since adapter.weight is trainable")


def test_an_adapter_at_the_input_is_named() -> None:
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2))
    fl.freeze(net, "1")
    with pytest.raises(fl.NothingFrozen) as refused:
        cut(net, torch.randn(4, 6))
    assert "0.weight is trainable. It works on the input itself" in str(refused.value)
    assert "costs no more" not in str(refused.value)


class Wheel(nn.Module):
    """Holds its samples between two parts of each in one dimension; no row can be made of it."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.head = nn.Linear(8, 8), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = x.reshape(-1, 2, 2, 2).transpose(0, 1).reshape(-1, 2)
        out: Tensor = self.head(y)
        return out.view(2, -1, 2, 2).sum((0, 2))


def test_a_value_that_lies_in_no_known_order_is_not_kept() -> None:
    net = Wheel()
    fl.freeze(net, "below")
    made = cut(net, torch.randn(4, 8))  # the last view before that order
    assert made.error == 0
    assert made.frontier.values[0].shape == (2, 2, 2)


def test_an_instance_norm_without_running_statistics_lies_below_the_line() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
    fl.train_only(net, "3")
    made = cut(net, torch.randn(4, 3, 8, 8))
    assert made.error == 0
    assert made.why == "behind 2, since 3.weight is trainable"


class Tables(nn.Module):
    """Projects a table of positions below the line, at most of the forward's cost."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(30, 40))
        self.project, self.below = nn.Linear(40, 40), nn.Linear(40, 40)
        self.head = nn.Linear(30, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.below(x) @ self.project(self.table).T)
        return out


def test_the_share_below_counts_what_no_sample_reaches() -> None:
    net = Tables()
    fl.train_only(net, "head")
    assert cut(net, torch.randn(4, 40)).share > 0.98


def test_the_share_below_counts_a_recurrent_layer() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.below, self.head = nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.below(x)[0][:, -1])
            return out

    net = Net()
    fl.freeze(net, "below")
    made = cut(net, torch.randn(4, 4, 8))
    flops = 4 * 2 * 4 * 16 * (8 + 16)
    assert made.share == pytest.approx(flops / (flops + 2 * 16 * 16), abs=0.02)
    assert made.why.startswith("behind select in the forward")


def test_statistics_that_move_are_named_where_another_operation_reads_them() -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.more = nn.Linear(6, 12), nn.Linear(12, 2)
            self.head, self.norm = nn.Linear(2, 12), nn.BatchNorm1d(12)

        def forward(self, x: Tensor) -> Tensor:
            assert isinstance(self.norm.running_mean, Tensor)
            y = self.body(x) - self.norm.running_mean
            return self.norm(self.head(self.more(y)))

    net = Centred()
    fl.freeze(net, "body | more")
    made = cut(net, torch.randn(4, 6))
    assert made.why == "behind body, since norm.running_mean moves in training"


class Beside(nn.Module):
    """A dropout between frozen layers, and beside them a trained layer over another input."""

    def __init__(self) -> None:
        super().__init__()
        self.below = nn.Sequential(nn.Linear(6, 600), nn.ReLU(), nn.Linear(600, 12))
        self.drop, self.upper = nn.Dropout(0.5), nn.Linear(12, 12)
        self.head, self.side = nn.Linear(12, 2), nn.Linear(1, 2)
        fl.freeze(self, "below | upper")

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.upper(self.below(x).relu() + self.drop(self.below(x)))
        out: Tensor = self.head(y) + self.side(mask.square())
        return out


def test_the_reason_is_the_first_operation_that_is_not_frozen_whatever_else_crosses() -> None:
    made = cut(Beside(), (torch.randn(4, 6), torch.randn(4, 1)))
    assert len(made.frontier) > 1
    assert "since dropout in drop is random in training" in made.why


BESIDE = np.random.default_rng(5)


class Drawing(nn.Module):
    """Drops its features in some training steps, by a draw of whatever it is given."""

    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self.below, self.head = nn.Linear(6, 12), nn.Linear(12, 2)
        self.own, self.numpys = random.Random(0), np.random.default_rng(0)
        self.torchs = torch.Generator().manual_seed(0)
        self.method = self.own.random
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        y = self.below(x)
        out: Tensor = self.head(y * 0 if self.training and self.draw(self) < 0.02 else y)
        return out


@pytest.mark.parametrize(
    ("draw", "named"),
    [
        (lambda _: random.random(), "draws from Python's random"),
        (lambda _: np.random.rand(), "draws from numpy.random"),
        (lambda net: net.own.random(), "draws from own"),
        (lambda net: net.numpys.random(), "draws from numpys"),
        (lambda net: net.method(), "draws from own"),
        (lambda _: BESIDE.random(), "draws from test_cut_reasons.BESIDE"),
    ],
)
def test_a_forward_that_draws_what_no_graph_has_is_refused(
    draw: Callable[[Any], float], named: str
) -> None:
    random.seed(1)
    np.random.seed(1)
    net = Drawing(draw)
    fl.freeze(net, "below")
    before = draws_of(net)
    assert named in refusal(net, torch.randn(4, 6))
    assert draws_of(net) == before


def test_a_generator_of_its_own_is_named() -> None:
    class Noisy(Drawing):
        def forward(self, x: Tensor) -> Tensor:
            y = self.below(x)
            out: Tensor = self.head(y + torch.rand(12, generator=self.torchs))
            return out

    net = Noisy(lambda _: 1.0)
    fl.freeze(net, "below")
    assert "draws from a torch.Generator of its own" in refusal(net, torch.randn(4, 6))


class Counting(nn.Module):
    """Warms up: goes another way in its first steps, by a count of them."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.head = nn.Linear(6, 12), nn.Linear(12, 2)
        self.steps = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.steps += 1
        out: Tensor = self.head(self.below(x) * (0.5 if self.steps < 100 else 1.0))
        return out


def test_a_count_that_a_forward_goes_by_is_named() -> None:
    net = Counting()
    fl.freeze(net, "below")
    assert "the forward of Counting goes by a count in steps" in refusal(net, torch.randn(4, 6))
    assert net.steps == 0


def test_what_is_done_every_few_steps_is_a_count_that_matters() -> None:
    class Seldom(Counting):
        def forward(self, x: Tensor) -> Tensor:
            self.steps += 1
            out: Tensor = self.head(self.below(x) * (0 if self.steps % 9 == 8 else 1))
            return out

    net = Seldom()
    fl.freeze(net, "below")
    assert "goes by a count in steps" in refusal(net, torch.randn(4, 6))


def test_what_a_forward_puts_aside_is_no_count() -> None:
    class Watched(Counting):
        def forward(self, x: Tensor) -> Tensor:
            self.width, y = x.shape[1], self.below(x)
            self.last = float(y.detach().mean()) if self.training and not x.is_meta else 0.0
            out: Tensor = self.head(y)
            return out

    net = Watched()
    net.last = 1.0
    with torch.no_grad():
        net(torch.randn(4, 6))
    assert reads_of(net, torch.randn(4, 6)).counted == {}
    assert list(reads_of(Counting(), torch.randn(4, 6)).counted) == ["steps"]


def reads_of(net: nn.Module, example: Tensor) -> Reads:
    with reads_recorded(net) as reads:
        net(example)
    return reads


def test_a_count_of_the_samples_is_advised_on() -> None:
    class Counted(Drawing):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.below(x).view(len(x), 12))
            return out

    net = Counted(lambda _: 1.0)
    fl.freeze(net, "below")
    assert "as len(x) does: x.shape[0] leaves it open" in refusal(net, torch.randn(4, 6))


class Halving(nn.Module):
    """Halves a weight in the first call of an evaluation, as RWKV does."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.head = nn.Linear(6, 12), nn.Linear(12, 2)
        self.halved = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and not self.halved:
            with torch.no_grad():
                self.below.weight.div_(2)
            self.halved = True
        out: Tensor = self.head(self.below(x))
        return out


def test_a_forward_that_writes_into_its_weights_is_refused_before_it_does() -> None:
    net = Halving()
    frozen, example = fl.freeze(net, "below"), torch.randn(4, 6)
    message = refusal(net, example)
    assert "writes into its weights: below.weight. Where it does so in the first call" in message
    frozen.verify()
    assert not net.halved
    net.eval()(example)  # as advised
    fl.freeze(net, "below")
    assert cut(net, example).frontier.values[0].name == "below (linear)"


def test_a_trained_weight_may_be_written_into() -> None:
    class Bounded(Counting):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                self.head.weight.clamp_(-0.1, 0.1)  # as constraints on what trains do
            out: Tensor = self.head(self.below(x))
            return out

    net = Bounded()
    fl.freeze(net, "below")
    assert cut(net, torch.randn(4, 6)).frontier.values[0].name == "below (linear)"


def test_a_log_that_counts_its_places_is_no_reason() -> None:
    class Logging(Counting):
        def __init__(self) -> None:
            super().__init__()
            self.seen, self.own = [0.0] * 4, random.SystemRandom()

        def forward(self, x: Tensor) -> Tensor:
            self.seen[self.steps] = float(x.shape[1])
            self.steps = (self.steps + 1) % 4
            out: Tensor = self.head(self.below(x))
            return out

    net = Logging()
    fl.freeze(net, "below")
    assert cut(net, torch.randn(4, 6)).error == 0


def test_a_count_that_scales_gradients_alone_matters() -> None:
    class Reversed(Counting):
        def __init__(self) -> None:
            super().__init__()
            self.middle = nn.Linear(12, 12)

        def forward(self, x: Tensor) -> Tensor:
            self.steps += 1
            y = self.middle(self.below(x))
            share = min(1.0, self.steps / 100)
            out: Tensor = self.head(y.detach() + share * (y - y.detach()))
            return out

    net = Reversed()
    fl.freeze(net, "below")
    assert "goes by a count in steps" in refusal(net, torch.randn(4, 6))


def test_what_a_number_says_of_a_tensor_put_aside_stays_with_it() -> None:
    class Remembering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.below, self.head = nn.Linear(1, 4), nn.Linear(4, 2)
            self.size, self.scale = 0, torch.ones(1)

        def forward(self, x: Tensor) -> Tensor:
            if self.size != x.shape[1]:
                self.size, self.scale = x.shape[1], torch.full((1,), 1.0 / x.shape[1])
            out: Tensor = self.head(self.below(x.unsqueeze(2)).sum(1) * self.scale)
            return out

    net = Remembering()
    fl.freeze(net, "below")
    short, long = torch.randn(4, 5), torch.randn(4, 7)
    expected = net.eval()(short)
    with suppress(fl.CutError):
        cut(net, long)
    assert torch.equal(net.eval()(short), expected)


def test_rows_of_a_frozen_embedding_are_not_kept_in_place_of_tokens(tmp_path: Path) -> None:
    tokens = torch.arange(24).view(4, 6)
    for width, is_worth in ((16, True), (512, False)):
        net = nn.Sequential(nn.Embedding(50, width), nn.Flatten(), nn.Linear(6 * width, 2))
        fl.freeze(net, "0")
        if is_worth:
            assert cut(net, tokens).frontier.nbytes == 6 * width * 4
        else:
            assert "is worth keeping: what it computes below the first trained part would take" in (
                refusal(net, tokens)
            )
            data = TensorDataset(tokens, torch.arange(4) % 2)
            run = fl.fit(net, data, data, epochs=1, features=tmp_path)
            assert any("is worth keeping" in line for line in run.says)


class DropsBelow(nn.Module):
    """A dropout that stands beside the layers, of which the last is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.layers = nn.Dropout(0.1), nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(x * 2)
        for layer in self.layers:
            x = layer(x).relu()
        return x


def test_a_live_dropout_that_keeps_the_line_low_is_named_with_a_rate_that_lets_it_rise() -> None:
    net, example = DropsBelow(), torch.randn(4, 8)
    fl.train_only(net, "layers.3")
    low = cut(net, example)
    assert (
        "dropout in drop is random in training (with its rate at 0 more may lie below)" in low.why
    )
    assert "It has no parameters to freeze: a dropout is off at the rate 0." in (
        refusal(net, example, at="drop")
    )
    net.drop.p = 0.0
    high = cut(net, example)
    assert low.share < 0.5 < high.share
    assert "more may lie below" not in high.why


class Skips(nn.Module):
    """Skips by numbers that are drawn, as transformers' speech networks do by their config."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(layerdrop=0.1, apply_spec_augment=True, mask_time_prob=0.05)
        self.below, self.middle, self.head = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.below(x)
        if not self.training or torch.rand([]) >= self.config.layerdrop:
            x = self.middle(x)
        out: Tensor = self.head(x)
        return out


def test_what_a_config_says_is_drawn_is_named_with_what_to_set() -> None:
    net = Skips()
    fl.train_only(net, "head")
    message = refusal(net, torch.randn(4, 6))
    assert "depends on numbers of the batch, or on drawn ones" in message
    assert "try config.layerdrop = 0.0, config.apply_spec_augment = False." in message


class DrawsAbove(nn.Module):
    """Masks what a frozen part gives by NumPy's numbers, as SpecAugment does."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.head = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.below(x)
        if self.training:
            x = x * torch.from_numpy(np.random.rand(*x.shape) > 0.3)
        out: Tensor = self.head(x.float())
        return out


def test_what_draws_above_a_line_of_ones_own_goes_on_drawing() -> None:
    net, example = DrawsAbove(), torch.randn(4, 6)
    fl.freeze(net, "below")
    made = cut(net, example, at="below")
    features = made.prefix(example)
    net.train()
    outputs = [made.suffix(*features) for _ in range(2)]
    assert not torch.equal(*outputs)
    np.random.seed(3)
    halves = made.suffix(*features)
    np.random.seed(3)
    assert torch.equal(halves, net(example))


def test_inputs_that_differ_from_the_example_are_named() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.below, self.head = nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            out: Tensor = self.head(self.below(a + b))
            return out

    net, one = Two(), torch.randn(4, 6)
    fl.freeze(net, "below")
    made = cut(net, {"a": one, "b": one})
    for given, said in (
        ({"a": one}, ": without b. Give"),
        ({"a": one, "b": one, "c": one}, ": with c. Give"),
        ({"a": one, "c": one}, ": without b and with c. Give"),
    ):
        with pytest.raises(fl.CutError, match=said):
            made.prefix(**given)


@torch.library.custom_op("frostline_tests::dear", mutates_args=())
def dear(x: Tensor) -> Tensor:
    """A kernel of one's own, whose cost nothing counts."""
    return x.cos()


@dear.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def test_what_a_kernel_of_ones_own_gives_is_kept_however_wide() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(50, 512), nn.Linear(512, 2)

        def forward(self, ids: Tensor) -> Tensor:
            out: Tensor = self.head(dear(self.embed(ids)))
            return out

    net = Own()
    fl.freeze(net, "embed")
    assert "dear" in cut(net, torch.arange(8).view(4, 2)).why


def test_a_dropout_below_trained_layers_is_not_said_to_keep_the_line_low() -> None:
    net = nn.Sequential(nn.Dropout(0.1), nn.Linear(8, 8), nn.Linear(8, 64), nn.Linear(64, 64))
    net.insert(0, nn.Linear(8, 8))
    fl.freeze(net, "0 | 3")
    made = cut(net, torch.randn(4, 8))
    assert "dropout in 1 is random in training" in made.why
    assert "more may lie below" not in made.why


class Odd:
    """Answers no question about itself, as lazy objects do before they are loaded."""

    @property
    def __class__(self) -> type:  # type: ignore[override]
        raise RuntimeError("asked for its class")


class Stateless(random.Random):
    def getstate(self) -> Any:
        raise NotImplementedError


def test_odd_objects_and_torchs_own_generator_beside_a_forward_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in (("own", torch.default_generator), ("odd", Odd()), ("no", Stateless())):
        monkeypatch.setitem(globals(), f"beside_{name}", value)
    net = DropsBelow()
    fl.train_only(net, "layers.3")
    assert "dropout in drop is random" in cut(net, torch.randn(4, 8)).why
