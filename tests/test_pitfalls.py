"""What goes wrong elsewhere when people freeze layers, and must not here.

Each test names the pitfall's number in `docs/pitfalls.md`. Where it is cheap, a control shows
that the hand-made way does go wrong, so that the test fails if the cause is put back.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

import frostline as fl


class Net(nn.Module):
    """A body with batch norm and dropout, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU())
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x))
        return out


@pytest.fixture
def net() -> Net:
    return Net()


def batch() -> Tensor:
    return torch.randn(8, 4) + 2


def loss(net: nn.Module) -> Tensor:
    return net(batch()).pow(2).sum()


def frozen_by_hand(net: Net) -> Net:
    for parameter in net.body.parameters():
        parameter.requires_grad = False
    return net


def moved(before: nn.Module, after: nn.Module) -> list[str]:
    pairs = zip(before.state_dict().items(), after.state_dict().values(), strict=True)
    return [name for (name, old), new in pairs if not torch.equal(old, new)]


# 1-4: it was not frozen: buffers and modes


def test_running_statistics_of_a_frozen_network_do_not_move(net: Net) -> None:
    """Pitfall 1: batch norm's statistics move although its weights are frozen."""
    fl.freeze(net, "body")
    before = copy.deepcopy(net)
    net.train()(batch())
    assert moved(before, net) == []


def test_running_statistics_do_move_when_frozen_by_hand(net: Net) -> None:
    """Pitfall 1, the control."""
    before = copy.deepcopy(frozen_by_hand(net))
    net.train()(batch())
    assert "body.1.running_mean" in moved(before, net)


def test_a_parents_train_does_not_undo_the_freeze(net: Net) -> None:
    """Pitfall 1: a parent's `train()` undoes `eval()`."""
    parent = nn.Sequential(net)
    fl.freeze(net, "body")
    parent.train()
    assert not any(module.training for module in net.body.modules())


def test_a_parents_train_undoes_a_freeze_by_hand(net: Net) -> None:
    """Pitfall 1, the control."""
    frozen_by_hand(net).body.eval()
    nn.Sequential(net).train()
    assert net.body[1].training


def test_a_frozen_batch_norm_ignores_batch_mates(net: Net) -> None:
    """Pitfall 2: it must use its statistics, not those of the batch."""
    fl.freeze(net, "body")
    net.train()
    x = batch()
    torch.testing.assert_close(net(x)[:2], net(x[:2]))


def test_batch_norm_without_tracking_depends_on_batch_mates(net: Net) -> None:
    """Pitfall 2, the control: `track_running_stats=False` is no way to freeze."""
    norm = net.body[1]
    norm.track_running_stats = False
    norm.running_mean = norm.running_var = None
    x = batch()
    assert (net.train()(x)[:2] - net(x[:2])).abs().max() > 0.01


def test_alexnets_frozen_classifier_gives_the_same_twice() -> None:
    """Pitfall 4: no batch norm, but two dropouts in its classifier."""
    alexnet = models.alexnet(num_classes=4)
    net = nn.Sequential(alexnet, nn.Linear(4, 2)).train()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert not torch.equal(net(x), net(x))
    fl.freeze(net, alexnet)
    net.train()
    assert torch.equal(net(x), net(x))


# 5-7: it was not frozen: gradients


def optimizers(net: nn.Module) -> Iterator[torch.optim.Optimizer]:
    everything = list(net.parameters())
    yield torch.optim.SGD(everything, lr=0.1, momentum=0.9, weight_decay=0.1)
    yield torch.optim.AdamW(everything, lr=0.1, weight_decay=0.1)
    yield torch.optim.Adam(everything, lr=0.1, weight_decay=0.1)


@pytest.mark.parametrize("which", [0, 1, 2], ids=["SGD", "AdamW", "Adam"])
@pytest.mark.parametrize("to_none", [True, False])
def test_freezing_after_a_backward_stops_momentum_and_decay(
    net: Net, which: int, to_none: bool
) -> None:
    """Pitfall 5: stale gradients, momentum and weight decay move it one step more, or for ever."""
    optimizer = list(optimizers(net))[which]
    loss(net).backward()
    optimizer.step()
    loss(net).backward()
    fl.freeze(net, "body")
    before = copy.deepcopy(net.body)
    for _step in range(3):
        optimizer.step()
        optimizer.zero_grad(set_to_none=to_none)
        loss(net.train()).backward()
    assert moved(before, net.body) == []


def test_momentum_moves_what_was_frozen_by_hand(net: Net) -> None:
    """Pitfall 5, the control."""
    optimizer = next(optimizers(net))
    loss(net).backward()
    optimizer.step()
    before = copy.deepcopy(frozen_by_hand(net).body)
    optimizer.zero_grad(set_to_none=False)
    optimizer.step()
    assert "0.weight" in moved(before, net.body)


def test_stale_gradients_are_not_counted_by_clipping(net: Net) -> None:
    """Pitfall 5: the norm of all gradients counts those of the frozen part."""
    loss(net).backward()
    fl.freeze(net, "body")
    own = nn.utils.get_total_norm([p.grad for p in net.head.parameters() if p.grad is not None])
    assert torch.equal(nn.utils.clip_grad_norm_(net.parameters(), 1e9), own)


def test_frozen_rows_are_held_rather_than_masked(net: Net) -> None:
    """Pitfall 6: weight decay moves rows whose gradients are only masked."""
    frozen = fl.freeze(net, "rows:head.weight[0:1]")
    before = net.head.weight.detach().clone()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.5)
    for _step in range(5):
        optimizer.zero_grad()
        loss(net).backward()
        optimizer.step()
    frozen.verify()
    assert torch.equal(net.head.weight[0], before[0])
    assert not torch.equal(net.head.weight[1], before[1])


def test_freezing_reaches_the_parameters_and_not_the_module_alone(net: Net) -> None:
    """Pitfall 7: `module.requires_grad = False` sets a useless attribute."""
    net.body.requires_grad = False
    assert net.body[0].weight.requires_grad
    fl.freeze(net, "body")
    assert not any(parameter.requires_grad for parameter in net.body.parameters())


# 8-9: the freeze is lost


def test_a_trainer_that_switches_the_freeze_off_is_found_out(net: Net) -> None:
    """Pitfall 8: ultralytics sets `requires_grad` on everything before it trains."""
    frozen = fl.freeze(net, "body")
    for parameter in net.parameters():
        parameter.requires_grad = True
    with pytest.raises(fl.DriftError, match=r"body\.0\.weight: wants gradients again"):
        frozen.verify()


@pytest.mark.parametrize("assign", [False, True])
def test_the_freeze_survives_loading_a_checkpoint(net: Net, assign: bool) -> None:
    """Pitfall 8: the freeze is lost on checkpoint reload."""
    fl.freeze(net, "body")
    net.load_state_dict(copy.deepcopy(net.state_dict()), assign=assign)
    assert not any(parameter.requires_grad for parameter in net.body.parameters())
    assert not any(module.training for module in net.train().body.modules())


def test_a_checkpoint_of_another_freeze_does_not_apply_it(net: Net) -> None:
    """Pitfall 8: a freeze is silently re-applied on resume."""
    fl.freeze(net, "body")
    other = Net()
    other.load_state_dict(net.state_dict())
    assert all(parameter.requires_grad for parameter in other.parameters())


def test_the_freeze_survives_saving_the_whole_model(net: Net) -> None:
    """Pitfall 8: gradients and modes go along in a pickled model."""
    fl.freeze(net, "body")
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False).train()
    assert not any(parameter.requires_grad for parameter in loaded.body.parameters())
    assert not any(module.training for module in loaded.body.modules())


def test_references_hooks_and_optimizers_held_elsewhere_stay_good(net: Net) -> None:
    """Pitfall 9: a frozen batch norm swapped for another class leaves stale references."""
    norm, weight = net.body[1], net.body[1].weight
    calls: list[str] = []
    norm.register_forward_hook(lambda *_: calls.append("called"))
    fl.freeze(net, "body").thaw()
    net(batch())
    assert net.body[1] is norm
    assert net.body[1].weight is weight
    assert calls == ["called"]


def test_thawing_keeps_the_optimizers_momentum(net: Net) -> None:
    """Pitfall 9: thawing resets momentum."""
    optimizer = next(optimizers(net))
    loss(net).backward()
    optimizer.step()
    before = optimizer.state[net.body[0].weight]["momentum_buffer"].clone()
    with fl.frozen(net, "body"):
        loss(net).backward()
        optimizer.step()
    assert torch.equal(optimizer.state[net.body[0].weight]["momentum_buffer"], before)


# 10-12: it was not trained


@pytest.mark.parametrize("text", ["bodi", "body | haed", "body.*.wieght", "re:^bdy", "type:Linera"])
def test_a_misspelt_pattern_is_an_error(net: Net, text: str) -> None:
    """Pitfall 10: it freezes or trains nothing, silently; one of several as well as all."""
    for call in (fl.freeze, fl.thaw, fl.train_only):
        with pytest.raises(fl.SelectorError, match="matches no parameter of Net"):
            call(net, text)
    assert all(parameter.requires_grad for parameter in net.parameters())


def grouped(model: nn.Module, **options: float) -> list[int]:
    groups = fl.param_groups(model, lr=0.1, **options)  # type: ignore[arg-type]
    return sorted(id(parameter) for group in groups for parameter in group["params"])


def test_thawed_layers_are_in_the_optimizers_groups(net: Net) -> None:
    """Pitfall 11: thawed layers get gradients but are in no optimizer."""
    fl.freeze(net, "body")
    fl.thaw(net, "body.0")
    wanted = [*net.body[0].parameters(), *net.head.parameters()]
    assert grouped(net) == sorted(map(id, wanted))


def test_a_thawed_zero_bias_joins_the_optimizer_though_another_equals_it(net: Net) -> None:
    """Pitfall 12: thawed parameters found by value: one zero bias equals another."""
    net.second = nn.Linear(4, 2)
    nn.init.zeros_(net.head.bias)
    nn.init.zeros_(net.second.bias)
    fl.freeze(net, "second").thaw()
    assert torch.equal(net.head.bias, net.second.bias)
    assert {id(net.head.bias), id(net.second.bias)} <= set(grouped(net))


# 16-17


class LanguageModel(nn.Module):
    """A head tied to its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(self.embed(tokens)))
        return out


def test_a_tied_head_is_found_by_its_own_name() -> None:
    """Pitfall 16: `head.*` matches nothing, since its weight is named after the embedding."""
    net = LanguageModel()
    assert "head.weight" not in dict(net.named_parameters())
    fl.freeze(net, "head.*")
    assert not net.embed.weight.requires_grad


def test_training_all_but_a_tied_head_does_not_train_it_as_the_embedding() -> None:
    """Pitfall 16: thawing everything below the head thaws the head with the embedding."""
    net = LanguageModel()
    fl.train_only(net, "~head")
    before = net.head.weight.clone()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.5)
    tokens = torch.arange(6)
    F.cross_entropy(net(tokens), tokens).backward()
    optimizer.step()
    assert torch.equal(net.head.weight, before)


def test_a_weight_normed_layer_is_frozen_by_the_name_of_its_weight() -> None:
    """Pitfall 16: `weight_norm` hides `.weight` behind `parametrizations`."""
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), nn.Linear(2, 2))
    fl.freeze(net, "0.weight")
    assert {n for n, p in net.named_parameters() if p.requires_grad} == {
        "0.bias",
        "1.weight",
        "1.bias",
    }


def test_a_lazy_module_before_its_first_call_says_what_to_do() -> None:
    """Pitfall 16: lazy modules raise something obscure before their first call."""
    net = nn.Sequential(nn.LazyLinear(2), nn.Linear(2, 2))
    with pytest.raises(fl.SelectorError, match="Run one batch through the model, then select"):
        fl.freeze(net, "0")


def test_freezing_everything_is_refused_before_the_first_step(net: Net) -> None:
    """Pitfall 17: "element 0 of tensors does not require grad", hours in."""
    with pytest.raises(fl.FreezeError, match="would leave nothing trainable in Net"):
        fl.freeze(net, "all")
    loss(net).backward()


def test_an_optimizer_of_nothing_is_refused(net: Net) -> None:
    """Pitfall 17: likewise for the groups of a wholly frozen model."""
    fl.freeze(net, "all", leaving="nothing")
    with pytest.raises(fl.FreezeError, match="nothing in Net is trainable, so an optimizer would"):
        fl.param_groups(net, lr=0.1)
