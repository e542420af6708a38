"""What the site does beside MkDocs: it shows files of the repository where they lie, once.

The README is the first page; a README beside the code, the changelog and each example are pages
too. So links between files are as they are in the repository, and are turned into links between
pages here; one that leads to no page ends a strict build. Drawings are put into the page, where
they take its colours.
"""

from __future__ import annotations

import ast
import logging
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))
# A file of the repository, and the page that shows it.
SHOWN = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks.md",
    "findings/README.md": "findings.md",
    "src/frostline/cutting/README.md": "internals/cutting.md",
    "src/frostline/store/README.md": "internals/store.md",
    **{f"examples/{name}": f"examples/{Path(name).stem}.md" for name in EXAMPLES},
}
SOURCES = {page: source for source, page in SHOWN.items()}
PLAIN = {"LICENSE"}  # a link to it becomes its name
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^)\s]+)\)")
DRAWING = re.compile(r'<img [^>]*src="([^"]+\.svg)"[^>]*>')
FETCHED = re.compile(r'<(?:script|link|img)\b[^>]*(?:src|href)="(https?:[^"]+)"')
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
log = logging.getLogger("mkdocs.plugins.frostline")


def on_files(files: Files, config: Any) -> Files:
    for source, page in SHOWN.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        if source.startswith("examples/"):
            text = example(Path(source).name, text)
        file = File.generated(config, page, content=text)
        if source.startswith("examples/"):
            file.inclusion = file.inclusion.NOT_IN_NAV
        files.append(file)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    here = page.file.src_uri
    source = SOURCES.get(here, f"docs/{here}")
    return outside_code(markdown, lambda text: draw(relink(pipes(text), source, here), source))


def on_post_page(output: str, page: Any, **_: Any) -> str:
    for address in FETCHED.findall(output):
        log.warning("%s fetches %s: everything is to come from the site", page.url, address)
    return output


def example(name: str, code: str) -> str:
    """An example as a page: its title, what its docstring says, and its code whole."""
    said = ast.get_docstring(ast.parse(code)) or ""
    title = said.partition("\n")[0].rstrip(".")
    return f"# {title}\n\n`examples/{name}`\n\n```python\n{code}```\n"


def outside_code(markdown: str, change: Any) -> str:
    """`change` of what lies between code blocks."""
    parts, end = [], 0
    for block in FENCE.finditer(markdown):
        parts += [change(markdown[end : block.start()]), block.group()]
        end = block.end()
    return "".join([*parts, change(markdown[end:])])


def pipes(text: str) -> str:
    r"""Without the backslash of `\|` in code within tables, which only GitHub's tables need."""
    code = re.compile(r"`[^`\n]+`")
    return "\n".join(
        code.sub(lambda found: found.group().replace("\\|", "|"), line)
        if line.startswith("|")
        else line
        for line in text.split("\n")
    )


def relink(text: str, source: str, here: str) -> str:
    def between_pages(found: re.Match[str]) -> str:
        mark, label, target = found.groups()
        path, hash_, anchor = target.partition("#")
        if not path or re.match(r"[a-z]+:", target):
            return found.group()
        wanted = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if wanted in PLAIN:
            return label
        return f"{mark}[{label}]({address(wanted, here)}{hash_}{anchor})"

    return LINK.sub(between_pages, text)


def address(wanted: str, here: str) -> str:
    """Where a file of the repository is on the site, from the page `here`."""
    if wanted not in SHOWN and not wanted.startswith("docs/"):
        log.warning("%s links to %s, which is no page of the site", here, wanted)
    page = SHOWN.get(wanted, wanted.removeprefix("docs/"))
    return posixpath.relpath(page, posixpath.dirname(here))


def draw(text: str, source: str) -> str:
    """Drawings in the page itself, in its colours instead of their own."""

    def inside(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[1]))
        drawing = (ROOT / path).read_text(encoding="utf-8")
        drawing = re.sub(r"<style>.*?</style>", "", drawing, flags=re.DOTALL)
        return re.sub(r"\n\s*", "\n", drawing[drawing.index("<svg") :]).strip()

    return DRAWING.sub(inside, text)
