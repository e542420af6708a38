"""Docstrings as griffe reads them: a blank line before a section, and examples under its name."""

from __future__ import annotations

import re
from typing import Any

import griffe

SECTION = re.compile(r"\n+^(Args|Returns|Yields|Raises|Source|Example):$", re.MULTILINE)


class Sections(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = SECTION.sub(_apart, obj.docstring.value)


def _apart(found: re.Match[str]) -> str:
    name = {"Example": "Examples"}.get(found[1], found[1])
    return f"\n\n{name}:"
