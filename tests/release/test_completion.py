"""A shell that sources what `--show-completion` shows completes verbs and options."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from small_world import call

# As bash runs a completion: the words of the line, the place of the one that is completed, and the
# command's name as the first argument.
ASK = """
source "$1"
COMP_WORDS=({line}); COMP_CWORD={place}
_frostline_completion {command}
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment whose PATH begins with a `frostline`."""
    folder = tmp_path_factory.mktemp("bin")
    command = folder / "frostline"
    command.write_text(
        f"#!{sys.executable}\nimport sys\nsys.argv[0] = 'frostline'\n"
        "from frostline.cli import main\nmain()\n"
    )
    command.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def in_bash(line: str, script: Path, environment: dict[str, str]) -> list[str]:
    """What bash would complete the last word of `line` to."""
    asked = ASK.format(line=line, place=len(line.split()) - 1, command="frostline")
    done = subprocess.run(
        ["bash", "--norc", "-c", asked, "bash", str(script)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert not done.stderr
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes_verbs_options_and_their_choices(
    tmp_path: Path, commands: dict[str, str]
) -> None:
    script = tmp_path / "completion"
    script.write_text(call("--show-completion", "bash").out)
    assert in_bash("frostline tr", script, commands) == ["train"]
    assert in_bash("frostline train --feat", script, commands) == ["--features"]
    assert in_bash("frostline features pr", script, commands) == ["prune"]
    assert in_bash("frostline inspect resnet18 --on l", script, commands) == ["logits"]


@pytest.mark.parametrize(
    ("shell", "told"), [("zsh", '"train":"Freeze part of'), ("fish", "train\tFreeze part of")]
)
def test_other_shells_are_answered_in_their_own_form(
    shell: str, told: str, commands: dict[str, str]
) -> None:
    script = call("--show-completion", shell).out
    assert f"_FROSTLINE_COMPLETE=complete_{shell}" in script
    asked = {
        "_FROSTLINE_COMPLETE": f"complete_{shell}",
        "_TYPER_COMPLETE_ARGS": "frostline tr",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    done = subprocess.run(
        ["frostline"], env={**commands, **asked}, capture_output=True, text=True, check=True
    )
    assert told in done.stdout


def test_another_shell_is_refused_with_those_there_are() -> None:
    answer = call("--show-completion", "tcsh")
    assert answer.status == 2
    assert "'tcsh' is not one of bash, zsh, fish." in answer.err


def test_the_version_names_what_a_report_of_a_mistake_needs() -> None:
    import platform
    from importlib.metadata import version

    import frostline

    assert call("--version").out.splitlines() == [
        f"frostline {frostline.__version__}",
        f"torch {version('torch')}",
        f"Python {platform.python_version()}",
        platform.platform(),
    ]
