"""`frostline plan MODEL --kind lp_ft`: a ready-made plan for a model, as TOML to edit and use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from shlex import join
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from frostline.cli import _options as options
from frostline.cli._set_up import as_words, build_model
from frostline.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn

    from frostline.plans import Plan

Kind = Literal["head_only", "gradual", "lp_ft", "surgical", "full", "norm_and_bias"]

# What `--epochs` sets where a plan has more than one length.
_EPOCHS = {"gradual": "epochs_each", "lp_ft": "tune_epochs"}
# Options that one kind alone takes.
_OWN = {"stages": "gradual", "stage": "surgical"}

ReadyMade = Annotated[Kind, typer.Option(help="Which plan; docs/plans.md says what each is for.")]
Stages = Annotated[
    int | None,
    typer.Option(help="gradual: how many stages train in the end, the head included.", min=1),
]
BesideHead = Annotated[
    int | None, typer.Option(help="surgical: the stage beside the head, from 0 or as -2.")
]
Epochs = Annotated[
    int | None, typer.Option(help="Epochs of the last phase; gradual: of each phase.", min=1)
]
PeakRate = Annotated[
    float | None,
    options.number("Peak learning rate of the last phase; gradual: of all but the first."),
]
NewFile = Annotated[
    Path | None, typer.Option(help="File to write the plan to; a new one.", metavar="FILE")
]


def plan(
    model: options.ModelName,
    *,
    kind: ReadyMade,
    stages: Stages = None,
    stage: BesideHead = None,
    epochs: Epochs = None,
    lr: PeakRate = None,
    on: options.On = "classifier",
    head: options.Head = "",
    out: NewFile = None,
    json: options.Json = False,
) -> None:
    """Write a ready-made plan for a model: what trains when, as TOML that can be edited.

    No weights are needed, so none are loaded. The plan's table shows what each phase trains.
    Without --out the plan itself goes to standard output, and its table to standard error.
    """
    from frostline._files import check_new
    from frostline.cli._terminal import notes, output, print_json, say, warn
    from frostline.plans import Plan

    asked = {"stages": stages, "stage": stage, "epochs": epochs, "lr": lr}
    chosen = _checked(kind, {name: value for name, value in asked.items() if value is not None})
    options.hidden_widths(head, on=on)
    if out is not None:
        check_new(out)
    network = build_model(model, on=on, head=head).model  # no plan depends on how many classes
    make: Callable[..., Plan] = getattr(Plan, kind)
    made = make(network, **chosen)
    if out is not None:
        made.save(out)
    for warning in made.check(network):
        warn(warning)
    if json:
        print_json(_document(made, network, out))
    elif out is None:
        notes().print(made.table(network))
        print(made.dumps(), end="")  # noqa: T201 - the output itself
    else:
        page = output()
        page.print(made.table(network))
        words = ["--model", model, *as_words(head=head, on=on), "--plan", str(out)]
        say(page, f"\nWritten to {out}; next: frostline train DATA {join(words)}")


def _checked(kind: Kind, given: dict[str, Any]) -> dict[str, Any]:
    """The options as `Plan`'s methods call them, if this kind takes them."""
    from frostline.plans import Phase

    for name in given.keys() & _OWN.keys():
        if _OWN[name] != kind:
            raise typer.BadParameter(
                f"only --kind {_OWN[name]} takes it, and this is {kind}.", param_hint=f"--{name}"
            )
    if kind == "surgical" and "stage" not in given:
        raise typer.BadParameter(
            "say which stage trains beside the head, as --stage 0; `frostline inspect MODEL` "
            "lists them.",
            param_hint="--stage",
        )
    with options.usage_errors():
        Phase(epochs=1, lr=given.get("lr"))
    return {_EPOCHS.get(kind, name) if name == "epochs" else name: v for name, v in given.items()}


def _document(made: Plan, network: nn.Module, out: Path | None) -> dict[str, object]:
    from frostline.plans.parts import parts
    from frostline.plans.showing import share

    trained = [
        {"phase": part.place, "parameters": part.selection.numel, "share": share(part)}
        for part in parts(network, made.phases, Recipe())
    ]
    return {
        **made.as_dict(),
        "trained": trained,
        "warnings": list(made.check(network)),
        "file": None if out is None else str(out),
    }
