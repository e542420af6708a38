"""Names by pattern: globs and regular expressions as compiled rules, and text that needs quotes."""

from __future__ import annotations

import fnmatch
import re
import warnings
from collections.abc import Sequence

_BARE_PATH = re.compile(r"[^\s&|~()'\"*?\[\]:]+")
_BARE_GLOB = re.compile(r"[^\s&|~()'\":]+")
_MAGIC = re.compile(r"[*?\[]")


def glob_rule(pattern: str) -> re.Pattern[str]:
    """A glob as a regular expression that matches a full name or a module path above it.

    It takes no more than polynomial time, however many stars there are. What stands between two
    stars is taken where it is first found, for good (`(?>...)`): a later place would leave less to
    the second star, which takes anything that the first does. So a `*` holds up to the next star,
    and a `**` up to the next `**`.
    """
    parts = re.split(r"(\*{2,}|\*|\?|\[[^\]]*\])", pattern)
    stretches = [[""]]  # parted by `**`; in each, pieces parted by `*`
    for part in parts:
        if part == "*":
            stretches[-1].append("")
        elif part.startswith("**"):
            stretches.append([""])
        else:
            stretches[-1][-1] += _glob_part(part)
    whole = _first_found(r".*?", [_first_found(r"[^.]*?", pieces) for pieces in stretches])
    return re.compile(whole + r"(?:\.|\Z)")


def regex_rule(pattern: str) -> re.Pattern[str]:
    """A regular expression, compiled; raises what `re.compile` does."""
    with warnings.catch_warnings():
        # `[[a]` works today; Python warns that it may mean something else one day.
        warnings.simplefilter("ignore", FutureWarning)
        return re.compile(pattern)


def is_pattern(text: str) -> bool:
    """Whether bare text is a glob rather than a path."""
    return _MAGIC.search(text) is not None


def is_bare_glob(pattern: str) -> bool:
    """Whether the pattern reads as a glob without prefix and quotes."""
    return _BARE_GLOB.fullmatch(pattern) is not None and is_pattern(pattern)


def word(text: str) -> str:
    """`text`, in quotes where it holds a space, an operator or a sign of a pattern."""
    return text if _BARE_PATH.fullmatch(text) else quoted(text)


def quoted(text: str) -> str:
    """`text` in quotes, those inside it doubled."""
    quote = '"' if "'" in text else "'"
    return f"{quote}{text.replace(quote, quote * 2)}{quote}"


def _first_found(star: str, pieces: Sequence[str]) -> str:
    """The pieces with a star between any two; all but the last are not looked for twice."""
    first, *further = pieces
    if not further:
        return first
    *middle, last = further
    return first + "".join(f"(?>{star}{piece})" for piece in middle) + star + last


def _glob_part(part: str) -> str:
    if part == "?":
        return "[^.]"
    if part.startswith("[") and part.endswith("]"):
        # Without `(?s:` and `)\Z` (`)\z` from Python 3.14); a dot is no part of a segment.
        return r"(?!\.)" + fnmatch.translate(part)[4:-3]
    return re.escape(part)
