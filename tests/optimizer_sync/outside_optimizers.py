"""All optimizers of PyTorch's own database, of timm and of pytorch_optimizer, ready to be made.

Each table gives the reason where one is left out of a check.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
from sync_world import timm_optim
from torch import nn

from torch_databases import database


@final
@dataclass(frozen=True)
class Outside:
    """An optimizer of a database, made from a list of parameters.

    Attributes:
        bias: whether it takes vectors.
        closure: whether its step asks for the closure.
        backward: whether a backward pass is to come before such a step.
        second: whether its step differentiates gradients.
    """

    name: str
    make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    bias: bool = True
    closure: bool = False
    backward: bool = False
    second: bool = False


# Where no check can be made at all.
CANNOT_BE_MADE = {
    "SparseAdam": "takes sparse gradients only: see test_sync_optimizers.py",
    **dict.fromkeys(
        ("bnbadam", "bnbadam8bit", "bnbadamw", "bnbadamw8bit", "bnbademamix", "bnbademamix8bit"),
        "asks for CUDA",
    ),
    **dict.fromkeys(("bnblion", "bnblion8bit", "bnbsgd", "bnbsgd8bit"), "asks for CUDA"),
    **dict.fromkeys(
        ("fusedadam", "fusedadamw", "fusedlamb", "fusednovograd", "fusedsgd"), "asks for CUDA"
    ),
    "demo": "asks for another package, einops",
    "distributedmuon": "asks for a process group",
    **dict.fromkeys(
        ("adalomo", "adammini", "lomo"), "made from a model, whose names or hooks it keeps"
    ),
}
# Refused by `sync` and by `optimizer_state`, with these words.
REFUSED = {
    "LBFGS": "LBFGS keeps one flat history",
    "lbfgs": "LBFGS keeps one flat history",
    **{
        name: f"{name} is no torch.optim.Optimizer with groups of its own"
        for name in ("Lookahead", "TRAC", "OrthoGrad", "PCGrad", "SafeFP16Optimizer")
    },
    "magma": "Magma is no torch.optim.Optimizer with groups of its own",
}
SYNC_REFUSED = {
    "SGD fused dampening": "fused SGD with dampening",
    "timm adahessian": "prepares its parameters when it is made",
}
STATE_REFUSED = {
    "FriendlySAM": "keeps 'base_optimizer' by the positions",
    "LookSAM": "keeps 'base_optimizer' by the positions",
}
# What its own `state_dict()` does not hold, so that nobody can go on from it bit for bit.
STATE_NOT_WHOLE = {
    "timm adahessian": "keeps curvature on parameters and a generator of its own",
}
# What `torch.load(weights_only=True)` does not read in a state.
OBJECTS = {
    "adashift": "a deque of gradients",
    "conda": "a projector",
    "scalableshampoo": "a preconditioner",
    "scion": "a norm",
    "scionlight": "a norm",
}
# Those that move little or nothing in the first few steps, even plainly.
SLOW = {
    "adashift": "waits until its queue of gradients is full",
    "radam": "waits until its variance is known",
    "schedulefreeradam": "waits until its variance is known",
    "dadaptadagrad": "begins at a rate of 1e-6",
    "dadaptsgd": "begins at a rate of 1e-6",
    "TRAC": "begins at a scale near 0",
}


def torchs() -> Iterator[Outside]:
    """Every input of PyTorch's own database; kernels where they are kept by another code."""
    for info in database("common_optimizers").optim_db:
        kind = info.optim_cls.__name__
        if kind in CANNOT_BE_MADE:
            continue
        for given in info.optim_inputs_func(device="cpu"):
            options = given.kwargs
            kernels = ["", *(["fused"] if "cpu" in info.supports_fused_on else [])]
            for kernel in kernels:
                chosen = {**options, **({kernel: True} if kernel else {})}
                name = " ".join(filter(None, (kind, kernel, given.desc)))
                yield Outside(
                    name,
                    lambda params, kind=info.optim_cls, chosen=chosen: kind(params, **chosen),
                    bias=kind != "Muon",
                    closure=info.step_requires_closure,
                )


def timms() -> Iterator[Outside]:
    """Every optimizer of timm, and its Lookahead around one of each kind of state."""
    optim = timm_optim()
    names = [name for name in optim.list_optimizers() if name not in CANNOT_BE_MADE]
    for name in [*names, *(f"lookahead_{n}" for n in ("sgd", "adamw", "adafactorbv", "kron"))]:
        yield Outside(
            "timm adahessian" if name == "adahessian" else name,
            lambda params, name=name: optim.create_optimizer_v2(params, opt=name, lr=0.01),
            second=name == "adahessian",
        )


def pytorch_optimizers() -> Iterator[Outside]:
    """Every optimizer of pytorch_optimizer by its name there, and its wrappers by their class."""
    import pytorch_optimizer as library

    by_rank = {"adago", "adamuon", "muon", "muonclip", "normuon"}
    options = {
        "bsam": {"num_data": 4, "foreach": False},
        "ranger21": {"num_iterations": 100},
        "sara": {"threshold": 9.0},
        "spectralsphere": {"solver_max_iterations": 5},
    }

    def make(name: str, params: list[nn.Parameter]) -> torch.optim.Optimizer:
        parts: Any = params
        if name in by_rank:
            parts = [
                {"params": [p for p in params if (p.dim() > 1) is is_matrix], "use_muon": is_matrix}
                for is_matrix in (True, False)
            ]
        return library.load_optimizer(name)(parts, lr=0.01, **options.get(name, {}))

    for name in library.get_supported_optimizers():
        if name not in CANNOT_BE_MADE:
            yield Outside(
                name,
                lambda params, name=name: make(name, params),
                bias=name not in ("adamuon", "bsam", "spectralsphere"),  # matrices by rank
                closure=name in ("alig", "bsam", "lbfgs"),
                backward=name == "bsam",
                second=name in ("adahessian", "sophiah"),
            )
    adamw = torch.optim.AdamW
    for name in ("SAM", "LookSAM", "FriendlySAM"):
        kind = getattr(library, name)
        yield Outside(
            name,
            lambda params, kind=kind: kind(params, base_optimizer=adamw, lr=0.01),
            closure=True,
            backward=True,
        )
    for name in ("Lookahead", "TRAC", "OrthoGrad", "PCGrad", "SafeFP16Optimizer"):
        kind = getattr(library, name)
        yield Outside(name, lambda params, kind=kind: kind(adamw(params, lr=0.01)))
