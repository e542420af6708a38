"""What a run says of one sample, as JSON, as cells of a table and in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from frostline.runs import Prediction


def document_of(prediction: Prediction, top: int) -> dict[str, object]:
    """As a part of a JSON document."""
    if not prediction.classes:
        return {"file": prediction.file, **prediction.answer}
    label, probability = prediction.classes[0]
    return {
        "file": prediction.file,
        "class": label,
        "probability": probability,
        "top": [{"class": name, "probability": p} for name, p in prediction.classes[:top]],
        "probabilities": dict(prediction.classes),
    }


def in_words_of(prediction: Prediction) -> str:
    """In one line for people."""
    from frostline.records import in_words

    if prediction.classes:
        return ", ".join(f"{name} {share:.3f}" for name, share in prediction.classes)
    answer: Mapping[str, Any] = prediction.answer
    if "words" in answer:
        pairs = zip(answer["words"], answer["tags"], strict=True)
        return " ".join(f"{word}/{tag or '-'}" for word, tag in pairs)
    return in_words(prediction.answer)


def cells_of(prediction: Prediction, top: int) -> dict[str, object]:
    """Cells by the heads of their columns."""
    from frostline.records import flat

    if not prediction.classes:
        return flat(prediction.answer)
    cells = [cell for name, share in prediction.classes for cell in (name, f"{share:.6f}")]
    return dict(zip(heads_of(top), cells, strict=False))


def heads_of(top: int) -> list[str]:
    """Of the columns for the `top` most probable classes."""
    places = [""] if top == 1 else [f"_{place}" for place in range(1, top + 1)]
    return [f"{word}{place}" for place in places for word in ("class", "probability")]
