"""Records and proof of frozen state that is neither parameter nor buffer."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Self, final

from torch import Tensor, nn

from frostline.fingerprints import Record
from frostline.fingerprints.unlisted import belongs, listed_storages, unlisted
from frostline.freezing.modes import is_held


@final
@dataclass(frozen=True, slots=True)
class UnlistedRecord:
    """What one held module had beside its parameters and buffers when it was frozen.

    Attributes:
        module: whose it is.
        path: where the module is.
        saved, loose: records by full names.
        objects: the loose tensors themselves, to tell one that was written from one put in its
            place, as forwards do that put results aside.
        unseen: full names of what cannot be looked at, with what it is.
    """

    module: nn.Module
    path: str
    saved: Mapping[str, Record]
    loose: Mapping[str, Record]
    objects: Mapping[str, Tensor]
    unseen: tuple[str, ...]

    @classmethod
    def of(cls, module: nn.Module, path: str, listed: Collection[int]) -> Self | None:
        """Take it down as it is now; None where there is nothing."""
        found, prefix = unlisted(module, listed), f"{path}." if path else ""
        if not (found.saved or found.loose or found.unseen):
            return None
        return cls(
            module,
            path,
            {prefix + n: Record.of(t, name=prefix + n) for n, t in found.saved.items()},
            {prefix + n: Record.of(t, name=prefix + n) for n, t in found.loose.items()},
            {prefix + n: t for n, t in found.loose.items()},
            tuple(prefix + name for name in found.unseen),
        )

    def drifts(self) -> Iterator[tuple[str, str]]:
        """What did not stay as it was: its name, and how."""
        if not is_held(self.module):
            return
        now = self._now()
        for name, record in {**self.saved, **self.loose}.items():
            tensor = now.get(name)
            is_kept = name in self.saved or tensor is self.objects[name]
            words = "is gone" if tensor is None else record.moved(tensor, name=name)
            if is_kept and words:
                yield name, words

    def proved(self) -> dict[str, Record]:
        """What is as it was, once `drifts` found nothing."""
        if not is_held(self.module):
            return {}
        replaced = self._replaced()
        return {n: r for n, r in {**self.saved, **self.loose}.items() if n not in replaced}

    def not_covered(self) -> tuple[str, ...]:
        """Names that no proof covers, with the reason."""
        if not is_held(self.module):
            return ()
        return (*self.unseen, *(f"{name} (replaced since)" for name in self._replaced()))

    def _now(self) -> dict[str, Tensor]:
        found, prefix = unlisted(self.module, ()), f"{self.path}." if self.path else ""
        return {prefix + name: t for name, t in {**found.loose, **found.saved}.items()}

    def _replaced(self) -> set[str]:
        """Loose tensors in whose place there is another object with other bits, or none."""
        now = self._now()
        gone = {name for name in self.loose if name not in now}
        others = {n for n in self.loose if n not in gone and now[n] is not self.objects[n]}
        return gone | {n for n in others if self.loose[n].moved(now[n], name=n)}


def unlisted_records(
    modules: Mapping[str, nn.Module], frozen: Collection[int]
) -> Iterator[UnlistedRecord]:
    """Of each held module in a part whose parameters are all among `frozen`, by `id()`."""
    listed = listed_storages(modules[""])
    for path, module in modules.items():
        if is_held(module) and belongs(modules, path, frozen):
            found = UnlistedRecord.of(module, path, listed)
            if found is not None:
                yield found
