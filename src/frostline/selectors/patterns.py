"""Names by pattern: globs and regular expressions as compiled rules, and text that needs quotes."""

from __future__ import annotations

import fnmatch
import re
import warnings

_BARE_PATH = re.compile(r"[^\s&|~()'\"*?\[\]:]+")
_BARE_GLOB = re.compile(r"[^\s&|~()'\":]+")
_MAGIC = re.compile(r"[*?\[]")


def glob_rule(pattern: str) -> re.Pattern[str]:
    """A glob as a regular expression that matches a full name or a module path above it."""
    parts = re.split(r"(\*\*|\*|\?|\[[^\]]*\])", pattern)
    return re.compile("".join(_glob_part(part) for part in parts) + r"(?:\.|\Z)")


def regex_rule(pattern: str) -> re.Pattern[str]:
    """A regular expression, compiled.

    Raises:
        re.error, OverflowError, RecursionError: it is none, or too large or deep for Python.
    """
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


def _glob_part(part: str) -> str:
    if part == "**":
        return ".*"
    if part in {"*", "?"}:
        return "[^.]" + ("*" if part == "*" else "")
    if part.startswith("[") and part.endswith("]"):
        # Without `(?s:` and `)\Z` (`)\z` from Python 3.14); a dot is no part of a segment.
        return r"(?!\.)" + fnmatch.translate(part)[4:-3]
    return re.escape(part)
