"""The studio over HTTP: who may ask, what each page says, what its forms do."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import re
import shlex
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from threading import Thread
from typing import get_args
from urllib.parse import urlencode

import numpy as np
import pytest
import torch
from PIL import Image

from frostline.choices import ExportFormat
from frostline.deltas import read_delta
from frostline.studio import Server
from frostline.studio.choices import FORMATS
from small_world import call, write_net, write_picture, write_pictures

HOSTILE = "<img src=x onerror=alert(1)>"


@dataclass(frozen=True)
class Reply:
    status: int
    body: str
    goto: str
    policy: str

    @property
    def text(self) -> str:
        """What is read, without marks; spaces and lines are one space."""
        plain = re.sub(r"<(script|style)>.*?</\1>|<[^>]+>", " ", self.body, flags=re.DOTALL)
        return " ".join(unescape(plain).split())


class Browser:
    """What a browser that was led to the studio asks, or one that was not."""

    def __init__(self, server: Server, *, token: str | None = None) -> None:
        self.server = server
        self.token = server.token if token is None else token

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> Reply:
        asked = http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=60)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        asked.request(method, f"/{self.token}{path}", body or None, given)
        found = asked.getresponse()
        text = found.read().decode()
        asked.close()
        policy = found.getheader("Content-Security-Policy", "")
        return Reply(found.status, text, found.getheader("Location", ""), policy)

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


def stop(browser: Browser, name: str) -> Reply:
    """Press the button of what is running."""
    number = re.findall(r'name="number" value="(\d+)"', browser.get("/run", name=name).body)[0]
    return browser.post("/stop", name=name, number=number)


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
    form = {"data": str(photos), "other": net, "weights": "none"}
    begun = browser.post("/train", **form, part="stage:-2..-1", epochs="2", name="first try")
    assert begun.goto == "run?name=first+try", begun.text
    browser.wait("/live?name=first+try")
    return "first try"


def test_the_address_that_is_printed_opens_it_and_nothing_else_does(browser: Browser) -> None:
    token = browser.server.token
    assert browser.server.address.endswith(f"/{token}/")
    assert "Teach a network your pictures" in browser.get("/").text
    for other in ("", "x", token[:-1], f"{token}x", f"x/{token}", token.swapcase()):
        for page in ("/", "/folder", "/report?name=first+try"):
            refused = Browser(browser.server, token=other).ask("GET", page)
            assert refused.status == 403
            assert "Open the address that `frostline studio` printed" in refused.body
            assert token not in refused.body


def test_an_address_without_its_last_slash_leads_to_the_one_with_it(browser: Browser) -> None:
    asked = browser.ask("GET", "")
    assert (asked.status, asked.goto) == (303, f"/{browser.server.token}/")


def test_more_fields_than_any_page_has_are_refused(browser: Browser) -> None:
    fields = "&".join(f"f{number}=" for number in range(200))
    assert browser.ask("GET", f"/folder?{fields}").status == 400
    assert browser.ask("POST", "/train", fields.encode()).status == 400


def test_a_browser_is_led_there_by_a_page_that_no_other_user_can_read(browser: Browser) -> None:
    door = browser.server.door()
    assert browser.server.address in door.read_text()
    assert door.parent.stat().st_mode & 0o077 == 0


def test_a_name_that_leads_here_from_elsewhere_is_not_answered(browser: Browser) -> None:
    for name in ("evil.example:80", "evil@localhost", "localhost:abc", "[", ""):
        assert browser.ask("GET", "/", Host=name).status == 403
    for name in ("localhost", "127.0.0.1"):
        assert browser.ask("GET", "/", Host=f"{name}:8000").status == 200  # as through a tunnel


def test_a_form_on_a_page_of_another_site_does_nothing(browser: Browser, photos: Path) -> None:
    form = urlencode({"data": photos, "network": "resnet18", "name": "stolen"}).encode()
    foreign = [{"Origin": one} for one in ("http://evil.example", "null", "http://[")]
    for headers in [*foreign, {"Sec_Fetch_Site": "same-site"}, {"Sec_Fetch_Site": "cross-site"}]:
        refused = browser.ask("POST", "/train", form, **headers)
        assert (refused.status, "another site" in refused.body) == (403, True)
    assert "stolen" not in browser.get("/").body
    assert "stolen" not in browser.get("/work").body


def test_what_is_too_long_is_refused_before_it_is_read(browser: Browser) -> None:
    for length in ("100001", "-1", "many", "9" * 5000):
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
    assert re.search(rf"{trained} .*net\.py:net .*photos accuracy .* % done", browser.get("/").text)
    report = browser.get("/report", name=trained)
    assert report.body == (root / "runs" / trained / "report.html").read_text()
    assert report.policy.startswith("sandbox; default-src 'none';")  # whoever wrote it


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
    form = {"data": str(photos), "other": net, "weights": "none"}
    assert browser.post("/train", **form, epochs="10000", name="long").status == 303
    refused = browser.post("/train", **form, name="other")
    assert refused.status == 400
    assert "the run long is still going, and two at once would only slow" in refused.text
    deadline = time.monotonic() + 60
    while "Best epoch" not in browser.get("/live", name="long").text:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert "Going on: the run long" in browser.get("/").text
    assert stop(browser, "long").goto == "run?name=long"
    stopped = browser.get("/run", name="long")
    assert "Stopped before its end." in stopped.text
    assert "Stopped. runs/long keeps what was trained" in stopped.text
    assert browser.post("/resume", name="long").goto == "run?name=long"
    assert "frostline train --resume runs/long" in browser.get("/run", name="long").text
    stop(browser, "long")


def test_what_fails_before_a_run_begins_is_shown_on_its_page(
    browser: Browser, photos: Path
) -> None:
    form = {"data": str(photos), "other": "resnet1", "name": "mistyped"}
    begun = browser.post("/train", **form)
    browser.wait("/live?name=mistyped")
    page = browser.get(f"/{begun.goto}")
    assert "It did not work: read below." in page.text
    assert "resnet18" in page.text  # the nearest


def test_the_other_buttons_run_the_commands_they_name(
    browser: Browser, trained: str, photos: Path, net: str, root: Path
) -> None:
    form = {"data": str(photos), "other": net, "weights": "none"}
    for path, fields, command, said in (
        ("/estimate", form, "frostline estimate", "epoch"),
        ("/probe", form, "frostline probe", "accuracy"),
        ("/verify", {"name": trained}, "frostline verify", "Verified: 7 frozen tensors"),
        ("/export", {"name": trained, "to": "torchscript"}, "frostline export", "torchscript"),
    ):
        assert browser.post(path, **fields).goto == "work"
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
        ("/train", {"data": "~nobody-here"}, "'~nobody-here' cannot be a path:"),
        ("/train", {"data": "a\0b"}, "'a\\x00b' cannot be a path:"),
        ("/train", {"data": "x" * 5000}, "cannot be a path: File name too long"),
        ("/train", {"other": ""}, "nothing says which network"),
        ("/train", {"other": "", "network": "--help"}, "nothing says which network"),
        ("/train", {"other": "--help"}, "'--help' is no name of a network"),
        ("/train", {"weights": "--help"}, "'--help' are no weights"),
        ("/train", {"epochs": "0"}, "asked for '0' epochs. Give a whole number from 1"),
        ("/train", {"epochs": "many"}, "asked for 'many' epochs."),
        ("/train", {"epochs": "9" * 5000}, "epochs. Give a whole number"),
        ("/train", {"name": "../up"}, "'../up' cannot be the name of a run."),
        ("/train", {"name": "漢" * 79}, "cannot be the name of a run."),
        ("/train", {"name": "taken"}, "there is a run 'taken' already, and nothing was changed."),
        ("/train", {"part": "ll"}, "asked to train 'll'. Choose one of the parts"),
        ("/train", {"data": "/nowhere"}, "/nowhere"),
        ("/verify", {"name": "unknown"}, "there is no folder"),
        ("/verify", {"name": ""}, "'' is no name of a run"),
        ("/verify", {"name": ".."}, "'..' is no name of a run"),
        ("/verify", {"name": "x" * 300}, "is no name of a run"),
        ("/nothing", {}, "there is nothing to do at nothing"),
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
    form = {"data": str(photos), "other": net, "weights": "none"}
    (browser.server.studio.folder / "runs/taken").mkdir(parents=True, exist_ok=True)
    found = browser.post(path, **{**form, **change})
    assert found.status in (400, 404)
    assert "Please report" not in found.text
    assert said in found.text


def test_a_stop_of_what_has_ended_stops_nothing_else(
    browser: Browser, photos: Path, net: str
) -> None:
    old = browser.server.studio.work.said()
    number = str(old.number) if old else "0"
    form = {"data": str(photos), "other": net, "weights": "none"}
    browser.post("/train", **form, epochs="10000", name="second")
    for other in (number, "", "x"):
        browser.post("/stop", name="long", number=other)
    assert "Going on ..." in browser.get("/run", name="second").text
    stop(browser, "second")


def test_runs_that_cannot_be_read_leave_the_others_on_the_first_page(
    browser: Browser, trained: str, root: Path
) -> None:
    runs = root / "runs"
    for name, file, content in (
        ("no settings", "run.toml", b"?"),
        ("no metrics", "metrics.jsonl", b'{"epoch": 1, "best": true}\n'),
        ("no numbers", "metrics.jsonl", b"\xff\xfe"),
        ("no result", "result.json", b"[]"),
    ):
        shutil.copytree(runs / trained, runs / name)
        (runs / name / file).write_bytes(content)
    os.mkdir(os.fsencode(runs) + b"/caf\xe9")  # noqa: PTH102 - a name that is no UTF-8
    text = browser.get("/").text
    for name in (trained, "no settings", "no metrics", "no numbers", "no result"):
        assert name in text
        page = browser.get("/run", name=name)
        assert page.status == 200
        assert "Please report" not in page.text
    for name in ("no settings", "no metrics", "no numbers", "no result"):
        shutil.rmtree(runs / name)


def test_names_that_no_page_can_show_are_counted(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "seen").mkdir()
    os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9")  # noqa: PTH102 - a name that is no UTF-8
    page = browser.get("/folder", path=str(tmp_path))
    assert "seen/" in page.text
    assert "1 more names are not listed" in page.text


def test_data_say_what_is_odd_before_training_and_what_cannot_train_is_not_offered(
    browser: Browser, tmp_path: Path
) -> None:
    one = write_pictures(tmp_path / "one", names=("dark",))
    page = browser.get("/folder", path=str(one))
    assert "there is nothing to tell apart" in page.text
    assert "Use these" not in page.text
    beside = write_pictures(tmp_path / "beside")
    write_picture(beside / "train" / "lone.png", 100)
    page = browser.get("/folder", path=str(beside))
    assert "left out" in page.text
    assert "lone.png" in page.text
    assert "Use these" in page.text


def test_pictures_of_more_than_8_bits_are_shown_by_their_own_range(
    browser: Browser, tmp_path: Path
) -> None:
    for name, level in (("dark", 100), ("light", 400)):
        for number in range(4):
            file = tmp_path / name / f"{number}.png"
            file.parent.mkdir(exist_ok=True)
            picture = np.full((18, 18), level + number, dtype=np.uint16)
            Image.fromarray(picture).save(file)
    page = browser.get("/folder", path=str(tmp_path))
    shown = re.findall(r"data:image/jpeg;base64,([^\"]+)", page.body)
    levels = [np.array(Image.open(io.BytesIO(base64.b64decode(one)))).mean() for one in shown]
    assert max(levels) > 50  # of 65,535 all would be black


def test_of_another_task_no_button_is_shown_that_cannot_work(
    browser: Browser, photos: Path, net: str, root: Path
) -> None:
    rows = [f"{path},{number % 5}.5" for number, path in enumerate(sorted(photos.glob("*/*/*")))]
    table = root / "numbers.csv"
    table.write_text("\n".join(["file,label", *rows]))
    assert "What is learnt: regression." in browser.get("/folder", path=str(table)).text
    form = {"data": str(table), "other": net, "weights": "none", "epochs": "1", "name": "numbers"}
    assert browser.post("/train", **form).status == 303
    page = browser.wait("/live?name=numbers")
    assert "✓ Done: " in page.text
    assert "Use it elsewhere" not in page.text
    said = browser.ask("POST", "/predict?name=numbers", next(photos.glob("val/*/*")).read_bytes())
    assert re.search(r"label -?\d", said.text), said.text


def test_every_format_that_can_be_exported_is_offered() -> None:
    assert set(FORMATS) == set(get_args(ExportFormat))
