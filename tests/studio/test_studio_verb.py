"""`frostline studio` as it is started and ended."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from small_world import call, write_net, write_pictures


def test_it_prints_its_address_and_ends_by_ctrl_c_with_what_it_runs(tmp_path: Path) -> None:
    photos, net = write_pictures(tmp_path / "photos"), write_net(tmp_path)
    command = [sys.executable, "-m", "frostline", "studio", str(tmp_path), "--no-browser"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == f"Frostline studio for {tmp_path}:\n"
        address = process.stdout.readline().strip()
        found = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/\?token=([\w-]{32})", address)
        assert found, address
        asked = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=60)
        form = f"data={photos}&other={net}&weights=none&epochs=10000&name=long"
        cookie = {"Cookie": f"frostline-{found[1]}={found[2]}"}
        asked.request("POST", "/train", form, cookie)
        assert asked.getresponse().status == 303
        asked.close()
    finally:
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert said.endswith("Ended.\n")
    assert not (tmp_path / "runs/long/run.lock").exists()


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
