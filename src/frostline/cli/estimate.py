"""`frostline estimate MODEL`: what training would cost in memory, time and disk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from frostline.choices import OptimizerName, StepPrecision
from frostline.cli import _options as options
from frostline.cli._set_up import check_one_of, data_settings, set_up
from frostline.cli._tasks import AskedTask
from frostline.tables import hanging

Data = Annotated[
    Path | None, typer.Option(help="Pictures to count and to cut on, as `train` takes them.")
]
Samples = Annotated[int, typer.Option(help="Samples to train on, without --data.", min=0)]
Epochs = Annotated[int, typer.Option(help="Epochs, without --plan.", min=1)]
Optimizer = Annotated[OptimizerName, typer.Option(help="Optimizer of the step.")]
Precision = Annotated[StepPrecision, typer.Option(help="fp32, or autocast to bf16 or fp16.")]
Lean = Annotated[bool, typer.Option("--lean", help="Keep only what the wanted gradients need.")]
Budget = Annotated[
    str | None,
    typer.Option(
        help="Memory, as 4GiB: the largest batch and the deepest thaw that fit.", metavar="BYTES"
    ),
]
Calibrate = Annotated[bool, typer.Option("--calibrate", help="Also run a real step, and compare.")]


# Long since each option has a line here and one in the call.
def estimate(
    model: options.ModelName,
    *,
    weights: options.Weights = "none",
    freeze: options.Freeze = None,
    train: options.Train = None,
    plan: options.PlanFile = None,
    head: options.Head = "",
    on: options.On = "classifier",
    data: Data = None,
    task: options.TaskKind = "auto",
    file_column: options.FileColumn = "file",
    text_column: options.TextColumn = "",
    label_column: options.LabelColumn = "label",
    split_column: options.SplitColumn = "",
    classes: options.Classes = 10,
    samples: Samples = 0,
    epochs: Epochs = 10,
    batch_size: options.BatchSize = 32,
    optimizer: Optimizer = "adamw",
    precision: Precision = "fp32",
    lean: Lean = False,
    budget: Budget = None,
    calibrate: Calibrate = False,
    json: options.Json = False,
) -> None:
    """Say what training would cost in memory, time and disk, before anything runs.

    The model is built, given a head and frozen as `frostline train` would do it with the same
    options; by default everything but the head. Its operations and a few real steps are timed on
    this machine for a few seconds; nothing is trained.
    """
    from frostline.cli._terminal import counting, show
    from frostline.estimates import estimate as work_out
    from frostline.freezing import train_only
    from frostline.plans import Plan

    check_one_of(freeze=freeze, train=train, plan=plan)
    if data is not None and samples:
        raise typer.BadParameter("--data says how many samples there are; leave out --samples.")
    within = None if budget is None else options.size_in_bytes(budget, "--budget")
    settings = data_settings(
        model,
        data,
        AskedTask(task),
        file_column=file_column,
        text_column=text_column,
        label_column=label_column,
        split_column=split_column,
    )
    setup = set_up(model, weights, on=on, head=head, classes=classes, settings=settings)
    splits = setup.splits
    if freeze is None and train is None:
        # Also what a plan's first phase may go on with.
        train_only(setup.loaded.model, setup.loaded.head)
    with counting("estimating") as progress:
        found = work_out(
            setup.loaded.model,
            setup.example,
            optimizer=optimizer,
            batch_size=batch_size,
            precision=precision,
            lean=lean,
            freeze=freeze,
            train=train,
            plan=Plan.load(plan) if plan is not None else None,
            epochs=epochs,
            samples=(len(splits.train), len(splits.val)) if splits else samples,
            task=setup.task,
            stages=True,
            budget=within,
            check=calibrate,
            progress=progress,
        )
    parts = list(found.tables())
    if splits:
        counted = f"Counted {len(splits.train):,} and {len(splits.val):,} samples"
        looked = 0 if setup.targets is None else len(setup.targets)
        line = f"{counted}; looked at {looked} of them. `frostline doctor` reads them all."
        parts += [hanging(line, indent=2)]
    show(found.as_dict(), parts, as_json=json)
