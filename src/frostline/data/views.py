"""An image set as a torch dataset: decoded, preprocessed, perhaps in random views."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, final

import torch
import xxhash
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from frostline.choices import DecodingName
from frostline.data.decoding import seen_of
from frostline.data.image_sets import ImageSet, MaskFile
from frostline.data.images import open_image
from frostline.data.kept import KeptFrames
from frostline.data.levels import Levels
from frostline.data.masks import Masks
from frostline.errors import ConfigError
from frostline.preprocessing import Preprocessing
from frostline.wording import option

_AREA = (0.35, 1.0)  # part of the picture's area that a view shows
_RATIO = (3 / 4, 4 / 3)  # width to height of that part
_TRIES = 10


@dataclass(frozen=True, slots=True)
class Augment:
    """Which views of a sample a run sees.

    Attributes:
        kind: `none`, the plain picture; `views`, a fixed number of random views, one an epoch in
            turn, whose features can be stored; `live`, a new one every epoch.
        views: how many fixed views a sample has; 1 unless `kind` is `views`.

    Raises:
        ConfigError: `views` is less than 1, or given for another kind.
    """

    kind: Literal["none", "views", "live"] = "none"
    views: int = 1

    def __post_init__(self) -> None:
        if self.views < 1:
            raise ConfigError(f"asked for {self.views} views of each image. Use 1 or more.")
        if self.kind != "views" and self.views != 1:
            raise ConfigError(
                f"augment {self.kind} has no number of views. Use views:{self.views}."
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `none`, `views:K` or `live`; `str()` gives the same text back.

        Raises:
            ConfigError: any other text, or K less than 1.
        """
        kind, colon, count = text.strip().lower().partition(":")
        if kind in ("none", "live") and not colon:
            return cls("none" if kind == "none" else "live")
        if kind == "views" and count.isascii() and count.isdigit() and len(count) < 10:
            return cls("views", int(count))
        raise ConfigError(
            f"cannot read augment {text!r}. Use none, views:K (such as views:4) or live."
        )

    def __str__(self) -> str:
        return f"views:{self.views}" if self.kind == "views" else self.kind

    def view_seed(self, seed: int, sample_key: str, epoch: int) -> int | None:
        """Seed of the view of one sample in one epoch; None for the plain picture.

        The same on every machine and in every version of Python.

        Args:
            seed: the run's.
            sample_key: names the sample, wherever its file lies.
            epoch: counted from 0.
        """
        if self.kind == "none":
            return None
        index = epoch % self.views if self.kind == "views" else epoch
        text = f"{seed}\0{sample_key}\0{index}".encode(errors="backslashreplace")
        return xxhash.xxh3_64_intdigest(text)


def view(image: Image.Image, preprocessing: Preprocessing, *, seed: int) -> Tensor:
    """A random part of an RGB picture, perhaps mirrored -> float32 `(channels, height, width)`.

    The part has 0.35 to 1 of the area and a width of 3/4 to 4/3 of its height; half of the views
    are mirrored left to right. Drawn from `seed` alone; no global generator is read or moved.

    Source: torchvision's RandomResizedCrop and RandomHorizontalFlip (Szegedy et al., Going deeper
    with convolutions, 2014), with a larger smallest area, for data sets of hundreds of pictures.
    """
    draw = random.Random(seed)
    left, top, right, bottom = _part(image.width, image.height, draw)
    height, width = preprocessing.crop
    resample = Image.Resampling[preprocessing.interpolation.upper()]
    # One resize from the box; a crop of its own would warn above half of `MAX_PIXELS`.
    shown = image.resize((width, height), resample, box=(left, top, right, bottom))
    if draw.random() < 0.5:
        shown = shown.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return preprocessing.to_tensor(shown)


def _part(width: int, height: int, draw: random.Random) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) in pixels of a random part; the middle if no try fits."""
    low, high = math.log(_RATIO[0]), math.log(_RATIO[1])
    for _ in range(_TRIES):
        area = width * height * draw.uniform(*_AREA)
        ratio = math.exp(draw.uniform(low, high))
        wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < tall <= height:
            left, top = _offset(width - wide, draw), _offset(height - tall, draw)
            return left, top, left + wide, top + tall
    wide = min(width, max(1, round(height * _RATIO[1])))
    tall = min(height, max(1, round(width / _RATIO[0])))
    left, top = (width - wide) // 2, (height - tall) // 2
    return left, top, left + wide, top + tall


def _offset(room: int, draw: random.Random) -> int:
    """0 to `room` pixels, from `random()`, whose sequence no version of Python changes."""
    return min(room, int(draw.random() * (room + 1)))


_PLAIN = Augment()


@final
@dataclass(eq=False, repr=False)
class ImageDataset(Dataset[tuple[Tensor, Any]]):
    """Map-style: `dataset[i]` is `(float32 (channels, height, width), label or target)`.

    What a sample looks like depends on its file, `levels`, `preprocessing`, `augment`, `seed`, its
    class and file name, and the epoch; on nothing else. Reading is safe from several threads.

    Attributes:
        images: the samples, in the order of the indices.
        preprocessing: makes the tensors.
        augment: which views are seen.
        seed: of the views.
        classes: names that the labels count through.
        labels: one per sample.
        targets: what is learnt of each sample: its label; or its numbers, float32 `(samples, k)`;
            or its mask, uint8 `(height, width)`, read when it is asked for.
        label_names: what the numbers are of, or the classes of the masks; else none.
        names: path of each sample, for messages.
        digests: content digests of files, as `Audit.digests`; other files are read for theirs.
        levels: what becomes black and white in pictures of more than 8 bits, as `Audit.levels`; by
            default 0..65535 of integers and 0..1 of floats.
        decoding: how much of a plain picture is decoded, as for `seen_of`; of a random view all is.
        kept: of these preprocessing steps, what an audit saw of plain pictures.
    """

    images: ImageSet
    preprocessing: Preprocessing
    _: KW_ONLY
    augment: Augment = _PLAIN
    seed: int = 0
    digests: Mapping[Path, str] = field(default_factory=dict)
    levels: Levels | None = None
    decoding: DecodingName = "full"
    kept: KeptFrames | None = None

    def __post_init__(self) -> None:
        self.classes, self.label_names = self.images.classes, self.images.label_names
        self.targets = _targets(self.images, self.preprocessing)
        if isinstance(self.targets, Masks) and self.augment.kind != "none":
            raise ConfigError(
                f"augment {self.augment} shows parts of the pictures, and not of their masks. "
                f"Use {option('augment', 'none')}."
            )
        self.labels = tuple(sample.label for sample in self.images.samples)
        self.names = tuple(str(sample.path) for sample in self.images.samples)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        """`load(index, 0)`: with random views, a plain DataLoader sees the first of them only."""
        return self.load(index, 0)

    def load(self, index: int, epoch: int) -> tuple[Tensor, Any]:
        """The sample as `epoch`, counted from 0, sees it, and its label or target.

        Raises:
            ImageError: the file is gone or broken; names it.
        """
        return self.picture(index, epoch), self.targets[index]

    def picture(self, index: int, epoch: int) -> Tensor:
        """The sample without its target."""
        path, prepare = self.images.samples[index].path, self.preprocessing
        seed = self.view_seed(index, epoch)
        if seed is not None:
            return view(open_image(path, self.levels), prepare, seed=seed)
        if type(prepare) is not Preprocessing:  # which may do otherwise
            return prepare(open_image(path, self.levels))
        kept = self.kept if self.kept and self.kept.preprocessing == prepare else None
        seen = kept.take(path, self.decoding) if kept else None
        if seen is None:
            seen = seen_of(path, prepare, levels=self.levels, decoding=self.decoding)
        return prepare.to_tensor(seen)

    def view_seed(self, index: int, epoch: int) -> int | None:
        """Seed of the view that `epoch` sees; None for the plain picture.

        The key is class and file name: it stays when the data set is moved, split otherwise or
        grows.
        """
        sample = self.images.samples[index]
        key = f"{self.images.class_of(sample)}/{sample.path.name}"
        return self.augment.view_seed(self.seed, key, epoch)


def _targets(images: ImageSet, preprocessing: Preprocessing) -> tuple[int, ...] | Tensor | Masks:
    found = [sample.target for sample in images.samples]
    if not found or found[0] is None:
        return tuple(sample.label for sample in images.samples)
    if isinstance(found[0], MaskFile):
        return Masks(images.samples, preprocessing)
    return torch.tensor(found, dtype=torch.float64)  # a task rounds them, if it has to
