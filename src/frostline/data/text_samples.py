"""Texts as samples: all tokenised at once, when the first one is asked for; padded in batches."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from typing import Any, final

import numpy as np
import torch
import xxhash
from torch import Tensor

from frostline.data.samples import Samples
from frostline.errors import DataError
from frostline.preprocessing import Text, TextPreprocessing, Tokens, Words

_NO_TAG = -100  # which the loss leaves out

_MAKERS = ("tokenizers", "transformers")  # of the ids, along with the tokenizer's files


@final
class TextSamples(Samples):
    """Texts or pairs of texts, as the model that `preprocessing` belongs to takes them.

    A sample is a dict of 1-D int64 tensors as long as its text; a batch is filled up to its
    longest one. Equal texts share their stored features, whatever table they stand in.

    The target of a text in words is 1-D, as long as its tokens: at the first token of each word
    stands its tag, at the others -100.

    Args:
        texts: all single ones, all pairs, or all `Words`.
        targets: one for each text, or for each of its words; without any there is nothing to train
            on, only to predict, and of words the number of each stands where its tag would.
        preprocessing: of the loaded model: `loaded.of_texts`.
        classes: names that the targets count through.
        names: what to call each text in messages, or what gives its name by its number.
        what: what to call all of them.

    Raises:
        DataError: another number of targets, or of tags; some texts are pairs and others not.

    Example:
        >>> encoder = fl.TextPreprocessing("encoder")
        >>> samples = fl.TextSamples(["good", "bad"], [1, 0], encoder)
        >>> len(samples), samples.name(1)
        (2, 'text 1')
    """

    def __init__(
        self,
        texts: Sequence[Text],
        targets: Any,
        preprocessing: TextPreprocessing,
        *,
        classes: Sequence[str] = (),
        names: Callable[[int], str] = "text {}".format,
        what: str = "the texts",
    ) -> None:
        self.texts, self.preprocessing, self.what = tuple(texts), preprocessing, what
        self._given = targets
        self.classes = tuple(classes) or None
        self.transform = ", ".join([str(preprocessing), *map(_version, _MAKERS)])
        self._names = names
        self._tokens: Tokens | None = None
        self._tags: list[Tensor] | None = None
        self._starts = np.zeros(1, np.int64)
        self._lock = threading.Lock()
        if targets is not None and len(targets) != len(self.texts):
            raise DataError(
                f"{what} are {len(self.texts)}, and their labels {len(targets)}. Give one "
                "label for each text."
            )
        if len({type(text) for text in self.texts}) > 1:
            raise DataError(
                f"some of {what} are pairs or words, and others are not. Give all alike."
            )
        self._has_words = isinstance(next(iter(self.texts), None), Words)
        if self._has_words and targets is not None:
            self._check_tags(targets)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def targets(self) -> Any:
        """As they were given; of words for each token."""
        if not self._has_words:
            return [0] * len(self.texts) if self._given is None else self._given
        if self._tags is None:
            self._tags = self._tags_of_tokens()
        return self._tags

    def load(self, row: int) -> dict[str, Tensor]:
        tokens = self.tokens
        part = slice(self._starts[row], self._starts[row + 1])
        return {
            name: torch.from_numpy(v[part].astype(np.int64)) for name, v in tokens.values.items()
        }

    def read(self, rows: Sequence[int]) -> list[tuple[bytes, Callable[[], Any]]]:
        return list(zip(self.ids(rows), (partial(self.load, row) for row in rows), strict=True))

    def ids(self, rows: Sequence[int]) -> list[bytes]:
        return [text_id(self.texts[row]) for row in rows]

    def name(self, sample: int) -> str:
        return self._names(sample)

    def collate(self, loaded: Sequence[Any]) -> dict[str, Tensor]:
        return self.preprocessing.padded(loaded)

    @property
    def lengths(self) -> Sequence[int]:  # type: ignore[override]  # made when it is asked for
        """Tokens of each text."""
        found: list[int] = self.tokens.lengths.tolist()
        return found

    @property
    def tokens(self) -> Tokens:
        """Of all texts, made when they are first asked for.

        Raises:
            DataError: a text has no tokens at all.
        """
        with self._lock:  # samples are loaded in threads
            if self._tokens is None:
                found = self.preprocessing(self.texts)
                if (empty := np.flatnonzero(found.lengths == 0)).size:
                    raise DataError(
                        f"{self.name(int(empty[0]))} has no tokens, and the tokenizer puts none "
                        f"around a text; so have {empty.size} of {len(self):,}. Leave them out."
                    )
                self._starts = np.concatenate([[0], found.lengths.cumsum()])
                self._tokens = found
            return self._tokens

    def _check_tags(self, targets: Sequence[Sequence[int]]) -> None:
        for place, (text, tags) in enumerate(zip(self.texts, targets, strict=True)):
            if len(tags) != len(text):
                raise DataError(
                    f"{self.name(place)} has {len(text)} words and {len(tags)} tags. Give a tag "
                    "for each word."
                )

    def _tags_of_tokens(self) -> list[Tensor]:
        words, found = self.tokens.words, list[Tensor]()
        assert words is not None
        for place, text in enumerate(self.texts):
            own = torch.from_numpy(words[self._starts[place] : self._starts[place + 1]])
            given = range(len(text)) if self._given is None else self._given[place]
            tags = torch.as_tensor([*given, _NO_TAG], dtype=torch.int64)
            found.append(tags[own])  # the last one where no word begins
        return found

    def truncation(self) -> str:
        """One line on texts that were cut; empty where none was."""
        count = int(self.tokens.cut.sum())
        if not count:
            return ""
        behind = ": the words behind have no tag" if self._has_words else ""
        return (
            f"{count:,} of {len(self):,} texts {'is' if count == 1 else 'are'} longer than "
            f"{self.preprocessing.max_length} tokens and {'was' if count == 1 else 'were'} "
            f"cut{behind}."
        )


def _version(package: str) -> str:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:  # nothing can be tokenised then
        return f"no {package}"


def text_id(text: Text) -> bytes:
    """Content hash of a text, 16 bytes; the tokenizer is part of the store's key."""
    parts = (text,) if isinstance(text, str) else text
    state = xxhash.xxh3_128(b"words\0" if isinstance(text, Words) else b"")
    for part in parts:
        content = part.encode(errors="surrogatepass")
        state.update(f"{len(content)} bytes\0".encode())
        state.update(content)
    return state.digest()
