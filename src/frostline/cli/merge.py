"""`frostline merge RUN --out full.safetensors`: a delta and its base as one checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from frostline.choices import Snapshot
from frostline.cli import _options as options


def merge(
    source: Annotated[
        Path, typer.Argument(help="A run's folder, or a delta.", metavar="RUN|DELTA")
    ],
    *,
    out: Annotated[
        Path, typer.Option(help="New file: .safetensors, or .pth for torch.", metavar="FILE")
    ],
    base: Annotated[
        Path | None,
        typer.Option(
            "--weights",
            "--base",
            help="The base's weights, where they cannot be had as then.",
            metavar="FILE",
        ),
    ] = None,
    which: Annotated[Snapshot, typer.Option(help="Which delta of the run.")] = "best",
    json: options.Json = False,
) -> None:
    """Write the full state_dict of what was trained, for tools that know nothing of deltas."""
    from frostline.cli._terminal import show
    from frostline.exports import check_checkpoint_path, merged, scaling, write_state_dict
    from frostline.runs import open_run
    from frostline.units import format_bytes

    check_checkpoint_path(out)
    tensors = merged(source, base=base, which=which)
    write_state_dict(tensors, out)
    size = out.stat().st_size
    document = {"file": str(out), "tensors": len(tensors), "bytes": size}
    line = f"Written to {out}: {len(tensors)} tensors, {format_bytes(size)}"
    says = scaling(open_run(source).settings) if source.is_dir() else ""
    if says:
        document["outputs"] = says
    show(document, [line, *filter(None, [says])], as_json=json)
