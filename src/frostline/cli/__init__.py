"""The command line: a file per verb. Nothing here imports torch before a verb runs.

Exit status: 0 done, 1 something the user can fix, 2 wrong usage, 3 a promise was broken.
An option whose text or value is wrong whatever the data, the model and the machine are is wrong
usage; what takes one of these three to find out is status 1.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from importlib import import_module, metadata
from typing import Annotated

import typer

from frostline._leash import heed_leash
from frostline._version import __version__
from frostline.cli._options import Verbs
from frostline.cli._speaking import one_speaks
from frostline.cli.features import features
from frostline.errors import FrostlineError, one_line
from frostline.tables import visible
from frostline.wording import on_the_command_line

app = typer.Typer(
    cls=Verbs,
    help="Freeze any part of a pretrained network and train the rest.",
    no_args_is_help=True,
    add_completion=False,  # of which `--show-completion` shows one shell alone, the one it guesses
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
_VERBS = (
    "demo inspect doctor estimate probe plan train sweep evaluate predict verify report compare "
    "merge export studio"
)
for _verb in _VERBS.split():  # each a function in the module of its name
    app.command()(getattr(import_module(f"frostline.cli.{_verb}"), _verb))
app.add_typer(features, name="features")


_TYPER_INTERRUPTED = 130  # how typer leaves on Ctrl-C; our own statuses are 0 to 3


_COMPLETE = "_FROSTLINE_COMPLETE"  # in the environment when a shell asks how a line may go on


def _show_versions(wanted: bool) -> None:
    """What a report of a mistake should begin with; torch is not loaded for it."""
    if wanted:
        import platform

        typer.echo(f"frostline {__version__}")
        typer.echo(f"torch {metadata.version('torch')}")
        typer.echo(f"Python {platform.python_version()}")
        typer.echo(platform.platform())
        raise typer.Exit


_SHELLS = ("bash", "zsh", "fish")


def _show_completion(shell: str | None) -> None:
    if shell is not None:
        if shell not in _SHELLS:
            raise typer.BadParameter(f"'{shell}' is not one of {', '.join(_SHELLS)}.")
        from typer._completion_shared import get_completion_script

        typer.echo(
            get_completion_script(prog_name="frostline", complete_var=_COMPLETE, shell=shell)
        )
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Show the versions of Frostline, torch and Python, and the platform.",
            callback=_show_versions,
            is_eager=True,
        ),
    ] = False,
    show_completion: Annotated[
        str | None,
        typer.Option(
            help="Show what makes bash, zsh or fish complete `frostline`, for its start-up file.",
            metavar="SHELL",
            callback=_show_completion,
            is_eager=True,
        ),
    ] = None,
) -> None:
    """Freeze any part of a pretrained network and train the rest."""


def main() -> None:
    """Run the command line; every mistake of the user's ends in one message, not a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A file's name need not be text in the terminal's encoding, nor in any.
            stream.reconfigure(errors="backslashreplace")
    if _COMPLETE in os.environ:
        from typer._completion_classes import completion_init

        completion_init()  # as typer does where it has completion options of its own
    try:
        heed_leash()
        with on_the_command_line(), one_speaks():
            app()
    except FrostlineError as error:
        if error.process is None:
            _fail(str(error), error.exit_status)
        sys.exit(error.exit_status)  # the process that it happened to says so
    except (SystemExit, KeyboardInterrupt) as leaving:  # the latter before typer takes it
        if isinstance(leaving, SystemExit) and leaving.code != _TYPER_INTERRUPTED:
            raise
        _fail("interrupted.", 1)
    except BrokenPipeError:
        # The reader of our output went away (`| head`); there is no one left to tell.
        _discard_output()
        sys.exit(1)
    except Exception as error:
        if "FROSTLINE_TRACEBACK" in os.environ:
            raise
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            _discard_output()
            _fail(f"the output cannot be written: {error.strerror}. Make room.", 1)
        _fail(
            f"unexpected {one_line(error)}. If the model or its file is your own, "
            "look there; else please report it. FROSTLINE_TRACEBACK=1 shows where it came from.",
            1,
        )


def _discard_output() -> None:
    """So that nothing more is tried as the process ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, status: int) -> None:
    print(f"Error: {visible(message)}", file=sys.stderr)  # noqa: T201 - works where nothing else may
    sys.exit(status)
