"""The studio over HTTP: who may ask, what each page says, what its forms do."""

from __future__ import annotations

import http.client
import json
import re
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from threading import Thread
from urllib.parse import urlencode

import pytest
import torch

from frostline.deltas import read_delta
from frostline.studio import Server
from small_world import call, write_net, write_picture, write_pictures

HOSTILE = "<img src=x onerror=alert(1)>"


@dataclass(frozen=True)
class Reply:
    status: int
    body: str
    goto: str
    cookie: str

    @property
    def text(self) -> str:
        """What is read, without marks; spaces and lines are one space."""
        plain = re.sub(r"<(script|style)>.*?</\1>|<[^>]+>", " ", self.body, flags=re.DOTALL)
        return " ".join(unescape(plain).split())


class Browser:
    """What a browser with the studio's cookie asks, or one without."""

    def __init__(self, server: Server, *, cookie: str | None = None) -> None:
        self.server = server
        self.cookie = f"{server.cookie}={server.token}" if cookie is None else cookie

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> Reply:
        asked = http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=60)
        given = {"Cookie": self.cookie, **{n.replace("_", "-"): v for n, v in headers.items()}}
        asked.request(method, path, body or None, given)
        found = asked.getresponse()
        text = found.read().decode()
        asked.close()
        return Reply(
            found.status, text, found.getheader("Location", ""), found.getheader("Set-Cookie", "")
        )

    def get(self, page: str, **query: str) -> Reply:
        return self.ask("GET", f"{page}?{urlencode(query)}" if query else page)

    def post(self, page: str, **form: str) -> Reply:
        return self.ask("POST", page, urlencode(form).encode())

    def wait(self, page: str) -> Reply:
        """The part of a page that changes, when what it is about has ended."""
        deadline = time.monotonic() + 120
        while "data-ended" not in (found := self.ask("GET", page)).body:
            assert time.monotonic() < deadline, found.text
            time.sleep(0.1)
        return found


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("studio")


@pytest.fixture(scope="module")
def photos(root: Path) -> Path:
    return write_pictures(root / "photos")


@pytest.fixture(scope="module")
def net(root: Path) -> str:
    return write_net(root)


@pytest.fixture(scope="module")
def browser(root: Path) -> Iterator[Browser]:
    with pytest.MonkeyPatch.context() as patch, Server(root) as server:
        patch.setenv("FROSTLINE_FEATURES", str(root / "features"))
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield Browser(server)
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def trained(browser: Browser, photos: Path, net: str) -> str:
    """The name of a run that the page's form began, and which has ended."""
    form = {"data": str(photos), "network": "other", "other": net, "weights": "none"}
    begun = browser.post("/train", **form, part="stage:-2..-1", epochs="2", name="first try")
    assert begun.goto == "/run?name=first+try", begun.text
    browser.wait("/live?name=first+try")
    return "first try"


def test_the_address_that_is_printed_opens_it_and_nothing_else_does(browser: Browser) -> None:
    stranger = Browser(browser.server, cookie="")
    token = browser.server.token
    opened = stranger.get("/", token=token)
    assert (opened.status, opened.goto) == (303, "/")
    assert f"{browser.server.cookie}={token}; HttpOnly; SameSite=Strict" in opened.cookie
    for asked in ("/", "/folder", "/?token=", f"/?token={token[:-1]}", "/report?name=first+try"):
        refused = stranger.ask("GET", asked)
        assert (refused.status, refused.cookie) == (403, ""), asked
        assert "Open the address that `frostline studio` printed" in refused.body
    for cookie in (f"{browser.server.cookie}=", f"other={token}"):
        assert Browser(browser.server, cookie=cookie).get("/").status == 403


def test_a_name_that_leads_here_from_elsewhere_is_not_answered(browser: Browser) -> None:
    assert browser.ask("GET", "/", Host="evil.example:80").status == 403
    for name in ("localhost", "127.0.0.1"):
        assert browser.ask("GET", "/", Host=f"{name}:8000").status == 200  # as through a tunnel


def test_a_form_on_a_page_of_another_site_does_nothing(browser: Browser, photos: Path) -> None:
    form = urlencode({"data": photos, "network": "resnet18", "name": "stolen"}).encode()
    for origin in ("http://evil.example", "null"):
        refused = browser.ask("POST", "/train", form, Origin=origin)
        assert (refused.status, "another site" in refused.body) == (403, True)
    assert "stolen" not in browser.get("/").body
    assert "stolen" not in browser.get("/work").body


def test_what_is_too_long_is_refused_before_it_is_read(browser: Browser) -> None:
    for length in ("100001", "-1", "many"):
        refused = browser.ask("POST", "/train", Content_Length=length)
        assert (refused.status, "More was sent" in refused.body) == (413, True), length


def test_a_folder_of_classes_is_shown_as_a_run_would_divide_it(
    browser: Browser, photos: Path
) -> None:
    page = browser.get("/folder", path=str(photos))
    assert re.search(r"\d+ to learn from and \d+ to be judged by \(.+\): dark, light\.", page.text)
    assert page.body.count("data:image/jpeg") == min(12, len(list(photos.glob("train/*/*"))))
    assert "Use these" in page.text


def test_a_folder_without_classes_says_why_and_how_one_should_look(
    browser: Browser, tmp_path: Path
) -> None:
    write_picture(tmp_path / "lone.png", 100)
    (tmp_path / "inside").mkdir()
    (tmp_path / "table.csv").write_text("file,label\nlone.png,a\n")
    (tmp_path / ".hidden").mkdir()
    page = browser.get("/folder", path=str(tmp_path / "inside"))
    assert "Nothing can be learnt from this folder as it is: " in page.text
    assert "A folder for each class" in page.text
    above = browser.get("/folder", path=str(tmp_path))
    assert "inside/" in above.text
    assert "table.csv" in above.text
    assert ".hidden" not in above.text
    assert "1 pictures lie in" in above.text


def test_a_folder_that_is_not_there_is_a_message(browser: Browser, tmp_path: Path) -> None:
    gone = browser.get("/folder", path=str(tmp_path / "gone"))
    assert gone.status == 400
    assert f"cannot look into {tmp_path / 'gone'}: No such file or directory" in gone.text


def test_names_of_folders_and_classes_are_text_on_every_page(
    browser: Browser, tmp_path: Path
) -> None:
    data = write_pictures(tmp_path / f"{HOSTILE}data", names=(f"{HOSTILE}a", f"{HOSTILE}b"))
    for page in ("/folder", "/new"):
        found = browser.get(page, path=str(data), data=str(data))
        assert found.status == 200
        assert HOSTILE not in found.body
        assert f"{HOSTILE}a" in found.text


def test_networks_on_offer_say_what_their_weights_are(browser: Browser, photos: Path) -> None:
    page = browser.get("/new", data=str(photos))
    said = "a good first choice; 45 MB to download once; right on 69.8 % of ImageNet"
    assert f"resnet18 {said}" in page.text


def test_a_run_that_a_form_began_is_the_one_that_its_command_makes(
    browser: Browser, trained: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = browser.get("/run", name=trained)
    assert "✓ Done: 7 frozen tensors did not move by a bit." in page.text
    command = unescape(re.findall(r'<pre class="command">(.*?)</pre>', page.body)[0])
    words = shlex.split(command)
    assert words[:2] == ["frostline", "train"]
    assert words[-2:] == ["--out", f"runs/{trained}"]
    monkeypatch.chdir(root)
    assert call(*words[1:-1], root / "by hand").status == 0
    first, second = (
        read_delta(root / run / "best/delta.safetensors") for run in (f"runs/{trained}", "by hand")
    )
    assert first.base == second.base
    assert first.tensors.keys() == second.tensors.keys()
    assert all(torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors)


def test_the_first_page_lists_runs_and_the_report_is_the_runs_own(
    browser: Browser, trained: str, root: Path
) -> None:
    odd = root / "runs" / "-odd"  # no name that a command would take
    odd.mkdir(exist_ok=True)
    (odd / "run.toml").write_text("")
    assert re.search(rf"{trained} .*net\.py:net .*photos accuracy .* % done", browser.get("/").text)
    report = browser.get("/report", name=trained)
    assert report.body == (root / "runs" / trained / "report.html").read_text()


def test_a_picture_gets_the_answer_of_the_command(
    browser: Browser, trained: str, root: Path, photos: Path
) -> None:
    picture = next(photos.glob("val/light/*"))
    query = urlencode({"name": trained, "file": "mine.png"})
    for _ in range(2):  # the second by the run that stayed open
        said = browser.ask("POST", f"/predict?{query}", picture.read_bytes())
        document = json.loads(call("predict", root / "runs" / trained, picture, "--json").out)[0]
        for name, share in document["probabilities"].items():
            assert f"{name} {100 * share:.1f} %" in said.text
        assert "mine.png" in said.text
        assert "data:image/jpeg" in said.body


def test_what_is_no_picture_is_named_as_the_person_knows_it(browser: Browser, trained: str) -> None:
    query = urlencode({"name": trained, "file": "../notes.txt"})
    said = browser.ask("POST", f"/predict?{query}", b"no picture")
    assert said.status == 400
    assert said.body.startswith("cannot read the image notes.txt: it is not an image")


def test_work_runs_one_at_a_time_and_can_be_stopped_and_resumed(
    browser: Browser, photos: Path, net: str
) -> None:
    form = {"data": str(photos), "network": "other", "other": net, "weights": "none"}
    assert browser.post("/train", **form, epochs="10000", name="long").status == 303
    refused = browser.post("/train", **form, name="other")
    assert refused.status == 400
    assert "the run long is still going, and two at once would only slow" in refused.text
    deadline = time.monotonic() + 60
    while "Best epoch" not in browser.get("/live", name="long").text:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert "Going on: the run long" in browser.get("/").text
    assert browser.post("/stop", name="long").goto == "/run?name=long"
    stopped = browser.get("/run", name="long")
    assert "Stopped before its end." in stopped.text
    assert "Stopped. runs/long keeps what was trained" in stopped.text
    assert browser.post("/resume", name="long").goto == "/run?name=long"
    assert "frostline train --resume runs/long" in browser.get("/run", name="long").text
    browser.post("/stop", name="long")


def test_what_fails_before_a_run_begins_is_shown_on_its_page(
    browser: Browser, photos: Path
) -> None:
    form = {"data": str(photos), "network": "other", "other": "resnet1", "name": "mistyped"}
    begun = browser.post("/train", **form)
    browser.wait("/live?name=mistyped")
    page = browser.get(begun.goto)
    assert "It did not work: read below." in page.text
    assert "resnet18" in page.text  # the nearest


def test_the_other_buttons_run_the_commands_they_name(
    browser: Browser, trained: str, photos: Path, net: str, root: Path
) -> None:
    form = {"data": str(photos), "network": "other", "other": net, "weights": "none"}
    for path, fields, command, said in (
        ("/estimate", form, "frostline estimate", "epoch"),
        ("/probe", form, "frostline probe", "accuracy"),
        ("/verify", {"name": trained}, "frostline verify", "Verified: 7 frozen tensors"),
        ("/export", {"name": trained, "to": "torchscript"}, "frostline export", "torchscript"),
    ):
        assert browser.post(path, **fields).goto == "/work"
        found = browser.wait("/work?part=1")
        assert "✓ Done." in found.text, found.text
        assert said in found.text
        assert command in browser.get("/work").text
    assert (root / "runs" / trained / "model.torchscript").is_file()
    refused = browser.post("/export", name=trained, to="zip")
    assert (refused.status, "a file of kind 'zip'" in refused.text) == (400, True)


@pytest.mark.parametrize(
    ("path", "change", "said"),
    [
        ("/train", {"data": ""}, "nothing says which pictures. Go back and choose."),
        ("/train", {"data": "--help"}, "'--help' begins with a dash, as options do."),
        ("/train", {"other": ""}, "nothing says which network"),
        ("/train", {"epochs": "0"}, "asked for '0' epochs. Give a whole number from 1"),
        ("/train", {"epochs": "many"}, "asked for 'many' epochs."),
        ("/train", {"name": "../up"}, "'../up' cannot be the name of a run."),
        ("/train", {"part": "ll"}, "asked to train 'll'. Choose one of the parts"),
        ("/train", {"data": "/nowhere"}, "/nowhere"),
        ("/verify", {"name": "unknown"}, "there is no folder"),
        ("/nothing", {}, "there is nothing to do at /nothing"),
    ],
)
def test_a_form_that_cannot_be_is_a_message(
    browser: Browser,
    photos: Path,
    net: str,
    path: str,
    change: dict[str, str],
    said: str,
) -> None:
    form = {"data": str(photos), "network": "other", "other": net, "weights": "none"}
    found = browser.post(path, **{**form, **change})
    assert found.status in (400, 404)
    assert said in found.text
