"""A store at an address is one as any other, for several machines, whatever is cut short."""

from __future__ import annotations

import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial, partialmethod
from pathlib import Path
from secrets import token_hex

import pytest
import torch
from made_rows import (
    KEY,
    VALUES,
    assert_holds,
    assert_rows,
    batch,
    ended,
    fill,
    in_child,
    row_ids,
    stored_numbers,
)
from torch import nn
from torch.utils.data import TensorDataset

import frostline as fl
from frostline import OutputError, StoreError
from frostline.store import FeatureKey, Features, FeatureStore, ValueSpec, segments, writing
from frostline.store.objects import Objects
from small_world import call

s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed: no address to test")
pytest.importorskip("moto.server", reason="moto is not installed: no S3 server to test with")

LARGE = FeatureKey({"prefix": "large"})
LARGE_VALUES = (ValueSpec("value 0", (1 << 20,), torch.float32),)


@pytest.fixture(autouse=True)
def _no_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "_FLUSH", lambda _: None)


@dataclass(frozen=True)
class Server:
    """An S3 server in a process of its own, with one bucket.

    Attributes:
        log: its access log.
    """

    port: int
    log: Path

    def name_in(self, patch: pytest.MonkeyPatch) -> None:
        """Let the environment lead to it."""
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{self.port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "anybody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "none")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")

    def await_puts(self, address: str, count: int, *, of: str = "") -> None:
        """Wait until it has taken so many objects below an address, or parts of objects."""
        taken = rf'"PUT /{address.removeprefix("s3://")}/\S*{of}\S* HTTP/1.1" 200'
        _await(lambda: len(re.findall(taken, self.log.read_text())) >= count)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "log"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with log.open("wb") as file:
        command = [sys.executable, "-m", "moto.server", "-p", str(port)]
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    made = Server(port, log)
    try:
        _await(lambda: _answers(port))
        with pytest.MonkeyPatch.context() as patch:
            made.name_in(patch)
            s3fs.S3FileSystem().mkdir("bucket")
        yield made
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def s3(server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """An address in the server's bucket, of this test alone."""
    server.name_in(monkeypatch)
    return f"s3://bucket/{token_hex(4)}"


@pytest.fixture(params=["file", "memory", "s3"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return f"file://{tmp_path}/remote store"
    if request.param == "memory":
        return f"memory://{token_hex(4)}"
    found: str = request.getfixturevalue("s3")
    return found


@pytest.fixture
def on(tmp_path: Path) -> Callable[[str, str], Features]:
    """The key as a machine sees it that has a local folder of its own."""
    return lambda address, machine: store(tmp_path, address, machine).open(KEY, VALUES)


def store(tmp_path: Path, address: str, machine: str) -> FeatureStore:
    return FeatureStore(address, cache=tmp_path / machine)


Machine = Callable[[str, str], Features]


def test_rows_that_one_machine_stored_are_read_by_another(address: str, on: Machine) -> None:
    fill(on(address, "one"), range(20))
    assert on(address, "two").missing(row_ids(range(24))) == [20, 21, 22, 23]
    assert_holds(on(address, "two"), range(20))
    fill(on(address, "two"), range(15, 30))
    assert_holds(on(address, "one"), range(30))
    assert_rows(on(address, "three").read(row_ids([29, 3])), [29, 3])


def test_only_segments_with_wanted_rows_are_fetched(address: str, on: Machine) -> None:
    for first in range(0, 12, 4):
        fill(on(address, "one"), range(first, first + 4))
    here = on(address, "two")
    assert_holds(here, [5, 6])
    assert len(list(here.path.glob("segment-*"))) == 1
    assert stored_numbers(here, range(2, 8)) == list(range(2, 8))
    assert len(list(here.path.glob("segment-*"))) == 2


def test_an_address_is_listed_verified_and_pruned(
    address: str, on: Machine, tmp_path: Path
) -> None:
    fill(on(address, "one"), range(4))
    fill(on(address, "one"), range(4, 9))
    there = store(tmp_path, address, "another")
    (entry,) = there.ls()
    assert (entry.rows, entry.parts, entry.damage) == (9, KEY.parts, "")
    assert abs(entry.used_at - time.time()) < 3600
    assert entry.nbytes > on(address, "one").path.joinpath("manifest.json").stat().st_size
    assert there.verify() == ()
    assert there.prune(max_bytes=10**9, older_than_seconds=3600, damaged=True) == ()
    assert there.prune(max_bytes=0) == (entry,)
    assert there.ls() == ()
    assert on(address, "two").missing(row_ids(range(3))) == [0, 1, 2]
    assert_holds(on(address, "one"), range(9))  # what is in its own folder stays


def test_a_pruned_key_is_not_brought_back_by_who_still_has_it(
    address: str, on: Machine, tmp_path: Path
) -> None:
    fill(on(address, "one"), range(4))
    store(tmp_path, address, "two").prune(max_bytes=0)
    fill(on(address, "one"), range(4, 6))
    assert stored_numbers(on(address, "two"), range(6)) == [4, 5]


def test_machines_that_push_at_once_lose_nothing(s3: str, on: Machine) -> None:
    on(s3, "none").missing(row_ids([0]))  # so that the children need not import what this does

    def work(machine: int) -> None:
        for first in range(5 * machine, 40, 10):
            fill(on(s3, str(machine)), range(first, first + 6))

    children = [in_child(partial(work, machine)) for machine in range(2)]
    assert [ended(child) for child in children] == [0, 0]
    assert_holds(on(s3, "third"), range(41))


def stop_after(puts: int) -> None:
    """Stand still once so many objects were stored from here."""
    put, write, done = Objects.put, Objects.write, [0]

    def count() -> None:
        done[0] += 1
        if done[0] == puts:
            signal.pause()

    def put_and_count(self: Objects, path: Path, name: str) -> None:
        put(self, path, name)
        count()

    def write_and_count(self: Objects, name: str, content: bytes) -> None:
        write(self, name, content)
        count()

    patch = pytest.MonkeyPatch()  # of a process that is killed
    patch.setattr(Objects, "put", put_and_count)
    patch.setattr(Objects, "write", write_and_count)


# The manifest, the log, four values, and what says that the segment is whole.
@pytest.mark.parametrize(("puts", "shown"), [(1, 0), (4, 0), (6, 0), (7, 9)])
def test_an_upload_killed_between_objects_shows_no_row_and_is_gone_on_with(
    s3: str, server: Server, on: Machine, puts: int, shown: int
) -> None:
    on(s3, "none").missing(row_ids([0]))

    def push_in_part() -> None:
        stop_after(puts)
        fill(on(s3, "one"), range(9))

    child = in_child(push_in_part)
    server.await_puts(s3, puts)
    os.kill(child, signal.SIGKILL)
    assert ended(child) == -signal.SIGKILL
    assert stored_numbers(on(s3, "two"), range(9)) == list(range(shown))
    assert_holds(on(s3, "one"), range(9))  # reading brings there what was left
    assert_holds(on(s3, "three"), range(9))


def test_an_upload_killed_between_parts_of_an_object_shows_no_row(
    s3: str, server: Server, tmp_path: Path
) -> None:
    ids, rows = row_ids(range(4)), torch.randn(4, 1 << 20)
    put_whole = s3fs.S3FileSystem._put_file

    def at(machine: str) -> Features:
        return store(tmp_path, s3, machine).open(LARGE, LARGE_VALUES)

    at("none").missing(ids[:1])

    def push() -> None:
        # 17 MB in parts of 5, which is as small as a server takes them, and not of 50.
        in_parts = partialmethod(put_whole, chunksize=5 << 20)
        pytest.MonkeyPatch().setattr(s3fs.S3FileSystem, "_put_file", in_parts)
        with at("one").writer() as writer:
            writer.put(ids, [rows])

    child = in_child(push)
    server.await_puts(s3, 1, of="partNumber=")
    os.kill(child, signal.SIGKILL)
    assert ended(child) == -signal.SIGKILL
    assert not [name for name in Objects(s3).found("") if name.endswith(".npy")]
    assert at("two").missing(ids) == list(range(4))
    assert at("one").missing(ids) == []
    assert torch.equal(at("three").read(ids).gather(torch.arange(4))[0], rows)


def data_object(address: str) -> str:
    (name,) = [name for name in Objects(address).found("") if name.endswith("value0.npy")]
    return name


def test_a_damaged_object_costs_the_rows_that_are_damaged(
    address: str, on: Machine, tmp_path: Path
) -> None:
    fill(on(address, "one"), range(6))
    name = data_object(address)
    content = bytearray(Objects(address).read([name])[name])
    content[-1] ^= 1
    Objects(address).write(name, bytes(content))
    there = store(tmp_path, address, "another")
    (damage,) = there.verify()
    assert str(damage).startswith(f"{address}/{KEY.digest}, row ")
    assert "its bytes in segment-" in str(damage)
    assert on(address, "two").missing(row_ids(range(6))) == [5]
    fill(on(address, "two"), [5])
    assert_holds(on(address, "three"), range(6))
    assert there.verify() == ()  # the row stands there intact as well


@pytest.mark.parametrize("kept", [-1, None])
def test_of_a_segment_that_is_not_whole_nothing_is_read(
    address: str, on: Machine, tmp_path: Path, kept: int | None
) -> None:
    fill(on(address, "one"), range(6))
    name = data_object(address)
    content = Objects(address).read([name])[name]
    Objects(address).delete([name])
    if kept is not None:
        Objects(address).write(name, content[:kept])
    assert on(address, "two").missing(row_ids(range(6))) == list(range(6))
    assert not on(address, "two").path.exists()
    there = store(tmp_path, address, "another")
    (damage,) = there.verify()
    assert "is not what was stored, so none of its rows is read" in str(damage)
    assert [entry.rows for entry in there.prune(damaged=True)] == [0]
    assert there.ls() == ()


def test_a_damaged_manifest_is_told_and_mended_by_who_stores_more(
    s3: str, on: Machine, tmp_path: Path
) -> None:
    fill(on(s3, "one"), range(6))
    Objects(s3).write(f"{KEY.digest}/manifest.json", b"{}")
    there = store(tmp_path, s3, "another")
    assert "is not what was written" in there.ls()[0].damage
    assert "is not what was written" in str(there.verify()[0])
    assert_holds(on(s3, "two"), range(6))  # who has the key needs no manifest
    fill(on(s3, "two"), range(6, 8))
    assert there.ls()[0].damage == ""


def test_the_same_key_with_other_values_is_refused(s3: str, on: Machine, tmp_path: Path) -> None:
    fill(on(s3, "one"), range(6))
    other = store(tmp_path, s3, "two").open(KEY, LARGE_VALUES)
    words = f"{s3}/.* holds 'map' .* was opened for 'value 0'"
    with pytest.raises(StoreError, match=words), other.writer() as writer:
        writer.put(row_ids([1]), [torch.zeros(1, 1 << 20)])


def test_rows_stay_here_where_the_address_cannot_be_written_and_go_there_later(
    tmp_path: Path, on: Machine
) -> None:
    address = f"file://{tmp_path}/there"
    (tmp_path / "there").write_text("a file")
    words = (
        r"file://.*there.* Not a directory.* Rows that were complete are kept in the local folder"
    )
    with pytest.raises(OutputError, match=words):
        fill(on(address, "one"), range(4))
    assert_holds(on(address, "one"), range(4))
    (tmp_path / "there").unlink()
    assert_holds(on(address, "one"), range(4))
    assert_holds(on(address, "two"), range(4))


@pytest.mark.usefixtures("s3")
def test_a_bucket_that_is_not_there_is_named_and_the_rows_stay_here(on: Machine) -> None:
    with pytest.raises(OutputError, match=r"cannot write features to s3://none/x: .*kept in the"):
        fill(on("s3://none/x", "one"), range(4))
    assert_holds(on("s3://none/x", "one"), range(4))


def test_an_address_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    features = store(tmp_path, "nothing://here", "one").open(KEY, VALUES)
    with pytest.raises(StoreError, match=r"cannot read features from nothing://here: .*nothing"):
        features.missing(row_ids([1]))


@pytest.mark.parametrize(("package", "address"), [("fsspec", "memory://x"), ("s3fs", "s3://x/y")])
def test_a_package_that_is_not_installed_is_named_with_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, address: str
) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] == package:
            monkeypatch.setitem(sys.modules, name, None)
    if package == "s3fs":  # as if nobody had opened one yet
        registry = sys.modules["fsspec.registry"]
        monkeypatch.setattr(registry, "_registry", {})
        monkeypatch.setattr(registry, "registry", {})
    words = rf"{address} needs a package .*{package}.*'frostline\[remote\]'"
    with pytest.raises(StoreError, match=words):
        store(tmp_path, address, "one").ls()


def test_a_cache_for_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is a folder, so there is nothing to keep in"):
        FeatureStore(tmp_path, cache=tmp_path / "cache")


def test_a_long_session_is_pushed_in_parts_and_keeps_its_claims(
    address: str, on: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "FULL_BYTES", 300)
    ids = row_ids(range(12))
    with on(address, "one").writer() as writer:
        assert writer.claim(ids, 12) == list(range(12))
        for first in range(0, 8, 4):
            writer.put(ids[first : first + 4], batch(range(first, first + 4)))
        assert stored_numbers(on(address, "two"), range(12)) == list(range(8))
        with on(address, "one").writer() as other:
            assert other.claim(ids, 12) == []
        writer.put(ids[8:], batch(range(8, 12)))
    assert_holds(on(address, "two"), range(12))


def test_rows_that_the_address_does_not_have_make_no_room_for_others(
    tmp_path: Path,
) -> None:
    (tmp_path / "there").write_text("a file")
    address = f"file://{tmp_path}/there"
    small = FeatureStore(address, cache=tmp_path / "one", budget_bytes=3000)
    with pytest.raises(OutputError):
        fill(small.open(KEY, VALUES), range(8))
    other = small.open(FeatureKey({"prefix": "other"}), VALUES)
    with pytest.raises(StoreError, match="nothing else in it can be removed"):
        fill(other, range(8))
    (tmp_path / "there").unlink()
    assert_holds(small.open(KEY, VALUES), range(8))
    fill(other, range(8))
    assert_holds(store(tmp_path, address, "two").open(KEY, VALUES), range(8))


def test_what_a_killed_fetch_left_is_cleared_and_never_read(address: str, on: Machine) -> None:
    fill(on(address, "one"), range(8))
    here = on(address, "two")
    left = here.path / ("fetched-" + "0" * 16)
    left.mkdir(parents=True)
    (left / "rows").write_bytes(b"a part")
    assert_holds(here, range(8))
    assert not left.exists()


def test_rows_of_an_address_are_pickled_as_their_place(address: str, on: Machine) -> None:
    fill(on(address, "one"), range(8))
    assert_rows(pickle.loads(pickle.dumps(on(address, "two").read(row_ids([3, 1])))), [3, 1])


def test_features_of_one_machine_are_not_computed_on_another(address: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    frozen, head = nn.Linear(6, 4), nn.Linear(4, 2)
    model = nn.Sequential(frozen, nn.ReLU(), head)
    fl.train_only(model, "2")
    inputs = torch.randn(10, 6)
    data = TensorDataset(inputs, torch.zeros(10, dtype=torch.int64))
    cut = fl.cut(model, inputs[:2])
    found = [
        fl.extract(cut, data, store(tmp_path, address, machine), precision="exact")
        for machine in ("one", "two")
    ]
    assert [features.computed for features in found] == [10, 0]
    each = [features.rows.gather(torch.arange(10))[0] for features in found]
    assert torch.equal(*each)


def test_the_command_line_takes_an_address(
    s3: str, on: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fill(on(s3, "one"), range(5))
    assert f"{s3}\n" in call("features", "ls", s3).out
    assert call("features", "ls", s3, "--json").json["keys"][0]["rows"] == 5
    assert f"Verified: 5 rows in {s3} are" in call("features", "verify", s3).out.replace("\n", " ")
    assert call("features", "prune", s3, "--max-size", "1B").out.startswith("Removed 1 keys, ")
    assert call("features", "ls", s3, "--json").json == {"store": s3, "keys": []}
    answer = call("features", "ls", "nothing://here")
    assert (answer.status, answer.out) == (1, "")
    assert "cannot read features from nothing://here" in answer.message


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


def _await(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < end, "nothing came of it in a minute"
        time.sleep(0.01)
