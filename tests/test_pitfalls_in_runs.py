"""What goes wrong in hand-written training loops, and must not in ours. Numbers as in the list."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import frostline as fl
from frostline.data import make_batches
from frostline.devices import Compute
from frostline.engine import Hook, Training, predict, summarised
from frostline.models import build_head, stack_head
from frostline.tasks import Classification


class Net(nn.Module):
    """A body with batch norm and dropout, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(8, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.body(inputs))


class Meddler(Hook):
    """A trainer that switches every gradient on, as some do."""

    def on_start(self, training: Training) -> None:
        for parameter in training.model.parameters():
            parameter.requires_grad_(True)


class Watch(Hook):
    """Notes the body's output on one batch, while training goes on."""

    def __init__(self, inputs: Tensor) -> None:
        self.inputs = inputs
        self.seen: list[Tensor] = []

    def on_start(self, training: Training) -> None:
        self.body = training.model.get_submodule("body")

    def on_batch(self, *_: object) -> None:
        self.seen.append(self.body(self.inputs))


def data(count: int = 24, seed: int = 0) -> TensorDataset:
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 6, generator=draw)
    return TensorDataset(inputs, (inputs[:, 0] > 0).long())


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def test_a_frozen_body_computes_the_same_all_through_training(net: Net) -> None:
    """Pitfalls 1, 3, 4: statistics drift, dropout stays live."""
    fl.freeze(net, "body")
    watch = Watch(torch.randn(4, 6))
    fl.fit(net, data(), data(seed=1), epochs=2, batch_size=8, hooks=(watch,))
    assert len(watch.seen) == 2 * (3 + 3)
    assert all(torch.equal(seen, watch.seen[0]) for seen in watch.seen)


def test_a_body_that_is_not_frozen_does_not_compute_the_same(net: Net) -> None:
    """Pitfalls 1, 3, 4, the control."""
    watch = Watch(torch.randn(4, 6))
    fl.fit(net, data(), data(seed=1), epochs=2, batch_size=8, hooks=(watch,))
    assert not all(torch.equal(seen, watch.seen[0]) for seen in watch.seen)


def test_a_hook_that_switches_the_freeze_off_ends_in_drift(net: Net) -> None:
    """Pitfall 8: the trainer switches your freeze back on."""
    fl.freeze(net, "body")
    with pytest.raises(fl.DriftError, match=r"body\.0\.weight: wants gradients again"):
        fl.fit(net, data(), data(seed=1), epochs=1, batch_size=8, hooks=(Meddler(),))


def test_fitting_a_wholly_frozen_model_is_refused_before_the_first_step(net: Net) -> None:
    """Pitfall 17: "element 0 of tensors does not require grad", hours in."""
    fl.freeze(net, "all", leaving="nothing")
    with pytest.raises(fl.FreezeError, match="nothing in Net is trainable"):
        fl.fit(net, data(), data(seed=1), epochs=1)


def test_evaluation_leaves_each_module_in_its_own_mode(net: Net) -> None:
    """Pitfall 22: `eval()` never switched back."""
    net.train()
    net.body.eval()
    before = [module.training for module in net.modules()]
    batches = make_batches(data(), batch_size=8, shuffle=False, seed=0)
    predict(net, batches, Compute("cpu"))
    assert [module.training for module in net.modules()] == before


def test_evaluation_is_in_eval_mode_whatever_the_mode_before(net: Net) -> None:
    """Pitfall 22: validation with live dropout."""
    batches = make_batches(data(), batch_size=8, shuffle=False, seed=0)
    task, compute = Classification("ab"), Compute("cpu")
    trained = summarised(task, predict(net.train(), batches, compute))
    assert trained == summarised(task, predict(net.eval(), batches, compute))


def test_a_loader_that_was_numbered_is_refused(net: Net) -> None:
    """Pitfall 22: `for data, target in enumerate(loader)` binds an index and a batch."""
    loader = torch.utils.data.DataLoader(data(), batch_size=8)
    with pytest.raises(fl.DataError, match="the targets of the list are list, not numbers"):
        fl.fit(net, list(enumerate(loader)), loader, epochs=1)


def test_a_stacked_head_has_a_nonlinearity_between_its_layers() -> None:
    """Pitfall 22: linear layers stacked on linear layers collapse to one linear map."""
    backbone = nn.Sequential(nn.Linear(6, 10))
    head = stack_head(backbone, classes=2, hidden=[4]).head
    one, other = torch.randn(2, 10), torch.randn(2, 10)
    assert not torch.allclose(head(one) + head(other), head(one + other) + head(0 * one))


def test_a_head_gives_logits_and_not_probabilities() -> None:
    """Pitfall 22: softmax before CrossEntropyLoss, which takes logits."""
    head = build_head(6, 3)
    assert (head(100 * torch.randn(8, 6)) < 0).any()
