"""How a picture or a text becomes the tensors that the weights were trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, final

from frostline.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import Tensor

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Resize, centre crop, scale to [0, 1], normalise.

    Attributes:
        resize: pixels of the shorter side, or (height, width) which may change the aspect ratio.
        crop: (height, width) of the centre crop, the size that the network sees, in pixels.
        mean: per channel, subtracted after scaling to [0, 1]; three numbers for RGB, or one for
            a network that takes a single grey channel.
        std: per channel, divided by afterwards.
        interpolation: of the resize.

    Raises:
        ConfigError: `mean` and `std` are not three numbers each, or one each.

    Source: the same steps as `torchvision.transforms._presets.ImageClassification`, bit for bit.

    Example:
        >>> from PIL import Image
        >>> preprocess = fl.Preprocessing(resize=32, crop=(28, 28))
        >>> preprocess(Image.new("RGB", (80, 60))).shape
        torch.Size([3, 28, 28])
    """

    resize: int | tuple[int, int] = 256
    crop: tuple[int, int] = (224, 224)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        if len(self.mean) not in (1, 3) or len(self.std) != len(self.mean):
            raise ConfigError(
                f"mean {self.mean} and std {self.std} are for {len(self.mean)} and "
                f"{len(self.std)} channels. Give three numbers each for RGB, or one each for grey."
            )

    @property
    def channels(self) -> int:
        """3 for RGB, 1 for grey."""
        return len(self.mean)

    def __call__(self, image: Image) -> Tensor:
        """An RGB image -> float32 `(channels, height, width)`, height and width as in `crop`."""
        return self.to_tensor(self.frame(image))

    def frame(self, image: Image) -> Image:
        """The part of an RGB image that is seen, resized and cropped; as it is stored in 8 bits."""
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms import functional as F

        size = [self.resize] if isinstance(self.resize, int) else list(self.resize)
        resized = F.resize(image, size, interpolation=InterpolationMode(self.interpolation))
        seen: Image = F.center_crop(resized, list(self.crop))
        return seen

    def to_tensor(self, image: Image) -> Tensor:
        """An RGB image already of size `crop` -> normalised float32 `(channels, height, width)`."""
        import numpy as np
        import torch

        table = _levels(self.mean, self.std)
        # Grey that was stored as RGB comes out as it was; colours are weighed as Pillow does.
        pixels = np.atleast_3d(np.asarray(image.convert("L") if self.channels == 1 else image))
        channels = np.empty((self.channels, *pixels.shape[:2]), np.float32)
        for channel, levels in enumerate(table):
            np.take(levels, pixels[..., channel], out=channels[channel], mode="clip")
        return torch.from_numpy(channels)


@lru_cache(maxsize=16)
def _levels(mean: tuple[float, ...], std: tuple[float, ...]) -> NDArray[np.float32]:
    """The normalised value of each of the 256 levels, `(channels, 256)`.

    Looked up rather than computed for each pixel: the same bits in a fraction of the time, and
    no torch operation, each of which would start a team of threads inside a decoding thread.
    """
    import torch
    from torchvision.transforms import functional as F

    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 256).expand(len(mean), 1, 256)
    scaled = F.convert_image_dtype(levels, torch.float)
    table = F.normalize(scaled, mean=list(mean), std=list(std)).view(-1, 256)
    return cast("NDArray[np.float32]", table.numpy())


@final
class Words(tuple[str, ...]):
    """A text whose words are told apart already, as for a tag for each.

    Example:
        >>> fl.Words("Anna lives in Oslo".split())
        Words('Anna', 'lives', 'in', 'Oslo')
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"Words({', '.join(map(repr, self))})"

    def __str__(self) -> str:
        return " ".join(self)


Text = str | tuple[str, str] | Words
"""One text, whole or in words; or a pair that the model reads together."""

# What in a tokenizer's folder decides which ids a text gets.
_VOCABULARIES = ("tokenizer.json", "vocab.*", "*.model", "*.bpe", "*.tiktoken")
_TOKENIZER_FILES = (
    *(*_VOCABULARIES, "merges.txt", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json"),
)


@dataclass(frozen=True, slots=True)
class TextPreprocessing:
    """Texts -> token ids, by the tokenizer that belongs to the model.

    Attributes:
        tokenizer: folder of the tokenizer's files.
        digest: of these files' content; other files give other ids.
        inputs: what the model takes, among the tokenizer's outputs.
        max_length: most tokens of a text, with those that the tokenizer puts around it; of a
            longer one the end is cut, of a pair that of the longer text.
        padding_side: where shorter texts of a batch are filled up.
        padding_id: the id that they are filled with.
        lower_case: whether texts are put in lower case before the tokenizer's own steps.

    Example:
        >>> preprocess = fl.TextPreprocessing("encoder", max_length=128)
        >>> preprocess.max_length, preprocess.padding_side
        (128, 'right')
    """

    tokenizer: str
    digest: str = ""
    inputs: tuple[str, ...] = ("input_ids", "attention_mask")
    max_length: int = 512
    padding_side: Literal["left", "right"] = "right"
    padding_id: int = 0
    lower_case: bool = False

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise ConfigError(f"asked for texts of {self.max_length} tokens. Use 1 or more.")

    def __str__(self) -> str:
        """What the ids depend on, wherever the tokenizer lies; padding is no part of a sample."""
        names = " ".join(self.inputs)
        case = ", in lower case" if self.lower_case else ""
        return f"tokenizer {self.digest}{case}, at most {self.max_length} tokens, {names}"

    def __call__(self, texts: Sequence[Text]) -> Tokens:
        """All texts at once, which is many times faster than one by one.

        Raises:
            ConfigError: the tokenizer's files are gone, or are others than they were; or it does
                not say which word a token is of.
        """
        import numpy as np

        in_words = bool(texts) and isinstance(texts[0], Words)
        is_pair = bool(texts) and not in_words and not isinstance(texts[0], str)
        made = _tokenizer(self, in_words=in_words)(
            [list(t) if in_words else t if isinstance(t, str) else t[0] for t in texts],
            [text[1] for text in texts] if is_pair else None,
            is_split_into_words=in_words,
            truncation="longest_first",
            max_length=self.max_length,
            verbose=False,
        )
        lengths = np.fromiter(map(len, made["input_ids"]), np.int64, len(texts))
        values = {
            name: np.fromiter(chain.from_iterable(made[name]), np.int32, int(lengths.sum()))
            for name in self.inputs
        }
        # A tokenizer in Python alone does not say what it cut.
        cut = [bool(one.overflowing) for one in made.encodings or ()]
        is_cut = np.array(cut or lengths >= self.max_length, bool)
        return Tokens(values, lengths, is_cut, _first_pieces(made.encodings) if in_words else None)

    def padded(self, samples: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Samples -> a batch `(samples, most tokens)`, filled up with `padding_id` and zeros."""
        from torch.nn.utils.rnn import pad_sequence

        return {
            name: pad_sequence(
                [sample[name] for sample in samples],
                batch_first=True,
                padding_value=self.padding_id if name == "input_ids" else 0,
                padding_side=self.padding_side,
            )
            for name in self.inputs
        }


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """Token ids of many texts, one behind the other.

    Attributes:
        values: int32 `(all tokens,)` by the name of the model's input.
        lengths: tokens of each text, int64 `(texts,)`.
        cut: which texts were longer than what is kept, bool `(texts,)`.
        words: of texts in words, the number of the word that each token begins, int64
            `(all tokens,)`; -1 for its other pieces and for what is put around a text.
    """

    values: Mapping[str, NDArray[np.int32]]
    lengths: NDArray[np.int64]
    cut: NDArray[np.bool_]
    words: NDArray[np.int64] | None = None


def _first_pieces(encodings: Sequence[Any]) -> NDArray[np.int64]:
    import numpy as np

    every = [-1 if n is None else n for one in encodings for n in (None, *one.word_ids)]
    found = np.array(every, np.int64)
    # Behind another piece of the same word; a -1 stands before each text's own.
    found[1:][found[1:] == found[:-1]] = -1
    starts = np.cumsum([0, *(len(one.ids) + 1 for one in encodings)])[:-1]
    return np.delete(found, starts)


def tokenizer_digest(folder: Path) -> str:
    """Content hash of a tokenizer's files, hexadecimal; their place does not count."""
    import xxhash

    state = xxhash.xxh3_128()
    for file in sorted({file for name in _TOKENIZER_FILES for file in folder.glob(name)}):
        state.update(f"{file.name}\0".encode())
        state.update(file.read_bytes())
    return state.hexdigest()


@lru_cache(maxsize=4)
def _tokenizer(preprocessing: TextPreprocessing, *, in_words: bool) -> Any:
    folder = Path(preprocessing.tokenizer)
    if not folder.is_dir():
        raise ConfigError(f"the tokenizer's folder {folder} is gone. Put it back.")
    if preprocessing.digest and tokenizer_digest(folder) != preprocessing.digest:
        raise ConfigError(
            f"the tokenizer in {folder} is another one than it was: its files have changed. Put "
            "the former ones back, or begin anew with these."
        )
    tokenizer = load_tokenizer(folder)
    if preprocessing.lower_case:
        _put_in_lower_case(tokenizer)
    if in_words:
        _take_words(tokenizer, folder)
    return tokenizer


def _take_words(tokenizer: Any, folder: Path) -> None:
    """Let each word begin as it does within a text, behind a space.

    Those of bytes (GPT-2, RoBERTa) would else glue the words together, and transformers 5.23 no
    longer says so.
    """
    if not tokenizer.is_fast:
        raise ConfigError(
            f"the tokenizer in {folder} is one in Python alone, which does not say which word a "
            "token is of. Use a model that has a tokenizer.json."
        )
    from tokenizers import pre_tokenizers

    splitting = tokenizer.backend_tokenizer.pre_tokenizer
    is_sequence = isinstance(splitting, pre_tokenizers.Sequence)
    for part in splitting if is_sequence else [splitting]:
        if isinstance(part, pre_tokenizers.ByteLevel):
            part.add_prefix_space = True
    tokenizer.backend_tokenizer.pre_tokenizer = splitting


def _put_in_lower_case(tokenizer: Any) -> None:
    """All but its special tokens, which `str.lower` would change too."""
    if not tokenizer.is_fast:
        tokenizer.do_lower_case = True
        return
    from tokenizers import normalizers

    backend = tokenizer.backend_tokenizer
    own = [backend.normalizer] if backend.normalizer else []
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder, by transformers; Any, because its types come and go by version.

    Raises:
        Exception: whatever transformers raises where it cannot read one.
    """
    from transformers import AutoTokenizer

    # Without a vocabulary transformers 5.23 makes a tokenizer to which all words are unknown.
    if not any(file for name in _VOCABULARIES for file in folder.glob(name)):
        raise FileNotFoundError(f"none of {', '.join(_VOCABULARIES)}")

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)
