"""An exported file, opened to predict with it."""

from __future__ import annotations

import importlib
import importlib.util
import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from frostline.data import Batch, Batches, ImageDataset, ImageSet, Levels, make_batches
from frostline.devices import Compute
from frostline.engine import Hook, predict
from frostline.errors import ConfigError, WeightsError, one_line
from frostline.exports.notes import Notes
from frostline.models import load_model
from frostline.runs.finished import Prediction, files_as_set, predictions_of
from frostline.tasks import Classification, Predictions
from frostline.world import ALONE, World

Forward = Callable[[Tensor], Tensor]
Reader = Callable[[Path], tuple[Notes, Forward]]


@final
@dataclass(frozen=True, slots=True)
class ExportedModel:
    """What a file computes, float32 on the CPU.

    Attributes:
        notes: what it says of itself.
        forward: pictures `(batch, channels, height, width)` -> logits `(batch, classes)`.
    """

    notes: Notes
    forward: Forward
    batch_size: int = 32

    @property
    def has_masks(self) -> bool:
        """Whether a prediction is a mask: classifiers alone are exported."""
        return False

    @property
    def levels(self) -> Levels | None:
        """As the run's."""
        return self.notes.levels

    def predict(
        self,
        files: Sequence[Path],
        *,
        top: int = 1,
        device: str = "cpu",  # noqa: ARG002 - as a run's; it is the only one
        hooks: Iterable[Hook] = (),
        world: World = ALONE,  # noqa: ARG002 - likewise; of several processes each computes all
    ) -> list[Prediction]:
        """The `top` most probable classes of each picture; all must be readable.

        Raises:
            ImageError: a file is no picture.
        """
        classes = self.notes.classes
        found = self.outputs(self.batches(files_as_set(files, classes)), hooks)
        return predictions_of(Classification(classes), found, top=top)

    def batches(self, images: ImageSet) -> Batches:
        """The pictures, prepared as the model wants them."""
        data = ImageDataset(images, self.notes.preprocessing, levels=self.levels)
        return make_batches(data, batch_size=self.batch_size, shuffle=False, seed=0)

    def outputs(self, given: Batches | list[Batch], hooks: Iterable[Hook] = ()) -> Predictions:
        """The file's own outputs."""
        compute = Compute("cpu")
        return predict(nn.Module(), given, compute, forward=self.forward, hooks=tuple(hooks))


def open_export(path: Path) -> ExportedModel:
    """Open a file that `frostline export` wrote as ONNX or as safetensors.

    Raises:
        ConfigError: it is another file, cannot be read, or what reads it is not installed.
        ModelError, WeightsError: the model of a safetensors file cannot be built or filled.
    """
    if not path.exists():
        raise ConfigError(f"there is no file {path}. Give one that was exported.")
    if load := _PROGRAMS.get(path.suffix):
        raise ConfigError(
            f"{path}: {load} runs whatever program a {path.suffix} file brings, so Frostline "
            "opens none. Where you trust it, load it as examples/06_exported_files.py does; or "
            "export to onnx or safetensors."
        )
    if path.suffix not in _READERS:
        raise ConfigError(
            f"{path} is neither a run's folder nor an exported file. Give a folder that a run "
            "wrote, or an .onnx or .safetensors file of an export."
        )
    return ExportedModel(*_READERS[path.suffix](path))


def read_safetensors(path: Path) -> tuple[Notes, Forward]:
    """The model built anew, filled with the file's tensors by their names."""
    try:
        with safe_open(path, framework="pt") as content:
            notes = Notes.read(content.metadata() or {}, path)
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error
    head, classes = notes.head, len(notes.classes)
    made = load_model(
        notes.model, weights="none", classes=classes, hidden=head.hidden, on=head.on
    ).model
    try:
        made.load_state_dict(tensors)
    except RuntimeError as error:
        raise WeightsError(
            f"{path} does not fit {notes.model} as it is built here: {one_line(error)}. Use the "
            "versions that wrote it, or export the run again."
        ) from error
    return notes, made.eval()


def read_pt2(path: Path) -> tuple[Notes, Forward]:
    """Only for files of our own: loading one can run any program."""
    texts = {NOTES_FILE: ""}
    with path.open("rb") as file:
        program = torch.export.load(file, extra_files=texts)
    return Notes.read(json.loads(texts[NOTES_FILE]), path), program.module()


def read_torchscript(path: Path) -> tuple[Notes, Forward]:
    """Only for files of our own, likewise."""
    texts = {NOTES_FILE: ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # that TorchScript is deprecated
        program = torch.jit.load(path, "cpu", texts)  # type: ignore[no-untyped-call]  # torch's
    return Notes.read(json.loads(texts[NOTES_FILE]), path), program


def read_onnx(path: Path) -> tuple[Notes, Forward]:
    """By onnxruntime, with as many threads as torch has."""
    runtime = optional("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # a class of its own for each of its codes
        raise _unreadable(path, error) from error
    texts: Mapping[str, str] = session.get_modelmeta().custom_metadata_map
    (entry,) = session.get_inputs()

    def forward(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {entry.name: images.numpy()})[0])

    return Notes.read(texts, path), forward


EXPORTED = (".safetensors", ".pt2", ".torchscript", ".onnx")
NOTES_FILE = "frostline.json"  # in an archive
_PROGRAMS = {".pt2": "torch.export.load", ".torchscript": "torch.jit.load"}
_READERS: dict[str, Reader] = {".safetensors": read_safetensors, ".onnx": read_onnx}


def optional(name: str) -> Any:
    """A package that the extra `onnx` brings.

    Raises:
        ConfigError: it is not installed.
    """
    if importlib.util.find_spec(name) is None:
        raise ConfigError(
            f"ONNX files need the package {name}, which is not installed: pip install "
            "'frostline[onnx]'."
        )
    return importlib.import_module(name)


def _unreadable(path: Path, error: Exception) -> ConfigError:
    return ConfigError(
        f"{path} cannot be read: {one_line(error)}. It is damaged or something else; export the "
        "run again."
    )
