"""`frostline inspect MODEL`: layers, what a selector matches, what freezing saves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from frostline.choices import HeadPlace
from frostline.cli import _options as options
from frostline.cli._set_up import as_words, build_model, check_one_of, freeze_as_asked, set_up

if TYPE_CHECKING:
    from torch import nn

    from frostline.cli._set_up import ModelSetup
    from frostline.freezing.tree import Summary
    from frostline.tables import Table


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
BatchSize = Annotated[
    int | None, typer.Option(help="Samples in a step, on the page.", min=1, show_default="32")
]


# Long since tables and the page have options of their own, which are refused for the other.
def inspect(
    model: options.ModelName,
    *,
    freeze: options.Freeze = None,
    train: options.Train = None,
    weights: options.Weights = "none",
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
    from frostline.cli._terminal import show
    from frostline.freezing.tree import summary
    from frostline.selectors import select

    check_one_of(freeze=freeze, train=train)
    if html is None:
        if samples is not None or batch_size is not None:
            raise typer.BadParameter(
                "--samples and --batch-size are for the page; add --html FILE."
            )
        network, _, _ = build_model(model, weights, on=on or "keep", head=head, classes=classes)
        freeze_as_asked(network, freeze, train)
        found = summary(network, depth=2 if depth is None else depth)
        every = [select(network, "all").report()] if names else []
        parts: list[Table | str] = [found.table(), _stage_table(network), *every, _savings(network)]
        show(_document(network, found), parts, as_json=json)
        return
    if json or names or depth is not None:
        raise typer.BadParameter(
            "--html writes a page with all layers; leave out --json, --names and --depth."
        )
    _check_page(html, freeze or train, force=force)
    place, batch = on or "classifier", batch_size or 32
    setup = set_up(model, weights, on=place, head=head, data=None, classes=classes)
    asked = ("freeze", freeze) if freeze is not None else ("train", train or setup.head)
    words = as_words(head=head, on=place, batch_size=batch)
    _write_page(html, model, setup, asked, words, samples=samples or 1000, batch=batch, force=force)


def _check_page(path: Path, selector: str | None, *, force: bool) -> None:
    from frostline.pages.rendering import check_page_path
    from frostline.selectors import as_selector
    from frostline.selectors.pieces import row_terms

    if term := next(row_terms(as_selector(selector or "all")), None):
        raise typer.BadParameter(
            f"the page draws whole tensors, and '{term}' names rows of one; leave out --html."
        )
    check_page_path(path, force=force)


def _write_page(
    path: Path,
    name: str,
    setup: ModelSetup,
    asked: tuple[str, str],
    words: list[str],
    *,
    samples: int,
    batch: int,
    force: bool,
) -> None:
    from frostline.cli._terminal import output, say
    from frostline.estimates.ledger import ledger
    from frostline.pages.inspection import inspect_page
    from frostline.pages.rendering import save_page
    from frostline.selectors import select

    mode, selector = asked
    select(setup.model, selector)  # before it takes seconds
    page = inspect_page(
        setup.model,
        ledger(setup.model, setup.example, batch_size=batch),
        name=name,
        options=words,
        samples=samples,
        mode=mode,
        selector=selector,
    )
    save_page(page, path, force=force)
    say(output(), f"Page: {path}")


def _document(network: nn.Module, found: Summary) -> dict[str, object]:
    from frostline.selectors.stages import stage_paths

    parameters = [
        {"name": name, "shape": list(p.shape), "numbers": p.numel(), "trainable": p.requires_grad}
        for name, p in network.named_parameters()
    ]
    return {
        **found.as_dict(),
        "stages": [list(paths) for paths in stage_paths(network)],
        "parameters": parameters,
        "total": found.total.parameters,
        "trainable": found.total.trainable,
        "saved_bytes": _saved_bytes(network),
    }


def _stage_table(network: nn.Module) -> Table:
    from frostline.selectors.stages import stage_paths
    from frostline.tables import Column, Table

    rows = tuple((f"stage:{n}", ", ".join(paths)) for n, paths in enumerate(stage_paths(network)))
    return Table((Column("stage"), Column("modules")), rows)


def _saved_bytes(network: nn.Module) -> dict[str, int]:
    """Bytes that need not be kept for frozen parameters: gradients, and two moments in AdamW."""
    frozen = sum(p.nbytes for p in network.parameters() if not p.requires_grad)
    return {"gradients": frozen, "adamw_state": 2 * frozen}


def _savings(network: nn.Module) -> str:
    from frostline.units import format_bytes

    saved = _saved_bytes(network)
    if not saved["gradients"]:
        return "Nothing is frozen. Try --freeze 'stage:0..-2', or --train 'stage:-1'."
    return (
        f"Freezing saves {format_bytes(saved['gradients'])} of gradients and "
        f"{format_bytes(saved['adamw_state'])} of AdamW state."
    )
