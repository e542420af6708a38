"""`frostline ARGUMENTS` in a process of its own, forked of one that has imported everything.

What a test does with such a process, as to kill it, takes a moment; to import torch takes seconds.
The process that forks has computed nothing, so that its children may use what does not outlive a
fork, as the threads of autograd.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

# Reads what to run, a line each; answers each with its exit status, or minus the signal.
FORKING = """
import gc, json, os, signal, sys, traceback
import numpy, safetensors.torch, torch, torch.utils.tensorboard, torchvision.models
import torch.export._trace  # by the first export otherwise, in each child anew
import frostline.cli.train, frostline.models.torchvision_source, frostline.pages, frostline.runs
from frostline.cli import main

torch.set_num_threads(1)
gc.freeze()  # a child whose collector looks at this has each page of it copied


def run(asked):
    signal.alarm(120)
    # A test run in the background of a shell has interrupts switched off; its children would too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, name in enumerate(("out", "err"), 1):
        os.dup2(os.open(asked[name], os.O_WRONLY), number)
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.argv = ["frostline", *asked["arguments"]]
    exec(asked["code"], {})
    main()


for line in sys.stdin:
    pid = os.fork()
    if not pid:
        status = 0
        try:
            run(json.loads(line))
        except SystemExit as error:
            status = error.code or 0
        except BaseException:
            traceback.print_exc()
            status = 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
os._exit(0)
"""


class Start(Protocol):
    """`frostline ARGUMENTS` in a process of its own, to its end; `code` runs before it."""

    def __call__(
        self, arguments: Sequence[object], environment: dict[str, str], *, code: str = ""
    ) -> subprocess.CompletedProcess[str]: ...


@contextmanager
def warm_process() -> Iterator[Start]:
    """The process begins with the first call, and ends with the block."""
    begun: list[subprocess.Popen[str]] = []

    def start(
        arguments: Sequence[object], environment: dict[str, str], *, code: str = ""
    ) -> subprocess.CompletedProcess[str]:
        if not begun:
            command, pipe = [sys.executable, "-c", FORKING], subprocess.PIPE
            begun.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True))
        process, words = begun[0], list(map(str, arguments))
        assert process.stdin is not None
        assert process.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            asked = {"arguments": words, "environment": environment, "code": code}
            for name, file in (("out", out), ("err", err)):
                file.touch()
                asked[name] = str(file)
            process.stdin.write(json.dumps(asked) + "\n")
            process.stdin.flush()
            status = int(process.stdout.readline())
            texts = [file.read_text(encoding="utf-8") for file in (out, err)]
        return subprocess.CompletedProcess(words, status, *texts)

    try:
        yield start
    finally:
        for process in begun:
            process.communicate()  # closes its input, at whose end it goes
