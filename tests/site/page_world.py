"""The site's pages as tests see them: their blocks, and a folder with what their commands name."""

from __future__ import annotations

import glob
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision import models

from small_world import Answer, call, write_picture, write_pictures
from text_world import write_bert

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = {
    "README.md": ROOT / "README.md",
    **{path.relative_to(DOCS).as_posix(): path for path in sorted(DOCS.rglob("*.md"))},
}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """Code of a page, and what the block of text right behind it says that it prints."""

    language: str
    code: str
    printed: str | None = None


def blocks_of(page: str) -> list[Block]:
    text = PAGES[page].read_text(encoding="utf-8")
    found: list[Block] = []
    end = -1
    for match in BLOCK.finditer(text):
        language, code = match.groups()
        behind = found and not text[end : match.start()].strip()
        if language == "text" and behind and found[-1].language in ("python", "sh"):
            found[-1] = Block(found[-1].language, found[-1].code, code)
        else:
            found.append(Block(language, code))
        end = match.end()
    return found


def lines_of(code: str) -> Iterator[str]:
    """The commands of a block of shell, each on one line."""
    for line in code.replace("\\\n", " ").splitlines():
        if line.strip() and not line.startswith("#"):
            yield line.strip()


def type_in(line: str) -> Answer:
    """A `frostline` command as a shell would take it, in this process."""
    words = shlex.split(line, comments=True)[1:]
    target = Path(words.pop()) if len(words) > 1 and words[-2] == ">" else None
    if target is not None:
        words.pop()
    answer = call(*(name for word in words for name in sorted(glob.glob(word)) or [word]))  # noqa: PTH207 - a word of a shell
    if target is not None:
        target.write_text(answer.out, encoding="utf-8")
    return answer


def write_weights(home: Path) -> None:
    """Where torchvision looks for what it has downloaded; drawn at random, which no page shows."""
    folder = home / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    for name in ("resnet18", "mobilenet_v2", "alexnet", "lraspp_mobilenet_v3_large"):
        entry = models.get_model_weights(name).DEFAULT
        model = (
            models.get_model(name, weights=None, weights_backbone=None)
            if "lraspp" in name
            else models.get_model(name)
        )
        torch.save(model.state_dict(), folder / Path(entry.url).name)


def write_world(root: Path) -> Path:
    """Photos, tables, texts and a model of texts, under the names that the pages use."""
    write_pictures(root / "photos", train=4, val=2)
    write_pictures(root / "test-photos", train=1, val=1)
    write_pictures(root / "more-photos", train=2, val=1, names=("dark", "grey", "light"))
    for number in range(3):
        write_picture(root / "new" / f"{number}.jpg", 90 * number)
    body = models.mobilenet_v2().features.state_dict()
    save_file(
        {f"features.{name}": value for name, value in body.items()}, root / "features.safetensors"
    )
    _write_leaves(root)
    _write_cells(root / "cells")
    _write_texts(root)
    return root


def _write_leaves(root: Path) -> None:
    rows = ["file,length,width"]
    for number in range(10):
        write_picture(root / "leaves" / f"{number}.png", 20 * number)
        rows.append(f"leaves/{number}.png,{number + 0.5},{20.25 - number}")
    (root / "leaves.csv").write_text("\n".join(rows))


def _write_cells(root: Path) -> None:
    for part, count in (("train", 2), ("val", 1)):
        for number in range(count):
            write_picture(root / part / "images" / f"{number}.png", 60 * number)
            mask = Image.new("L", (18, 18))
            mask.paste(255, (4, 4, 12, 12))
            (root / part / "masks").mkdir(exist_ok=True)
            mask.save(root / part / "masks" / f"{number}.png")


def _write_texts(root: Path) -> None:
    (root / "path" / "to").mkdir(parents=True)
    write_bert(root / "path" / "to" / "encoder")
    kinds = [("a good film", 1), ("a dull plot", 0)]
    texts = [(f"{text} number {number}", kind) for number in range(12) for text, kind in kinds]
    for name in ("reviews.csv", "more.csv"):
        (root / name).write_text("review,stars\n" + "\n".join(f"{t},{kind}" for t, kind in texts))
    pairs = [{"premise": text, "hypothesis": "fine", "label": kind} for text, kind in texts]
    (root / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    (root / "sst2").mkdir()
    for part in ("train", "dev", "test"):
        (root / "sst2" / f"{part}.tsv").write_text("\n".join(f"{t}\t{kind}" for t, kind in texts))
    sentence = "Anna B-PER\nlives O\nin O\nOslo B-LOC\n\nthe O\nfilm O\n\n"
    (root / "conll2003").mkdir()
    for part in ("train", "valid", "test"):
        (root / "conll2003" / f"{part}.txt").write_text(sentence * 8)
