"""Templates to pages: everything that is put in is escaped, and nothing may be fetched.

`page.html` is the frame of every page and lets no script run either: even a name that escaping
missed would run nothing. `frame.html` allows one, for pages that a person works with.
"""

from __future__ import annotations

import json
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from frostline._files import check_own, write_bytes
from frostline.tables import visible
from frostline.tasks import label, shown
from frostline.units import format_bytes, format_count, format_seconds

# What all pages begin with: the second is the icon, by which those of before are known.
_MARKS = (
    b'<meta name="generator" content="Frostline">',
    b"%3Cpath d='M2 8h12' stroke='%232f7fb5' stroke-width='3'/%3E",
)
# What could end the script element, or a line of script, is spelt as an escape that JSON knows.
_ESCAPES = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"})


def render(template: str, **values: Any) -> str:
    """The page that `template` makes of `values`."""
    return str(_templates().get_template(template).render(**values))


def render_page(template: str, *, title: str, data: object, **context: object) -> str:
    """The page made from `template`, which is `frame.html` or extends it.

    `data` must be JSON (NaN and infinity are not); all other text is escaped.
    """
    from markupsafe import Markup

    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # Safe to mark: no character that HTML reads is left in it.
    return render(template, title=title, data=Markup(text.translate(_ESCAPES)), **context)


def save_page(page: str, path: str | Path, *, force: bool = False) -> None:
    """Write a page, whole or not at all; over an older page, but over no other file.

    Raises:
        OutputError: it cannot be written, is no file, or another file is there and `force` is
            not given.
    """
    check_page_path(path, force=force)
    write_bytes(Path(path), page.encode("utf-8", "backslashreplace"))


def check_page_path(path: str | Path, *, force: bool = False) -> None:
    """Make sure that a page may be written to `path`, before anything is computed for it.

    Raises:
        OutputError: as `save_page`.
    """
    check_own(Path(path), _MARKS, kind="page", force=force)


def now_in_words() -> str:
    """Date and time with its zone, for people."""
    return datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")


@cache
def _templates() -> Any:
    # Here, since importing it takes as long as all that stands above.
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("frostline.pages", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        bytes=format_bytes,
        count=format_count,
        seconds=format_seconds,
        percent=lambda share: f"{100 * share:.1f} %",
        name=lambda text: visible(str(text)),
        label=label,
        capital=lambda text: text[:1].upper() + text[1:],
        metric=lambda value, name: shown(name, value),
    )
    return made
