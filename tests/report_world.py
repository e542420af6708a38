"""Small runs to report on, and pages taken apart."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from frostline.config import DataSettings, FreezeSettings, ModelSettings, RunSettings
from frostline.engine import Hook
from frostline.models import load_model
from frostline.plans import Phase
from frostline.recipe import Recipe
from frostline.runs import prepare
from small_world import write_net, write_pictures

HOSTILE_CLASSES = ("<b onclick=alert(1)>dark", "\"'><script>alert(2)<script>")
HOSTILE_FILE = '"><img src=x onerror=alert(1)>.png'


class World:
    """Pictures, a network with a file of weights, and runs of it."""

    def __init__(self, root: Path, **pictures: Any) -> None:
        self.root = root
        self.photos = write_pictures(root / "photos", **pictures)
        self.model = write_net(root)
        self.weights = root / "weights.safetensors"
        loaded = load_model(self.model, weights="none", classes=5, on="keep", seed=3)
        save_file(loaded.model.state_dict(), self.weights)

    def settings(self, *, plan: tuple[Phase, ...] = (), **recipe: Any) -> RunSettings:
        freeze = FreezeSettings() if plan else FreezeSettings(freeze="features")
        return RunSettings(
            model=ModelSettings(name=self.model, weights=str(self.weights)),
            data=DataSettings(path=str(self.photos), batch_size=6),
            freeze=freeze,
            plan=plan,
            training=Recipe(**{"lr": 0.02, **({} if plan else {"epochs": 3}), **recipe}),
            device="cpu",
        )

    def run(
        self, out: str, *, resume: bool = False, hooks: tuple[Hook, ...] = (), **changes: Any
    ) -> Path:
        folder = self.root / out
        prepare(self.settings(**changes)).run(folder, resume=resume, hooks=hooks)
        return folder


@dataclass
class Page(HTMLParser):
    """A page taken apart: its elements with their attributes, and its text."""

    source: str
    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        """All that is written, with single spaces."""
        return " ".join(" ".join(self.texts).split())

    @property
    def tags(self) -> set[str]:
        return {tag for tag, _ in self.elements}


def page_of(file: Path) -> Page:
    return Page(file.read_text(encoding="utf-8"))
