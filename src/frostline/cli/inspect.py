"""`frostline inspect MODEL`: layers, what a selector matches, what freezing saves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from frostline.cli import _options as options

if TYPE_CHECKING:
    from torch import nn

    from frostline.config import HeadPlace
    from frostline.tables import Table


def inspect(
    model: options.ModelName,
    *,
    freeze: options.Freeze = None,
    train: options.Train = None,
    weights: options.Weights = "none",
    on: options.On = "keep",
    head: options.Head = "",
    classes: Annotated[int, typer.Option(help="Logits of the new head.", min=1)] = 10,
    depth: Annotated[int, typer.Option(help="Levels of modules to show.", min=0)] = 2,
    names: Annotated[bool, typer.Option("--names", help="List every parameter.")] = False,
    json: options.Json = False,
) -> None:
    """Show a model's layers and stages, what a selector matches and what freezing it saves.

    Without --freeze or --train nothing is frozen. Weights are not needed, so none are loaded; the
    classifier is kept unless --on says where `train` would put a new head.
    """
    from frostline.cli._terminal import output, print_json
    from frostline.freezing import freeze as freeze_part
    from frostline.freezing import train_only
    from frostline.selectors import select
    from frostline.tree import summary

    if freeze is not None and train is not None:
        raise typer.BadParameter("give one of --freeze and --train; the other is the rest.")
    hidden = options.hidden_widths(head, on=on)
    network = _built(model, weights, on, hidden, classes)
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


def _built(
    model: str, weights: str, on: HeadPlace, hidden: tuple[int, ...], classes: int
) -> nn.Module:
    from frostline.models import ModelSpec, build, load_model

    if on == "keep":
        return build(ModelSpec.parse(model), weights=weights, seed=0).model
    return load_model(model, weights=weights, classes=classes, hidden=hidden, on=on).model


def _document(network: nn.Module, depth: int) -> dict[str, object]:
    from frostline.selectors.stages import stage_paths
    from frostline.tree import summary

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
