"""What must be so, told simply: who is frozen and held, in sets; who trains, as if it were alone.

A parameter is its rows, and frozen whole where all of them are. Ledger and twins know nothing of
marks, holds, hooks and groups; a test drives them beside a model and its optimizer, and compares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Cells = frozenset[tuple[str, int]]
Policy = Literal["hold", "adapt"]
Make = Callable[[Iterable[Any]], torch.optim.Optimizer]

TOKENS, WIDTH = 7, 6
SIZES = {
    "embed.weight": TOKENS,  # tied: the head's weight is the same tensor
    "body.0.weight": WIDTH,
    "body.0.bias": WIDTH,
    "body.1.weight": WIDTH,
    "body.1.bias": WIDTH,
    "neck.0.weight": WIDTH,
    "neck.0.bias": WIDTH,
    "neck.1.weight": WIDTH,
    "neck.1.bias": WIDTH,
    "head.bias": TOKENS,
}
NORMS = ("body.1", "neck.1")
_BODY = frozenset({"body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias"})
_NECK = frozenset({"neck.0.weight", "neck.0.bias", "neck.1.weight", "neck.1.bias"})
_HEAD = frozenset({"embed.weight", "head.bias"})
# Module path -> the parameters at it and below, the tied one wherever it hangs.
BELOW = {
    "": _BODY | _NECK | _HEAD,
    "embed": frozenset({"embed.weight"}),
    "body": _BODY,
    "body.0": frozenset({"body.0.weight", "body.0.bias"}),
    "body.1": frozenset({"body.1.weight", "body.1.bias"}),
    "body.2": frozenset[str](),
    "neck": _NECK,
    "neck.0": frozenset({"neck.0.weight", "neck.0.bias"}),
    "neck.1": frozenset({"neck.1.weight", "neck.1.bias"}),
    "neck.2": frozenset[str](),
    "head": _HEAD,
}


class Net(nn.Module):
    """A tied embedding, convolution and linear layer with batch norm and dropout.

    Many of its parameters begin with equal values, so that only identity tells them apart.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS, WIDTH)
        self.body = nn.Sequential(
            nn.Conv1d(WIDTH, WIDTH, 3, padding=1), nn.BatchNorm1d(WIDTH), nn.Dropout(0.2)
        )
        self.neck = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Dropout(0.2))
        self.head = nn.Linear(WIDTH, TOKENS)
        self.head.weight = self.embed.weight
        for layer in (self.body[0], self.neck[0], self.head):
            nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        below = self.body(self.embed(tokens).transpose(1, 2)).mean(dim=2)
        out: Tensor = self.head(self.neck(below).tanh())
        return out


def net() -> Net:
    """The model as it was before any training: each call gives the same bits."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net()


def loss_of(model: nn.Module, number: int) -> Tensor:
    """The loss on the batch of that number."""
    tokens = torch.randint(TOKENS, (8, 5), generator=torch.Generator().manual_seed(number))
    return F.cross_entropy(model(tokens[:, :4]), tokens[:, 4])


def bits_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of every parameter and buffer, a tied one under its first name."""
    named = (*model.named_parameters(), *model.named_buffers())
    return {name: tensor.detach().clone() for name, tensor in named}


def whole(*names: str) -> Cells:
    return frozenset((name, row) for name in names for row in range(SIZES[name]))


def rows(name: str, *chosen: int) -> Cells:
    return frozenset((name, row) for row in chosen)


def selections() -> dict[str, Cells]:
    """Selector -> what it names."""
    everything = whole(*SIZES)
    norms = whole(*BELOW["body.1"], *BELOW["neck.1"])
    return {
        **{path: whole(*BELOW[path]) for path in ("embed", "body", "neck", "body.0", "head")},
        "all": everything,
        "~head": everything - whole(*_HEAD),
        "body | neck": whole(*_BODY, *_NECK),
        "kind:norm": norms,
        "kind:conv | neck.1.bias": whole("body.0.weight", "body.0.bias", "neck.1.bias"),
        "re:bias$ & ~kind:norm": whole("body.0.bias", "neck.0.bias", "head.bias"),
        "head.bias": whole("head.bias"),
        "body.1.weight": whole("body.1.weight"),
        "rows:embed.weight[0:3]": rows("embed.weight", 0, 1, 2),
        "rows:head.weight[2:5]": rows("embed.weight", 2, 3, 4),
        "rows:embed.weight[3:] | body": rows("embed.weight", 3, 4, 5, 6) | whole(*_BODY),
        "rows:neck.0.weight[1:4] | rows:neck.0.bias[1:4]": rows("neck.0.weight", 1, 2, 3)
        | rows("neck.0.bias", 1, 2, 3),
        "rows:body.0.weight[-2:]": rows("body.0.weight", 4, 5),
    }


@dataclass
class Ledger:
    """What must be so.

    Attributes:
        frozen: parameter -> its rows that Frostline froze.
        by_hand: parameters that were switched off by hand, and not frozen since.
        policies: norm -> the policy that it was told last.
        modes: module path -> whether it is in train mode, or will be when it is let go.
        held: module paths that are held in eval.
    """

    frozen: dict[str, frozenset[int]] = field(default_factory=lambda: dict.fromkeys(SIZES, _NONE))
    by_hand: frozenset[str] = frozenset()
    policies: dict[str, Policy] = field(default_factory=dict)
    modes: dict[str, bool] = field(default_factory=lambda: dict.fromkeys(BELOW, True))
    held: frozenset[str] = frozenset()

    def is_whole(self, name: str) -> bool:
        return len(self.frozen[name]) == SIZES[name]

    def wants(self, name: str) -> bool:
        """Whether the parameter is to have gradients."""
        return name not in self.by_hand and not self.is_whole(name)

    @property
    def trainable(self) -> list[str]:
        return [name for name in SIZES if self.wants(name)]

    @property
    def partly(self) -> dict[str, frozenset[int]]:
        """The held rows of parameters that train otherwise."""
        return {name: held for name, held in self.frozen.items() if held and self.wants(name)}

    @property
    def cells(self) -> Cells:
        """Everything that Frostline froze."""
        return frozenset((name, row) for name, held in self.frozen.items() for row in held)

    @property
    def free(self) -> Cells:
        """Everything that trains."""
        return whole(*self.trainable) - self.cells

    def in_training(self, path: str) -> bool:
        return self.modes[path] and path not in self.held

    def freeze(self, cells: Cells, *, norm: Policy) -> None:
        for name, chosen in _by_name(cells).items():
            self.frozen[name] = self._now(name) | chosen
            if self.is_whole(name):
                self.by_hand -= {name}
        for path in NORMS:
            if not BELOW[path].isdisjoint(_by_name(cells)):
                self.policies[path] = norm
        self._settle()

    def thaw(self, cells: Cells) -> None:
        for name, chosen in _by_name(cells).items():
            self.frozen[name] = self._now(name) - chosen
            self.by_hand -= {name}
        self._settle()

    def train_only(self, cells: Cells, *, norm: Policy) -> None:
        self.thaw(cells)
        self.freeze(whole(*SIZES) - cells, norm=norm)

    def train(self, part: str, mode: bool) -> None:
        """What `train(mode)` of a part does; who is held keeps the mode it had before."""
        for path in BELOW:
            if is_within(path, part) and path not in self.held:
                self.modes[path] = mode

    def back_to(self, before: Ledger) -> None:
        """Leave a `with` block: switches, policies and modes as before."""
        self.frozen, self.by_hand = before.frozen, before.by_hand
        self.policies, self.modes = before.policies, before.modes
        self._settle()

    def loaded(self) -> Ledger:
        """For a fresh model: what wanted no gradients is frozen, all else is free."""
        other = Ledger()
        other.freeze(whole(*(n for n in SIZES if not self.wants(n))), norm="hold")
        return other

    def copied(self) -> Ledger:
        return deepcopy(self)

    def _now(self, name: str) -> frozenset[int]:
        everything = frozenset(range(SIZES[name]))
        return everything if name in self.by_hand else self.frozen[name]

    def _settle(self) -> None:
        marked = {name for name, held in self.frozen.items() if held}
        roots = [
            path
            for path, names in BELOW.items()
            if names & marked and not any(self.wants(name) for name in names)
        ]
        inside = {path for path in BELOW for root in roots if is_within(path, root)}
        norms = {path for path in NORMS if BELOW[path] & marked}
        adapting = {path for path in norms if self.policies[path] == "adapt"}
        self.held = frozenset((inside | norms) - adapting)


class Twin:
    """One parameter alone with an optimizer of its own."""

    def __init__(self, make: Make, parameter: Tensor, *, decay: float) -> None:
        self.parameter = nn.Parameter(parameter.detach().clone())
        self.optimizer = make([{"params": [self.parameter], "weight_decay": decay}])

    @property
    def state(self) -> dict[str, Any]:
        return dict(self.optimizer.state.get(self.parameter, {}))

    def begin(self, state: Mapping[str, Any]) -> None:
        """Go on from a copy of `state`."""
        self.optimizer.state[self.parameter] = deepcopy(dict(state))

    def step(self, now: Tensor, gradient: Tensor, *, lr: float, held: Iterable[int]) -> Tensor:
        """What one step makes of the parameter; the held rows stay."""
        rows = sorted(held)
        before, gradient = now.clone(), gradient.clone()
        gradient[rows] = 0
        self.optimizer.param_groups[0]["lr"] = lr
        with torch.no_grad():
            self.parameter.copy_(before)
        self.parameter.grad = gradient
        self.optimizer.step()
        with torch.no_grad():
            self.parameter[rows] = before[rows]
        return self.parameter.detach().clone()


def assert_frozen(model: nn.Module, ledger: Ledger, bits: Mapping[str, Tensor]) -> None:
    """No bit of what is frozen has moved, none of it wants or has a gradient, who is held is."""
    for name, parameter in model.named_parameters():
        wants = ledger.wants(name)
        assert parameter.requires_grad == wants, name
        rows = sorted(ledger.frozen[name]) if wants else slice(None)
        assert torch.equal(parameter[rows], bits[name][rows]), name
        gradient = parameter.grad
        assert gradient is None or (wants and not gradient[rows].any()), name
    held = buffers_of(ledger.held, bits)
    assert [n for n in held if not torch.equal(model.get_buffer(n), bits[n])] == []
    assert not any(model.get_submodule(path).training for path in ledger.held)


def same_states(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether states by name are equal; nothing is as good as zeros."""
    return all(
        _is_same(one.get(name, {}).get(key), other.get(name, {}).get(key))
        for name in one.keys() | other.keys()
        for key in one.get(name, {}).keys() | other.get(name, {}).keys()
    )


def is_within(path: str, part: str) -> bool:
    """Whether a module is `part` or below it."""
    return not part or path == part or path.startswith(f"{part}.")


def buffers_of(paths: frozenset[str], bits: Mapping[str, Tensor]) -> set[str]:
    """The buffers of these modules."""
    return {name for name in bits if name not in SIZES and name.rpartition(".")[0] in paths}


_NONE = frozenset[int]()


def _by_name(cells: Cells) -> dict[str, frozenset[int]]:
    found: dict[str, set[int]] = {}
    for name, row in cells:
        found.setdefault(name, set()).add(row)
    return {name: frozenset(chosen) for name, chosen in found.items()}


def _is_same(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return not any(bool(torch.as_tensor(v).any()) for v in (one, other) if v is not None)
    return torch.equal(torch.as_tensor(one), torch.as_tensor(other))
