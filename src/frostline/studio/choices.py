"""What the studio offers to choose from, in plain words, and the command that a choice becomes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import final

from frostline.errors import ConfigError
from frostline.studio.places import RUNS, check_name

_NETWORKS = {
    "mobilenet_v3_small": "small and quick",
    "resnet18": "a good first choice",
    "efficientnet_b0": "often better, and slower",
    "convnext_tiny": "often much better, and much slower",
}
PARTS = {
    "": ("Only a new head", "quickest, and safest with few pictures"),
    "stage:-2..-1": ("The head and the last stage", "more to learn, slower"),
    "all": ("Everything", "slowest; for many pictures that are unlike photographs"),
}
FORMATS = {
    "onnx": "ONNX, for most other programs",
    "safetensors": "safetensors, for Frostline's own `predict`",
    "torchscript": "TorchScript, for PyTorch in other languages",
    "pt2": "pt2, for PyTorch",
}
_MOST_EPOCHS = 10_000


@final
@dataclass(frozen=True, slots=True)
class Network:
    """A network on offer.

    Attributes:
        about: in a few words.
        megabytes: of its weights, downloaded once.
        accuracy: of these weights on ImageNet, as torchvision measured it, in percent.
    """

    name: str
    about: str
    megabytes: float
    accuracy: float


@final
@dataclass(frozen=True, slots=True)
class Asked:
    """What was chosen for a run.

    Attributes:
        model: the network and its weights, as words of a command.
        part: what trains, in the same way; nothing for the head alone.
    """

    name: str
    data: str
    model: tuple[str, ...]
    part: tuple[str, ...]
    epochs: tuple[str, ...]

    @property
    def training(self) -> tuple[str, ...]:
        """The command that trains it."""
        out = ("--out", f"{RUNS}/{self.name}")
        return ("train", self.data, "--model", *self.model, *self.part, *self.epochs, *out)

    @property
    def estimate(self) -> tuple[str, ...]:
        """The command that says what it would cost."""
        return ("estimate", *self.model, *self.part, *self.epochs, "--data", self.data)

    @property
    def probe(self) -> tuple[str, ...]:
        """The command that says how well each depth would serve."""
        return ("probe", self.data, "--model", *self.model)


@cache
def networks() -> tuple[Network, ...]:
    """Those on offer, with what torchvision says of their weights."""
    from torchvision.models import get_model_weights

    entries = {name: get_model_weights(name).DEFAULT.meta for name in _NETWORKS}
    return tuple(
        Network(
            name,
            _NETWORKS[name],
            meta["_file_size"],
            meta["_metrics"]["ImageNet-1K"]["acc@1"],
        )
        for name, meta in entries.items()
    )


def asked_run(form: Mapping[str, str], folder: Path) -> Asked:
    """The run that a filled-in form asks for.

    Args:
        form: `data`, `network` or `other`, `weights`, `part`, `epochs`, `name`.
        folder: the studio's.
    Raises:
        ConfigError: something in it is missing or cannot be.
    """
    data = _text(form, "data", "which pictures")
    chosen = form.get("network", "")
    model = _text(form, "other", "which network") if chosen in ("", "other") else chosen
    part = form.get("part", "")
    if part not in PARTS:
        raise ConfigError(f"asked to train {part!r}. Choose one of the parts on the page.")
    epochs = form.get("epochs", "").strip() or "10"
    if not (epochs.isascii() and epochs.isdecimal() and 0 < int(epochs) <= _MOST_EPOCHS):
        raise ConfigError(
            f"asked for {epochs!r} epochs. Give a whole number from 1 to {_MOST_EPOCHS:,}."
        )
    name = form.get("name", "").strip() or free_name(folder, Path(data).name, model)
    check_name(name)
    weights = form.get("weights", "").strip()
    return Asked(
        name,
        data,
        (model, "--weights", weights) if weights else (model,),
        ("--train", part) if part else (),
        ("--epochs", epochs),
    )


def free_name(folder: Path, data: str, model: str) -> str:
    """`ants-resnet18`, with a number behind where that is taken."""
    parts = (data, model.rpartition(":")[2].rpartition("/")[2])
    stem = "-".join("".join(c if c.isalnum() or c in "-_" else "-" for c in p) for p in parts)
    stem = stem.strip("-_")[:80] or "run"
    number, name = 1, stem
    while (folder / RUNS / name).exists():
        number += 1
        name = f"{stem}-{number}"
    return name


def _text(form: Mapping[str, str], name: str, what: str) -> str:
    found = form.get(name, "").strip()
    if not found:
        raise ConfigError(f"nothing says {what}. Go back and choose.")
    if found.startswith("-"):
        raise ConfigError(f"{found!r} begins with a dash, as options do. Choose another.")
    return found
