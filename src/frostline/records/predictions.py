"""What the best epoch made of each validation sample: `best/predictions.safetensors`.

A safetensors file MUST hold, for `n` samples in the order of the validation data:

    ranked            int32 (n, k), the most probable classes, best first; k is 5 or all there are
    probabilities     float32 (n, k), theirs
    targets           int32 (n,), the right class
    target_chance     float32 (n,), the probability that the right class was given

and in its header the texts `format` ("frostline-predictions"), `version` ("1"), `epoch`, `root`
and `names` (a JSON array; a sample's file is `root` and its name). `content` is the fingerprint
of the tensors by name and `header` a checksum of the other texts; both may lack. That is 48 bytes a
sample and its name, however many classes there are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from frostline._tensor_files import check_header, save_tensors
from frostline.errors import ConfigError
from frostline.fingerprints import fingerprint_of

_FORMAT, _VERSION = "frostline-predictions", "1"
_TENSORS = ("ranked", "probabilities", "targets", "target_chance")
_KEPT_CLASSES = 5
_ROWS_AT_ONCE = 8192  # of 1,000 classes are 64 MB in float64


@final
@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """Probabilities of the most probable classes of each sample, and of the right one.

    Attributes:
        epoch: whose weights they are of, counted from 1.
        names: what each sample is called: its path, or `sample 17`.
        ranked, probabilities, targets, target_chance: as in the file, see above.
    """

    epoch: int
    names: tuple[str, ...]
    ranked: Tensor
    probabilities: Tensor
    targets: Tensor
    target_chance: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def predicted(self) -> Tensor:
        """The class that each sample was taken for, int64."""
        return self.ranked[:, 0].long()

    @property
    def confidence(self) -> Tensor:
        """The probability of that class, float64."""
        return self.probabilities[:, 0].double()

    @property
    def hits(self) -> Tensor:
        """Whether each sample was taken for what it is."""
        return self.predicted == self.targets

    @property
    def worst_first(self) -> Tensor:
        """Places of the samples: the surest mistakes, then the others, then hits, surest last."""
        badness = torch.where(self.hits, -self.confidence, 1 + self.confidence)
        return badness.argsort(descending=True, stable=True)

    def confusion(self, classes: int) -> Tensor:
        """Counts, `(classes, classes)`: rows are true classes, columns predicted ones."""
        places = self.targets.long() * classes + self.predicted
        return torch.bincount(places, minlength=classes**2).view(classes, classes)


def judged_of(logits: Tensor, targets: Tensor, *, names: Sequence[str], epoch: int) -> Judged:
    """What is kept of logits `(samples, classes)`."""
    ranked = _ranked(logits, min(_KEPT_CLASSES, logits.shape[1]))
    chances, target_chances = [], []
    for rows in range(0, len(logits), _ROWS_AT_ONCE):
        part = slice(rows, rows + _ROWS_AT_ONCE)
        # Of infinite logits it is not a number.
        whole = logits[part].double().softmax(dim=1).nan_to_num()
        chances.append(whole.gather(1, ranked[part]).float())
        target_chances.append(whole.gather(1, targets[part, None])[:, 0].float())
    return Judged(
        epoch,
        tuple(names),
        ranked.int(),
        torch.cat(chances),
        targets.int(),
        torch.cat(target_chances),
    )


def _ranked(logits: Tensor, count: int) -> Tensor:
    """The most probable classes; of two alike the one that `argmax` takes comes first."""
    ranked, first = logits.topk(count, dim=1).indices, logits.argmax(dim=1)
    other = ranked[:, 0] != first
    if other.any():
        raised = logits[other].nan_to_num()  # an infinite one must not stand beside it
        raised.scatter_(1, first[other, None], torch.inf)
        ranked[other] = raised.topk(count, dim=1).indices
    return ranked


def write_judged(judged: Judged, path: Path) -> None:
    """Write the file, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    root = _common_folder(judged.names)
    names = [os.path.relpath(name, root) for name in judged.names] if root else judged.names
    header = {
        "format": _FORMAT,
        "version": _VERSION,
        "epoch": str(judged.epoch),
        "root": json.dumps(root),
        "names": json.dumps(names),
    }
    tensors = {name: getattr(judged, name).contiguous() for name in _TENSORS}
    header["content"] = str(fingerprint_of(dict(sorted(tensors.items()))))
    save_tensors(tensors, path, header=header)


def read_judged(path: Path) -> Judged:
    """Read the file.

    Raises:
        ConfigError: it is missing, damaged, or of a later version.
    """
    try:
        with safe_open(path, framework="pt") as content:
            header = content.metadata() or {}
            if header.get("format") != _FORMAT:
                raise ValueError(f"format {header.get('format')!r}")
            if (version := header.get("version")) != _VERSION:
                raise ConfigError(
                    f"{path} is of version {version}, this Frostline reads {_VERSION}, so nothing "
                    "is known of single samples. Use the Frostline that wrote it, or a newer one."
                )
            check_header(header)
            tensors = {name: content.get_tensor(name) for name in sorted(content.keys())}
            if header.get("content", found := str(fingerprint_of(tensors))) != found:
                raise ValueError("its content is not what was written")
            root, names = json.loads(header["root"]), json.loads(header["names"])
            judged = Judged(
                int(header["epoch"]),
                tuple(os.path.join(root, name) if root else name for name in names),  # noqa: PTH118 - 50,000 Path objects take a second
                *(tensors[name] for name in _TENSORS),
            )
        _check_whole(judged)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is missing or damaged ({error}), so nothing is known of single samples. "
            "Restore it from a copy, or train again."
        ) from error
    return judged


def _check_whole(judged: Judged) -> None:
    count = len(judged.names)
    shapes = judged.ranked.dim() == 2 and judged.ranked.shape == judged.probabilities.shape
    lengths = (judged.ranked, judged.targets, judged.target_chance)
    if not count or not shapes or any(len(part) != count for part in lengths):
        raise ValueError("its parts are of different lengths")
    if min(int(judged.ranked.min()), int(judged.targets.min())) < 0:
        raise ValueError("a class has a number below 0")


def _common_folder(names: Sequence[str]) -> str:
    """Where all samples lie; empty where they are no files."""
    if not names or not all(os.path.isabs(name) for name in names):  # noqa: PTH117 - as above
        return ""
    try:
        return os.path.commonpath(os.path.dirname(name) for name in names)  # noqa: PTH120 - likewise
    except ValueError:  # on several drives
        return ""
