"""The studio in a real browser: from a folder of pictures to answers about new ones, by clicks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from frostline.studio import Server
from small_world import write_net, write_pictures

PHONE = {"width": 390, "height": 900, "deviceScaleFactor": 1, "mobile": False}
WIDE = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture
def studio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("FROSTLINE_FEATURES", str(tmp_path / "features"))
    with Server(tmp_path) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_clicks_alone_lead_from_pictures_to_answers(
    browser: Any, studio: Server, tmp_path: Path
) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    photos, net = write_pictures(tmp_path / "my photos"), write_net(tmp_path)
    fits = []

    def click(by: str, name: str) -> None:
        fits.append(browser.execute_script(WIDE) <= 0)
        browser.find_element(by, name).click()

    def wait(text: str, seconds: float = 60) -> None:
        WebDriverWait(browser, seconds).until(
            lambda b: text in b.execute_script("return document.body?.innerText ?? ''")
        )

    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    browser.get("about:blank")
    browser.get_log("browser")
    try:
        browser.get(studio.address)
        click(By.LINK_TEXT, "Choose pictures")
        click(By.LINK_TEXT, "my photos/")
        assert len(browser.find_elements(By.CSS_SELECTOR, "#found img")) > 3
        click(By.LINK_TEXT, "Use these")
        browser.find_element(By.ID, "other").send_keys(net)
        browser.find_element(By.ID, "weights").send_keys("none")
        browser.find_element(By.ID, "name").send_keys("mine")
        click(By.CSS_SELECTOR, "button.main")
        wait("✓ Done: ")  # the page goes on by itself
        assert browser.current_url.endswith("/run?name=mine")
        wait("Best epoch")
        assert browser.find_elements(By.CSS_SELECTOR, "figure svg[role=img]")
        given = [next(photos.glob(f"val/{name}/*")) for name in ("dark", "light")]
        (tmp_path / "notes.txt").write_text("no picture")
        files = "\n".join(map(str, [*given, tmp_path / "notes.txt"]))
        browser.find_element(By.CSS_SELECTOR, "#drop input").send_keys(files)
        wait("cannot read the image notes.txt")
        assert len(browser.find_elements(By.CSS_SELECTOR, ".said img")) == 2
        fits.append(browser.execute_script(WIDE) <= 0)
        click(By.LINK_TEXT, "Frostline studio")
        wait("mine")
        assert all(fits), fits
        # A picture that cannot be read is an answer of status 400, which the console notes.
        said = [one["message"] for one in browser.get_log("browser")]
        assert [one for one in said if "notes.txt" not in one] == []
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
