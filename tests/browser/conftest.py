"""One headless Chromium for the tests of pages; without it, or selenium, they are skipped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

# Nothing of the browser's own may ask the network: the tests count requests.
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("chromium or chromedriver is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.add_argument("about:blank")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=driver)
    made = webdriver.Chrome(options=options, service=service)
    yield made
    made.quit()


def requests_out(browser: Any) -> list[str]:
    """Addresses asked for since the last call that are neither the file nor inside it."""
    events = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    asked = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    return [url for url in asked if not url.startswith(("file:", "data:"))]


@pytest.fixture
def quiet_browser(browser: Any) -> Iterator[Any]:
    """The browser; afterwards its console must be empty and no request have left the page."""
    browser.get("about:blank")  # the first tab loads pages of the browser's own
    browser.get_log("browser")
    browser.get_log("performance")
    yield browser
    assert browser.get_log("browser") == []
    assert requests_out(browser) == []
