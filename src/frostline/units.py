"""Bytes, seconds and counts as people read them."""

from __future__ import annotations


def format_bytes(count: float) -> str:
    """`1536` -> `1.5 KB`; decimal units, as disks and torch's own tables use."""
    size = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if abs(size) < 999.5:  # from there on it would round to 1000
            return f"{size:.0f} B" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB" if abs(size) < 999.5 else f"{size:,.0f} TB"


def format_count(count: int) -> str:
    """`61100840` -> `61,100,840`."""
    return f"{count:,}"


def format_seconds(seconds: float) -> str:
    """`0.0042` -> `4.2 ms`, `75` -> `1 min 15 s`."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 59.95:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"
