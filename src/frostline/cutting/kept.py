"""Lines that were drawn before, in files: another process need not follow the model again.

A line is found by all that it hangs on: who made the model and by which code, what is trainable in
it, and how the inputs are built. What is found is held against the model as at each call of a cut
(classes, code, hooks, modes and what the forward reads), each frozen tensor against its digest, and
the graphs that were read give, on made-up numbers, the bits that those gave which were checked on
the model. Of a model from the user's own file, whose forward may read what no one sees, one sample
also goes through both. Whatever differs, the line is drawn anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, final

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from frostline._files import output_errors
from frostline._tensor_files import check_header, save_tensors
from frostline.cutting.checking import Checked
from frostline.cutting.drawing import Drawn
from frostline.cutting.plain import NotPlainError, PlainLine, of_plain, to_plain
from frostline.cutting.structures import InputSpec
from frostline.errors import OutputError
from frostline.fingerprints import digest

_FORMAT: Final = "frostline line 1"
_MOST: Final = 64  # files; the one that was used longest ago goes first
_MADE_UP: Final = 2  # samples
_LENGTH: Final = 4  # of made-up samples that may be of any


@final
@dataclass(frozen=True, slots=True)
class Origin:
    """Who made a model: equal texts of code and settings that make equal models but for numbers.

    Attributes:
        is_own: whether a file of the user's own made it.
    """

    text: str
    is_own: bool


@final
@dataclass(frozen=True, slots=True)
class KeptLines:
    """Lines of models of one origin, in a folder.

    Attributes:
        folder: made when the first line is kept.
        facts: of the model, as numbers by name, that are kept with a line.
    """

    folder: Path
    origin: Origin

    def find(
        self, model: nn.Module, spec: InputSpec, tensors: list[Tensor]
    ) -> tuple[Drawn, Checked, Mapping[str, float]] | None:
        """A line for this model, which is in train mode, and the facts that were kept with it.

        Whether the model is still what was checked is to be asked of the halves.
        """
        path = self._path(model, spec, tensors)
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                constants = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            check_header(header)
            drawn, seen = of_plain(PlainLine(json.loads(header["line"]), constants))
            facts = {str(name): float(value) for name, value in json.loads(header["facts"]).items()}
            is_same = witness(drawn) == header["witness"]
        except (OSError, SafetensorError, KeyError, ValueError, RecursionError, NotPlainError):
            return None
        if not is_same:
            return None
        with suppress(OSError):
            os.utime(path)
        return drawn, seen, facts

    def keep(
        self,
        model: nn.Module,
        spec: InputSpec,
        tensors: list[Tensor],
        drawn: Drawn,
        seen: Checked,
        facts: Mapping[str, float],
    ) -> None:
        """Keep a line that was checked on the model, which is in train mode.

        Not one that has no plain form, nor where nothing can be written.
        """
        path = self._path(model, spec, tensors)
        with suppress(NotPlainError, OutputError):
            line = to_plain(drawn, seen)
            header = {
                "format": _FORMAT,
                "line": json.dumps(line.data),
                "facts": json.dumps(dict(facts)),
                "witness": witness(drawn),
            }
            save_tensors(line.tensors, path, header=header)
            _forget_oldest(self.folder)

    def _path(self, model: nn.Module, spec: InputSpec, tensors: list[Tensor]) -> Path:
        text = "\n".join((_FORMAT, self.origin.text, _own_code(), *_state(model, spec, tensors)))
        name = xxhash.xxh3_128_hexdigest(text.encode(errors="surrogateescape"))  # of any file
        return self.folder / f"{name}.safetensors"


def _state(model: nn.Module, spec: InputSpec, tensors: list[Tensor]) -> Iterator[str]:
    """What is trainable, how the inputs are built, and settings of torch that change a forward."""
    yield f"{type(model).__module__}.{type(model).__qualname__}"
    yield from (f"{n} {p.requires_grad} {p.device}" for n, p in model.named_parameters())
    yield from (f"{name} {type(m).__qualname__} {m.training}" for name, m in model.named_modules())
    yield from (f"buffer {name}" for name, _ in model.named_buffers())
    yield f"{spec.tree} {spec.leaves} {spec.names}"
    yield from (f"{tuple(t.shape[1:])} {t.dtype} {t.device}" for t in tensors)
    yield f"{torch.get_default_dtype()} {torch.backends.mha.get_fastpath_enabled()}"
    for kind in sorted({tensor.device.type for tensor in tensors}):
        yield f"{kind} {torch.is_autocast_enabled(kind)} {torch.get_autocast_dtype(kind)}"


@cache
def _own_code() -> str:
    """A hash of the code here, which draws lines and reads them."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return xxhash.xxh3_128_hexdigest(b"".join(file.read_bytes() for file in files))


def witness(drawn: Drawn) -> str:
    """A hash of what both suffixes give on numbers that are made up, for the same in any process.

    Raises:
        NotPlainError: they refuse such numbers.
    """
    devices = [p.device for graph, _ in (drawn.training,) for p in graph.places]
    found = []
    cuda = [device for device in devices[:1] if device.type == "cuda"]
    values = [
        _made_up((_MADE_UP, *(size or _LENGTH for size in value.shape)), value.dtype, devices)
        for value in drawn.frontier
    ]
    with torch.random.fork_rng(devices=cuda), torch.no_grad():
        for graph, _ in (drawn.training, drawn.evaluation):
            torch.manual_seed(0)
            given = [_made_up(p.shape, p.dtype, [p.device]) for p in graph.places]
            try:
                outputs = graph.run(given, values)
            except (RuntimeError, ValueError, IndexError) as error:
                raise NotPlainError(f"made-up numbers are refused: {error}") from error
            found += [digest(output) for output in outputs if isinstance(output, Tensor)]
    return " ".join(found)


def _made_up(shape: Any, dtype: torch.dtype, devices: list[torch.device]) -> Tensor:
    """Numbers between 0.1 and 1, since a variance is above 0; zeros where these are indices."""
    device = devices[0] if devices else torch.device("cpu")
    if not dtype.is_floating_point:
        return torch.zeros(shape, dtype=dtype, device=device)
    count = torch.Size(shape).numel()
    return torch.linspace(0.1, 1, count, device=device).to(dtype).reshape(shape)


def _forget_oldest(folder: Path) -> None:
    with output_errors(folder):
        files = sorted(folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime)
        for path in files[:-_MOST]:
            path.unlink(missing_ok=True)
