"""`frostline studio`: a local page for people who do not code."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer


def studio(
    folder: Annotated[
        Path,
        typer.Argument(help="Where runs are written, to runs/NAME.", metavar="FOLDER"),
    ] = Path(),
    *,
    port: Annotated[int, typer.Option(help="To listen on; 0: any free.", min=0, max=65535)] = 0,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Print the address, and open no browser.")
    ] = False,
) -> None:
    """Open a page in the browser: choose pictures, train, try what was learnt.

    It is served by this computer to this computer alone, and does what the other commands do,
    each of which it shows. When it ends, a run that is going is stopped, and can go on later.
    """
    import signal
    import webbrowser

    from frostline._files import check_writable, output_errors
    from frostline.cli._terminal import output, say
    from frostline.studio import Server
    from frostline.world import refuse_several

    refuse_several("the studio")
    root = folder.expanduser().resolve()
    with output_errors(root):
        root.mkdir(parents=True, exist_ok=True)
    check_writable(root / "runs")
    for ending in {"SIGTERM", "SIGHUP"} & {*signal.Signals.__members__}:  # as Ctrl-C: in order
        signal.signal(signal.Signals[ending], signal.default_int_handler)
    with Server(root, port=port) as server:
        say(output(), f"Frostline studio for {root}:")
        say(output(), f"  {server.address}")
        say(output(), "Open it in a browser of this computer; Ctrl-C ends it.")
        if not no_browser and _has_screen():
            webbrowser.open(server.door().as_uri())
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say(output(), "\nEnded.")


def _has_screen() -> bool:
    """Whether a browser would open in a window, and not in this terminal."""
    names = ("DISPLAY", "WAYLAND_DISPLAY")
    return sys.platform in ("darwin", "win32") or any(map(os.environ.get, names))
