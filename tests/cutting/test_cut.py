"""Where the frost line runs, what crosses it, and what a cut promises and refuses.

Long, since each trap comes with the small network that falls into it.
"""

from __future__ import annotations

import copy
import dataclasses
import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cut_training import both_trainings, call, differences, kept_features, prefix_of, rows
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import frostline as fl
from frostline.cutting import Cut, Suffix, cut
from frostline.cutting.checking import check
from frostline.cutting.structures import flatten_output, read_inputs
from frostline.fingerprints.parts import same_bits

BATCHES = [[0, 5, 3], [4, 1, 2], [3, 0, 1]]


def mlp(*more: nn.Module) -> nn.Sequential:
    """Two frozen layers, whatever is given, and a trainable head."""
    net = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 12), *more, nn.Linear(12, 2))
    fl.freeze(net, "0 | 2")
    return net


def assert_exact(model: nn.Module, inputs: Any, *, samples: int = 4) -> Cut:
    """Cut on the first samples; train both ways, evaluate at other batch sizes; equal bits."""
    made = cut(model, rows(inputs, range(samples)))
    assert made.error == 0
    plain, through = both_trainings(model, made, inputs, BATCHES)
    assert differences(plain, through) == []
    model.eval()
    for places in ([5], [0, 1, 2, 3, 4, 5, 0]):
        some = rows(inputs, places)
        with torch.no_grad():
            expected, _ = flatten_output(call(model, some))
            found, _ = flatten_output(made.suffix(*prefix_of(made, rows(inputs, places))))
        assert all(map(same_bits, expected, found))
    return made


def crossing(made: Cut) -> list[str]:
    return [value.name for value in made.frontier.values]


# What is deterministic, and what is not


@pytest.mark.parametrize("dropout", [nn.Dropout(0.0), nn.Dropout(0.5).eval()])
def test_dropout_that_drops_nothing_lies_below_the_line(dropout: nn.Module) -> None:
    net = nn.Sequential(nn.Linear(6, 12), dropout, nn.ReLU(), nn.Linear(12, 2))
    fl.freeze(net, "0")
    if dropout.p:
        dropout.train = lambda _=True: dropout  # type: ignore[method-assign]  # stays in eval
    made = assert_exact(net, torch.randn(6, 6))
    assert "behind 2" in made.why


def test_a_layer_under_two_paths_above_the_line_follows_the_mode() -> None:
    """torch.export calls stand-ins of modules then, and the cut asks what its forward reads."""
    drop = nn.Dropout(0.5)
    net = nn.Sequential(
        nn.Linear(6, 12),
        nn.Sequential(nn.Linear(12, 12), drop),
        nn.Sequential(nn.Linear(12, 2), drop),
    )
    fl.freeze(net, "0")
    assert_exact(net, torch.randn(6, 6))


def test_live_dropout_ends_the_frozen_part() -> None:
    made = assert_exact(mlp(nn.Dropout(0.5)), torch.randn(6, 6))
    assert made.why == "behind 2, since dropout in 3 is random in training"


def test_a_thawed_batch_norm_uses_its_batch_even_if_its_weights_are_frozen() -> None:
    net = mlp(nn.BatchNorm1d(12))
    net[3].requires_grad_(False)
    made = assert_exact(net, torch.randn(6, 6))
    assert made.why.startswith("behind 2, since 3.running_mean moves in training")


def test_a_held_batch_norm_lies_below_the_line() -> None:
    net = nn.Sequential(nn.Linear(6, 40), nn.BatchNorm1d(40), nn.Linear(40, 12), nn.Linear(12, 2))
    fl.train_only(net, "3")
    made = assert_exact(net, torch.randn(6, 6))
    assert made.why == "behind 2, since 3.weight is trainable"


def test_an_adapting_norm_lies_above_the_line() -> None:
    net = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Linear(12, 2))
    fl.freeze(net, "0 | 1", norm="adapt")
    made = assert_exact(net, torch.randn(6, 6))
    assert crossing(made) == ["0 (linear)"]


class Mates(nn.Module):
    """Frozen, and a sample's value depends on the others of its batch."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.below = nn.Linear(6, 12)
        self.head = nn.Linear(12, 2)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        y = self.below(x)
        mixed = {
            "mean": lambda: y - y.mean(0),
            "maximum": lambda: y / y.abs().amax(),
            "roll": lambda: y.roll(1, 0),
            "flip": lambda: y + y.flip(0),
            "first": lambda: y - y[:1],
            "last": lambda: y - y[-1],
            "cumulated": lambda: y.cumsum(0),
            "batch_size": lambda: y / y.shape[0],
            "place": lambda: y + torch.arange(y.shape[0]).unsqueeze(1),
            "similarity": lambda: (y @ y.T).softmax(-1) @ y,
        }[self.how]()
        return self.head(mixed.tanh())


MIXING = "mean maximum roll flip first last cumulated batch_size place similarity"


@pytest.mark.parametrize("how", MIXING.split())
@pytest.mark.parametrize("example", ["random", "zeros", "equal rows"])
def test_what_depends_on_the_batch_is_never_kept(how: str, example: str) -> None:
    net = Mates(how)
    fl.freeze(net, "below")
    inputs = {
        "random": torch.randn(6, 6),
        "zeros": torch.zeros(6, 6),
        "equal rows": torch.randn(1, 6).expand(6, -1).contiguous(),
    }[example]
    made = cut(net, inputs[:4])
    assert set(crossing(made)) <= {"below (linear)", "abs in the forward"}
    assert "depends on its batch or on chance" in made.why


def test_tokens_that_are_all_alike_do_not_hide_what_depends_on_the_batch() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(9, 6)
            self.rest = Mates("mean")

        def forward(self, ids: Tensor) -> Tensor:
            out: Tensor = self.rest(self.embed(ids).mean(1))
            return out

    net = Net()
    fl.freeze(net, "embed | rest.below")
    made = cut(net, torch.zeros(4, 5, dtype=torch.long))
    assert "depends on its batch or on chance" in made.why


# What crosses


def test_sizes_are_asked_of_the_features_and_never_kept() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.below = nn.Linear(6, 12)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            batch = x.shape[0]
            y = self.below(x)
            return self.head(y.view(batch, 3, 4)).reshape(batch, -1) + torch.zeros(batch, 6)

    net = Net()
    fl.freeze(net, "below")
    made = assert_exact(net, torch.randn(6, 6))
    assert len(made.frontier) == 1


class Positions(nn.Module):
    """Adds a frozen position table, spread over the batch, above a trainable layer."""

    def __init__(self) -> None:
        super().__init__()
        self.below = nn.Linear(6, 12)
        self.table = nn.Parameter(torch.randn(12))
        self.head = nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        y = self.below(x).relu()
        mask = torch.ones(12, 12).tril()
        return (self.head(y) + self.table.exp()) @ mask + self.table.sin().expand(x.shape[0], -1)


def test_what_is_the_same_for_each_sample_is_kept_once() -> None:
    net = Positions()
    fl.freeze(net, "below | table")
    made = assert_exact(net, torch.randn(6, 6))
    assert crossing(made) == ["relu in the forward"]
    assert made.frontier.nbytes == 12 * 4


class Centred(nn.Module):
    """Below a trainable layer: scales by what is computed of buffers, and moves one in training."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.head = nn.Linear(6, 12), nn.Linear(12, 2)
        self.register_buffer("spread", torch.ones(12))
        self.register_buffer("tau", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        y = self.below(x)
        if self.training:
            with torch.no_grad():
                self.spread.lerp_(y.var(0), 0.5)
        out: Tensor = self.head(y / (self.spread + 1e-5).sqrt()) * (1 / self.tau)
        return out


def test_evaluation_reads_the_buffers_that_training_has_moved() -> None:
    net = Centred()
    fl.freeze(net, "below")
    made = assert_exact(net, torch.randn(6, 6))
    with torch.no_grad():
        net.tau.fill_(0.25)
    inputs = torch.randn(3, 6)
    for mode in (True, False):
        net.train(mode)
        kept = net.spread.clone()
        expected = net(inputs)
        net.spread.copy_(kept)
        assert same_bits(made.suffix(*made.prefix(inputs)), expected)


def test_an_operation_in_place_does_not_write_into_the_features() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.below = nn.Linear(6, 12)
            self.shift = nn.Parameter(torch.randn(12))

        def forward(self, x: Tensor) -> Tensor:
            y = self.below(x)
            y.view(-1, 3, 4)[:, 0].add_(self.shift[:4])
            return y.add_(self.shift).relu_()

    net = Net()
    fl.freeze(net, "below")
    made = assert_exact(net, torch.randn(6, 6))
    features = made.prefix(torch.randn(3, 6))
    before = [feature.clone() for feature in features]
    net.train()
    first, second = made.suffix(*features), made.suffix(*features)
    assert same_bits(first, second)
    assert all(map(same_bits, before, features))


def test_an_input_that_the_rest_reads_too_crosses_the_line() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.below = nn.Sequential(nn.Linear(6, 50), nn.ReLU(), nn.Linear(50, 12))
            self.head = nn.Linear(18, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(torch.cat([self.below(x), x], 1))
            return out

    net = Net()
    fl.freeze(net, "below")
    net.head.requires_grad_(True)
    made = assert_exact(net, torch.randn(6, 6))
    # The concatenation holds no more than its parts, and is one value.
    assert made.frontier.nbytes == 18 * 4
    gated = Gated()
    fl.freeze(gated, "below")
    assert "the input" in crossing(assert_exact(gated, torch.randn(6, 6)))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.below = nn.Sequential(nn.Linear(6, 50), nn.ReLU(), nn.Linear(50, 12))
        self.gate = nn.Linear(6, 12)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.below(x) * self.gate(x)
        return out


def test_a_write_into_what_was_read_above_the_line_before_lies_above_it_too() -> None:
    class Rewriting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.bias = nn.Linear(6, 12), nn.Parameter(torch.ones(12))
            self.head = nn.Linear(12, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.body(x)
            before = y + self.bias
            y.mul_(2)
            out: torch.Tensor = self.head(before + y)
            return out

    net = Rewriting()
    fl.freeze(net, "body")
    assert crossing(assert_exact(net, torch.randn(6, 6))) == ["body (linear)"]


def test_what_is_read_after_a_trainable_write_through_a_view_lies_above() -> None:
    class Correcting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            # At zero no number shows what it is added to.
            self.body, self.shift = nn.Linear(6, 8), nn.Parameter(torch.zeros(8))
            self.deep = nn.Sequential(nn.Linear(8, 512), nn.ReLU(), nn.Linear(512, 1))
            self.head = nn.Linear(1, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.body(x)
            y.view(-1, 8).add_(self.shift)
            out: Tensor = self.head(self.deep(y))
            return out

    net = Correcting()
    fl.freeze(net, "body | deep")
    assert crossing(assert_exact(net, torch.randn(6, 6))) == ["body (linear)"]


def test_a_wide_value_between_kept_ones_is_kept_too() -> None:
    """To widen the stem's output again costs less than to read it wide; but what is kept of `deep`
    is computed of the wide value, and no frozen operation is built into both halves."""

    class Widened(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.deep = nn.Linear(6, 4), nn.Linear(512, 256)
            self.wide, self.small = nn.Linear(512, 2), nn.Linear(256, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x).repeat(1, 128).relu()
            out: Tensor = self.wide(y) + self.small(self.deep(y))
            return out

    net = Widened()
    fl.freeze(net, "stem | deep")
    assert crossing(assert_exact(net, torch.randn(6, 6))) == [
        "relu in the forward",
        "deep (linear)",
    ]


def test_a_table_that_the_forward_fills_in_place_is_filled_anew_above_the_line() -> None:
    class Filling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.bias = nn.Linear(6, 12), nn.Parameter(torch.ones(12))
            self.head = nn.Linear(12, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            room = torch.zeros(12)
            y = self.body(x) + self.bias + room
            room += 1
            room[0] = 3
            out: torch.Tensor = self.head(y * room)
            return out

    net = Filling()
    fl.freeze(net, "body")
    assert_exact(net, torch.randn(6, 6))


def test_an_input_that_the_forward_writes_into_is_handled() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.below = nn.Linear(6, 12)
            self.head = nn.Linear(12, 2)
            self.side = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            x.mul_(2)
            y = self.below(x).relu_()
            x += 1
            return self.head(y) + self.side(x)

    net = Net()
    fl.freeze(net, "below")
    assert_exact(net, torch.randn(6, 6))


def test_memory_order_above_the_line_is_that_of_the_plain_model() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(128, 2)
    ).to(memory_format=torch.channels_last)
    fl.freeze(net, "0")
    assert_exact(net, torch.randn(6, 3, 8, 8).to(memory_format=torch.channels_last))


def test_equal_values_of_which_one_is_written_into_both_cross() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.below, self.head = nn.Linear(6, 12), nn.Linear(12, 12)

        def forward(self, x: Tensor) -> Tensor:
            one, other = self.below(x).tanh(), self.below(x).tanh()
            one.view(-1, 3, 4).add_(one.view(-1, 3, 4))
            out: Tensor = self.head(one) + self.head(other)
            return out

    net = Twice()
    fl.freeze(net, "below")
    made = assert_exact(net, torch.randn(6, 6))
    assert len(made.frontier) == 2


def test_equal_values_cross_once() -> None:
    net = nn.ModuleDict({"below": nn.Linear(6, 12), "head": nn.Linear(12, 12)})
    fl.freeze(net, "below")

    def forward(x: Tensor) -> Tensor:
        out: Tensor = net["head"](net["below"](x)) * net["head"](net["below"](x)).sin()
        return out

    net.forward = forward  # type: ignore[method-assign]  # a model in few lines
    assert crossing(cut(net, torch.randn(4, 6))) == ["below (linear)"]


# Structures


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, padding=1)
        self.deep = nn.Conv2d(8, 16, 3, padding=1, stride=2)
        self.up = nn.ConvTranspose2d(16, 8, 2, 2)
        self.norm = nn.BatchNorm2d(8)
        self.out = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.relu_(self.down(x))
        deep = F.relu_(self.deep(skip))
        out: Tensor = self.out(torch.cat([skip, self.norm(self.up(deep))], 1))
        return out


def test_skips_of_a_u_net_cross_beside_its_bottom() -> None:
    net = UNet()
    fl.freeze(net, "down | deep")
    made = assert_exact(net, torch.randn(6, 3, 8, 8))
    assert [value.shape for value in made.frontier.values] == [(8, 8, 8), (16, 4, 4)]


class Towers(nn.Module):
    def __init__(self, answer: type | None = None) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Linear(4, 40), nn.ReLU(), nn.Linear(40, 8))
        self.text = nn.Sequential(nn.Linear(5, 8), nn.ReLU(inplace=True))
        self.head = nn.Linear(16, 2)
        self.drop = nn.Dropout()
        self.answer = answer

    def forward(self, image: Tensor, text: Tensor) -> Any:
        both = torch.cat([self.image(image), self.text(text)], 1)
        logits = self.head(self.drop(both))
        if self.answer is None:
            return logits
        return self.answer(logits=logits, hidden=both.detach())


def test_one_frozen_tower_of_two_is_kept_with_the_other_ones_input() -> None:
    net = Towers()
    fl.freeze(net, "image")
    made = assert_exact(net, {"text": torch.randn(6, 5), "image": torch.randn(6, 4)})
    assert sorted(crossing(made)) == ["image.2 (linear)", "text"]


def test_keyword_inputs_may_come_in_another_order() -> None:
    net = Towers()
    fl.freeze(net, "image | text")
    image, text = torch.randn(6, 4), torch.randn(6, 5)
    made = cut(net, {"text": text, "image": image})
    one, other = made.prefix(image=image, text=text), made.prefix(text=text, image=image)
    assert all(map(same_bits, one, other))
    net.eval()
    assert same_bits(made.suffix(*one), net(image=image, text=text))


def test_inputs_built_otherwise_than_the_example_are_refused() -> None:
    net = Towers()
    fl.freeze(net, "image | text")
    made = cut(net, (torch.randn(6, 4), torch.randn(6, 5)))
    with pytest.raises(fl.CutError, match="not built like the example"):
        made.prefix(image=torch.randn(6, 4), text=torch.randn(6, 5))


def test_towers_that_never_meet_are_both_kept() -> None:
    class Apart(Towers):
        def forward(self, image: Tensor, text: Tensor) -> Any:
            return self.image(image) @ self.head.weight[:, :8].T, self.text(text)

    net = Apart()
    fl.freeze(net, "image | text")
    made = assert_exact(net, (torch.randn(6, 4), torch.randn(6, 5)))
    assert len(made.frontier) == 2


@dataclasses.dataclass
class Answer:
    logits: Tensor
    hidden: Tensor | None = None


@pytest.mark.parametrize("kind", [Answer, dict])
def test_outputs_come_in_the_models_own_class(kind: type) -> None:
    net = Towers(kind)
    fl.freeze(net, "image | text")
    inputs = (torch.randn(6, 4), torch.randn(6, 5))
    made = assert_exact(net, inputs)
    assert type(made.suffix(*made.prefix(*inputs))) is kind


def test_a_model_output_of_transformers_stays_one() -> None:
    outputs = pytest.importorskip("transformers.modeling_outputs", reason="no transformers")

    def answer(logits: Tensor, hidden: Tensor) -> Any:
        return outputs.SequenceClassifierOutput(logits=logits, hidden_states=(hidden,))

    net = Towers(answer)  # type: ignore[arg-type]  # called like a class
    fl.freeze(net, "image | text")
    inputs = (torch.randn(6, 4), torch.randn(6, 5))
    made = assert_exact(net, inputs)
    found = made.suffix(*made.prefix(*inputs))
    assert type(found) is outputs.SequenceClassifierOutput
    assert found.loss is None


def test_a_side_network_reads_inner_activations() -> None:
    class Side(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.ModuleList(nn.Linear(900, 900) for _ in range(4))
            self.side = nn.ModuleList(nn.Linear(900, 4) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            out = torch.zeros(())
            for body, side in zip(self.body, self.side, strict=True):
                x = body(x).relu()
                out = out + side(x)
            return out

    net = Side()
    fl.freeze(net, "body")
    made = assert_exact(net, torch.randn(6, 900))
    assert len(made.frontier) == 4


class Reused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(6, 6)
        self.between = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.frozen(self.between(self.frozen(x).relu()))
        return out


def test_only_the_first_use_of_a_frozen_part_lies_below() -> None:
    net = Reused()
    fl.freeze(net, "frozen")
    made = assert_exact(net, torch.randn(6, 6))
    assert made.why == "behind relu in the forward, since between.weight is trainable"


class Scaling(nn.Module):
    """Brings its input to the usual range by constants that it makes at each call."""

    def __init__(self, *, mean: float = 0.5) -> None:
        super().__init__()
        self.mean = mean
        self.frozen = nn.Linear(6, 6)
        self.above = nn.Linear(6, 2)
        self.made: dict[str, Tensor] = {}
        fl.freeze(self, "frozen")

    def forward(self, x: Tensor) -> Tensor:
        if "two" not in self.made:
            self.made["two"] = torch.full((6,), 2.0)
        mean = torch.tensor([self.mean, 0.4, 0.3, 0.2, 0.1, 0.0])
        out: Tensor = self.above(self.frozen(self.made["two"] * (x - mean)))
        return out


def test_constants_of_the_forward_lie_below_the_line() -> None:
    net = Scaling()
    made = assert_exact(net, torch.randn(6, 6))
    assert crossing(made) == ["frozen (linear)"]
    assert type(net.made["two"]) is Tensor
    other = Scaling(mean=0.6)
    other.load_state_dict(net.state_dict())
    assert cut(other, torch.randn(4, 6)).key["tensors"] != made.key["tensors"]


def test_a_tied_weight_is_used_on_both_sides() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(20, 8)
            self.below = nn.Linear(8, 8)
            self.above = nn.Linear(8, 8)
            self.out = nn.Linear(8, 20, bias=False)
            self.out.weight = self.embed.weight

        def forward(self, ids: Tensor) -> Tensor:
            out: Tensor = self.out(self.above(self.below(self.embed(ids))))
            return out

    net = Tied()
    fl.freeze(net, "embed | below")
    made = assert_exact(net, torch.randint(0, 20, (6, 7)))
    assert crossing(made) == ["below (linear)"]


class Adapted(nn.Module):
    """A frozen layer with a low-rank update beside it."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.base = nn.Linear(12, 12)
        self.down = nn.Linear(12, rank, bias=False)
        self.up = nn.Linear(rank, 12, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + self.up(self.down(x))
        return out


def test_adapters_in_upper_layers_leave_the_lower_ones_below() -> None:
    net = nn.Sequential(nn.Linear(6, 12), nn.GELU(), Adapted(2), nn.GELU(), Adapted(2))
    fl.freeze(net, "0 | *.base")
    made = assert_exact(net, torch.randn(6, 6))
    assert "2.down.weight is trainable" in made.why


def test_trainable_layers_that_touch_nothing_frozen_leave_all_of_it_below() -> None:
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 2))
            self.free = nn.Parameter(torch.randn(3))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.body(x), self.free * 2

    net = Beside()
    fl.freeze(net, "body")
    made = assert_exact(net, torch.randn(6, 6))
    assert crossing(made) == ["body.2 (linear)"]
    assert made.why == "behind body.2, since what follows is the model's output"


def test_a_norm_of_weights_hides_no_line() -> None:
    class Standardised(nn.Conv2d):
        """As timm's: batch_norm makes zero means and unit variances of the filters."""

        def forward(self, x: Tensor) -> Tensor:
            rows = self.weight.reshape(1, self.out_channels, -1)
            weight = nn.functional.batch_norm(rows, None, None, training=True)
            return nn.functional.conv2d(x, weight.view_as(self.weight), self.bias)

    net = nn.Sequential(Standardised(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    fl.train_only(net, "3")
    made = assert_exact(net, torch.randn(6, 3, 6, 6))
    assert made.why == "behind 2, since 3.weight is trainable"


# Torch's word on reentrant checkpoints in evaluation.
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpoints_do_not_hide_the_line(reentrant: bool) -> None:
    class Checked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.below = nn.Linear(6, 12)
            self.block = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Dropout())
            self.head = nn.Linear(12, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.below(x)
            y = y if reentrant else checkpoint(nn.Identity(), y, use_reentrant=False)
            z = self.block[0](y)
            z = checkpoint(self.block[1:], z, use_reentrant=reentrant)
            out: Tensor = self.head(z)
            return out

    net = Checked()
    fl.freeze(net, "below")
    made = assert_exact(net, torch.randn(6, 6))
    assert made.why == "behind below, since block.0.weight is trainable"


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize(
    ("reentrant", "layer", "message"),
    [
        (
            False,
            nn.BatchNorm1d(12),
            r"block\.1: a step moves the running statistics more than once",
        ),
        (True, nn.ReLU(), r"block\.0\.weight, block\.0\.bias: the model's own step gives no grad"),
    ],
)
def test_what_checkpoints_do_to_a_step_is_said(
    reentrant: bool, layer: nn.Module, message: str
) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.below, self.head = nn.Linear(6, 12), nn.Linear(12, 2)
            self.block = nn.Sequential(nn.Linear(12, 12), layer)

        def forward(self, x: Tensor) -> Tensor:
            x = checkpoint(self.block, self.below(x), use_reentrant=reentrant)
            return self.head(x)

    net = Checkpointed()
    fl.freeze(net, "below")
    with pytest.raises(fl.CutError, match=message):
        cut(net, torch.randn(6, 6))


def test_a_compiled_model_is_cut_as_the_plain_one() -> None:
    net = mlp(nn.Dropout())
    compiled = torch.compile(net)
    made = cut(compiled, torch.randn(4, 6))
    assert made.suffix.model is net
    assert made.key == cut(net, torch.randn(4, 6)).key


def test_a_compiled_inner_module_is_cut_as_the_plain_one() -> None:
    net = mlp(nn.Sequential(nn.Linear(12, 12), nn.ReLU()))
    net[3].compile()
    assert crossing(cut(net, torch.randn(4, 6))) == ["2 (linear)"]


def test_token_ids_may_vary_in_length() -> None:
    net = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 8), nn.Flatten(0, 1), nn.Linear(8, 2))
    fl.freeze(net, "0 | 1")
    made = cut(net, torch.randint(0, 20, (4, 7)))
    assert made.frontier.values[0].shape == (None, 8)
    net.eval()
    for length in (2, 7, 11):
        ids = torch.randint(0, 20, (3, length))
        assert same_bits(made.suffix(*made.prefix(ids)), net(ids))


def test_auxiliary_outputs_are_handed_on_in_training_only() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 8))
            self.aux = nn.Sequential(nn.Linear(8, 900), nn.ReLU(), nn.Linear(900, 5))
            self.head = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Any:
            y = self.body(x)
            return (self.head(y), self.aux(y)) if self.training else self.head(y)

    net = Auxiliary()
    fl.freeze(net, "body | aux")
    made = assert_exact(net, torch.randn(6, 6))
    assert len(made.frontier) == 2


def test_evaluation_that_reads_another_frozen_value_is_refused() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 8))
            self.head = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.body(x) if self.training else self.body(x.flip(1))
            out: Tensor = self.head(y)
            return out

    net = Other()
    fl.freeze(net, "body")
    with pytest.raises(
        fl.CutError, match=r"part above the line reads the input, which does not cross"
    ):
        cut(net, torch.randn(4, 6))


# The halves


def test_a_head_that_begins_with_zeros_hides_no_difference() -> None:
    """As that of torchvision's vision transformers does: any features give the same output."""
    net = mlp()
    with torch.no_grad():
        net[-1].weight.zero_()
        net[-1].bias.zero_()
    spec, tensors = read_inputs(torch.randn(4, 6))
    assert check(net, spec, tensors, lambda given: net(given[0])).error == 0
    for wrong in (True, False):
        mode = "training" if wrong else "evaluation"
        with pytest.raises(fl.CutError, match=f"does not give what the model gives in {mode}"):
            check(net, spec, tensors, lambda x, w=wrong: net(x[0] + 0.1 * (net.training is w)))


def test_the_suffix_trains_the_models_own_parameters() -> None:
    net = mlp(nn.BatchNorm1d(12))
    made = cut(net, torch.randn(4, 6))
    net.train()
    made.suffix(*made.prefix(torch.randn(4, 6))).sum().backward()
    assert net[4].weight.grad is not None
    assert set(made.suffix.parameters()) == set(net.parameters())
    assert isinstance(made.suffix, Suffix)
    assert net[3].num_batches_tracked == 1


def test_the_suffix_follows_the_models_mode() -> None:
    net = mlp(nn.Dropout(0.9))
    made = cut(net, torch.randn(4, 6))
    features = made.prefix(torch.randn(64, 6))
    made.suffix.eval()
    assert not net.training
    assert same_bits(made.suffix(*features), made.suffix(*features))
    net.train()
    assert not same_bits(made.suffix(*features), made.suffix(*features))


def test_the_prefix_owns_no_parameter_and_gives_no_gradient() -> None:
    made = cut(mlp(), torch.randn(4, 6))
    assert list(made.prefix.parameters()) == []
    assert not any(value.requires_grad for value in made.prefix(torch.randn(4, 6)))


def test_features_of_single_samples_gather_into_any_batch() -> None:
    net = mlp(nn.Dropout())
    inputs = torch.randn(6, 6)
    made = cut(net, inputs)
    net.eval()
    kept = kept_features(made, inputs, [[i] for i in range(6)])
    found = made.suffix(*kept.get([4, 0, 0, 5, 1]))
    torch.testing.assert_close(found, net(inputs[[4, 0, 0, 5, 1]]))


def test_one_sample_is_example_enough() -> None:
    made = assert_exact(mlp(nn.Dropout()), torch.randn(6, 6), samples=1)
    assert made.why == "behind 2, since dropout in 3 is random in training"


def test_a_forward_that_replaces_a_buffer_is_refused_and_the_buffer_kept() -> None:
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.below, self.head = nn.Linear(6, 12), nn.Linear(12, 2)
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.count = self.count + 1
            out: Tensor = self.head(self.below(x)) + self.count
            return out

    net = Counted()
    fl.freeze(net, "below")
    own = net.count
    # torch.export (2.15) loses the new buffer; the cut model would not count.
    with pytest.raises(fl.CutError, match="does not give what the model gives in training"):
        cut(net, torch.randn(4, 6))
    assert net.count is own
    assert own == 0


def test_cutting_leaves_the_model_and_chance_as_they_were() -> None:
    net = mlp(nn.BatchNorm1d(12), nn.Dropout())
    net.train()
    net[3].eval()
    net[5].weight.grad = torch.ones(2, 12)
    modes = [module.training for module in net.modules()]
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    grads = [p.grad for p in net.parameters()]
    own = [sorted(module.__dict__) for module in net.modules()]
    chance = torch.get_rng_state(), random.getstate()
    example = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    given = example.clone()
    cut(net, example)
    assert [module.training for module in net.modules()] == modes
    assert all(same_bits(state[name], tensor) for name, tensor in net.state_dict().items())
    assert all(
        one is other for one, other in zip(grads, (p.grad for p in net.parameters()), strict=True)
    )
    assert [sorted(module.__dict__) for module in net.modules()] == own
    assert torch.equal(chance[0], torch.get_rng_state())
    assert chance[1] == random.getstate()
    assert same_bits(example, given)


# What is said


def test_a_printed_cut_fits_the_terminal_and_says_all() -> None:
    net = nn.Sequential()
    net.add_module("a_module_with_quite_a_long_name_for_a_test_of_the_width", mlp(nn.Dropout()))
    text = str(cut(net, torch.randn(4, 6)))
    assert max(map(len, text.splitlines())) <= 80
    assert "Frost line of Sequential" in text
    assert "12 float32, 48 B per sample" in " ".join(text.split())
    assert "% of the forward's cost" in text
    assert "bit for bit on 4 samples" in " ".join(text.split())


def test_cost_below_and_bytes_are_counted() -> None:
    made = cut(mlp(), torch.randn(4, 6))
    assert 0.9 < made.share < 1
    assert made.frontier.nbytes == 48
    assert made.samples == 4


def test_a_line_below_the_last_frozen_operation_says_what_follows() -> None:
    net = nn.Sequential(nn.Linear(600, 8), nn.Linear(8, 4000), nn.Dropout(), nn.Linear(4000, 2))
    fl.freeze(net, "0 | 1")
    made = assert_exact(net, torch.randn(6, 600))
    assert made.why == (
        "behind 0, since dropout in 2 is random in training; what lies between costs less to "
        "compute again than to read"
    )


def test_nothing_frozen_names_the_parameter_that_is_in_the_way() -> None:
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2))
    fl.freeze(net, "1")
    with pytest.raises(fl.NothingFrozen, match=r"0\.weight is trainable.*train_only"):
        cut(net, torch.randn(4, 6))


# Keys


def test_the_key_is_that_of_what_the_prefix_computes() -> None:
    torch.manual_seed(3)
    net = mlp(nn.Dropout())
    twin = copy.deepcopy(net)
    key = cut(net, torch.randn(4, 6)).key
    assert cut(twin, torch.randn(7, 6)).key == key
    with torch.no_grad():
        twin[-1].weight += 1
    assert cut(twin, torch.randn(4, 6)).key == key
    with torch.no_grad():
        twin[0].weight[0, 0] += 1
    assert cut(twin, torch.randn(4, 6)).key["prefix"] == key["prefix"]
    assert cut(twin, torch.randn(4, 6)).key["tensors"] != key["tensors"]


def test_the_key_tells_functions_of_equal_weights_apart() -> None:
    one, other = mlp(nn.Dropout()), mlp(nn.Dropout())
    other.load_state_dict(one.state_dict())
    other[1] = nn.GELU()
    keys = [cut(net, torch.randn(4, 6)).key for net in (one, other)]
    assert keys[0]["tensors"] == keys[1]["tensors"]
    assert keys[0]["prefix"] != keys[1]["prefix"]


def test_the_key_does_not_depend_on_names() -> None:
    net = mlp(nn.Dropout())
    named = nn.Sequential()
    for number, module in enumerate(copy.deepcopy(net)):
        named.add_module(f"part{number}", module)
    assert cut(named, torch.randn(4, 6)).key == cut(net, torch.randn(4, 6)).key


def test_the_key_reads_what_a_block_without_gradients_computes() -> None:
    class Quiet(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.below, self.head, self.factor = nn.Linear(6, 12), nn.Linear(12, 2), factor

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                y = self.below(x) * self.factor
            out: Tensor = self.head(y)
            return out

    nets = [Quiet(2.0), Quiet(3.0), Quiet(2.0)]
    for net in nets:
        net.load_state_dict(nets[0].state_dict())
        fl.freeze(net, "below")
    first, second, third = (cut(net, torch.randn(4, 6)).key["prefix"] for net in nets)
    assert first != second
    assert first == third


# Models that cannot be followed


class Branching(nn.Module):
    """A data-dependent branch inside its frozen part."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Branch()
        self.head = nn.Linear(12, 2)
        self.drop = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.drop(self.backbone(x)))
        return out


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 12)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y if y.isfinite().all() else y.nan_to_num()


def test_what_cannot_be_followed_is_refused_in_one_quiet_message(
    capfd: pytest.CaptureFixture[str],
) -> None:
    net = Branching()
    fl.freeze(net, "backbone")
    with pytest.raises(fl.CutError, match=r"cannot follow Branching.*at=\"backbone\"") as refusal:
        cut(net, torch.randn(4, 6))
    assert "\n" not in str(refusal.value)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_a_forward_that_chooses_by_torchs_cond_is_refused_and_cut_behind_a_submodule() -> None:
    class Choosing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.below, self.head = nn.Linear(6, 12), nn.Linear(12, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.below(x)
            large = y.abs().sum() > 1e6
            y = torch.cond(large, lambda y: y / 2, lambda y: y + 0, (y,))
            out: Tensor = self.head(y)
            return out

    net = Choosing()
    fl.freeze(net, "below")
    match = r"Choosing chooses or repeats .* by torch's cond, .*at=\"below\""
    with pytest.raises(fl.CutError, match=match):
        cut(net, torch.randn(4, 6))
    assert cut(net, torch.randn(4, 6), at="below").error == 0


def test_a_cond_whose_value_nobody_uses_is_refused_too() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.below, self.head = nn.Linear(6, 12), nn.Linear(12, 2)
            self.register_buffer("seen", torch.zeros(6))

        def forward(self, x: Tensor) -> Tensor:
            torch.cond(x.sum() > 0, lambda x: self.seen.add_(1) + x, lambda x: x + 0, (x,))
            out: Tensor = self.head(self.below(x))
            return out

    net = Counting()
    fl.freeze(net, "below")
    with pytest.raises(fl.CutError, match=r"Counting chooses or repeats .* by torch's cond, "):
        cut(net, torch.ones(4, 6))


def test_a_model_that_answers_with_a_conjugate_view_is_cut() -> None:
    class Spectrum(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.rfft(super().forward(x)).conj()

    net = Spectrum(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8))
    fl.freeze(net, "0")
    assert cut(net, torch.randn(4, 6)).error == 0


def test_a_named_submodule_is_cut_behind_where_export_fails() -> None:
    net = Branching()
    fl.freeze(net, "backbone")
    made = cut(net, torch.randn(4, 6), at="backbone")
    assert made.why == "behind backbone, as asked"
    assert made.frontier.nbytes == 48
    assert made.prefix.graph is None
    plain, through = both_trainings(net, made, torch.randn(6, 6), BATCHES)
    assert differences(plain, through) == []


def test_the_key_of_a_named_cut_is_that_of_its_frozen_tensors() -> None:
    net = Branching()
    fl.freeze(net, "backbone")
    key = cut(net, torch.randn(4, 6), at="backbone").key
    with torch.no_grad():
        net.head.weight += 1
    assert cut(net, torch.randn(4, 6), at="backbone").key == key
    with torch.no_grad():
        net.backbone.layer.weight += 1
    assert cut(net, torch.randn(4, 6), at="backbone").key != key


class Tokens(nn.Module):
    """What stands below the line mixes its input with parameters, and has norms."""

    def __init__(self, *, skips: bool) -> None:
        super().__init__()
        self.skips = skips
        self.first, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.token, self.place = nn.Parameter(torch.ones(1, 1, 6)), nn.Parameter(torch.rand(2, 6))
        self.middle, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x))
        x = torch.cat([self.token.expand(len(x), -1, -1), x[:, None]], dim=1) + self.place
        y = self.middle(x)
        found: Tensor = self.head(y + x if self.skips else y)
        return found


def test_a_line_behind_a_submodule_runs_above_norms_and_a_class_token() -> None:
    net = Tokens(skips=False)
    fl.train_only(net, "head")
    made = cut(net, torch.randn(4, 6), at="middle")
    ran = []
    net.first.register_forward_hook(lambda *_: ran.append("first"))
    (features,) = made.prefix(torch.randn(4, 6))
    assert ran == ["first"]
    made.suffix(features).sum().backward()
    assert ran == ["first"]
    assert made.error == 0.0


def test_a_skip_over_the_line_behind_a_submodule_is_refused() -> None:
    net = Tokens(skips=True)
    fl.train_only(net, "head")
    with pytest.raises(fl.CutError, match=r"reads the model's input itself \(by (cat|add)\)"):
        cut(net, torch.randn(4, 6), at="middle")


@pytest.mark.parametrize(
    ("at", "message"),
    [
        ("hed", r"no submodule 'hed'.*Nearest: head"),
        ("head", r"head is not wholly frozen"),
        ("unused", r"unused is not used in the forward"),
        ("twice", r"twice is used 2 times"),
        ("above", r"what goes into above is trainable"),
        ("random", r"random answers differently each time.*a dropout is off at the rate 0"),
        ("below", r"below answers differently.*below it is random, as in the model's own forward"),
        ("mates", r"mates gives a sample what depends on its batch"),
        ("mode", r"mode answers otherwise in evaluation than in training.*name a lower part"),
        ("read", r"reads the model's input itself"),
    ],
)
def test_a_named_submodule_that_does_not_do_is_refused(at: str, message: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in ("unused", "twice", "read", "mode", "below", "head", "above"):
                self.add_module(name, nn.Linear(6, 6))
            self.random = nn.Dropout()
            self.mates = nn.BatchNorm1d(6, affine=False)

        def forward(self, x: Tensor) -> Tensor:
            x = self.mates(x) if at == "mates" else x
            y = self.read(self.twice(self.twice(self.random(x) if at == "random" else x)))
            if at == "read":
                y = y + x.relu()
            if at == "mode":
                y = self.mode(1.5 * y if self.training else y)
            if at == "below":
                y = self.below(y + torch.rand(1))
            out: Tensor = self.above(self.head(y))
            return out

    net = Net()
    for name in ("unused", "twice", "read", "mode", "above"):
        net.get_submodule(name).requires_grad_(False)
    fl.freeze(net, "below")
    with pytest.raises(fl.CutError, match=message):
        cut(net, torch.randn(4, 6), at=at)


@pytest.mark.parametrize("name", ["gru", "lstm", "rnn_tanh", "x_assert", "sym_size", "dropout"])
def test_a_layer_that_is_called_as_an_operation_is_taken_for_none(name: str) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module(name, nn.GRU(6, 40, batch_first=True))
            self.head = nn.Linear(40, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.get_submodule(name)(x)[0])
            return out

    net = Named()
    fl.freeze(net, name)
    assert cut(net, torch.randn(4, 5, 6)).error == 0


def test_features_behind_a_named_submodule_are_those_of_train_mode_in_both_modes() -> None:
    """Their key tells no mode, so a forward that goes by it after the cut must not mix rows."""

    class Switched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head, self.factor = nn.Linear(6, 6), nn.Linear(6, 2), lambda: 1.0

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.body(x * (self.factor() if self.training else 1.0)))
            return out

    net, x, factors = Switched(), torch.randn(4, 6), [1.0]
    net.factor = lambda: factors[0]
    fl.freeze(net, "body")
    made = cut(net, x, at="body")
    factors[0] = 1.5
    trained = made.prefix(x)[0]
    net.eval()
    assert same_bits(made.prefix(x)[0], trained)
    assert not net.training


def test_a_gradient_that_export_loses_is_noticed() -> None:
    class Scaled(torch.autograd.Function):
        @staticmethod
        def forward(_: Any, x: Tensor) -> Tensor:
            return x * 1.0

        @staticmethod
        def backward(_: Any, gradient: Tensor) -> Tensor:
            return gradient * -3

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.below, self.mid, self.head = nn.Linear(6, 12), nn.Linear(12, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(Scaled.apply(self.mid(self.below(x))))
            return out

    net = Net()
    fl.freeze(net, "below")
    with pytest.raises(fl.CutError, match="does not give what the model gives in training"):
        cut(net, torch.randn(4, 6))


def test_an_input_without_a_row_for_each_sample_is_refused() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.below, self.head = nn.Linear(6, 12), nn.Linear(12, 2)

        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            out: Tensor = self.head(self.below(x)) * scale
            return out

    net = Scaled()
    fl.freeze(net, "below")
    with pytest.raises(fl.CutError, match="input 1 has no row for each sample"):
        cut(net, (torch.randn(4, 6), torch.tensor(2.0)))


def test_an_output_that_is_no_tensor_is_refused() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.below, self.head = nn.Linear(6, 12), nn.Linear(12, 2)

        def forward(self, x: Tensor) -> Any:
            return {self.head(self.below(x))}

    net = Odd()
    fl.freeze(net, "below")
    with pytest.raises(fl.CutError, match="returns a set, which cannot be taken apart"):
        cut(net, torch.randn(4, 6))


@pytest.mark.parametrize("example", [(), {}, {"x": None}, (torch.randn(4, 6), None)])
def test_an_example_without_tensors_is_refused(example: Any) -> None:
    with pytest.raises(fl.CutError, match="example without tensors, or with None in it"):
        cut(mlp(), example)


def test_an_example_without_a_batch_is_refused() -> None:
    with pytest.raises(fl.CutError, match="no batch dimension"):
        cut(mlp(), torch.tensor(1.0))


def test_a_forward_that_holds_for_one_batch_size_is_refused() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.below, self.head = nn.Linear(6, 12), nn.Linear(12, 2)
            self.bias = nn.Parameter(torch.randn(4, 1))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.below(x)) + self.bias
            return out

    net = Fixed()
    fl.freeze(net, "below")
    with pytest.raises(fl.CutError, match="only holds for batches of 4 samples"):
        cut(net, torch.randn(4, 6))


class Counting(nn.Module):
    """Goes one way for few samples, and another for many."""

    def __init__(self, few: int, *, mode: bool | None = None) -> None:
        super().__init__()
        self.below, self.head = nn.Linear(6, 12), nn.Linear(12, 2)
        self.few, self.mode = few, mode
        fl.freeze(self, "below")

    def forward(self, x: Tensor) -> Tensor:
        y = self.below(x)
        if x.shape[0] <= self.few and self.mode in (None, self.training):
            y = 2 * y
        out: Tensor = self.head(y)
        return out


@pytest.mark.parametrize("mode", [None, True, False])
@pytest.mark.parametrize(
    ("few", "message"), [(7, "batches of up to 7 samples"), (1, "for one sample"), (3, "for one")]
)
def test_a_forward_that_asks_how_many_samples_there_are_is_refused(
    few: int, message: str, mode: bool | None
) -> None:
    with pytest.raises(fl.CutError, match=message):
        cut(Counting(few, mode=mode), torch.randn(4, 6))


def test_a_forward_that_asks_for_many_samples_is_cut_behind_a_named_submodule() -> None:
    net, inputs = Counting(7), torch.randn(9, 6)
    made = cut(net, inputs[:4], at="below")
    for samples in (1, 4, 9):
        assert same_bits(made.suffix(*made.prefix(inputs[:samples])), net(inputs[:samples]))


def test_a_forward_that_takes_no_single_sample_is_cut() -> None:
    net = mlp(nn.BatchNorm1d(12))
    made = cut(net, torch.randn(4, 6))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        net(torch.randn(1, 6))
    assert made.error == 0
