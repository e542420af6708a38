"""Random numbers of a forward for the whole batch, of which each process takes its samples' rows.

Each process draws what one process would, from the same state, so that dropout and stochastic depth
hit the same samples however many processes share a batch; and no two of them the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
# They fill a tensor; on a CPU dropout and stochastic depth are made of the first.
_FILL: Final = frozenset(
    {_aten.bernoulli_.float, _aten.bernoulli_.Tensor, _aten.uniform_.default, _aten.normal_.default}
)
_LIKE: Final = frozenset({_aten.rand_like.default, _aten.randn_like.default})
_OF_SIZE: Final = frozenset({_aten.rand.default, _aten.randn.default})
_DROPOUT: Final = _aten.native_dropout.default  # of accelerators


@final
class DrawsOfAll(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
    """In it what is drawn with the batch as first axis is drawn for the whole batch.

    What has another first axis is drawn as it is, the same in all processes. The first axis may
    be a multiple of the batch, its samples in order, as of windows of pictures.

    Args:
        rank, size: of this process, and how many there are: it has the samples `rank`,
            `rank + size` and so on of the batch; or where it has none, it is lent the first.
        whole: samples of the batch.
    """

    def __init__(self, rank: int, size: int, whole: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._rows = slice(rank, None, size) if rank < whole else slice(1)
        self._own, self._whole = len(range(whole)[self._rows]), whole

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types
        named = kwargs or {}
        if func in _FILL and self._has_rows(args[0].shape):
            whole = func(self._like(args[0]), *args[1:], **named)
            return args[0].copy_(self._of_own(whole))
        if func in _LIKE and self._has_rows(args[0].shape):
            return self._of_own(func(self._like(args[0]), **named))
        if func in _OF_SIZE and self._has_rows(args[0]):
            return self._of_own(func(self._size(args[0]), **named))
        if func is _DROPOUT and args[2] and self._has_rows(args[0].shape):
            inputs, p, _ = args
            kept = self._of_own(func(torch.ones_like(self._like(inputs)), p, True)[1])
            scale = 0.0 if p == 1 else 1 / (1 - p)
            return inputs * kept * scale, kept
        return func(*args, **named)

    def _has_rows(self, shape: Iterable[int]) -> bool:
        first = next(iter(shape), 0)
        return first > 0 and first % self._own == 0

    def _size(self, shape: Iterable[int]) -> list[int]:
        first, *rest = shape
        return [first // self._own * self._whole, *rest]

    def _like(self, own: Tensor) -> Tensor:
        """An empty tensor of all samples, laid out as `own`: numbers are drawn as memory goes."""
        layout = torch.contiguous_format
        if own.dim() == 4 and not own.is_contiguous():
            layout = torch.channels_last
        return torch.empty(
            self._size(own.shape), dtype=own.dtype, device=own.device, memory_format=layout
        )

    def _of_own(self, whole: Tensor) -> Tensor:
        by_sample = whole.unflatten(0, (self._whole, -1))  # type: ignore[no-untyped-call]
        return by_sample[self._rows].flatten(0, 1)  # type: ignore[no-any-return]
