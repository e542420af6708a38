"""Pages with a script: their data go along as inert JSON."""

from __future__ import annotations

import json

from frostline.pages.rendering import render

# What could end the script element, or a line of script, is spelt as an escape that JSON knows.
_ESCAPES = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"})


def render_page(template: str, *, title: str, data: object, **context: object) -> str:
    """The page made from `template`, which is `frame.html` or extends it.

    `data` must be JSON (NaN and infinity are not); all other text is escaped.
    """
    from markupsafe import Markup

    # Safe to mark: no character that HTML reads is left in it.
    return render(template, title=title, data=Markup(embedded_json(data)), **context)


def embedded_json(data: object) -> str:
    """`data` as JSON that may stand inside a script element, whatever text it holds."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(_ESCAPES)
