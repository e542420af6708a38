"""The tables of `networks.py` as a page of the documentation has them, between its marks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from frostline.tuning import DEFAULT_TOLERANCE, Form
from frostline.units import format_bytes

Figures = dict[str, Any]
FAILED = "error in measured"
SELECTIONS = {"head": "all but the head", "last": "all but the last stage and the head"}
_MARKED = re.compile(r"(<!-- networks\.py: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def write_page(page: Path, result: Figures) -> None:
    """Write the tables into a page, each between `<!-- networks.py: NAME -->` and an end."""
    page.write_text(with_tables(page.read_text(encoding="utf-8"), result), encoding="utf-8")


def with_tables(text: str, result: Figures) -> str:
    """A page with what stands between its marks made anew."""

    def made(found: re.Match[str]) -> str:
        before, name, after = found.groups()
        return f"{before}\n{PARTS[name](result)}\n\n{after}"

    return _MARKED.sub(made, text)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _networks(result: Figures) -> Mapping[str, Figures]:
    return {name: found for name, found in result["networks"].items() if FAILED not in found}


def _named(name: str, found: Figures) -> str:
    """The name, bold where the weights are pretrained."""
    return name if found["weights"] == "random" else f"**{name}**"


def versions(result: Figures) -> str:
    """Of packages, and the machines; one that measured fewer than another says which."""
    found = result["versions"]
    names: dict[str, list[str]] = {}
    for name, figures in result["networks"].items():
        names.setdefault(figures["machine"], []).append(name)
    most, *others = sorted(names, key=lambda machine: -len(names[machine]))
    lines = [f"{', '.join(f'{name} {found[name]}' for name in found)}; {most}."]
    lines += [f"On {machine}: {', '.join(names[machine])}." for machine in others]
    return "\n\n".join(lines)


def summary(result: Figures) -> str:
    """What the tables come to, counted."""
    networks = _networks(result)
    missing = [name for name in result["listed"] if name not in networks]
    lines = [f"Not measured yet: {', '.join(missing)}."] if missing else []
    lines += [_cut_line(networks, what) for what in SELECTIONS]
    lines += [_bits_line(networks, threads) for threads in (1, 2)]
    lines += [_forms_line(networks, what) for what in SELECTIONS]
    return "\n".join(f"- {line}" for line in lines)


def _cut_line(networks: Mapping[str, Figures], what: str) -> str:
    cut = [name for name, found in networks.items() if "line" in found[what]]
    exact = [name for name in cut if not networks[name][what]["line"]["error"]]
    others = [name for name in cut if name not in exact]
    line = (
        f"With {SELECTIONS[what]} frozen, {len(cut)} of {len(networks)} are cut, "
        f"{len(exact)} of these bit for bit"
    )
    line += f" (not {', '.join(others)})" if others else ""
    refused = [name for name in networks if name not in cut]
    return f"{line}; refused: {', '.join(refused)}." if refused else f"{line}."


def _bits_line(networks: Mapping[str, Figures], threads: int) -> str:
    cut = {name: found for name, found in networks.items() if "rows" in found["head"]}
    verdicts = {name: _differing(found["head"], "float32", threads) for name, found in cut.items()}
    same = [name for name, differing in verdicts.items() if not differing]
    by_place = [
        name for name, differing in verdicts.items() if any("places" in each for each in differing)
    ]
    words = "one thread" if threads == 1 else f"{threads} threads"
    line = f"On {words} a row has the same bits in every batch that was tried in {len(same)} of "
    line += f"{len(cut)} networks"
    return f"{line}; at some place of one batch it has others in {len(by_place)}."


def _forms_line(networks: Mapping[str, Figures], what: str) -> str:
    errors = {
        name: found[what]["forms"][str(form)]["all"]
        for name, found in networks.items()
        if (form := _first_tried(found[what])) and "all" in found[what]["forms"][str(form)]
    }
    above = [name for name, error in errors.items() if error > DEFAULT_TOLERANCE]
    line = f"With {SELECTIONS[what]} frozen, the form that `auto` tries first is within 2 % in "
    line += f"{len(errors) - len(above)} of {len(errors)} networks"
    return f"{line}; above it: {', '.join(above)}." if above else f"{line}."


# Where the line runs


def where(result: Figures, what: str) -> str:
    headings = ("network", "trained", "the line runs behind", "crosses", "bytes", "below")
    rows = []
    for name, found in _networks(result).items():
        one = found[what]
        cells = [_named(name, found), ", ".join(f"`{path}`" for path in _few(one["trained"]))]
        if "line" in one:
            line = one["line"]
            shapes = [" x ".join("?" if n is None else str(n) for n in s) for s in line["shapes"]]
            place = line["why"].removeprefix("behind ").partition(", since ")[0]
            crosses = ", ".join(shape or "1" for shape in shapes)
            cells += [place, crosses, format_bytes(line["nbytes"]), _share(line["below"])]
        else:
            cells += [f"refused: {one['refused']}", "", "", ""]
        rows.append(cells)
    return _table(headings, rows)


def _few(paths: Sequence[str]) -> list[str]:
    return list(paths) if len(paths) <= 2 else [paths[0], f"… {len(paths) - 1} more"]


def _share(share: float) -> str:
    return f"{100 * share:.1f} %" if share == share else "-"


# Forms


def forms(result: Figures) -> str:
    headings = (
        *("network", "float32 channels-last", "float32 folded", "bfloat16"),
        *("as `auto` begins", "float16", "last stage trained, as `auto` begins"),
    )
    one = ("float32 channels-last", "float32 folded", "bfloat16")
    rows = []
    for name, found in _networks(result).items():
        head, last = (found[what].get("forms", {}) for what in SELECTIONS)
        begun = [str(_first_tried(found[what])) for what in SELECTIONS]
        cells = [head.get(form) for form in (*one, begun[0], "float16")]
        rows.append([_named(name, found), *map(_error, [*cells, last.get(begun[1])])])
    return _table(headings, rows)


def _first_tried(found: Figures) -> Form | None:
    """The first reduced form of `candidates` here: all at once that applies."""
    tried = [Form.parse(text) for text in found.get("forms", {})]
    reduced = [form for form in tried if form.dtype == "bfloat16"]
    return max(reduced, key=lambda form: (form.channels_last, form.folded), default=None)


def _error(found: Figures | None) -> str:
    if found is None:
        return "-"
    if "refused" in found:
        return found["refused"]
    return f"{_percent(found['mean'])}, {_percent(found['worst'])}"


def _percent(error: float) -> str:
    return f"{100 * error:.2f} %" if error >= 5e-4 else f"{error:.0e}" if error else "0"


# Bits of rows


def rows(result: Figures) -> str:
    headings = ("network", "one thread", "two threads", "two threads, channels-last")
    columns = [("float32", 1), ("float32", 2), ("float32 channels-last", 2)]
    lines = [
        [_named(name, found), *(_bits(found["head"], *column) for column in columns)]
        for name, found in _networks(result).items()
    ]
    return _table(headings, lines)


def _differing(found: Figures, form: str, threads: int) -> dict[str, float]:
    of_form = found.get("rows", {}).get(f"{form}, {threads} threads", {})
    return {what: difference for what, difference in of_form.items() if difference}


def _bits(found: Figures, form: str, threads: int) -> str:
    if f"{form}, {threads} threads" not in found.get("rows", {}):
        return "-"
    differing = _differing(found, form, threads)
    if not differing:
        return "same"
    sizes = [each.removeprefix("batch of ") for each in differing if each.startswith("batch")]
    places = [each.removeprefix("places of ") for each in differing if each.startswith("places")]
    words = [f"batch of {', '.join(sizes)}"] * bool(sizes)
    words += [f"place in {', '.join(places)}"] * bool(places)
    words += ["others"] * ("among others" in differing)
    return f"{'; '.join(words)}: {max(differing.values()):.0e}"


# Decodings and saved bytes


def decodings(result: Figures) -> str:
    cut = {name: found for name, found in _networks(result).items() if "decodings" in found["head"]}
    ways = [way for found in list(cut.values())[:1] for way in found["head"]["decodings"]][1:]
    lines = [
        [_named(name, found), *(_error(found["head"]["decodings"][way]) for way in ways)]
        for name, found in cut.items()
    ]
    return _table(["network", *(f"`{way}`" for way in ways)], lines)


def saved(result: Figures) -> str:
    headings = (
        *("network", "last stage and head: PyTorch", "`fl.lean`", "ratio"),
        *("first stage: PyTorch", "`fl.lean`", "ratio"),
    )
    lines = []
    for name, found in _networks(result).items():
        cells = [_named(name, found)]
        for what in ("last", "first"):
            plain, lean = (found["saved"][what][side] for side in ("plain", "lean"))
            cells += [format_bytes(plain), format_bytes(lean), f"{lean / plain:.2f}"]
        lines.append(cells)
    return _table(headings, lines)


PARTS: Mapping[str, Callable[[Figures], str]] = {
    "versions": versions,
    "summary": summary,
    "where_head": lambda result: where(result, "head"),
    "where_last": lambda result: where(result, "last"),
    "forms": forms,
    "rows": rows,
    "decodings": decodings,
    "saved": saved,
}
"""What a page can have between its marks."""
