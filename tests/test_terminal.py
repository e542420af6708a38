"""What every verb prints: 80 columns, colour only where it may be, progress on standard error."""

from __future__ import annotations

import json
import os
import pty
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from rich.cells import cell_len

from frostline.cli._terminal import print_json
from frostline.tables import Column, Table, visible
from small_world import call, write_net, write_pictures
from warm_process import Start

COLOUR = re.compile(r"\x1b\[[\d;]*\b(3\d|4[0-8]|9\d|10[0-7])\b[\d;]*m")
MOVES = ("\r", "\x1b[2K", "\x1b[1A", "━")  # of a bar that is drawn over

VERBS = {
    "inspect": "inspect {model} --freeze features --names",
    "doctor": "doctor {model} --freeze features --data {photos} --lr 1e-3",
    "estimate": "estimate {model} --data {photos} --budget 1GB",
    "plan": "plan {model} --kind gradual --stages 2",
    "train": "train {photos} --model {model} --weights none --epochs 1 --out {root}/other",
    "evaluate": "evaluate {run} {photos}",
    "predict": "predict {run} {photos}/val --top 2",
    "verify": "verify {run}",
    "report": "report {run}",
    "compare": "compare {run} {root}/second",
    "merge": "merge {run} --out {root}/whole.pth",
    "export": "export {run} --to safetensors --out {root}/m.safetensors --with-base",
    "features": "features ls {root}/features",
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A world with two finished runs and a store."""
    root = tmp_path_factory.mktemp("terminal")
    names = ("a class whose name is longer than a column", "light")
    photos, model = write_pictures(root / "photos", names=names), write_net(root)
    options = ["--weights", "none", "--epochs", 2, "--features", root / "features"]
    for name in ("run", "second"):
        answer = call("train", photos, "--model", model, *options, "--out", root / name)
        assert answer.status == 0, answer.err
    return {"root": str(root), "photos": str(photos), "model": model, "run": str(root / "run")}


def words(verb: str, places: dict[str, str], tmp_path: Path) -> list[str]:
    own = {**places, "root": str(tmp_path)} if verb in ("train", "merge", "export") else places
    return [word.format(**own) for word in VERBS[verb].split()]


def is_wider(line: str, places: dict[str, str]) -> bool:
    """Than 80 columns, though no path stands in it: those are never broken."""
    return cell_len(line) > 80 and str(Path(places["root"]).parent) not in line


@pytest.mark.parametrize("verb", VERBS)
def test_a_pipe_gets_80_columns_without_colour_or_progress(
    verb: str, places: dict[str, str], tmp_path: Path
) -> None:
    answer = call(*words(verb, places, tmp_path))
    assert answer.status == 0, answer.err
    assert answer.out.strip() or verb == "merge"
    assert [line for line in answer.out.splitlines() if is_wider(line, places)] == []
    assert "\x1b" not in answer.out + answer.err
    assert not any(move in answer.out + answer.err for move in MOVES)


ON_TERMINALS = """
import os, sys
for number, name in enumerate({names}, 1):
    os.dup2(os.open(name, os.O_WRONLY | os.O_NOCTTY), number)
sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))
"""


def in_terminal(start: Start, arguments: list[str], **environment: str) -> tuple[str, str]:
    """What comes out on standard output and standard error, each a terminal of 80 columns."""
    own = {**os.environ, "COLUMNS": "80", "LINES": "40", "TERM": "xterm-256color", **environment}
    ends = [pty.openpty() for _ in range(2)]
    code = ON_TERMINALS.format(names=[os.ttyname(writer) for _, writer in ends])
    with ThreadPoolExecutor(2) as reading:
        texts = reading.map(_read, [reader for reader, _ in ends])
        status = start(arguments, own, code=code).returncode
        for _, writer in ends:
            os.close(writer)
        out, err = texts
    assert status == 0, err
    return out, err


def _read(reader: int) -> str:
    """All that is written to the other end until it is closed."""
    text = b""
    while True:
        try:
            text += os.read(reader, 1 << 16)
        except OSError:  # how Linux says that it was
            os.close(reader)
            return text.decode()


@pytest.mark.parametrize("verb", ["evaluate", "inspect"])
def test_no_colour_in_a_terminal_where_it_is_not_wanted(
    start: Start, verb: str, places: dict[str, str], tmp_path: Path
) -> None:
    out, err = in_terminal(start, words(verb, places, tmp_path), NO_COLOR="1")
    assert not COLOUR.search(out + err)
    plain = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", out)
    assert [line for line in plain.splitlines() if is_wider(line, places)] == []


def test_a_terminal_shows_progress_beside_the_result(
    start: Start, places: dict[str, str], tmp_path: Path
) -> None:
    out, err = in_terminal(start, words("train", places, tmp_path))
    assert "━" in err
    assert COLOUR.search(err), "where it is wanted there is none either"
    assert "━" not in out
    assert "Best epoch" in out


HOSTILE = "\x1b[2J\x9b31mred\u202etxt\u2066\r\x07"


def test_names_never_reach_the_terminal_as_anything_but_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = r"\x1b[2J\x9b31mred\u202etxt\u2066\r\x07"
    name = f"{HOSTILE}.toml"
    for told in (
        str(Table((Column("name"),), ((HOSTILE,),), title=HOSTILE, notes=(HOSTILE,))),
        call("plan", "alexnet", "--kind", "full", "--out", tmp_path / name).out,
        call("train", tmp_path, "--model", "alexnet", "--plan", f"{tmp_path}/{HOSTILE}").message,
    ):
        assert shown in "".join(told.split("\n"))
        assert not set(HOSTILE) - set("[2J31mredtxt") & set(told)
    assert capsys.readouterr() == ("", "")


def test_names_in_other_scripts_are_shown_as_they_are() -> None:
    name = "сеть 网络 க்\u200cஷ é👩\u200d🔬\tend\nline"
    assert visible(name) == name


def test_numbers_without_a_word_in_json_are_null(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"loss": float("inf"), "parts": ({"f1": float("nan"), "n": 3}, 0.5)})
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found == {"loss": None, "parts": [{"f1": None, "n": 3}, 0.5]}
