"""What a user hands a classifier as `X` -> samples, as its network takes them."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import TensorDataset

from frostline.data import (
    ImageDataset,
    ImageSet,
    Sample,
    Samples,
    TextSamples,
    content_id,
    open_data,
)
from frostline.errors import DataError
from frostline.features import FeatureData
from frostline.preprocessing import Preprocessing, TextPreprocessing

Prepare = Preprocessing | TextPreprocessing | None
"""What makes the network's input; None where it takes rows as they are."""


def is_listed(given: Any) -> bool:
    """Whether `given` lists files or texts, and not numbers."""
    # Arrays, tables and sparse matrices say how many dimensions they have; lists do not.
    if getattr(given, "ndim", 1) != 1 or not isinstance(given, Iterable):
        return False
    return isinstance(next(iter(given), None), str | Path)


@final
@dataclass(frozen=True)
class Given:
    """Samples as they were handed over, with their class indices.

    Attributes:
        data: a list of files or texts; or an array `(samples, ...)` of numbers.
    """

    data: Any
    targets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def form(self) -> str:
        """What each sample looks like; equal where a network sees inputs of one shape."""
        return "listed" if is_listed(self.data) else str(np.shape(self.data)[1:])

    def samples(self, prepare: Prepare, places: Sequence[int] | None = None) -> Samples:
        """As the network takes them, those at some places or all.

        Raises:
            DataError: the network takes something else.
        """
        chosen = range(len(self)) if places is None else places
        targets = self.targets[list(chosen)].tolist()
        if is_listed(self.data):
            return _of_list([str(self.data[place]) for place in chosen], targets, prepare)
        array = np.asarray(self.data)
        return _of_array(array if places is None else array[list(places)], targets, prepare)


def _of_list(names: list[str], targets: list[int], prepare: Prepare) -> Samples:
    if isinstance(prepare, TextPreprocessing):
        return TextSamples(names, targets, prepare)
    if prepare is None:
        raise DataError(
            "X lists files, and the network takes rows as they are. Say how pictures become its "
            "input: preprocessing=fl.Preprocessing(resize=256, crop=(224, 224))."
        )
    classes = tuple(map(str, range(max(targets, default=0) + 1)))
    samples = (Sample(Path(name), label) for name, label in zip(names, targets, strict=True))
    return open_data(ImageDataset(ImageSet(classes, tuple(samples)), prepare))


def _of_array(array: NDArray[Any], targets: list[int], prepare: Prepare) -> Samples:
    if isinstance(prepare, TextPreprocessing):
        raise DataError(
            f"X is {array.dtype} {array.shape}, and the network reads texts. Give a list of them."
        )
    if prepare is not None and not _is_ready(array, prepare):
        return PictureSamples(array, targets, prepare)
    rows = torch.from_numpy(np.array(array, np.float32, order="C"))  # a copy that torch may write
    return open_data(TensorDataset(rows, torch.tensor(targets, dtype=torch.int64)))


def _is_ready(array: NDArray[Any], prepare: Preprocessing) -> bool:
    """Whether these are the network's own inputs: normalised, channels first."""
    return array.dtype.kind == "f" and array.shape[1:] == (prepare.channels, *prepare.crop)


@final
class PictureSamples(Samples):
    """Pictures in memory: 8-bit values, or floats from 0 to 1.

    Args:
        pictures: `(samples, height, width)`, or with 1 or 3 channels behind.

    Raises:
        DataError: they have another shape or other values.
    """

    def __init__(
        self, pictures: NDArray[Any], targets: Sequence[int], preprocessing: Preprocessing
    ) -> None:
        if pictures.ndim == 4 and pictures.shape[3] == 1:
            pictures = pictures[..., 0]
        if pictures.ndim not in (3, 4) or (pictures.ndim == 4 and pictures.shape[3] != 3):
            crop = ", ".join(map(str, (preprocessing.channels, *preprocessing.crop)))
            raise DataError(
                f"X is {pictures.dtype} {pictures.shape}, and the network takes pictures. Give "
                "them as (samples, height, width, 3), as (samples, height, width) of grey, as a "
                f"list of files, or ready for the network as floats (samples, {crop})."
            )
        self.targets, self.what = list(targets), "X"
        self.transform = f"{preprocessing!r} of arrays, Pillow {PIL.__version__}"
        self._pictures = _in_bytes(pictures)
        self._preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self._pictures)

    def load(self, row: int) -> Tensor:
        return self._preprocessing(Image.fromarray(self._pictures[row]).convert("RGB"))

    def ids(self, rows: Sequence[int]) -> list[bytes]:
        return [content_id(self._pictures[row]) for row in rows]


def _in_bytes(pictures: NDArray[Any]) -> NDArray[np.uint8]:
    if pictures.dtype == np.uint8:
        return pictures
    low, high = (float(end) for end in (pictures.min(), pictures.max()))
    most = 1.0 if pictures.dtype.kind == "f" else 255.0
    if pictures.dtype.kind not in "iuf" or not 0 <= low <= high <= most:
        raise DataError(
            f"X holds {pictures.dtype} from {low:g} to {high:g}, and pictures are integers from 0 "
            "to 255 or floats from 0 to 1. Scale them to one of the two."
        )
    return np.rint(pictures * (255.0 / most)).astype(np.uint8)


class _Gathered(tuple[Tensor, ...]):
    """Values of several samples, batched already."""

    __slots__ = ()


@final
class FeatureRows(Samples):
    """Some of a data set's stored features as samples: batches are gathered, not collated.

    Attributes:
        labels: the targets, for class weights.
    """

    def __init__(self, data: FeatureData, places: Sequence[int], classes: Sequence[str]) -> None:
        self._data, self._places = data, torch.as_tensor(places, dtype=torch.int64)
        self.targets = data.targets[self._places]
        self.labels, self.classes = tuple(self.targets.tolist()), tuple(classes)
        self.what = "X"
        if data.lengths is not None:
            self.lengths = [data.lengths[place] for place in places]

    def __len__(self) -> int:
        return len(self._places)

    def load(self, row: int) -> tuple[Tensor, ...]:
        return tuple(value[0] for value in self._gathered([row]))

    def in_batches(
        self,
        batches: Iterable[Sequence[int]],
        *,
        threads: int | None = None,  # noqa: ARG002
    ) -> Generator[Any, None, None]:
        """Gathered without a loop over the samples."""
        for rows in batches:
            yield self._gathered(rows)

    def collate(self, loaded: Sequence[Any]) -> tuple[Tensor, ...]:
        if isinstance(loaded, _Gathered):
            return loaded
        return tuple(torch.stack(values) for values in zip(*loaded, strict=True))

    def name(self, sample: int) -> str:
        return self._data.names[int(self._places[sample])]

    def _gathered(self, rows: Sequence[int]) -> _Gathered:
        places = self._places[torch.tensor(rows)]
        return _Gathered(self._data.rows.gather(places, pads=self._data.padding.pads))


def held_out(targets: NDArray[Any], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Places to train on and to validate on: about `fraction` of each class, drawn by `seed`.

    A class with 2 or more samples has at least one on either side; a single one is trained on.
    Where nothing is held out, all are on both sides.
    """
    draw, held = np.random.RandomState(seed), set[int]()
    for label in np.unique(targets) if fraction else ():
        places = np.flatnonzero(targets == label)
        count = min(len(places) - 1, max(1, round(len(places) * fraction)))
        held.update(draw.permutation(places)[:count].tolist())
    every = range(len(targets))
    return [i for i in every if i not in held], sorted(held) or list(every)
