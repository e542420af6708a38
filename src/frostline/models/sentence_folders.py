"""A folder of sentence-transformers: which parts follow the encoder, and in which order."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from torch import nn

from frostline.errors import ModelError, one_line
from frostline.models.pooled import POOLINGS, Normalized, Pooling, Projection, known_pooling
from frostline.models.weights import load_weights

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    name: getattr(nn, name) for name in ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid")
}

_AFTER = {"Dense", "Normalize", "Dropout"}


@final
@dataclass(frozen=True, slots=True)
class SentenceParts:
    """What a sentence encoder is made of, by its `modules.json`.

    Attributes:
        transformer: folder of the encoder, below that of the whole.
        poolings: of its tokens' states.
        after: name and folder of each part that follows, `Dense` or `Normalize`.
        max_length: most tokens, where it says so.
        lower_case: whether texts are read in lower case, whatever the tokenizer does.
    """

    transformer: str = ""
    poolings: tuple[Pooling, ...] = ("mean",)
    after: tuple[tuple[str, str], ...] = ()
    max_length: int | None = None
    lower_case: bool = False

    def projections(self, root: Path, *, with_weights: bool) -> list[nn.Module]:
        """The parts behind the pooling.

        Raises:
            ModelError, WeightsError: one of them cannot be read.
        """
        return [
            Normalized() if kind == "Normalize" else _dense(root / place, with_weights)
            for kind, place in self.after
        ]


def sentence_parts(root: Path) -> SentenceParts | None:
    """What the folder says; None if it is none of sentence-transformers.

    Raises:
        ModelError: it has a part that is not known here, or a file that cannot be read.
    """
    if not (root / "modules.json").is_file():
        return None
    parts = [(str(m["type"]).rpartition(".")[2], str(m["path"])) for m in _json(root, "modules")]
    kinds = [kind for kind, _ in parts]
    if kinds[:2] != ["Transformer", "Pooling"] or not _AFTER.issuperset(kinds[2:]):
        raise ModelError(
            f"{root / 'modules.json'} names the parts {', '.join(kinds)}; known here are "
            "Transformer, Pooling, and then Dense or Normalize. Write a function that builds the "
            "model and name it file.py:function."
        )
    (_, transformer), (_, pooling), *after = parts
    limits: dict[str, Any] = {}
    for folder in (root / transformer, root):
        # Named by the encoder once, as sentence_roberta_config.json.
        for file in sorted(folder.glob("sentence_*_config.json")):
            limits |= {k: v for k, v in _json(folder, file.stem).items() if v is not None}
    return SentenceParts(
        transformer,
        _poolings(root / pooling),
        tuple(part for part in after if part[0] != "Dropout"),
        limits.get("max_seq_length"),
        bool(limits.get("do_lower_case")),
    )


def _poolings(folder: Path) -> tuple[Pooling, ...]:
    """Both spellings: the names of those that are used, in their order; or a yes or no for each.

    Of the latter the order is always that of `POOLINGS`, whatever that of the file.
    Source: `Pooling` of sentence-transformers (6.2).
    """
    found, prefix = _json(folder, "config"), "pooling_mode"
    named, where = found.get(prefix), str(folder / "config.json")
    if named:
        names = [named] if isinstance(named, str) else named
        return tuple(known_pooling(name, where) for name in names)
    chosen = {
        known_pooling(key.removeprefix(f"{prefix}_"), where)
        for key in found
        if found[key] is True and key.startswith(f"{prefix}_")
    }
    return tuple(pooling for pooling in POOLINGS if pooling in chosen) or ("mean",)


def _dense(folder: Path, with_weights: bool) -> nn.Module:
    found = _json(folder, "config")
    name = str(found.get("activation_function", "Identity")).rpartition(".")[2]
    if name not in _ACTIVATIONS:
        raise ModelError(
            f"{folder / 'config.json'} names the activation {name}, which is not known here "
            f"({', '.join(_ACTIVATIONS)}). Write a function that builds the model and name it "
            "file.py:function."
        )
    linear = nn.Linear(found["in_features"], found["out_features"], bias=found.get("bias", True))
    made = Projection(linear, _ACTIVATIONS[name]())
    if with_weights:
        files = (folder / file for file in ("model.safetensors", "pytorch_model.bin"))
        load_weights(made, next((f for f in files if f.is_file()), folder / "model.safetensors"))
    return made


def _json(folder: Path, name: str) -> Any:
    file = folder / f"{name}.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{file} cannot be read: {one_line(error)}. Copy it from where the model is from."
        ) from error
