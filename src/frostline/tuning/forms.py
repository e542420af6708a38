"""A form: in which precision, layout and rewriting a prefix is computed. Text and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, Self, final, get_args

import torch

from frostline.errors import ConfigError

DtypeName = Literal["float32", "bfloat16", "float16"]
DTYPES: Final[dict[DtypeName, torch.dtype]] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_EXTRAS = ("channels-last", "folded", "compiled")


@final
@dataclass(frozen=True, slots=True)
class Form:
    """How a prefix is computed; `str` gives its words, `Form.parse` reads them back.

    Attributes:
        dtype: of parameters, buffers, inputs and what lies between; outputs are as in the model.
        channels_last: 4-D inputs and convolution weights lie as (batch, height, width, channels).
        folded: batch norms are multiplied into the convolution or linear layer before them.
        compiled: by `torch.compile`.
    """

    dtype: DtypeName = "float32"
    channels_last: bool = False
    folded: bool = False
    compiled: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in get_args(DtypeName):
            raise ConfigError(
                f"a form's dtype is one of {', '.join(get_args(DtypeName))}; got {self.dtype!r}."
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `str(form)` wrote: `bfloat16 channels-last folded`.

        Raises:
            ConfigError: the first word is no dtype, or a further one is unknown or said twice.
        """
        dtype, *extras = text.split() or [""]
        known = [name for name in get_args(DtypeName) if name == dtype]
        if not known or set(extras) - set(_EXTRAS) or len(set(extras)) < len(extras):
            raise ConfigError(
                f"{text!r} is no form of a prefix. Write one of {', '.join(get_args(DtypeName))}, "
                f"and after it any of {', '.join(_EXTRAS)}: 'bfloat16 channels-last'."
            )
        return cls(known[0], *(word in extras for word in _EXTRAS))

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch's own object."""
        return DTYPES[self.dtype]

    def __str__(self) -> str:
        chosen = (self.channels_last, self.folded, self.compiled)
        return " ".join([self.dtype, *(w for w, on in zip(_EXTRAS, chosen, strict=True) if on)])


PLAIN: Final = Form()
"""As the model itself computes: float32, nothing rewritten."""
