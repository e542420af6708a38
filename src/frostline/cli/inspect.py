"""`frostline inspect MODEL`: layers, what a selector matches, what freezing saves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from frostline.cli import _options as options
from frostline.cli._set_up import set_up

if TYPE_CHECKING:
    from torch import nn

    from frostline.cli._set_up import Setup
    from frostline.config import HeadPlace
    from frostline.tables import Table


def inspect(
    model: options.ModelName,
    *,
    freeze: options.Freeze = None,
    train: options.Train = None,
    weights: options.Weights = "none",
    on: Annotated[
        Literal["classifier", "logits", "keep"] | None,
        typer.Option(
            help="Replace the classifier, stack a head on its logits, or keep it; the page "
            "replaces it unless told otherwise, tables keep it.",
        ),
    ] = None,
    head: options.Head = "",
    classes: Annotated[int, typer.Option(help="Logits of the new head.", min=1)] = 10,
    depth: Annotated[
        int | None, typer.Option(help="Levels of modules to show.", min=0, show_default="2")
    ] = None,
    names: Annotated[bool, typer.Option("--names", help="List every parameter.")] = False,
    html: Annotated[
        Path | None,
        typer.Option(
            help="Write a page to freeze and thaw on, with memory and time of each choice.",
            metavar="FILE",
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(help="Samples of an epoch, on the page.", min=1, show_default="1000"),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Samples in a step, on the page.", min=1, show_default="32")
    ] = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Show a model's layers and stages, what a selector matches and what freezing it saves.

    Without --freeze or --train nothing is frozen, and on the page everything but the head. Weights
    are not needed, so none are loaded; the classifier is kept unless --on says where `train` would
    put a new head.
    """
    from frostline.cli._terminal import output, print_json
    from frostline.freezing import freeze as freeze_part
    from frostline.freezing import train_only
    from frostline.freezing.tree import summary
    from frostline.selectors import select

    if freeze is not None and train is not None:
        raise typer.BadParameter("give one of --freeze and --train; the other is the rest.")
    if html is not None:
        from frostline.pages.rendering import check_page_path

        if json or names or depth is not None:
            raise typer.BadParameter(
                "--html writes a page with all layers; leave out --json, --names and --depth."
            )
        check_page_path(html, force=force)
        place = on or "classifier"
        setup = set_up(model, weights, on=place, head=head, data=None, classes=classes)
        asked = ("freeze", freeze) if freeze is not None else ("train", train or setup.head)
        command = [model, *(["--head", head] if head else [])]
        command += ["--on", place] if place != "classifier" else []
        batch = batch_size or 32
        command += ["--batch-size", str(batch)] if batch != 32 else []
        _write_page(html, setup, asked, command, samples=samples or 1000, batch=batch, force=force)
        return
    if samples is not None or batch_size is not None:
        raise typer.BadParameter("--samples and --batch-size are for the page; add --html FILE.")
    depth = 2 if depth is None else depth
    place = on or "keep"
    network = _built(model, weights, place, options.hidden_widths(head, on=place), classes)
    if freeze is not None:
        freeze_part(network, freeze)
    elif train is not None:
        train_only(network, train)
    if json:
        print_json(_document(network, depth))
        return
    page = output()
    page.print(summary(network, depth=depth).table())
    page.print()
    page.print(_stage_table(network))
    if names:
        page.print()
        page.print(select(network, "all").report())
    page.print()
    page.print(_savings(network))


def _write_page(
    path: Path,
    setup: Setup,
    asked: tuple[str, str],
    command: list[str],
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
        name=command[0],
        command=["frostline", "train", "DATA", "--model", *command],
        samples=samples,
        mode=mode,
        selector=selector,
    )
    save_page(page, path, force=force)
    say(output(), f"Page: {path}")


def _built(
    model: str, weights: str, on: HeadPlace, hidden: tuple[int, ...], classes: int
) -> nn.Module:
    from frostline.models import ModelSpec, build, load_model

    if on == "keep":
        return build(ModelSpec.parse(model), weights=weights, seed=0).model
    return load_model(model, weights=weights, classes=classes, hidden=hidden, on=on).model


def _document(network: nn.Module, depth: int) -> dict[str, object]:
    from frostline.freezing.tree import summary
    from frostline.selectors.stages import stage_paths

    found = summary(network, depth=depth)
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
