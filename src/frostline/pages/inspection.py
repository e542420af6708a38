"""The page of a model: what freezing any part of it would bring, before anything runs.

Selectors are read and matched here, in Python. The page carries what each of its terms matches and
joins them with `& | ~ ( )` (assets/selectors.js); of other terms it says which command matches
them. It also carries the ledger of a step and adds that up by itself (assets/ledger.js).
assets/inspect.js draws.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import accumulate
from operator import or_
from typing import Any

from torch import nn

from frostline.errors import SelectorError
from frostline.estimates.ledger import Ledger
from frostline.estimates.results import busy_note
from frostline.pages.rendering import render_page
from frostline.selectors import Inventory, inventory, parse, select_whole, stages
from frostline.selectors.inventory import paths_above
from frostline.selectors.kinds import KINDS, class_names, keeps_running_statistics
from frostline.selectors.stages import stage_paths
from frostline.selectors.terms import Path, Stage


def inspect_page(
    model: nn.Module,
    ledger: Ledger,
    *,
    name: str,
    options: Sequence[str],
    samples: int,
    mode: str,
    selector: str,
) -> str:
    """One self-contained page.

    Args:
        name: of the model, as a command takes it.
        options: what follows the name in a command, as words, without what selects.
        samples: of an epoch, to begin with.
        mode, selector: what is shown first: `train` or `freeze`, and the text.
    Raises:
        SelectorError: `selector` matches nothing, or names rows of a tensor.
    """
    stock = inventory(model)
    picked = select_whole(model, selector).picked
    terms = term_sets(stock)
    return render_page(
        "inspect.html",
        title=f"{name}: what freezing brings",
        data={
            "name": name,
            "options": list(options),
            "samples": samples,
            "mode": mode,
            "selector": selector,
            "picked": _ranges(picked),
            "terms": [[text, _ranges(found)] for text, found in terms.items()],
            "entries": list(_entries(stock)),
            "modules": list(_modules(stock, terms)),
            "stages": [list(group) for group in stage_paths(model)],
            "busy": busy_note(ledger.core_share),
            "buffer_bytes": sum(buffer.nbytes for buffer in model.buffers()),
            "ledger": asdict(ledger),
        },
    )


def term_sets(stock: Inventory) -> dict[str, Collection[int]]:
    """Each term that the page knows -> the indices in `stock.entries` of what it matches.

    Modules and tensors come first, the outer before the inner: clicks are put into words by these.
    """
    return {**_places(stock), **_matches(stock), **_spans(stock)}


def _places(stock: Inventory) -> dict[str, list[int]]:
    """What `Path(path).pick(stock)` gives for each path, in one pass, as deep models have many."""
    found: dict[str, list[int]] = {path: [] for path in stock.modules if path}
    for index, entry in enumerate(stock.entries):
        names = {n for place in entry.occurrences for n in (place.name, place.plain)}
        paths = (path for name in sorted(names) for path in (name, *paths_above(name)) if path)
        for path in dict.fromkeys(paths):
            found.setdefault(path, []).append(index)
    return {str(Path(path)): members for path, members in found.items() if members}


def _matches(stock: Inventory) -> dict[str, Collection[int]]:
    owners = {o for entry in stock.entries for place in entry.occurrences for o in place.owners}
    texts = [
        *("all", "none"),
        *(f"kind:{kind}" for kind in KINDS),
        *(f"type:{name}" for name in sorted({n for owner in owners for n in class_names(owner)})),
        *(f"depth:{percent}%" for percent in range(10, 101, 10)),
    ]
    found: dict[str, Collection[int]] = {}
    for text in texts:
        with suppress(SelectorError):  # it matches nothing here, so the page does not know it
            found[text] = parse(text).pick(stock)
    return found


def _spans(stock: Inventory) -> dict[str, Collection[int]]:
    """Each stage, all up to it and all from it, counted from either end."""
    groups = stages(stock, by_any_name=True)
    before = accumulate(groups, or_)
    after = [*accumulate(reversed(groups), or_)][::-1]
    found: dict[str, Collection[int]] = {}
    for at, (group, below, above) in enumerate(zip(groups, before, after, strict=True)):
        for n in (at, at - len(groups)):
            found |= {str(Stage(n, n)): group, str(Stage(0, n)): below, str(Stage(n, -1)): above}
    return {text: members for text, members in found.items() if members}


def _ranges(indices: Iterable[int]) -> list[int]:
    """`{0, 1, 2, 5}` -> `[0, 3, 5, 6]`: starts and ends of ranges, which keeps the page small."""
    edges: list[int] = []
    for index in sorted(indices):
        if edges and edges[-1] == index:
            edges[-1] += 1
        else:
            edges += [index, index + 1]
    return edges


def _entries(stock: Inventory) -> Iterator[dict[str, Any]]:
    parameters = {id(p): place for place, p in enumerate(stock.model.parameters())}
    stage_of = {index: n for n, group in enumerate(stages(stock)) for index in group}
    for index, entry in enumerate(stock.entries):
        moves = any(keeps_running_statistics(place.owner) for place in entry.occurrences)
        yield {
            "stage": stage_of[index],
            "parameter": parameters.get(id(entry.tensor), -1) if entry.is_parameter else -1,
            "numel": entry.tensor.numel(),
            "nbytes": entry.tensor.nbytes,
            "dims": entry.tensor.dim(),
            "trains": entry.is_parameter or moves,
        }


def _modules(stock: Inventory, terms: Mapping[str, Collection[int]]) -> Iterator[dict[str, Any]]:
    """What of each module, in the order of the ledger's paths, is drawn and moves in training."""
    own: dict[int, list[int]] = {}
    for index, entry in enumerate(stock.entries):
        for owner in {id(place.owner) for place in entry.occurrences}:
            own.setdefault(owner, []).append(index)
    for path, module in stock.model.named_modules():
        moves = keeps_running_statistics(module)
        buffers = [buffer for buffer in module._buffers.values() if buffer is not None]
        yield {
            "type": type(module).__name__,
            "moves": moves,
            "moving_bytes": sum(buffer.nbytes for buffer in buffers) if moves else 0,
            "own": _ranges(own.get(id(module), ())),
            "within": _ranges(terms.get(str(Path(path)) if path else "all", ())),
        }
