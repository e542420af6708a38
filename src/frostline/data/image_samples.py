"""Pictures of an `ImageDataset` as samples: known by content, decoded no further than they need."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import final

import PIL
import xxhash
from torch import Tensor

from frostline._files import file_digest
from frostline.choices import DecodingName
from frostline.data.ahead import Ahead
from frostline.data.decoding import LIKELY, decodings_of, worth_less
from frostline.data.images import reading_of
from frostline.data.kept import stamp_of
from frostline.data.levels import FULL
from frostline.data.masks import Masks
from frostline.data.ordered import ordered_map
from frostline.data.samples import Samples
from frostline.data.views import Augment, ImageDataset
from frostline.errors import DataError
from frostline.preprocessing import Preprocessing


@final
class ImageSamples(Samples):
    """Pictures: the hash is of the file's bytes and the view's seed, so names do not count.

    Attributes:
        digests: of files that were read, each with what the file was like then; may be shared by
            several that are made of the same files.
    """

    def __init__(self, data: ImageDataset, views: int | None = None) -> None:
        self.what = "the ImageDataset"
        self._data = data
        is_live = data.augment.kind == "live"
        if views is not None and views != data.augment.views and not is_live:
            self._data = replace(data, augment=Augment("views", views) if views > 1 else Augment())
        self.targets = data.targets
        self.views = 0 if is_live else self._data.augment.views
        # Another decoder may round otherwise; what a view shows is part of its seed.
        self.transform = f"{data.preprocessing!r}, Pillow {PIL.__version__}"
        if data.levels not in (None, FULL):
            self.transform += f", levels {[float(end) for end in data.levels]}"
        if data.decoding != "full":
            self.transform += f", {data.decoding}"
        self.digests: dict[Path, tuple[object, str]] = {}
        self._ahead: Ahead | None = None
        self._begun: ImageSamples | None = None  # these, as they are loaded in the background

    def __len__(self) -> int:
        return len(self._data)

    def begin(self, decoding: DecodingName = "full", *, after: ImageSamples | None = None) -> None:
        """Load rows in the background, for who asks for them later.

        Args:
            decoding: by which they will probably be asked for, through `decoded`.
            after: whose rows, which are being loaded, come first.
        """
        begun = None if after is None else after._begun
        first = None if begun is None else begun._ahead
        self._begun = made = self.decoded(decoding)
        made._ahead = Ahead(made._loaded, range(len(self) * self.views), after=first)

    def end(self) -> None:
        """Let go of what was loaded in the background and not asked for."""
        made, self._begun = self._begun, None
        if made is not None and made._ahead is not None:
            made._ahead.end()
            made._ahead = None

    def load(self, row: int) -> Tensor:
        ahead = self._ahead
        found = None if ahead is None else ahead.take(row)
        return self._loaded(row) if found is None else found

    def _loaded(self, row: int) -> Tensor:
        view, sample = divmod(row, len(self))
        return self._data.picture(sample, view)

    def ids(self, rows: Sequence[int]) -> list[bytes]:
        wanted = [divmod(row, len(self)) for row in rows]
        paths = [self._data.images.samples[sample].path for _, sample in wanted]
        new = [path for path in dict.fromkeys(paths) if path not in self.digests]
        with closing(ordered_map(self._digest, new, ahead=64)) as digests:
            deque(digests, maxlen=0)  # read side by side
        found = {path: self._digest(path) for path in dict.fromkeys(paths)}
        seeds = (self._data.view_seed(sample, view) for view, sample in wanted)
        texts = (f"{found[path]} view {seed}" for path, seed in zip(paths, seeds, strict=True))
        return [xxhash.xxh3_128_digest(text.encode()) for text in texts]

    def name(self, sample: int) -> str:
        return self._data.names[sample]

    def decoded(self, decoding: DecodingName) -> ImageSamples:
        """The same pictures, of which no more than that is decoded.

        Random views, which may show a small part of a picture, and pictures beside masks stay.
        """
        if not self._is_plain:
            return self
        if self._begun is not None:
            if decoding == self._begun._data.decoding:
                return self._begun
            self.end()  # for nobody
        if decoding == self._data.decoding:
            return self
        made = ImageSamples(replace(self._data, decoding=decoding))
        made.digests = self.digests
        return made

    def read_anew(self) -> ImageSamples:
        """The same pictures, none of which an audit has kept."""
        made = ImageSamples(replace(self._data, kept=None))
        made.digests = self.digests
        return made

    def worth_less(self, most: int) -> list[int]:
        """A few samples that need not be decoded in full; none where little is gained by it."""
        if not self._is_plain:
            return []
        paths = [sample.path for sample in self._data.images.samples]
        return worth_less(paths, self._data.preprocessing, most)

    def likely_decoding(self) -> DecodingName:
        """What will probably do, before any network has seen them."""
        return LIKELY if self.worth_less(1) else "full"

    def decodings(self, samples: Sequence[int]) -> tuple[DecodingName, ...]:
        """What there is to try on these samples beside a full decoding, the quickest first.

        What an audit kept of most pictures is the quickest, and nearer than what it left out.
        """
        paths = [self._data.images.samples[sample].path for sample in samples]
        every, kept = decodings_of(paths, self._data.preprocessing), self._data.kept
        if kept is None or kept.decoding not in every or 2 * len(kept) < len(self):
            return every
        return every[every.index(kept.decoding) :]

    @property
    def _is_plain(self) -> bool:
        data = self._data
        has_steps = type(data.preprocessing) is Preprocessing  # and none of someone's own
        return has_steps and data.augment.kind == "none" and not isinstance(data.targets, Masks)

    def forget_kept(self) -> None:
        """Free what an audit kept of these pictures, once their features are there."""
        if self._data.kept is not None:
            self._data.kept.forget(sample.path for sample in self._data.images.samples)

    def why_not_stored(self) -> str:
        live = "augment live makes a new view every epoch, so there is none to store."
        return "" if self.views else live

    def _digest(self, path: Path) -> str:
        """Of the file's content, which is read once unless the file changed since."""
        try:
            stamp = stamp_of(path.stat())
            known = self.digests.get(path)
            if known is None and path in self._data.digests:
                known = (stamp, self._data.digests[path] + reading_of(path))
            if known is None or known[0] != stamp:
                known = (stamp, file_digest(path) + reading_of(path))
        except OSError as error:
            raise DataError(
                f"{path} cannot be read: {error.strerror or error}. Restore it, or leave it out."
            ) from error
        self.digests[path] = known
        return known[1]
