"""Where the features of each stage are taken: what the next stage reads of it, found on an example.

What leaves a stage passes an activation, a pooling or a flattening before the next one reads it;
that is what crosses the frost line if all up to the stage is frozen. Whether what the next stage
reads is computed from this one is tried with gradients; where it is not, as in the second of two
towers, the stage's own output stands for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from frostline.errors import ModelError
from frostline.selectors.stages import stage_paths

Pooling = Literal["none", "positions", "tokens", "masked tokens"]

# What the layers of torch call the number of channels that they read and give.
_READ = ("in_channels", "in_features", "normalized_shape", "num_features", "embed_dim")
_GIVEN = ("out_channels", "out_features", "normalized_shape", "num_features", "embed_dim")


@final
@dataclass(frozen=True, slots=True)
class Tap:
    """Where one stage's features are taken, and how they become one vector for each sample.

    Attributes:
        stage: its number, from 0.
        paths: of the modules that make it up.
        above: paths of those of the stages above it that run.
        at: path of the module at which the value is seen.
        side: whether that module takes or gives it.
        leaf: which of the tensors there, all in order.
        pooling: over what the mean is taken; `none` where the value is a vector already.
        channels: dimension of the value that is kept.
        flattened: of a map that was flattened on the way, how many channels it had; else 0.
        shape: of one sample's value, as on the example.
        itemsize: bytes of a number.
        of_length: whether the value is as long as its sample.
    """

    stage: int
    paths: tuple[str, ...]
    above: tuple[tuple[str, ...], ...]
    at: str
    side: Literal["input", "output"]
    leaf: int
    pooling: Pooling
    channels: int
    flattened: int
    shape: tuple[int, ...]
    itemsize: int
    of_length: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of one sample's value, as computed."""
        return torch.Size(self.shape).numel() * self.itemsize

    def pooled(self, value: Tensor, mask: Tensor | None) -> Tensor:
        """One vector for each sample, `(batch, width)`.

        Args:
            mask: 1 for tokens of the sample and 0 for padding, `(batch, tokens)`.
        """
        if self.pooling == "none":
            return value
        if self.pooling == "masked tokens" and mask is not None:
            kept = mask.unsqueeze(2).to(value.dtype)
            return (value * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1)
        if self.flattened:
            return value.reshape(value.shape[0], self.flattened, -1).mean(dim=2)
        others = [dim for dim in range(1, value.dim()) if dim != self.channels]
        return value.mean(dim=others)

    @contextmanager
    def watching(self, model: nn.Module, found: dict[int, Tensor]) -> Iterator[None]:
        """Within it a forward of `model` puts the value into `found`, under the stage's number."""

        def take(values: object) -> None:
            found[self.stage] = _tensors(values)[self.leaf]

        module = model.get_submodule(self.at)
        if self.side == "input":
            handle = module.register_forward_pre_hook(
                lambda _, given, named: take((given, named)), with_kwargs=True
            )
        else:
            handle = module.register_forward_hook(lambda *seen: take(seen[2]))
        try:
            yield
        finally:
            handle.remove()


@dataclass(slots=True)
class _Seen:
    """What a stage read and gave in one forward.

    `first` and `last` are the modules of it that ran first and last; `calls` counts how often.
    """

    first: str = ""
    last: str = ""
    calls: dict[str, int] = field(default_factory=dict)
    read: list[Tensor] = field(default_factory=list)
    sums: list[Tensor] = field(default_factory=list)
    gave: list[Tensor] = field(default_factory=list)
    leaves: list[Tensor] = field(default_factory=list)


def find_taps(
    model: nn.Module, run: Callable[[], object], *, rows: int, mask: Tensor | None = None
) -> tuple[tuple[Tap, ...], tuple[str, ...]]:
    """A tap for each stage but the last, which is the head.

    Args:
        model: wholly frozen.
        run: a forward of it on an example of `rows` samples.
        mask: 1 for tokens of the example and 0 for padding, `(rows, tokens)`.
    Returns:
        Beside them a line for people on each stage that has none.
    Raises:
        ModelError: as `stages_to_probe`, or no stage gives a value for each sample.
    """
    stages = stages_to_probe(model)
    seen = _observed(model, stages, run)
    ran = [number for number, one in enumerate(seen) if one.last]
    taps, left = [], []
    for place, number in enumerate(ran[:-1]):
        found = _tap(model, stages, seen, ran[place:], rows, mask)
        if isinstance(found, Tap):
            taps.append(found)
        else:
            left.append(f"Stage {number} ({', '.join(stages[number])}) is left out: {found}.")
    if not taps:
        why = left[0] if left else "fewer than two of its stages run in evaluation."
        raise ModelError(
            f"no stage of {type(model).__name__} gives features to probe. {why} See docs/probe.md."
        )
    return tuple(taps), tuple(left)


def stages_to_probe(model: nn.Module) -> tuple[tuple[str, ...], ...]:
    """The module paths of each stage, the head's last.

    Raises:
        ModelError: there is one alone.
    """
    stages = stage_paths(model)
    if len(stages) < 2:
        raise ModelError(
            f"{type(model).__name__} has one stage, so there is nothing to freeze up to. A probe "
            "needs a model of several parts that run one after the other, the last of them the "
            "head; see docs/probe.md."
        )
    return stages


def _tap(
    model: nn.Module,
    stages: Sequence[tuple[str, ...]],
    seen: Sequence[_Seen],
    ran: Sequence[int],
    rows: int,
    mask: Tensor | None,
) -> Tap | str:
    """The tap of the first of the stages that run from here on; or why there is none."""
    own, after = seen[ran[0]], seen[ran[1]]
    if max(own.calls.values()) > 1:
        return "it runs more than once in a forward"
    following = _depending(after, own, rows)
    side: Literal["input", "output"] = "input" if following is not None else "output"
    values = after.read if following is not None else own.gave
    leaf = following if following is not None else _first_float(values, rows)
    if leaf is None:
        return "it gives no numbers with a row for each sample"
    value = values[leaf]
    read = _widths(model.get_submodule(after.first), _READ) if side == "input" else []
    given = _widths(model.get_submodule(own.last), _GIVEN)
    channels = _channels(value, (*read[:1], *given[-1:]))
    flattened = _flattened_channels(value, own.gave, given[-1:])
    masked = mask is not None and value.dim() == 3 and value.shape[:2] == mask.shape
    return Tap(
        stage=ran[0],
        paths=stages[ran[0]],
        above=tuple(stages[number] for number in ran[1:]),
        at=after.first if side == "input" else own.last,
        side=side,
        leaf=leaf,
        pooling="positions" if flattened else _pooling(value, channels, masked=masked),
        channels=channels,
        flattened=flattened,
        shape=tuple(value.shape[1:]),
        itemsize=value.element_size(),
        of_length=masked,
    )


def _pooling(value: Tensor, channels: int, *, masked: bool) -> Pooling:
    if value.dim() == 2:
        return "none"
    if value.dim() == 3 and channels == 2:
        return "masked tokens" if masked else "tokens"
    return "positions"


def _channels(value: Tensor, widths: Iterable[int]) -> int:
    """The dimension of channels: that with as many as the layers beside it read or give.

    Else what differs from two that are alike, as height and width; else where torch has them.
    """
    usual = 2 if value.dim() == 3 else 1
    last = value.dim() - 1
    order = (usual, last, 1)
    for width in widths:
        for dim in order:
            if value.shape[dim] == width:
                return dim
    alike = value.dim() == 4 and value.shape[1] == value.shape[2] != value.shape[3]
    return last if alike else usual


def _widths(module: nn.Module, names: Sequence[str]) -> list[int]:
    """How many channels the layers in it have, by the first of these names that each knows."""
    found = []
    for layer in module.modules():
        own = [vars(layer)[name] for name in names if name in vars(layer)][:1]
        found += [width[-1] if isinstance(width, tuple) else width for width in own]
    return [width for width in found if isinstance(width, int)]


def _flattened_channels(value: Tensor, gave: Sequence[Tensor], widths: Iterable[int]) -> int:
    """The channels of a map that became these vectors; 0 where they come from none."""
    maps = [one for one in gave if one.dim() > 3 and one.is_floating_point()][:1]
    if value.dim() != 2 or not maps or _channels(maps[0], widths) != 1:
        return 0
    channels, width = maps[0].shape[1], value.shape[1]
    return channels if width > channels and width % channels == 0 else 0


def _observed(
    model: nn.Module, stages: Sequence[tuple[str, ...]], run: Callable[[], object]
) -> list[_Seen]:
    seen = [_Seen() for _ in stages]

    def before(stage: _Seen, path: str, _: nn.Module, *given: object) -> None:
        stage.calls[path] = stage.calls.get(path, 0) + 1
        if not stage.first:
            stage.first, stage.read = path, _tensors(given)
            # At once: what it reads may be written into later.
            stage.sums = [value.sum() for value in stage.read if value.is_floating_point()]

    def after(stage: _Seen, path: str, _: nn.Module, __: object, given: object) -> object:
        stage.last, stage.gave = path, _tensors(given)
        floats = [value for value in stage.gave if value.is_floating_point()]
        leaves = {id(value): value.detach().requires_grad_() for value in floats}
        stage.leaves = list(leaves.values())
        # Clones, since a leaf that wants a gradient may not be written into.
        return pytree.tree_map_only(
            Tensor, lambda t: leaves[id(t)].clone() if id(t) in leaves else t, given
        )

    with ExitStack() as hooks, torch.enable_grad():
        for stage, paths in zip(seen, stages, strict=True):
            for path in paths:
                module = model.get_submodule(path)
                enter, leave = partial(before, stage, path), partial(after, stage, path)
                handle = module.register_forward_pre_hook(enter, with_kwargs=True)
                hooks.callback(handle.remove)
                hooks.callback(module.register_forward_hook(leave).remove)
        run()
    return seen


def _depending(after: _Seen, own: _Seen, rows: int) -> int | None:
    """Which of the tensors that a stage reads first is computed from another one's output."""
    sums = iter(after.sums)
    for leaf, value in enumerate(after.read):
        total = next(sums) if value.is_floating_point() else None
        if total is None or not total.requires_grad or not _has_rows(value, rows):
            continue
        found = torch.autograd.grad(total, own.leaves, allow_unused=True, retain_graph=True)
        if any(gradient is not None for gradient in found):
            return leaf
    return None


def _first_float(values: Sequence[Tensor], rows: int) -> int | None:
    known = (n for n, v in enumerate(values) if v.is_floating_point() and _has_rows(v, rows))
    return next(known, None)


def _has_rows(value: Tensor, rows: int) -> bool:
    return value.dim() > 1 and value.shape[0] == rows


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]
