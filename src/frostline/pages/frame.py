"""The frame of every page: one file, its data as inert JSON, nothing fetched from anywhere."""

from __future__ import annotations

import json
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

# What could end the script element, or a line of script, is spelt as an escape that JSON knows.
_ESCAPES = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"})


def render_page(template: str, *, title: str, data: object, **context: object) -> str:
    """The page made from the asset named `template`, which extends `frame.html`.

    `data` must be JSON (NaN and infinity are not). A template reaches other assets, a style or a
    script of ours, through `asset(name)`; those go in as they are, all other text is escaped.
    """
    page = _environment().get_template(template)
    return page.render(title=title, data=embedded_json(data), **context)


def embedded_json(data: object) -> Markup:
    """`data` as JSON that may stand inside a script element, whatever text it holds."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # Safe to mark: no character that HTML reads is left in it.
    return Markup(text.translate(_ESCAPES))


def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_asset), autoescape=True, undefined=StrictUndefined
    )
    environment.globals["asset"] = lambda name: Markup(_asset(name))
    return environment


def _asset(name: str) -> str:
    return (files("frostline.pages") / "assets" / name).read_text(encoding="utf-8")
