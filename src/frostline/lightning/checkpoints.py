"""A delta beside each checkpoint that Lightning writes, and gone with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, final

_SUFFIX = ".delta.safetensors"


@final
class DeltasBeside:
    """In the place of Lightning's `CheckpointIO`, which does all else.

    Only here the path of a checkpoint is known at the moment at which it is written.

    Args:
        inner: what writes and reads checkpoints.
        save_delta: called with the path of the delta, once the checkpoint is written.
    """

    def __init__(self, inner: Any, save_delta: Callable[[Path], None]) -> None:
        self.inner = inner
        self._save_delta = save_delta

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        self.inner.save_checkpoint(checkpoint, path, storage_options=storage_options)
        if (beside := _beside(path)) is not None:
            self._save_delta(beside)

    def remove_checkpoint(self, path: Any) -> None:
        self.inner.remove_checkpoint(path)
        if (beside := _beside(path)) is not None:
            beside.unlink(missing_ok=True)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def _beside(path: Any) -> Path | None:
    """Where the delta goes; nowhere for what is no file of this machine."""
    text = str(path)
    return None if "://" in text else Path(text.removesuffix(".ckpt") + _SUFFIX)
