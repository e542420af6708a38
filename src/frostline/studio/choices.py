"""What the studio offers to choose from, in plain words, and the command that a choice becomes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import final

from frostline.errors import ConfigError
from frostline.models.spec import short_name
from frostline.studio.places import RUNS, check_new_name, named_path

_OF_PICTURES = {
    "resnet18": "a good first choice",
    "mobilenet_v3_small": "small and quick",
    "efficientnet_b0": "often better, and slower",
    "convnext_tiny": "often much better, and much slower",
}
_OF_MASKS = {
    "lraspp_mobilenet_v3_large": "small and quick",
    "deeplabv3_mobilenet_v3_large": "better, and slower",
    "deeplabv3_resnet50": "better still, and much slower",
}
PARTS = {
    "": ("Only a new head", "quickest, and safest with few pictures"),
    "stage:-2..-1": ("The head and the last stage", "more to learn, slower"),
    "all": ("Everything", "slowest; for many pictures that are unlike photographs"),
}
FORMATS = {
    "onnx": "ONNX, for most other programs",
    "safetensors": "safetensors, for `frostline predict`",
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
        score: of these weights, as torchvision measured it, for people.
    """

    name: str
    about: str
    megabytes: float
    score: str


@final
@dataclass(frozen=True, slots=True)
class Asked:
    """What was chosen for a run.

    Attributes:
        model: the network and its weights, as words of a command.
        part: what trains, in the same way; nothing for the head alone.
    """

    name: str
    data: Path
    model: tuple[str, ...]
    part: tuple[str, ...]
    epochs: tuple[str, ...]

    @property
    def training(self) -> tuple[str, ...]:
        """The command that trains it."""
        out = ("--out", f"{RUNS}/{self.name}")
        return ("train", str(self.data), "--model", *self.model, *self.part, *self.epochs, *out)

    @property
    def estimate(self) -> tuple[str, ...]:
        """The command that says what it would cost."""
        return ("estimate", *self.model, *self.part, *self.epochs, "--data", str(self.data))

    @property
    def probe(self) -> tuple[str, ...]:
        """The command that says how well each depth would serve."""
        return ("probe", str(self.data), "--model", *self.model)


@cache
def networks(kind: str) -> tuple[Network, ...]:
    """Those on offer for a kind of task, with what torchvision says of their weights."""
    from torchvision.models import get_model_weights

    offered = _OF_MASKS if kind == "segmentation" else _OF_PICTURES
    entries = {name: get_model_weights(name).DEFAULT.meta for name in offered}
    return tuple(
        Network(name, offered[name], meta["_file_size"], _score(meta["_metrics"]))
        for name, meta in entries.items()
    )


def _score(metrics: Mapping[str, Mapping[str, float]]) -> str:
    if "ImageNet-1K" in metrics:
        return f"right on {metrics['ImageNet-1K']['acc@1']:.1f} % of ImageNet"
    return f"mean IoU {metrics['COCO-val2017-VOC-labels']['miou']:.1f} % on COCO"


def asked_run(form: Mapping[str, str], folder: Path) -> Asked:
    """The run that a filled-in form asks for.

    Args:
        form: `data`, `network` or `other`, `weights`, `part`, `epochs`, `name`.
        folder: the studio's.
    Raises:
        ConfigError, DataError: something in it is missing or cannot be.
    """
    if not form.get("data", "").strip():
        raise ConfigError("nothing says which pictures. Go back and choose.")
    data, part = named_path(form["data"], folder), form.get("part", "")
    if part not in PARTS:
        raise ConfigError(f"asked to train {part!r}. Choose one of the parts on the page.")
    epochs = form.get("epochs", "").strip() or "10"
    if not (epochs.isascii() and epochs.isdecimal() and len(epochs) < 9):
        epochs = "0"
    if not 0 < int(epochs) <= _MOST_EPOCHS:
        raise ConfigError(
            f"asked for {form['epochs'][:20]!r} epochs. Give a whole number from 1 to "
            f"{_MOST_EPOCHS:,}."
        )
    model = _model(form)
    name = form.get("name", "").strip() or free_name(folder, data.name, model)
    check_new_name(folder, name)
    weights = _file_or_word(form.get("weights", "").strip(), folder)
    return Asked(
        name,
        data,
        (model, "--weights", weights) if weights else (model,),
        ("--train", part) if part else (),
        ("--epochs", epochs),
    )


def free_name(folder: Path, data: str, model: str) -> str:
    """`ants-resnet18`, with a number behind where that is taken."""
    parts = f"{data}-{short_name(model)}"
    stem = "".join(c if c.isalnum() or c in "-_" else "-" for c in parts)
    stem = stem.strip("-_").encode()[:70].decode(errors="ignore").strip("-_") or "run"
    number, name = 1, stem
    while (folder / RUNS / name).exists():
        number += 1
        name = f"{stem}-{number}"
    return name


def _model(form: Mapping[str, str]) -> str:
    """What was written, or else the one that was chosen."""
    written, chosen = form.get("other", "").strip(), form.get("network", "")
    if written.startswith("-") or "\0" in written:
        raise ConfigError(f"{written[:100]!r} is no name of a network. Write another.")
    if not written and chosen not in {**_OF_PICTURES, **_OF_MASKS}:
        raise ConfigError("nothing says which network. Go back and choose, or write its name.")
    return written or chosen


def _file_or_word(weights: str, folder: Path) -> str:
    """Weights as the command has them: a file by its whole path where there is one."""
    if not weights or weights in ("none", "DEFAULT"):
        return weights
    path = named_path(weights, folder)
    if path.exists():
        return str(path)
    if weights.startswith("-"):
        raise ConfigError(f"{weights[:100]!r} are no weights. Write a file, or leave it empty.")
    return weights
