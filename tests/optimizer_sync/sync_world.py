"""Small nets, every optimizer of torch, and steps that say nothing about the model's quality."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

Make = Callable[[Iterable[Any]], torch.optim.Optimizer]


def _with(kind: Any, **options: Any) -> Make:
    return lambda params: kind(params, **options)


OPTIMIZERS: dict[str, Make] = {
    "sgd": _with(torch.optim.SGD, lr=0.02),
    "sgd-momentum": _with(torch.optim.SGD, lr=0.02, momentum=0.9, weight_decay=0.1, nesterov=True),
    "sgd-fused": _with(torch.optim.SGD, lr=0.02, momentum=0.9, weight_decay=0.1, fused=True),
    "adam": _with(torch.optim.Adam, lr=0.02, weight_decay=0.1),
    "adam-fused": _with(torch.optim.Adam, lr=0.02, weight_decay=0.1, fused=True),
    "adam-foreach": _with(torch.optim.Adam, lr=0.02, weight_decay=0.1, foreach=True),
    "adam-tensor-lr": lambda params: torch.optim.Adam(params, lr=torch.tensor(0.02)),
    "adamw": _with(torch.optim.AdamW, lr=0.02, weight_decay=0.1),
    "adamw-amsgrad": _with(torch.optim.AdamW, lr=0.02, weight_decay=0.1, amsgrad=True),
    "adamw-fused": _with(torch.optim.AdamW, lr=0.02, weight_decay=0.1, fused=True, amsgrad=True),
    "adamw-foreach": _with(torch.optim.AdamW, lr=0.02, weight_decay=0.1, foreach=True),
    "rmsprop": _with(torch.optim.RMSprop, lr=0.02, momentum=0.9, centered=True, weight_decay=0.1),
    "adagrad": _with(torch.optim.Adagrad, lr=0.02, weight_decay=0.1, initial_accumulator_value=0.5),
    "adagrad-fused": _with(torch.optim.Adagrad, lr=0.02, weight_decay=0.1, fused=True),
    "nadam": _with(torch.optim.NAdam, lr=0.02, weight_decay=0.1),
    "radam": _with(torch.optim.RAdam, lr=0.02, weight_decay=0.1),
    "adamax": _with(torch.optim.Adamax, lr=0.02, weight_decay=0.1),
    "adadelta": _with(torch.optim.Adadelta, lr=0.02, weight_decay=0.1),
    "asgd": _with(torch.optim.ASGD, lr=0.02, weight_decay=0.1),
    "rprop": _with(torch.optim.Rprop, lr=0.02),
    "adafactor": _with(torch.optim.Adafactor, lr=0.02, weight_decay=0.1),
}


def timm_optim() -> ModuleType:
    """`timm.optim`, whose import lifts torch's limit of recompiles for the whole process."""
    limit = torch._dynamo.config.recompile_limit
    import timm.optim

    torch._dynamo.config.recompile_limit = limit
    return timm.optim


def three_layers() -> nn.Sequential:
    """Three equal layers, so that nothing but identity and name tells them apart."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, *, steps: int = 1) -> None:
    """Steps on the same batch; gradients stay where they are after the last."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(4, 3, generator=generator)
    for _ in range(steps):
        optimizer.zero_grad()
        model(inputs).square().sum().backward()
        optimizer.step()


def switch(module: nn.Module, *, on: bool) -> None:
    """Gradients on or off for all parameters below."""
    for parameter in module.parameters():
        parameter.requires_grad_(on)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def moved(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    """Names of the parameters whose bits are others than before."""
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


def held(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[set[str]]:
    """Names of the model's parameters in each group."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [
        {names[id(p)] for p in group["params"] if id(p) in names}
        for group in optimizer.param_groups
    ]


def snapshot(optimizer: torch.optim.Optimizer) -> tuple[Any, ...]:
    """Everything in the optimizer that can be compared: groups, order, state, by identity."""
    groups = [
        (
            id(group),
            [id(p) for p in group["params"]],
            {k: repr(v) for k, v in group.items() if k != "params"},
        )
        for group in optimizer.param_groups
    ]
    states = {
        id(parameter): {key: (id(value), repr(value)) for key, value in state.items()}
        for parameter, state in optimizer.state.items()
    }
    return groups, states
