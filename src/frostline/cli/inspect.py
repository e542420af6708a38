"""`frostline inspect MODEL`: layers, what a selector matches, what freezing saves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from frostline.choices import HeadPlace
from frostline.cli import _options as options
from frostline.cli._set_up import as_words, build_model, check_one_of, freeze_as_asked, set_up
from frostline.tables import Table, columns
from frostline.units import format_bytes

if TYPE_CHECKING:
    from torch import nn

On = Annotated[
    HeadPlace | None,
    typer.Option(
        "--on",
        help="Replace the classifier, stack a head on its logits, or keep it; the page "
        "replaces it unless asked otherwise, tables keep it.",
    ),
]
Depth = Annotated[
    int | None, typer.Option(help="Levels of modules to show.", min=0, show_default="2")
]
Page = Annotated[
    Path | None,
    typer.Option(
        "--html",
        help="Write a page to freeze and thaw on, with memory and time of each choice.",
        metavar="FILE",
    ),
]
Samples = Annotated[
    int | None, typer.Option(help="Samples of an epoch, on the page.", min=1, show_default="1000")
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="DEFAULT, none, or a FILE of weights.",
        metavar="WEIGHTS",
        show_default="none",
    ),
]
BatchSize = Annotated[
    int | None, typer.Option(help="Samples in a step, on the page.", min=1, show_default="32")
]


# Long since tables and the page have options of their own, which are refused for the other.
def inspect(
    model: options.ModelName,
    *,
    freeze: options.Freeze = None,
    train: options.Train = None,
    weights: Weights = None,
    on: On = None,
    head: options.Head = "",
    classes: Annotated[int, typer.Option(help="Logits of the new head.", min=1)] = 10,
    depth: Depth = None,
    names: Annotated[bool, typer.Option("--names", help="List every parameter.")] = False,
    html: Page = None,
    samples: Samples = None,
    batch_size: BatchSize = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Show a model's layers and stages, what a selector matches and what freezing it saves.

    Without --freeze or --train nothing is frozen, and on the page everything but the head. Weights
    are not needed, so none are loaded; the classifier is kept unless --on says where `train` would
    put a new head.
    """
    check_one_of(freeze=freeze, train=train)
    if html is None:
        if samples is not None or batch_size is not None:
            raise typer.BadParameter(
                "--samples and --batch-size are for the page; add --html FILE."
            )
        loaded = build_model(model, weights or "none", on=on or "keep", head=head, classes=classes)
        network = loaded.model
        freeze_as_asked(network, freeze, train)
        _show(network, depth=2 if depth is None else depth, names=names, as_json=json)
        return
    if json or names or depth is not None:
        raise typer.BadParameter(
            "--html writes a page with all layers; leave out --json, --names and --depth."
        )
    from frostline.cli._terminal import counting, output, say, warn
    from frostline.estimates.ledger import ledger
    from frostline.estimates.results import busy_note
    from frostline.pages.inspection import inspect_page
    from frostline.pages.rendering import save_page
    from frostline.selectors import select

    _check_page(html, freeze or train, force=force)
    place, batch = on or "classifier", batch_size or 32
    setup = set_up(model, weights or "none", on=place, head=head, classes=classes)
    mode, selector = ("train", train or setup.loaded.head) if freeze is None else ("freeze", freeze)
    select(setup.loaded.model, selector)  # before it takes seconds
    with counting("inspecting") as progress:
        costs = ledger(setup.loaded.model, setup.example, batch_size=batch, progress=progress)
    page = inspect_page(
        setup.loaded.model,
        costs,
        name=model,
        options=[
            # Where none were asked for, a run takes its own default.
            *(["--weights", weights] if weights else []),
            *as_words(head=head, on=place, batch_size=batch),
        ],
        samples=samples or 1000,
        mode=mode,
        selector=selector,
    )
    save_page(page, html, force=force)
    if busy := busy_note(costs.core_share):
        warn(busy)
    say(output(), f"Page: {html}")


def _show(network: nn.Module, *, depth: int, names: bool, as_json: bool) -> None:
    from frostline.cli._terminal import show
    from frostline.freezing.tree import summary
    from frostline.selectors import select
    from frostline.selectors.stages import stage_paths

    found, stages = summary(network, depth=depth), [list(paths) for paths in stage_paths(network)]
    frozen = sum(p.nbytes for p in network.parameters() if not p.requires_grad)
    saved = {"gradients": frozen, "adamw_state": 2 * frozen}  # AdamW keeps two moments
    document = {
        **found.as_dict(),
        "stages": stages,
        "parameters": [
            {"name": n, "shape": list(p.shape), "numbers": p.numel(), "trainable": p.requires_grad}
            for n, p in network.named_parameters()
        ],
        "total": found.total.parameters,
        "trainable": found.total.trainable,
        "saved_bytes": saved,
    }
    rows = tuple((f"stage:{n}", ", ".join(paths)) for n, paths in enumerate(stages))
    parts: list[Table | str] = [found.table(), Table(columns("stage", "modules", left=2), rows)]
    if names:
        parts.append(select(network, "all").report())
    parts.append(
        f"Freezing saves {format_bytes(saved['gradients'])} of gradients and "
        f"{format_bytes(saved['adamw_state'])} of AdamW state."
        if frozen
        else "Nothing is frozen. Try --freeze 'stage:0..-2', or --train 'stage:-1'."
    )
    show(document, parts, as_json=as_json)


def _check_page(path: Path, selector: str | None, *, force: bool) -> None:
    from frostline.pages.rendering import check_page_path
    from frostline.selectors import as_selector
    from frostline.selectors.pieces import row_terms

    if term := next(row_terms(as_selector(selector or "all")), None):
        raise typer.BadParameter(
            f"the page draws whole tensors, and '{term}' names rows of one; leave out --html."
        )
    check_page_path(path, force=force)
