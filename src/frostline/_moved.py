"""Where classes stood in version 0.1: models that were saved whole name them by their old modules.

`torch.save(model)` and `pickle` write the class path of each hold and hook that hangs on a model.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType

# old module and name -> where it is now
_MOVED = {
    "backward.settings:Settings": "backward.tensors:Settings",
    "held_statistics:_NoReset": "freezing.held_layers:_NoReset",
    "held_statistics:_Registration": "freezing.held_layers:_Registration",
    "modes:Hold": "freezing.modes:Hold",
    "modes:Mark": "freezing.modes:FrozenMark",
    "narrowing.calls:Narrow": "casting.calls:Cast",
    "narrowing.calls:_after": "casting.calls:_after",
    "narrowing.calls:_before": "casting.calls:_before",
    "narrowing.weights:Kept": "casting:CastReport",
    "nesting:WhereWhole": "freezing.held_layers:WhereWhole",
    "recomputed:Recomputed": "freezing.held_layers:Recomputed",
    "row_holds.holding:RowHold": "freezing.rows:RowHold",
    "row_holds.kept:Kept": "freezing.rows:Kept",
    "surgery.results:Former": "optimizer_sync.results:Former",
    "surgery.results:Synced": "optimizer_sync.results:Synced",
    "unlisted_proof:UnlistedRecord": "freezing.handle:UnlistedRecord",
}


def offer_old_modules() -> None:
    """Let old modules be imported; what a name stands for is looked up when it is asked for."""
    for old in {key.partition(":")[0] for key in _MOVED}:
        sys.modules.setdefault(f"frostline.{old}", _OldModule(f"frostline.{old}"))


class _OldModule(ModuleType):
    def __getattr__(self, name: str) -> object:
        place = _MOVED.get(f"{self.__name__.partition('.')[2]}:{name}")
        if place is None:
            raise AttributeError(f"module '{self.__name__}' has no attribute '{name}'")
        module, _, current = place.partition(":")
        return getattr(import_module(f"frostline.{module}"), current)
