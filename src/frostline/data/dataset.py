"""An image set as a torch dataset: decoded, preprocessed, perhaps in random views."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import final

from torch import Tensor
from torch.utils.data import Dataset

from frostline.data.image_sets import ImageSet
from frostline.data.images import open_image
from frostline.data.views import Augment, view
from frostline.preprocessing import Preprocessing

_PLAIN = Augment()


@final
class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Map-style: `dataset[i]` is `(float32 (3, height, width), label)`.

    What a sample looks like depends on its file, `preprocessing`, `augment`, `seed`, its class and
    file name, and the epoch; on nothing else. Reading is safe from several threads.

    Attributes:
        images: the samples, in the order of the indices.
        preprocessing: makes the tensors.
        augment: which views are seen.
        seed: of the views.
        classes: names that the labels count through.
        labels: one per sample.
        names: path of each sample, for messages.
        digests: content digests of files, as `Audit.digests`; other files are read for theirs.
    """

    def __init__(
        self,
        images: ImageSet,
        preprocessing: Preprocessing,
        *,
        augment: Augment = _PLAIN,
        seed: int = 0,
        digests: Mapping[Path, str] | None = None,
    ) -> None:
        self.images = images
        self.preprocessing = preprocessing
        self.augment = augment
        self.seed = seed
        self.digests = digests or {}
        self.classes = images.classes
        self.labels = tuple(sample.label for sample in images.samples)
        self.names = tuple(str(sample.path) for sample in images.samples)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """`load(index, 0)`: with random views, a plain DataLoader sees the first of them only."""
        return self.load(index, 0)

    def load(self, index: int, epoch: int) -> tuple[Tensor, int]:
        """The sample as `epoch`, counted from 0, sees it, and its label.

        Raises:
            ImageError: the file is gone or broken; names it.
        """
        sample = self.images.samples[index]
        image = open_image(sample.path)
        seed = self.view_seed(index, epoch)
        if seed is None:
            return self.preprocessing(image), sample.label
        return view(image, self.preprocessing, seed=seed), sample.label

    def view_seed(self, index: int, epoch: int) -> int | None:
        """Seed of the view that `epoch` sees; None for the plain picture.

        The key is class and file name: it stays when the data set is moved, split otherwise or
        grows.
        """
        sample = self.images.samples[index]
        key = f"{self.classes[sample.label]}/{sample.path.name}"
        return self.augment.view_seed(self.seed, key, epoch)
