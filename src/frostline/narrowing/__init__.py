"""Frozen weights kept in half the bits, and computed with in their own.

The parameter stays the same object; its data are bfloat16 or float16. Hooks on the module that owns
it put a wide copy in its place for the time of each call (`calls`); which tensors are kept so, and
in what they were before, stands in a note on that module (`weights`), so that it goes along through
`copy.deepcopy` and `torch.save`. `entries` is how a selection is narrowed.
"""

from frostline.narrowing.calls import Narrow
from frostline.narrowing.entries import (
    is_narrow_dtype,
    keep_narrow,
    kept_narrow,
    narrow_all,
    narrow_names,
    wanted_dtype,
    wide_again_on_error,
)
from frostline.narrowing.weights import Kept, narrow_of

__all__ = [
    "Kept",
    "Narrow",
    "is_narrow_dtype",
    "keep_narrow",
    "kept_narrow",
    "narrow_all",
    "narrow_names",
    "narrow_of",
    "wanted_dtype",
    "wide_again_on_error",
]
