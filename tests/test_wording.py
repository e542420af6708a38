"""Messages name what to write in the words of whoever asked: Python's, or the command line's."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import frostline as fl
from frostline.wording import either, on_the_command_line, option
from small_world import call, write_net, write_pictures

Messages = list[tuple[str, ast.Constant, str]]

ROOT = Path(fl.__file__).parent
TYPED = re.compile(r"(?<![\w-])--([a-z]|$)|`frostline ")
PYTHON = re.compile(r"\bfl\.\w|\b[a-z]\w*\(model\b|\w=\.\.\.")
# A page, which shows commands to both; what writes either; and options of a launcher, for both.
BOTH = {"reports/repeating.py", "reports/reporting.py", "wording.py", "world.py"}
# What the command line never gets to, or cannot do anything about: a run whose model was handed
# over in Python, and an object that only Python can make.
ONLY_PYTHON = {
    "checkup": "fixes are lines of Python, but where an option does the same",
    "classifier": "an estimator among scikit-learn's",
    "cli/train.py": "a run that was begun in Python",
    "cutting": "a cut of one's own, or a model whose code does what cannot be cut",
    "data/door.py": "samples of a class of one's own",
    "deltas.py": "a model that is frozen otherwise than its delta",
    "fitting": "arguments of fit",
    "freezing/tree.py": "a model that was unfrozen behind its freeze",
    "groups.py": "multipliers, which are no option",
    "lightning": "a script over Lightning",
    "optimizer_sync": "an optimizer of one's own",
    "plans/plan.py": "a plan of objects",
    "runs/finished.py": "a run that was begun in Python",
    "selectors": "selectors that are objects, and how they read back",
    "session/attached.py": "a script over another library's loop",
    "session/session.py": "a loop of one's own",
    "tasks": "a task of one's own",
    "transformers": "a script over transformers' Trainer",
}


@pytest.fixture(scope="module")
def messages() -> Messages:
    return list(texts())


def texts() -> Iterator[tuple[str, ast.Constant, str]]:
    """Each text in the sources that is no docstring: its file, and which of `either` it is."""
    for file in sorted(ROOT.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        docs = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
        place = {
            id(text): ("python", "typed")[number]
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "either"
            for number, argument in enumerate(node.args)
            for text in ast.walk(argument)
        }
        for node in ast.walk(tree):
            is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
            if is_text and id(node) not in docs:
                yield file.relative_to(ROOT).as_posix(), node, place.get(id(node), "")


def test_no_message_names_options_of_the_command_line_to_who_asked_in_python(
    messages: Messages,
) -> None:
    wrong = [
        f"{file}:{text.lineno}: {text.value}"
        for file, text, place in messages
        if place != "typed" and TYPED.search(text.value)
        if not file.startswith(("cli/", "studio/")) and file not in BOTH
    ]
    assert wrong == []


def test_no_message_of_what_verbs_do_speaks_python_on_the_command_line(messages: Messages) -> None:
    allowed = (*ONLY_PYTHON, *BOTH)
    wrong = [
        f"{file}:{text.lineno}: {text.value}"
        for file, text, place in messages
        if place != "python" and PYTHON.search(text.value)
        if not any(file == name or file.startswith(f"{name}/") for name in allowed)
    ]
    assert wrong == []


def test_an_option_is_named_as_who_asked_writes_it() -> None:
    python = option("batch_size"), option("on", "logits"), option("force", True), either("a", "b")
    assert python == ("`batch_size`", "on='logits'", "force=True", "a")
    with on_the_command_line():
        typed = option("batch_size"), option("on", "a b"), option("force", True), either("a", "b")
    assert typed == ("--batch-size", "--on 'a b'", "--force", "b")
    assert option("lr") == "`lr`"


def test_the_same_mistakes_are_answered_in_both(tmp_path: Path) -> None:
    photos, net = write_pictures(tmp_path / "photos", train=2, val=2), write_net(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    arguments = ("train", photos, "--model", net, "--out")
    answers = [
        call(*arguments, tmp_path / "full").message,
        call(*arguments, tmp_path / "run", "--freeze", "bodyy").message,
    ]
    assert "choose another --out" in answers[0]
    assert "See all: `frostline inspect MODEL`" in answers[1]
    assert not any(map(PYTHON.search, answers))
    model, data = nn.Linear(2, 2), TensorDataset(torch.randn(4, 2), torch.tensor([0, 1, 0, 1]))
    with pytest.raises(fl.OutputError, match="choose another `out`"):
        fl.fit(model, data, data, out=tmp_path / "full")
    with pytest.raises(fl.SelectorError, match=r"See all: print\(fl\.summary\(model\)\)"):
        fl.freeze(model, "bodyy")
