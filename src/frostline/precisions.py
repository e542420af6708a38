"""The words for how numbers are computed and kept, each list written once."""

from __future__ import annotations

from typing import Literal

HalfName = Literal["bfloat16", "float16"]
FloatName = Literal["float32", HalfName]
StorageName = Literal["auto", FloatName, "int8"]
"""How stored features lie on disk; `auto` keeps every bit that was computed."""

StepPrecision = Literal["fp32", "bf16", "fp16"]
"""Of forward and backward: float32, or autocast to bfloat16 or float16."""

PrefixPrecision = Literal["exact", "auto"] | float
"""Of the frozen part: the model's own float32, a tolerance that suits, or a relative error."""
