"""Small set-ups that are broken, each in one way, with what the doctor must say of it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Subset, TensorDataset

import frostline as fl

CLASSES = 3


@dataclass(frozen=True)
class Case:
    """A set-up and what must be found.

    Attributes:
        code, name: of a finding, and what it must name.
        arguments: what `fl.doctor` is given, by name; `model` among it.
        fixed: whether the fix is code that can be run as it stands.
    """

    code: str
    name: str
    arguments: dict[str, Any]
    fixed: bool = False


ZOO: dict[str, Callable[[], Case]] = {}


@cache
def told(name: str) -> fl.Checkup:
    """The checkup of a set-up in the zoo, made once for all tests that read it."""
    return fl.doctor(**ZOO[name]().arguments)


def case(make: Callable[[], Case]) -> Callable[[], Case]:
    ZOO[make.__name__] = make
    return make


class Net(nn.Module):
    """A backbone of two blocks and a head, healthy as it is."""

    def __init__(self, *, bias: float = 0.1) -> None:
        super().__init__()
        self.backbone = nn.Sequential(self.block(3), self.block(8))
        self.head = nn.Linear(8, CLASSES)
        nn.init.constant_(self.head.bias, bias)

    @staticmethod
    def block(width: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(width, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.backbone(x).mean((2, 3)))
        return out


def pictures() -> Tensor:
    return torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def rows() -> Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


def frozen_net() -> Net:
    net = Net()
    fl.freeze(net, "backbone")
    return net


def off(module: nn.Module) -> None:
    """Freeze as tutorials do."""
    for parameter in module.parameters():
        parameter.requires_grad = False


def adam(model: nn.Module, lr: float = 1e-3) -> torch.optim.Optimizer:
    return torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)


class Scripted(torch.jit.ScriptModule):
    """A part that comes as TorchScript."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))


@case
def embedding_with_max_norm_frozen_by_hand() -> Case:
    net = nn.Sequential(nn.Embedding(5, 4, max_norm=1.0), nn.Flatten(), nn.Linear(8, CLASSES))
    off(net[0])
    asked = {"model": net, "example": torch.tensor([[0, 1], [2, 3], [4, 0], [1, 2]])}
    return Case("cannot-freeze", "max_norm=1", asked)


@case
def torchscript_frozen_by_hand() -> Case:
    net = nn.Sequential(Scripted(), nn.Linear(4, CLASSES))
    off(net[0])
    return Case("cannot-freeze", "0.weight: 0 is TorchScript", {"model": net})


@case
def norms_put_in_place_of_held_ones() -> Case:
    net = nn.SyncBatchNorm.convert_sync_batchnorm(frozen_net())
    asked = {"model": net, "example": pictures()}
    return Case("replaced-norm", "backbone.1.1 (SyncBatchNorm)", asked, fixed=True)


@case
def norms_with_parameters_of_their_own_put_in_place_of_held_ones() -> Case:
    net = frozen_net()
    net.backbone[0][1] = nn.BatchNorm2d(8)
    asked = {"model": net, "example": pictures()}
    return Case("replaced-norm", "backbone.0.1 (BatchNorm2d)", asked, fixed=True)


class Passing(Net):
    """Freezes its backbone itself, and passes it over whenever a mode is set."""

    def __init__(self) -> None:
        super().__init__()
        off(self.backbone)
        for module in self.backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()

    def train(self, mode: bool = True) -> Passing:
        self.training = mode
        self.head.train(mode)
        return self


@case
def dropout_that_no_eval_reaches() -> Case:
    asked = {"model": Passing()}
    return Case("random-in-eval", "backbone.0.3, backbone.1.3", asked, fixed=True)


class Drawing(nn.Module):
    """Dropout by the function, which asks no mode of its own accord."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(F.dropout(x))
        return out


@case
def dropout_in_a_forward_that_asks_no_mode() -> Case:
    asked = {"model": Drawing(), "example": rows()}
    return Case("random-in-eval", "two passes", asked)


class Tossing(nn.Module):
    """Negates its input in half of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(-x if torch.rand(1) < 0.5 else x)
        return out


@case
def a_coin_tossed_in_evaluation() -> Case:
    return Case("random-in-eval", "two passes", {"model": Tossing(), "example": rows()})


@case
def misspelt_freeze() -> Case:
    return Case("no-match", "bakbone", {"model": Net(), "freeze": "bakbone"}, fixed=True)


@case
def misspelt_train() -> Case:
    return Case("no-match", "heed", {"model": Net(), "train": "heed"}, fixed=True)


@case
def one_of_two_terms_misspelt() -> Case:
    asked = "backbone.0 | backbone.7"
    return Case("no-match", "backbone.7", {"model": Net(), "freeze": asked}, fixed=True)


@case
def everything_frozen_by_hand() -> Case:
    net = Net()
    off(net)
    return Case("nothing-trainable", "none of the 10 parameters", {"model": net}, fixed=True)


@case
def a_freeze_that_leaves_nothing() -> Case:
    asked = {"model": Net(), "freeze": "backbone | head"}
    return Case("nothing-trainable", "none of the 10", asked, fixed=True)


@case
def nothing_frozen() -> Case:
    return Case("everything-trainable", "all 10 parameters", {"model": Net()}, fixed=True)


@case
def requires_grad_set_on_a_module() -> Case:
    net = Net()
    net.backbone.requires_grad = False  # type: ignore[assignment]  # the mistake
    return Case("useless-switch", "backbone", {"model": net}, fixed=True)


@case
def a_frozen_part_unfrozen_by_hand() -> Case:
    net = frozen_net()
    net.backbone.requires_grad_(True)
    return Case("held-though-trainable", "backbone", {"model": net}, fixed=True)


@case
def terms_that_exclude_each_other() -> Case:
    asked = {"model": Net(), "freeze": "backbone & head"}
    return Case("cannot-freeze", "leaves nothing to freeze", asked)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Embedding(12, 8), nn.Linear(8, 8), nn.Tanh())
        self.out = nn.Linear(8, 12)
        self.out.weight = self.body[0].weight  # type: ignore[assignment]

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.out(self.body(ids).mean(1))
        return logits


@case
def tied_embedding_frozen_under_a_training_output() -> Case:
    asked = {"model": Tied(), "example": torch.arange(24).reshape(6, 4) % 12}
    fl.freeze(asked["model"], "body")
    return Case("tied-split", "out.weight", asked, fixed=True)


@case
def tied_output_that_trains_the_frozen_embedding() -> Case:
    net = Tied()
    fl.train_only(net, "out")
    return Case("tied-split", "body.0.weight", {"model": net}, fixed=True)


@case
def lazy_layer_without_a_batch() -> Case:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, CLASSES))
    return Case("lazy-module", "0.weight", {"model": net, "example": rows()}, fixed=True)


@case
def example_of_another_width() -> Case:
    asked = {"model": frozen_net(), "example": torch.randn(4, 5, 8, 8)}
    return Case("forward-failed", "RuntimeError", asked)


class FailsInEval(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if self.training else x[:, :2])


@case
def forward_that_breaks_in_eval() -> Case:
    net = FailsInEval()
    fl.freeze(net, "backbone.0")
    return Case("forward-failed", "in eval mode", {"model": net, "example": pictures()})


class WritesInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x).exp()
        out: Tensor = self.head(hidden)
        hidden += 1
        return out


@case
def value_overwritten_before_the_backward_pass() -> Case:
    asked = {"model": WritesInPlace(), "example": rows()}
    return Case("backward-failed", "inplace operation", asked)


@case
def weights_with_nan() -> Case:
    net = frozen_net()
    with torch.no_grad():
        net.backbone[0][0].weight[0, 0, 0, 0] = float("nan")
    asked = {"model": net, "example": pictures()}
    return Case("not-finite", "backbone.0.0.weight", asked)


class RootOfZero(Net):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.sqrt(self.backbone(x).mean((2, 3)) * 0))
        return out


@case
def gradient_of_a_root_of_zero() -> Case:
    return Case("not-finite", "gradients of", {"model": RootOfZero(), "example": pictures()})


@case
def model_without_data() -> Case:
    with torch.device("meta"):
        net = Net()
    return Case("not-tried", "meta device", {"model": net, "example": pictures()})


@case
def optimizer_of_a_copy() -> Case:
    net = frozen_net()
    asked = {"model": net, "optimizer": adam(copy.deepcopy(net))}
    return Case("other-model", "of this Net", asked, fixed=True)


@case
def thawed_after_the_optimizer() -> Case:
    net = frozen_net()
    optimizer = adam(net)
    fl.thaw(net, "backbone.1")
    asked = {"model": net, "optimizer": optimizer}
    return Case("not-in-optimizer", "backbone.1.0.weight", asked, fixed=True)


@case
def frozen_after_the_optimizer() -> Case:
    net = Net()
    optimizer = adam(net)
    fl.freeze(net, "backbone")
    asked = {"model": net, "optimizer": optimizer}
    return Case("frozen-in-optimizer", "backbone.0.0.weight", asked, fixed=True)


@case
def one_parameter_in_two_optimizers() -> Case:
    net = frozen_net()
    asked = {"model": net, "optimizer": [adam(net), torch.optim.SGD([net.head.weight], lr=0.01)]}
    return Case("in-two-groups", "head.weight", asked, fixed=True)


@case
def resized_after_a_step() -> Case:
    net = Net()
    optimizer = adam(net)
    net(pictures()).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    net.head.weight.data = torch.zeros(CLASSES + 1, 8)
    net.head.bias.data = torch.zeros(CLASSES + 1)
    asked = {"model": net, "optimizer": optimizer}
    return Case("outgrown-state", "head.weight", asked, fixed=True)


@case
def frozen_with_gradients_from_before() -> Case:
    net = Net()
    optimizer = adam(net)
    net(pictures()).sum().backward()
    off(net.backbone)
    net.backbone.eval()
    asked = {"model": net, "optimizer": optimizer}
    return Case("stale-gradient", "backbone.0.0.weight", asked, fixed=True)


@case
def scheduler_of_another_optimizer() -> Case:
    net = frozen_net()
    schedule = torch.optim.lr_scheduler.StepLR(adam(net), 1)
    asked = {"model": net, "optimizer": adam(net), "schedulers": [schedule]}
    return Case("other-scheduler", "StepLR", asked)


@case
def group_added_behind_the_scheduler() -> Case:
    net = frozen_net()
    optimizer = adam(net)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    fl.thaw(net, "backbone.1")
    optimizer.add_param_group({"params": list(net.backbone[1].parameters())})
    asked = {"model": net, "optimizer": optimizer, "schedulers": [schedule]}
    return Case("scheduler-groups", "LambdaLR", asked)


@case
def pretrained_layers_at_a_rate_for_heads() -> Case:
    net = Net()
    fl.freeze(net, "backbone.0")
    asked = {"model": net, "optimizer": adam(net, lr=0.01)}
    return Case("learning-rate", "0.01 for pretrained layers", asked, fixed=True)


@case
def head_at_a_rate_of_one() -> Case:
    net = frozen_net()
    asked = {"model": net, "optimizer": adam(net, lr=1.0)}
    return Case("learning-rate", "1 for the head", asked, fixed=True)


@case
def sgd_at_a_rate_of_one() -> Case:
    net = Net()
    fl.freeze(net, "backbone.0")
    trained = [p for p in net.parameters() if p.requires_grad]
    asked = {"model": net, "optimizer": torch.optim.SGD(trained, lr=1.0)}
    return Case("learning-rate", "backbone.1.0.weight", asked, fixed=True)


@case
def rate_that_moves_nothing() -> Case:
    net = frozen_net()
    asked = {"model": net, "optimizer": adam(net, lr=1e-9)}
    return Case("learning-rate", "highest learning rate is 1e-09", asked, fixed=True)


class Unused(Net):
    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(8, 1)


@case
def layer_that_the_forward_leaves_out() -> Case:
    net = Unused()
    fl.freeze(net, "backbone")
    return Case("no-gradient", "spare.weight", {"model": net, "example": pictures()}, fixed=True)


class NoGrad(Net):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(x)


@case
def forward_under_no_grad() -> Case:
    net = NoGrad()
    fl.freeze(net, "backbone")
    return Case("no-gradient", "head.weight", {"model": net, "example": pictures()})


class Detached(Net):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.backbone(x).detach().mean((2, 3)))
        return out


@case
def detached_below_the_head() -> Case:
    net = Detached()
    fl.freeze(net, "backbone.0")
    return Case("no-gradient", "backbone.1.0.weight", {"model": net, "example": pictures()})


@case
def dead_relu() -> Case:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    nn.init.constant_(net[2].bias, -100.0)
    off(net[0])
    return Case("zero-gradient", "ReLU at 3", {"model": net, "example": rows()})


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.gate = nn.Linear(4, 8), nn.Parameter(torch.zeros(8))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x).tanh() * self.gate)
        return out


@case
def frozen_gate_of_zeros() -> Case:
    net = Gated()
    net.gate.requires_grad = False
    return Case("zero-gradient", "body.weight", {"model": net, "example": rows()})


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(checkpoint(self.body, x, use_reentrant=True))
        return out


@case
def reentrant_checkpointing_over_inputs() -> Case:
    asked = {"model": Checkpointed(), "example": rows()}
    return Case("reentrant-checkpoint", "(model)", asked)


@case
def frozen_head_above_a_training_stem() -> Case:
    net = Net()
    fl.train_only(net, "backbone.0")
    asked = {"model": net, "example": pictures()}
    return Case("frozen-above-trainable", "backbone.1", asked, fixed=True)


@case
def batch_norm_frozen_by_hand() -> Case:
    net = Net()
    off(net.backbone)
    return Case("moving-statistics", "backbone.0.1", {"model": net}, fixed=True)


@case
def eval_that_the_next_train_undoes() -> Case:
    net = Net()
    off(net.backbone)
    net.backbone.eval()
    return Case("moving-statistics", "backbone.1.1", {"model": net}, fixed=True)


@case
def one_dimensional_batch_norm_forgotten() -> Case:
    net = nn.Sequential(
        nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), nn.ReLU(), nn.Linear(4, 3)
    )
    off(net[0])
    return Case("moving-statistics", "0.1", {"model": net}, fixed=True)


@case
def spectral_norm_frozen_by_hand() -> Case:
    net = nn.Sequential(spectral_norm(nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 3))
    off(net[0])
    return Case("moving-statistics", "0", {"model": net}, fixed=True)


@case
def dropout_in_a_part_frozen_by_hand() -> Case:
    net = Net()
    off(net.backbone)
    return Case("live-dropout", "backbone.0.3", {"model": net}, fixed=True)


@case
def dropouts_between_frozen_layers_of_a_part_that_trains() -> Case:
    net = nn.Sequential(
        nn.Sequential(nn.Linear(4, 4), nn.ReLU()),
        nn.Sequential(nn.Dropout(), nn.Linear(4, 4), nn.Dropout(), nn.Linear(4, CLASSES)),
    )
    fl.train_only(net, "1.3")  # beside which the other dropout stands
    return Case("dropout-between", "model.train(): 1.0", {"model": net}, fixed=True)


@case
def attention_with_dropout_frozen_by_hand() -> Case:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
    net = nn.Sequential(layer, nn.Flatten(), nn.Linear(32, 3))
    off(net[0])
    asked = {"model": net, "example": torch.randn(4, 4, 8)}
    return Case("live-dropout", "0.self_attn", asked, fixed=True)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.layer(x), training=self.training)


@case
def dropout_as_a_function_in_a_part_frozen_by_hand() -> Case:
    net = nn.Sequential(Functional(), nn.ReLU(), nn.Linear(8, CLASSES))
    off(net[0])
    return Case("live-dropout", "of train mode: 0", {"model": net, "example": rows()}, fixed=True)


@case
def batch_norm_without_statistics() -> Case:
    net = nn.Sequential(
        nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False)),
        nn.ReLU(),
        nn.Linear(4, 3),
    )
    off(net[0])
    return Case("batch-statistics", "0.1", {"model": net})


class Counting(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return super().forward(x)


@case
def buffer_that_counts_in_eval() -> Case:
    net = Counting()
    fl.freeze(net, "backbone")
    return Case("changes-in-eval", "seen", {"model": net, "example": pictures()})


class Halving(nn.Module):
    """Halves a weight in its first call in evaluation, as RWKV does."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, CLASSES)
        self.is_half = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and not self.is_half:
            with torch.no_grad():
                self.body.weight.div_(2)
            self.is_half = True
        out: Tensor = self.head(self.body(x))
        return out


@case
def weight_that_the_first_evaluation_halves() -> Case:
    net = Halving()
    fl.freeze(net, "body")
    return Case("changes-in-eval", "body.weight", {"model": net, "example": rows()})


@case
def softmax_at_the_end() -> Case:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3), nn.Softmax(dim=1))
    off(net[0])
    return Case("softmax-output", "3, a Softmax", {"model": net, "example": rows()}, fixed=True)


class EndsInProbabilities(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(dim=1)


@case
def softmax_in_the_forward() -> Case:
    net = EndsInProbabilities()
    fl.freeze(net, "backbone")
    return Case("softmax-output", "sums to 1", {"model": net, "example": pictures()})


@case
def log_softmax_at_the_end() -> Case:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3), nn.LogSoftmax(dim=1))
    off(net[0])
    return Case("log-softmax", "(3)", {"model": net, "example": rows()}, fixed=True)


@case
def head_stacked_on_logits() -> Case:
    net = nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 20), nn.Dropout(), nn.Linear(20, 3)
    )
    off(net[2])
    off(net[0])
    return Case("stacked-linear", "4 reads 2", {"model": net, "example": rows()}, fixed=True)


@case
def fewer_logits_than_classes() -> Case:
    asked = {"model": frozen_net(), "example": pictures(), "classes": ["a", "b", "c", "d"]}
    return Case("logits-width", "3 logits for 4 classes", asked, fixed=True)


@case
def classifier_of_other_data_kept() -> Case:
    asked = {"model": frozen_net(), "example": pictures(), "classes": 2}
    return Case("logits-width", "3 logits for 2 classes", asked, fixed=True)


@case
def targets_counted_from_one() -> Case:
    asked = {"model": frozen_net(), "example": pictures(), "targets": torch.arange(6) % 3 + 1}
    return Case("target-range", "a target of 3", asked)


@case
def validation_on_the_training_loader() -> Case:
    loader = DataLoader(TensorDataset(pictures(), torch.arange(6) % 3), batch_size=2)
    asked = {"model": frozen_net(), "train_data": loader, "val_data": loader}
    return Case("same-data", "6 of 6", asked)


@case
def split_with_overlapping_positions() -> Case:
    data = TensorDataset(pictures(), torch.arange(6))
    halves = Subset(data, [0, 1, 2, 3]), Subset(data, [3, 4, 5])
    asked = {"model": frozen_net(), "train_data": halves[0], "val_data": halves[1]}
    return Case("same-data", "sample 3", asked)


@case
def same_rows_in_two_tensors() -> Case:
    train, val = TensorDataset(pictures()), TensorDataset(pictures()[2:4])
    asked = {"model": frozen_net(), "train_data": train, "val_data": val}
    return Case("same-data", "2 of 2", asked)


@case
def mean_of_other_weights() -> Case:
    asked = {
        "model": frozen_net(),
        "preprocessing": fl.Preprocessing(mean=(0.5, 0.5, 0.5)),
        "weights_preprocessing": fl.Preprocessing(),
    }
    return Case("preprocessing", "mean is (0.5, 0.5, 0.5)", asked)


@case
def pictures_that_were_not_normalised() -> Case:
    example = torch.rand(6, 3, 8, 8)
    asked = {"model": frozen_net(), "example": example, "weights_preprocessing": fl.Preprocessing()}
    return Case("input-range", "not normalised", asked, fixed=True)


@case
def pictures_from_0_to_255() -> Case:
    example = torch.rand(6, 3, 8, 8) * 255
    asked = {"model": frozen_net(), "example": example, "weights_preprocessing": fl.Preprocessing()}
    return Case("input-range", "beyond", asked)


@case
def plan_with_a_misspelt_phase() -> Case:
    plan = fl.Plan([fl.Phase(train="head", epochs=1), fl.Phase(train="heed", epochs=1)])
    return Case("plan-error", "phase 2: 'heed' matches no", {"model": Net(), "plan": plan})


@case
def plan_whose_rate_jumps() -> Case:
    plan = fl.Plan(
        [fl.Phase(train="head", epochs=1, lr=1e-6), fl.Phase(train="head", epochs=1, lr=1e-2)]
    )
    return Case("plan-warning", "head.weight goes from 1e-06", {"model": Net(), "plan": plan})


def compiled(phases: int) -> Case:
    net = Net()
    net.compile()
    names = [
        f"backbone.{block}.{layer}.{kind}"
        for block in (0, 1)
        for layer in (0, 1)
        for kind in ("weight", "bias")
    ]
    plan = fl.Plan(
        [fl.Phase(train=" | ".join(["head", *names[:count]]), epochs=1) for count in range(phases)]
    )
    return Case("recompiles", f"{phases} sets", {"model": net, "plan": plan})


@case
def compiled_model_with_two_phases() -> Case:
    return compiled(2)


@case
def compiled_model_with_more_phases_than_the_limit() -> Case:
    return compiled(9)
