"""PyTorch's own databases of modules and optimizers, for the tests that go through them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch


def database(name: str) -> Any:
    """`torch.testing._internal.NAME`, or a skip without the package that it needs.

    Importing it forbids to set torch's global flags, which other tests do; that is taken back.
    """
    pytest.importorskip("expecttest", reason="PyTorch's databases need the package expecttest")
    found = import_module(f"torch.testing._internal.{name}")
    torch.backends.flags_frozen.__globals__["__allow_nonbracketed_mutation_flag"] = True
    return found
