"""Frostline: freeze any part of a pretrained PyTorch model and train the rest.

    import frostline as fl

    frozen = fl.freeze(model, "backbone")
    ...train...
    frozen.verify()

The names below are imported when they are first used, so that the command line can answer
`--help` without loading torch.
"""

from __future__ import annotations

from importlib import import_module

from frostline._moved import offer_old_modules
from frostline._version import __version__ as __version__

offer_old_modules()

_HOMES = {
    "backward": ("Lean", "lean"),
    "checkup": ("Checkup", "Finding", "doctor"),
    "cutting": ("Cut", "cut"),
    "data": ("Samples", "open_data"),
    "deltas": ("load_delta", "save_delta"),
    "errors": (
        "BrokenPromise",
        "ConfigError",
        "CorruptDelta",
        "CorruptFeatures",
        "CutError",
        "DataError",
        "DeltaError",
        "DriftError",
        "FreezeError",
        "FrostlineError",
        "ImageError",
        "ModelError",
        "NonFiniteLoss",
        "NothingFrozen",
        "OutputError",
        "SelectorError",
        "StoreError",
        "TrainingError",
        "WeightsError",
    ),
    "estimates": ("Estimate", "estimate"),
    "features": ("extract",),
    "fingerprints": ("Fingerprint", "fingerprint"),
    "fitting": ("Run", "fit"),
    "freezing": ("Frozen", "freeze", "frozen", "thaw", "train_only"),
    "groups": ("param_groups",),
    "plans": ("Phase", "Plan", "Until"),
    "preprocessing": ("Preprocessing",),
    "recipe": ("Recipe",),
    "runs": ("open_run",),
    "selectors": (
        "Selection",
        "Selector",
        "depth",
        "everything",
        "exactly",
        "glob",
        "kind",
        "nothing",
        "of_type",
        "path",
        "regex",
        "rows",
        "select",
        "stage",
        "where",
    ),
    "session": ("Session",),
    "store": ("FeatureStore",),
    "tasks": ("Classification", "Metric", "Metrics", "Task"),
    "optimizer_sync": ("load_optimizer_state", "optimizer_state", "sync"),
    "freezing.tree": ("summary",),
    "world": ("World",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted([*_HOME_OF, "__version__"])  # type checkers read __init__.pyi


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'frostline' has no attribute '{name}'")
    value = getattr(import_module(f"frostline.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF])
