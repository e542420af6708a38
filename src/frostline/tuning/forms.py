"""A form: how features are computed, of how much of each picture; and which forms to try where."""

from __future__ import annotations

import platform
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self, final, get_args

import torch

from frostline.choices import DecodingName, FloatName
from frostline.errors import ConfigError

DTYPES: Final[dict[FloatName, torch.dtype]] = {
    name: getattr(torch, name) for name in get_args(FloatName)
}
_EXTRAS = ("channels-last", "folded", "compiled")
_DECODINGS = get_args(DecodingName)


@final
@dataclass(frozen=True, slots=True)
class Form:
    """How a prefix is computed; `str` gives its words, `Form.parse` reads them back.

    Attributes:
        dtype: of parameters, buffers, inputs and what lies between; outputs are as in the model.
        channels_last: 4-D inputs and convolution weights lie as (batch, height, width, channels).
        folded: batch norms are multiplied into the convolution or linear layer before them.
        compiled: by `torch.compile`.
        decoding: how much of a picture is decoded: `full`; `jpeg-crop`, where no more of a JPEG is
            resized than is seen; `jpeg-4x` and `jpeg-2x`, where besides it is scaled while it is
            decoded, to at least so many times the size that it is resized to.
    """

    dtype: FloatName = "float32"
    channels_last: bool = False
    folded: bool = False
    compiled: bool = False
    decoding: DecodingName = "full"

    def __post_init__(self) -> None:
        if self.decoding not in _DECODINGS:
            raise ConfigError(
                f"a form's decoding is one of {', '.join(_DECODINGS)}; got {self.decoding!r}."
            )
        if self.dtype not in get_args(FloatName):
            raise ConfigError(
                f"a form's dtype is one of {', '.join(get_args(FloatName))}; got {self.dtype!r}."
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `str(form)` wrote: `bfloat16 channels-last folded`.

        Raises:
            ConfigError: the first word is no dtype, or a further one is unknown or said twice.
        """
        dtype, *extras = text.split() or [""]
        decodings = [name for name in _DECODINGS[1:] if name in extras[-1:]]
        extras = extras[:-1] if decodings else extras
        known = [name for name in get_args(FloatName) if name == dtype]
        if not known or set(extras) - set(_EXTRAS) or len(set(extras)) < len(extras):
            raise ConfigError(
                f"{text!r} is no form of a prefix. Write one of {', '.join(get_args(FloatName))}, "
                f"and after it any of {', '.join(_EXTRAS)}: 'bfloat16 channels-last'. The last may "
                f"be one of {', '.join(_DECODINGS[1:])}."
            )
        channels_last, folded, compiled = (word in extras for word in _EXTRAS)
        form = cls(known[0], channels_last, folded, compiled)
        return replace(form, decoding=decodings[0]) if decodings else form

    @property
    def computing(self) -> Self:
        """The same of the prefix alone, whatever its inputs are made of."""
        return replace(self, decoding="full")

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch's own object."""
        return DTYPES[self.dtype]

    def __str__(self) -> str:
        chosen = (self.channels_last, self.folded, self.compiled)
        extras = [word for word, on in zip(_EXTRAS, chosen, strict=True) if on]
        return " ".join([self.dtype, *extras, *([self.decoding] * (self.decoding != "full"))])


PLAIN: Final = Form()
"""As the model itself computes: float32, nothing rewritten, pictures decoded in full."""


def machine(device: torch.device | str = "cpu") -> str:
    """The processor or accelerator, its abilities, torch's version and the number of threads.

    A decision made under one such name holds under an equal one.
    """
    where = torch.device(device)
    parts = [_processor(), torch.backends.cpu.get_cpu_capability()]
    parts += [name for name, there in _abilities().items() if there]
    parts += [f"{torch.get_num_threads()} threads", f"torch {torch.__version__}"]
    if where.type == "cuda":
        properties = torch.cuda.get_device_properties(where)
        parts += [f"{properties.name} {properties.major}.{properties.minor}"]
    elif where.type != "cpu":
        parts += [where.type]
    return ", ".join(parts)


def fast_dtypes(device: torch.device) -> tuple[FloatName, ...]:
    """Reduced dtypes the device computes in hardware, most promising first."""
    if device.type == "cpu":
        able = _abilities()
        bfloat16 = able["amx"] or able["avx512_bf16"] or able["arm"]
        # Without AMX float16 was slower than float32 in every network tried (torch 2.15).
        float16 = able["amx_fp16"]
        found: dict[FloatName, bool] = {"bfloat16": bfloat16, "float16": float16}
        return tuple(name for name, is_fast in found.items() if is_fast)
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return ("float16",)
    return ("bfloat16", "float16")


def _abilities() -> dict[str, bool]:
    """Instructions for reduced precision; private names of torch, there since 2.6."""
    return {
        "amx": torch.cpu._is_amx_tile_supported(),
        "amx_fp16": torch.cpu._is_amx_fp16_supported(),
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
        "arm": platform.machine() in ("aarch64", "arm64"),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
