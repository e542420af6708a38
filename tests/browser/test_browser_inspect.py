"""The page of a model in a real browser: its figures are Python's, its command runs."""

from __future__ import annotations

import json
import random
import shlex
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import alexnet, densenet121, resnet18, vit_b_16

import frostline as fl
from frostline.errors import SelectorError
from frostline.estimates.ledger import ledger
from frostline.estimates.steps import Setup
from frostline.pages.inspection import inspect_page, term_sets
from frostline.pages.rendering import save_page
from frostline.selectors import inventory
from frostline.selectors.kinds import KINDS
from small_world import NET, call, write_picture

ROWS = 4
PHONE, DESKTOP = 390, 1280
HOSTILE = "<img src=x onerror=document['title']='ran'>"
PARSE = """
const data = JSON.parse(document.getElementById("data").textContent);
return arguments[0].map((text) => {
  try { return [...Selectors.parse(data, text)].sort((a, b) => a - b); }
  catch (error) { return error instanceof Selectors.Unknown ? null : String(error); }
});
"""
TYPE = """
const box = document.getElementById("selector");
document.getElementById("mode").value = arguments[0];
box.value = arguments[1];
box.dispatchEvent(new Event("input"));
"""
FIGURES = """
const found = { ...document.getElementById("figures").dataset };
for (const one of document.querySelectorAll("#figures div"))
  found[one.dataset.figure] = one.dataset.value;
return Object.fromEntries(Object.entries(found).map(([name, text]) => [name, Number(text)]));
"""

# Where a row is seen: scrolled to, two frames later, clicked, clicked again.
STAYS = """
const [path, done] = arguments;
const row = document.querySelector(path);
const top = () => row.getBoundingClientRect().top;
const frame = () => new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(go)));
(async () => {
  row.scrollIntoView({ block: "center" });
  const seen = [top()];
  await frame();
  seen.push(top());
  for (const _ of [1, 2]) {
    row.click();
    await frame();
    seen.push(top());
  }
  done(seen);
})();
"""


def written(model: nn.Module, path: Path, example: Tensor, *, name: str = "net") -> Path:
    found = ledger(model, example, batch_size=ROWS, calibration_seconds=0.05)
    page = inspect_page(
        model,
        found,
        name=name,
        options=[],
        samples=100,
        mode="train",
        selector="stage:-1",
    )
    save_page(page, path)
    return path


MODELS = {
    "alexnet": alexnet,
    "densenet": densenet121,
    "resnet": resnet18,
    "vit": lambda weights: vit_b_16(weights=weights, image_size=32),
}
SIDES = {"alexnet": 224, "vit": 32}


@pytest.fixture(scope="module", params=MODELS)
def opened(
    browser: Any, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> tuple[Any, nn.Module, Tensor]:
    """The page of a real network, the network, and an example."""
    model = MODELS[request.param](weights=None)
    side = SIDES.get(request.param, 64)
    example = torch.zeros(2, 3, side, side)
    page = written(model, tmp_path_factory.mktemp("page") / "net.html", example)
    browser.get(page.as_uri())
    return browser, model, example


def texts(model: nn.Module) -> tuple[list[str], list[str]]:
    """Selectors that the page joins of its terms, and some that Python alone reads."""
    names = [name for name, _ in model.named_parameters()]
    paths = [path for path, _ in model.named_modules() if path]
    drawn = random.Random(0)
    some = drawn.sample(names, 4) + [p for p in drawn.sample(paths, 6) if picked(model, p)]
    known = [
        *some,
        *(f"{one} | ~({two})" for one, two in pairwise(some)),
        *("stage:0", "stage:-1", "stage:1..-1", "stage:0..-2", "depth:50%", "depth:100%"),
        *("type:Module", "kind:bias", "kind:linear", " all ", "none", "~none", "~~all", "(all)"),
        *("all & ~kind:bias", "((all | none)) & all", "kind:linear&kind:bias|stage:0"),
        "(" * 50 + "all" + ")" * 50,
    ]
    others = [
        *("*", "**.weight", "glob:'**bias'", r"re:\d+\.weight$", "re:(0|1)\\.bias", "re:'a|b'"),
        *("stage:99", "stage:x", "depth:60.5%", "kind:wrong", "type:Nothing", "wrong:x", "typo"),
        *("", "(", ")", "a &", "| a", "all all", "'open", "re:", "~", "(all", "'it''s'", "'all'"),
        *("all\ufeff", f"'{some[0]}' x", "(" * 51 + "all" + ")" * 51, f"rows:{names[0]}[0:1]"),
    ]
    return known, others


def picked(model: nn.Module, text: str) -> list[int] | None:
    try:
        return sorted(fl.select(model, text).picked)
    except SelectorError:
        return None


def test_the_page_joins_terms_as_python_does_and_decides_nothing_else(
    opened: tuple[Any, nn.Module, Tensor],
) -> None:
    browser, model, _ = opened
    known, others = texts(model)
    wanted = {text: picked(model, text) for text in known}
    assert all(found is not None for found in wanted.values())
    assert dict(zip(known, browser.execute_script(PARSE, known), strict=True)) == wanted
    assert browser.execute_script(PARSE, others) == [None] * len(others)


def test_each_term_of_the_page_is_what_python_matches(
    opened: tuple[Any, nn.Module, Tensor],
) -> None:
    _, model, _ = opened
    terms = term_sets(inventory(model))
    for text, found in terms.items():
        assert sorted(found) == picked(model, text), text
    offered = [
        *(f"kind:{kind}" for kind in KINDS),
        "stage:0",
        "stage:-1",
        "depth:50%",
        "type:Module",
    ]
    assert {*offered} & terms.keys() == {text for text in offered if picked(model, text)}
    paths = {n for n, m in model.named_modules() if n and any(True for _ in m.parameters())}
    assert paths < terms.keys()


def test_what_is_ticked_is_said_in_words_that_python_reads_back(
    opened: tuple[Any, nn.Module, Tensor],
) -> None:
    browser, model, _ = opened
    stock = inventory(model)
    drawn = random.Random(1)
    sets = [sorted(drawn.sample(range(len(stock.entries)), k)) for k in (1, 2, 5, 12)]
    by_module = [
        [n for n, e in enumerate(stock.entries) if any(e.name.startswith(p) for p in prefixes)]
        for prefixes in (("features",), ("layer4", "fc"), ("encoder", "heads"), ("classifier.6",))
    ]
    sets += [one for one in by_module if one] + [list(range(1, len(stock.entries)))]
    script = """
    const data = JSON.parse(document.getElementById("data").textContent);
    return arguments[0].map((one) => Selectors.textOf(data, new Set(one)));
    """
    for one, text in zip(sets, browser.execute_script(script, sets), strict=True):
        assert picked(model, text) == one, text


def test_figures_are_those_of_a_step(opened: tuple[Any, nn.Module, Tensor]) -> None:
    browser, model, example = opened
    selectors = ["stage:-1", "stage:0", "all", "kind:bias", "stage:-2..-1", "stage:0 | stage:-1"]
    with_norms = any("Norm" in type(module).__name__ for module in model.modules())
    if with_norms:
        selectors += ["kind:norm | stage:-1", "kind:norm | kind:bias"]
    for text in selectors:
        browser.execute_script(TYPE, "train", text)
        found = browser.execute_script(FIGURES)
        fl.train_only(model, text)
        step = Setup(model, example, batch_size=ROWS).trace()
        trains = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert found["trains"] == trains
        assert found["saved"] == pytest.approx(step.saved_bytes, rel=0.01), text
        fixed = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
        state = 2 * sum(step.gradients.values()) + 4 * len(step.gradients)
        rest = fixed + step.batch_bytes + sum(step.gradients.values()) + state
        assert found["memory"] - found["saved"] == rest, text
        if text in ("stage:-1", "stage:-2..-1"):
            cut = fl.cut(model, example)
            share = 1 - found["epoch on stored features"] / found["epoch, plain loop"]
            assert share > 0.02, text
            # The cut may find a narrower place, at an operation inside a layer.
            assert cut.frontier.nbytes <= found["disk"] <= 4 * cut.frontier.nbytes
    fl.thaw(model, "all")


def test_the_frost_line_is_drawn_where_it_runs(opened: tuple[Any, nn.Module, Tensor]) -> None:
    browser, model, _ = opened
    browser.execute_script(TYPE, "train", "stage:-2..-1")
    line = browser.find_element("id", "line")
    after = browser.execute_script(
        "return [...document.querySelectorAll('.layer, #line')]"
        ".filter((e, i, all) => all[i - 1]?.id === 'line')[0].dataset.path"
    )
    first = fl.select(model, "stage:-2..-1").names[0].rpartition(".")[0]
    random_before = {"classifier.4": "classifier.0"}  # the first live dropout of AlexNet
    assert after == random_before.get(first, first)
    assert line.text.startswith("frost line: ")
    assert "a sample) crosses." in line.text


def test_the_delta_is_as_long_as_its_file(browser: Any, tmp_path: Path) -> None:
    model = resnet18(weights=None)
    base = fl.fingerprint(model, "all")
    browser.get(written(model, tmp_path / "net.html", torch.zeros(2, 3, 64, 64)).as_uri())
    for text in ("fc", "layer4 | fc"):
        browser.execute_script(TYPE, "train", text)
        fl.train_only(model, text)
        fl.save_delta(model, tmp_path / "delta.safetensors", base=base)
        size = (tmp_path / "delta.safetensors").stat().st_size
        assert browser.execute_script(FIGURES)["delta"] == pytest.approx(size, abs=20_000)


@pytest.fixture
def small(quiet_browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The page that the command line writes on a network in a file, and the folder around it."""
    monkeypatch.chdir(tmp_path)
    Path("small_net.py").write_text(NET)
    answer = call("inspect", "small_net.py:net", "--html", "net.html")
    assert answer.status == 0, answer.err
    assert answer.out == "Page: net.html\n"
    quiet_browser.get((tmp_path / "net.html").as_uri())
    return quiet_browser


def value(browser: Any, name: str) -> str:
    return str(browser.execute_script("return document.getElementById(arguments[0]).value", name))


def test_clicks_change_selector_command_and_figures(small: Any) -> None:
    assert value(small, "selector") == "head"
    before = small.execute_script(FIGURES)
    row = small.find_element("css selector", "[data-path='middle.0']")
    row.click()
    assert value(small, "selector") == "middle.0 | head"
    after = small.execute_script(FIGURES)
    assert after["trains"] - before["trains"] == 8 * 8 + 8
    assert "trains" in row.text
    row.click()
    assert value(small, "selector") == "head"
    assert small.execute_script(FIGURES) == before
    assert "frozen" in row.text
    small.find_element("css selector", ".stage header input").click()  # all of the first stage
    assert value(small, "selector") == "features | head"


def test_ticking_after_a_preset_keeps_its_words(browser: Any, tmp_path: Path) -> None:
    model = resnet18(weights=None)
    browser.get(written(model, tmp_path / "net.html", torch.zeros(2, 3, 64, 64)).as_uri())
    for text, path, expected in (
        ("kind:norm | stage:-1", "layer1.0.conv1", "kind:norm | stage:-1 | layer1.0.conv1"),
        ("kind:norm | stage:-1", "layer3.1.bn2", "(kind:norm | stage:-1) & ~layer3.1.bn2"),
        ("all & ~kind:norm", "layer2.0.conv2", "all & ~kind:norm & ~layer2.0.conv2"),
    ):
        browser.execute_script(TYPE, "train", text)
        row = browser.find_element("css selector", f"[data-path='{path}']")
        row.click()
        assert value(browser, "selector") == expected
        fl.train_only(model, expected)
        trains = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert browser.execute_script(FIGURES)["trains"] == trains
        row.click()
        assert value(browser, "selector") == text


@pytest.mark.parametrize("size", [(1200, 900), (780, 580), (400, 600)])
def test_a_row_stays_where_one_clicks(browser: Any, tmp_path: Path, size: tuple[int, int]) -> None:
    page = written(resnet18(weights=None), tmp_path / "net.html", torch.zeros(2, 3, 64, 64))
    old = browser.get_window_size()
    browser.set_window_size(*size)
    try:
        browser.get(page.as_uri())
        for path in ("layer2.0.conv2", "layer3.1.bn2", "layer1.0.conv1", "layer4.0.bn1"):
            shown = browser.execute_async_script(STAYS, f"[data-path='{path}']")
            assert shown == pytest.approx([shown[0]] * 4, abs=1), path
    finally:
        browser.set_window_size(old["width"], old["height"])


def test_weights_that_were_asked_for_are_in_the_command(small: Any) -> None:
    assert "--weights" not in value(small, "command")
    answer = call("inspect", "small_net.py:net", "--weights", "none", "--html", "again.html")
    assert answer.status == 0, answer.err
    small.get(Path("again.html").absolute().as_uri())
    assert " --weights none " in value(small, "command")


def test_keys_alone_freeze_and_thaw(small: Any) -> None:
    from selenium.webdriver import ActionChains, Keys

    def press(*keys: str) -> None:
        ActionChains(small).send_keys(*keys).perform()

    def here() -> str:
        return str(small.execute_script("return document.activeElement.ariaLabel ?? ''"))

    small.execute_script("document.getElementById('samples').focus()")
    press(Keys.TAB)
    first = here()
    assert first.startswith("train all of stage 0")
    press(Keys.END)
    assert here() == "train head"
    press(Keys.ARROW_UP, Keys.SPACE)
    assert value(small, "selector") == f"{here().removeprefix('train ')} | head"
    press(Keys.HOME)
    assert here() == first


def test_wrong_selectors_say_what_is_wrong_and_leave_the_rest(small: Any) -> None:
    before = small.execute_script(FIGURES)
    small.execute_script(TYPE, "train", "haed")
    shown = small.find_element("id", "wrong")
    assert "this page does not know 'haed' (nearest: head" in shown.text
    assert "frostline inspect small_net.py:net --train haed --html FILE" in shown.text
    samples = "arguments[0].value = 5; arguments[0].dispatchEvent(new Event('input'))"
    small.execute_script(samples, small.find_element("id", "samples"))
    assert value(small, "command") == ""
    small.execute_script(samples.replace("5", "1000"), small.find_element("id", "samples"))
    assert not small.find_element("id", "copy").is_enabled()
    assert small.execute_script(FIGURES) == before
    small.execute_script(TYPE, "freeze", "all")
    assert "nothing would train" in shown.text
    small.execute_script(TYPE, "train", "head")
    assert not shown.is_displayed()
    assert small.find_element("id", "copy").is_enabled()
    assert value(small, "command").endswith("--train head")


def test_what_the_page_cannot_decide_is_decided_by_the_command_that_it_names(small: Any) -> None:
    selector = r"re:middle\.[01] & ~*.*.bias"
    small.execute_script(TYPE, "train", selector)
    command = small.find_element("id", "wrong").text.splitlines()[-1]
    answer = call(*shlex.split(command.replace("FILE", "again.html"))[1:])
    assert answer.status == 0, answer.err
    small.get(Path("again.html").absolute().as_uri())
    assert value(small, "selector") == selector
    assert not small.find_element("id", "wrong").is_displayed()
    assert small.execute_script(FIGURES)["trains"] == 8 * 8 + 8
    small.find_element("css selector", "[data-path='head']").click()
    assert value(small, "selector") == "middle.0.weight | middle.1.weight | head"


def test_typing_is_completed_by_the_terms_of_the_model(small: Any) -> None:
    small.execute_script(TYPE, "train", "head | ki")
    options = small.find_elements("css selector", "#terms option")
    shown = [option.get_attribute("value") for option in options]
    assert shown == [f"head | kind:{kind}" for kind in ("norm", "bias", "conv", "linear")]


def test_the_copied_command_trains_what_was_clicked(small: Any) -> None:
    for part in ("train", "val"):
        for name, level in (("dark", 40), ("light", 210)):
            for number in range(4):
                write_picture(Path("photos") / part / name / f"{number}.png", level + number)
    small.find_element("css selector", "[data-path='middle.1']").click()
    small.find_element("id", "copy").click()
    copied = small.execute_script("return window.getSelection().toString()")
    assert copied == value(small, "command")
    words = shlex.split(copied.replace("DATA", "photos"))
    assert words[:3] == ["frostline", "train", "photos"]
    answer = call(*words[1:], "--epochs", "1", "--out", "run")
    assert answer.status == 0, answer.err
    frozen = json.loads(Path("run/frozen.json").read_text())
    text = json.dumps(frozen)
    assert "middle.0.weight" in text
    assert "middle.1.weight" not in text
    assert "head.weight" not in text


class Odd(nn.Module):
    """Names that would run something if they were read as HTML or by a shell."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module(HOSTILE, nn.Linear(3 * 8 * 8, 4))
        self.add_module("it's $(odd) | \u202e", nn.Linear(4, 2))

    def forward(self, x: Tensor) -> Any:
        for layer in self.children():
            x = layer(x.flatten(1))
        return x


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_hostile_names_are_shown_and_run_nothing(
    quiet_browser: Any, tmp_path: Path, width: int
) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    quiet_browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    model = Odd()
    page = written(model, tmp_path / "odd.html", torch.zeros(2, 3, 8, 8), name=HOSTILE)
    quiet_browser.get(page.as_uri())
    rows = quiet_browser.find_elements("css selector", "label.layer")
    rows[0].click()
    text = value(quiet_browser, "selector")
    assert fl.select(model, text).names == tuple(n for n, _ in model.named_parameters())
    rows[1].click()
    text = value(quiet_browser, "selector")
    assert fl.select(model, text).names == (f"{HOSTILE}.weight", f"{HOSTILE}.bias")
    words = shlex.split(value(quiet_browser, "command"))
    assert words == ["frostline", "train", "DATA", "--model", HOSTILE, "--train", text]
    assert quiet_browser.title == f"{HOSTILE}: what freezing brings"
    assert "\u202e" not in quiet_browser.find_element("id", "model").text
    assert quiet_browser.find_elements("css selector", "main img") == []
    wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert quiet_browser.execute_script(wide) <= 0
    quiet_browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_thousand_layers_answer_at_once(quiet_browser: Any, tmp_path: Path) -> None:
    layers = [nn.Linear(4, 4) for _ in range(1000)]
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), *layers, nn.Linear(4, 2))
    page = written(model, tmp_path / "deep.html", torch.zeros(2, 3, 2, 2))
    assert page.stat().st_size < 4_000_000
    quiet_browser.get(page.as_uri())
    rows = quiet_browser.find_elements("css selector", "label.layer")
    assert len(rows) == 1002
    start = time.perf_counter()
    quiet_browser.execute_script(TYPE, "train", "stage:500..-1")
    assert time.perf_counter() - start < 5  # generous: it is hundredths of a second
    fl.train_only(model, "stage:500..-1")
    trains = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert quiet_browser.execute_script(FIGURES)["trains"] == trains
    line = quiet_browser.find_element("id", "line")
    after = quiet_browser.execute_script(
        "return arguments[0].nextElementSibling?.dataset.path ?? "
        "arguments[0].closest('section').dataset.path",
        line,
    )
    assert after == "501"
