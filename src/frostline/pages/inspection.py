"""The page of a model: what freezing any part of it would bring, before anything runs.

The page reckons by itself: it carries the model's names and a ledger of a step, and its scripts
know the language of selectors (assets/selectors.js) and how a ledger is summed up
(assets/ledger.js). assets/inspect.js draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from torch import nn

from frostline.estimates.ledger import Ledger
from frostline.pages.frame import render_page
from frostline.selectors import Entry, Inventory, inventory, stages
from frostline.selectors.kinds import KINDS
from frostline.selectors.norms import class_names, keeps_running_statistics
from frostline.selectors.stages import stage_paths


def inspect_page(
    model: nn.Module,
    ledger: Ledger,
    *,
    name: str,
    command: Sequence[str],
    samples: int,
    mode: str,
    selector: str,
) -> str:
    """One self-contained page.

    Args:
        name: of the model, for people.
        command: of training it, as words, without what selects.
        samples: of an epoch, to begin with.
        mode, selector: what is shown first: `train` or `freeze`, and the text.
    """
    stock = inventory(model)
    paths = dict(model.named_modules())
    return render_page(
        "inspect.html",
        title=f"{name}: what freezing brings",
        data={
            "command": list(command),
            "samples": samples,
            "mode": mode,
            "selector": selector,
            "title": stock.title,
            "kinds": list(KINDS),
            "entries": _entries(stock),
            "classes": {path: list(class_names(m)) for path, m in stock.modules.items()},
            "modules": [_module(module) for module in paths.values()],
            "stages": [list(group) for group in stage_paths(model)],
            "buffer_bytes": sum(buffer.nbytes for buffer in model.buffers()),
            "ledger": asdict(ledger),
        },
    )


def _entries(stock: Inventory) -> list[dict[str, Any]]:
    parameters = {id(p): place for place, p in enumerate(stock.model.parameters())}
    stage_of = {index: n for n, group in enumerate(stages(stock)) for index in group}
    return [
        {
            "names": [[place.name, place.plain] for place in entry.occurrences],
            "kinds": _kinds(entry),
            "stage": stage_of[index],
            "parameter": parameters.get(id(entry.tensor), -1) if entry.is_parameter else -1,
            "numel": entry.tensor.numel(),
            "nbytes": entry.tensor.nbytes,
            "dims": entry.tensor.dim(),
        }
        for index, entry in enumerate(stock.entries)
    ]


def _kinds(entry: Entry) -> list[str]:
    return [kind for kind, rule in KINDS.items() if any(map(rule, entry.occurrences))]


def _module(module: nn.Module) -> dict[str, Any]:
    """What of a module decides which of its tensors move in training."""
    moves = keeps_running_statistics(module)
    own = [buffer for buffer in module._buffers.values() if buffer is not None]
    return {
        "type": type(module).__name__,
        "moves": moves,
        "moving_bytes": sum(buffer.nbytes for buffer in own) if moves else 0,
    }
