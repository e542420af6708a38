"""`frostline studio` as it is started and ended."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from small_world import call, write_net, write_pictures


@pytest.mark.parametrize("by", ["SIGTERM", "SIGKILL"])
def test_what_it_runs_ends_with_it_however_it_ends(tmp_path: Path, by: str) -> None:
    """Also where both were born deaf to Ctrl-C, as what a shell starts in the background."""
    photos, net, root = write_pictures(tmp_path / "photos"), write_net(tmp_path), tmp_path / "new"
    deaf = ["sh", "-c", 'trap "" INT; exec "$@"', "sh"]
    command = [*deaf, sys.executable, "-m", "frostline", "studio", str(root), "--no-browser"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == f"Frostline studio for {root}:\n"
            address = process.stdout.readline().strip()
            found = re.fullmatch(r"http://127\.0\.0\.1:(\d+)(/[\w-]{32}/)", address)
            assert found, address
            asked = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=60)
            form = f"data={photos}&other={net}&weights=none&epochs=10000&name=long"
            asked.request("POST", f"{found[2]}train", form)
            assert asked.getresponse().status == 303
            asked.close()
            until(lambda: (root / "runs/long/best").exists())
            process.send_signal(getattr(signal, by))
            said, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    if by != "SIGKILL":
        assert process.returncode == 0
        assert said.endswith("Ended.\n")
    until(lambda: not (root / "runs/long/run.lock").exists())
    answer = call("train", "--resume", root / "runs/long", "--epochs", "1")
    assert re.search(r"runs/long has done \d+ of 10000", answer.err)  # and kept what it trained


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_port_that_is_taken_is_a_message(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        answer = call("studio", tmp_path, "--port", port, "--no-browser")
    assert answer.status == 1
    assert f"port {port} cannot be had: Address already in use. Choose another --port" in answer.err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_a_message(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    answer = call("studio", tmp_path / "file", "--no-browser")
    assert answer.status == 1
    assert "Traceback" not in answer.err
    assert str(tmp_path / "file") in answer.err


@pytest.mark.parametrize("port", ["-1", "65536"])
def test_a_port_that_cannot_be_is_wrong_usage(port: str) -> None:
    assert call("studio", "--port", port).status == 2
