"""A model -> a file of each format, with texts in the place that it has for them."""

from __future__ import annotations

import io
import json
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import Tensor, fx, nn

from frostline.choices import ExportFormat
from frostline.cutting.structures import Rebuild, read_inputs
from frostline.cutting.tracing import Traced, own_name, trace
from frostline.errors import ConfigError, CutError, ModelError, one_line
from frostline.exports.merging import write_safetensors
from frostline.exports.opened import (
    NOTES_FILE,
    Reader,
    read_onnx,
    read_pt2,
    read_safetensors,
    read_torchscript,
)
from frostline.models import logits_of
from frostline.tuning.drafts import Draft, draft_of
from frostline.tuning.rewriting import fold
from frostline.wording import option

Writer = Callable[[Path, Mapping[str, str]], None]
_ZIP_HEADER = 30  # bytes before a name
_ONNX_BYTES = 2**31 - 2**20  # that a protobuf holds, less room for the graph


@final
@dataclass(frozen=True, slots=True)
class Format:
    """One kind of file.

    Attributes:
        prepare: a model in eval mode, an example of at least 2 pictures, and whether to fold batch
            norms -> what writes the file.
        read: gives back what a file computes.
        has_graph: whether it holds the computation, so that no code is needed to run it.
        folds: whether batch norms can be folded in it.
        needs: packages that Frostline comes without.
    """

    prepare: Callable[[nn.Module, Tensor, bool], Writer]
    read: Reader
    has_graph: bool = True
    folds: bool = True
    needs: tuple[str, ...] = ()


def _safetensors(model: nn.Module, _example: Tensor, _folded: bool) -> Writer:
    tensors = model.state_dict()
    return lambda path, texts: write_safetensors(tensors, path, texts)


def _pt2(model: nn.Module, example: Tensor, folded: bool) -> Writer:
    program = _program(model, example, folded)
    program.example_inputs = None  # they would go along, a megabyte

    def write(path: Path, texts: Mapping[str, str]) -> None:
        content = io.BytesIO()
        torch.export.save(program, content, extra_files={NOTES_FILE: json.dumps(dict(texts))})
        path.write_bytes(content.getbuffer())

    return write


def _onnx(model: nn.Module, example: Tensor, folded: bool) -> Writer:
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    if size > _ONNX_BYTES:
        raise ConfigError(
            f"one ONNX file holds 2 GB, and this model has {size / 1e9:.1f} GB of weights. Use "
            f"{option('to', 'pt2')} or {option('to', 'safetensors')}."
        )
    program = _program(model, example, folded)
    try:
        made: Any = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: "batch"},),
        )
    except Exception as error:  # whatever its many steps raise
        why = one_line(error.__cause__ or error)
        raise ModelError(
            f"torch.onnx cannot write {type(model).__name__}: {why}. Use {option('to', 'pt2')}."
        ) from error

    for node in made.model.graph:
        node.metadata_props.clear()

    def write(path: Path, texts: Mapping[str, str]) -> None:
        made.model.metadata_props.update(texts)
        path.write_bytes(made.model_proto.SerializeToString())

    return write


def _torchscript(model: nn.Module, example: Tensor, _folded: bool) -> Writer:
    # Of the model's own forward: a graph that torch.export made has its sizes as numbers, which
    # torch.jit.trace would keep as those of the example. But it is asked first, as tracing takes
    # the branch of the example for all pictures.
    _followed(model, example)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that TorchScript is deprecated, and of branches
            traced = torch.jit.trace(  # type: ignore[no-untyped-call]  # torch's
                _Logits(model), example, check_trace=False
            )
    except Exception as error:  # whatever the model's forward raises where it is traced
        raise ModelError(
            f"torch.jit cannot trace {type(model).__name__}: {one_line(error)}. Use "
            f"{option('to', 'pt2')}."
        ) from error

    def write(path: Path, texts: Mapping[str, str]) -> None:
        content = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            torch.jit.save(traced, content, {NOTES_FILE: json.dumps(dict(texts))})
        with zipfile.ZipFile(content) as whole, zipfile.ZipFile(path, "w") as kept:
            for entry in whole.infolist():
                # They hold lines of source, with their paths on this machine.
                if not entry.filename.endswith(".debug_pkl"):
                    kept.writestr(_aligned(entry.filename, kept), whole.read(entry))

    return write


def _aligned(name: str, archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    """An entry whose content begins where torch begins it, to be mapped, and of no date."""
    found = zipfile.ZipInfo(name)
    assert archive.fp is not None
    header = archive.fp.tell() + _ZIP_HEADER + len(name.encode()) + 4
    padding = -header % 64
    found.extra = struct.pack("<HH", int.from_bytes(b"FB", "little"), padding) + bytes(padding)
    return found


class _Logits(nn.Module):
    """Of a model's outputs the logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return logits_of(self.model(images))


FORMATS: Final[dict[ExportFormat, Format]] = {
    "safetensors": Format(_safetensors, read_safetensors, has_graph=False, folds=False),
    "torchscript": Format(_torchscript, read_torchscript, folds=False),
    "pt2": Format(_pt2, read_pt2),
    "onnx": Format(_onnx, read_onnx, needs=("onnx", "onnxscript", "onnxruntime")),
}


def _program(model: nn.Module, example: Tensor, folded: bool) -> torch.export.ExportedProgram:
    """The model's forward for any number of pictures, under the model's own names.

    Raises:
        ModelError: torch.export cannot follow it.
    """
    traced = _followed(model, example)
    draft = draft_of(traced.module)
    if folded:
        fold(draft)
    program = torch.export.export(
        _named(draft, traced.rebuild), (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
    )
    for node in program.graph.nodes:
        # They would go into the file: lines of source, with their paths on this machine.
        for note in ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node"):
            node.meta.pop(note, None)
    return program


def _followed(model: nn.Module, example: Tensor) -> Traced:
    try:
        return trace(model, *read_inputs(example))
    except CutError as error:
        to = option("to", "safetensors")
        raise ModelError(f"{error} Use {to}, which needs no graph.") from error


def _named(draft: Draft, rebuild: Rebuild) -> fx.GraphModule:
    """The draft with `images` as input, the logits as output, and tensors by the model's names."""
    values = {own_name(name): value for name, value in draft.values.items()}
    for node in draft.graph.find_nodes(op="get_attr"):
        node.target = own_name(node.target)
    (entry,), output = draft.graph.find_nodes(op="placeholder"), draft.graph.output_node()
    entry.target = entry.name = "images"
    made: Any = output.args[0]
    shown = [node.meta["val"] for node in made]
    logits = logits_of(rebuild(iter(shown)))
    output.args = (next(node for node, seen in zip(made, shown, strict=True) if seen is logits),)
    return fx.GraphModule(values, draft.graph)
