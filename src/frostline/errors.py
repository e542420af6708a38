"""Every error Frostline raises, in one tree; messages say what was asked, found, and to do.

FrostlineError                    exit status 1: the user can fix it
├── SelectorError                 a selector that cannot be read, or a term that matches nothing
├── FreezeError                   a freeze that cannot hold, or would leave nothing to train
├── ModelError                    a model that cannot be found or built, or given a head
├── WeightsError                  weights that cannot be had, read or fitted
├── DataError                     a data set that cannot be used
│   └── ImageError                one image that cannot be decoded
├── ConfigError                   options that contradict each other or their ranges
├── DeltaError                    a delta that does not belong to this model, or is none
│   └── CorruptDelta              its bytes are not those that were written; a broken promise, 3
├── CutError                      no frost line can be drawn through the model; says why
│   └── NothingFrozen             nothing below the first trainable parameter can be kept
├── StoreError                    a feature store that cannot be read or used as asked
│   └── CorruptFeatures           stored features are not what was written; broken promise, 3
├── OutputError                   a result that cannot be written where it was asked for
├── TrainingError                 a run that cannot go on
│   └── NonFiniteLoss             the loss became NaN or infinite; names the batch's samples
└── BrokenPromise                 exit status 3: what was to hold did not
    └── DriftError                a frozen tensor or mode moved; lists each with how far
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class FrostlineError(Exception):
    """Root of all of Frostline's errors.

    Attributes:
        process: the number of the process that failed, where that was another one than this.

    Example:
        >>> try:
        ...     fl.freeze(model, "bakbone")
        ... except fl.FrostlineError as error:
        ...     print(error.exit_status, error)
        1 'bakbone' matches no parameter of Sequential. Nearest: backbone, ...
    """

    exit_status: ClassVar[int] = 1
    process: int | None = None


class SelectorError(FrostlineError, ValueError):
    """A selector could not be read, or one of its terms matches nothing in the model.

    Example:
        >>> fl.select(model, "bakbone")
        Traceback (most recent call last):
            ...
        frostline.errors.SelectorError: 'bakbone' matches no parameter of Sequential. ...
    """


class FreezeError(FrostlineError, ValueError):
    """A freeze cannot hold, or would leave nothing to train.

    Example:
        >>> fl.freeze(model, "all")
        Traceback (most recent call last):
            ...
        frostline.errors.FreezeError: freezing 'all' would leave nothing trainable...
    """


class ModelError(FrostlineError):
    """A model could not be found or built, or a head could not be put on it.

    Example:
        >>> from frostline.models import load_model
        >>> load_model("resnet81", weights="none", classes=2)
        Traceback (most recent call last):
            ...
        frostline.errors.ModelError: torchvision has no model 'resnet81'. Nearest: resnet18, ...
    """


class WeightsError(FrostlineError):
    """Weights could not be had, read or fitted to the model.

    Example:
        >>> from pathlib import Path
        >>> from frostline.models import read_state_dict
        >>> read_state_dict(Path("missing.pth"))
        Traceback (most recent call last):
            ...
        frostline.errors.WeightsError: there is no file missing.pth. ...
    """


class DataError(FrostlineError):
    """A data set cannot be used as asked.

    Example:
        >>> fl.open_data(iter(data))
        Traceback (most recent call last):
            ...
        frostline.errors.DataError: the iterator can be gone through once only, ...
    """


class ImageError(DataError):
    """One image could not be decoded.

    Example:
        >>> from pathlib import Path
        >>> from frostline.data import open_image
        >>> open_image(Path("missing.jpg"))
        Traceback (most recent call last):
            ...
        frostline.errors.ImageError: cannot read the image missing.jpg: there is no such file. ...
    """


class ConfigError(FrostlineError, ValueError):
    """Options contradict each other or lie outside their range.

    Example:
        >>> fl.Recipe(epochs=0)
        Traceback (most recent call last):
            ...
        frostline.errors.ConfigError: epochs=0: input should be greater than or equal to 1.
    """


class DeltaError(FrostlineError):
    """A delta cannot be read or does not belong to this model.

    Example:
        >>> fl.load_delta(model, "missing.safetensors")
        Traceback (most recent call last):
            ...
        frostline.errors.DeltaError: there is no delta at missing.safetensors. ...
    """


class CutError(FrostlineError):
    """No frost line can be drawn through the model as asked.

    Example:
        >>> fl.cut(model, images, at="head")
        Traceback (most recent call last):
            ...
        frostline.errors.CutError: head is not wholly frozen. Freeze it, or name another part.
    """


class NothingFrozen(CutError):  # noqa: N818 - named for what was found
    """No value below the first trainable parameter can be kept.

    Example:
        >>> fl.thaw(model, "all")
        >>> fl.cut(model, images)
        Traceback (most recent call last):
            ...
        frostline.errors.NothingFrozen: nothing in Sequential can be kept: backbone.0.weight ...
    """


class StoreError(FrostlineError):
    """A feature store cannot be read or used as asked.

    Example:
        >>> fl.extract(fl.cut(model, images), data, fl.FeatureStore("features", budget_bytes=100))
        Traceback (most recent call last):
            ...
        frostline.errors.StoreError: ...
    """


class OutputError(FrostlineError):
    """A result cannot be written where it was asked for.

    Example:
        >>> from pathlib import Path
        >>> Path("file").touch()
        >>> fl.save_delta(model, "file/delta.safetensors")
        Traceback (most recent call last):
            ...
        frostline.errors.OutputError: cannot write file/delta.safetensors: ...
    """


class TrainingError(FrostlineError):
    """A run cannot go on.

    Example:
        >>> try:
        ...     fl.fit(model, [(images * torch.nan, labels)], data, epochs=1)
        ... except fl.TrainingError as error:
        ...     print(type(error).__name__)
        NonFiniteLoss
    """


class NonFiniteLoss(TrainingError):  # noqa: N818 - the field's word for it, and no other reading
    """The loss became NaN or infinite.

    Example:
        >>> fl.fit(model, [(images * torch.nan, labels)], data, epochs=1)
        Traceback (most recent call last):
            ...
        frostline.errors.NonFiniteLoss: the loss became nan on the batch of ...
    """


class BrokenPromise(FrostlineError):  # noqa: N818 - named for what happened
    """Something Frostline promised did not hold.

    Example:
        >>> model.backbone[0].weight.data.zero_()[0, 0, 0, 0].item()
        0.0
        >>> try:
        ...     frozen.verify()
        ... except fl.BrokenPromise as error:
        ...     print(error.exit_status)
        3
    """

    exit_status: ClassVar[int] = 3


class CorruptDelta(DeltaError, BrokenPromise):  # noqa: N818 - named for what was found
    """A delta's bytes are not those that were written.

    Example:
        >>> fl.save_delta(model, "delta.safetensors")
        >>> from pathlib import Path
        >>> file = Path("delta.safetensors")
        >>> n = file.write_bytes(file.read_bytes()[:-1] + b"?")
        >>> fl.load_delta(model, "delta.safetensors")
        Traceback (most recent call last):
            ...
        frostline.errors.CorruptDelta: delta.safetensors is damaged: head.2.weight ...
    """


class CorruptFeatures(StoreError, BrokenPromise):  # noqa: N818 - named for what was found
    """Stored features are not those that were written.

    Example:
        >>> issubclass(fl.CorruptFeatures, fl.StoreError), fl.CorruptFeatures.exit_status
        (True, 3)
    """


class DriftError(BrokenPromise):
    """Frozen tensors or modes moved.

    Attributes:
        drifts: one entry for each tensor or module that moved, in the model's order; `str()` of
            an entry is its line of the message.

    Example:
        >>> _ = model.backbone[0].weight.data.add_(1)
        >>> frozen.verify()
        Traceback (most recent call last):
            ...
        frostline.errors.DriftError: one thing that Sequential was to keep frozen did not ...:
          backbone.0.weight: moved by up to 1 (216 of 216 numbers)
        ...
    """

    def __init__(self, message: str, drifts: Sequence[object] = ()) -> None:
        super().__init__(message)
        self.drifts = tuple(drifts)


def shortened(text: object, *, most: int = 80) -> str:
    """`text` as a message can hold it: of a long one the beginning, and how long it is."""
    whole = str(text)
    if len(whole) <= most:
        return whole
    return f"{whole[:most]}... ({len(whole):,} characters)"


def one_line(error: BaseException, *, first: bool = False, named: bool = True) -> str:
    """`ValueError: what it says`, at most 240 characters, for a message that goes on with it.

    Args:
        first: only the first line of what it says, as a trace may follow; else all of them.
        named: with the error's class; without it the class stands where an error says nothing.
    """
    text = str(error).strip().partition("\n")[0] if first else " ".join(str(error).split())
    text, name = text.rstrip("."), type(error).__name__
    said = f"{name}: {text}" if named and text else text or name
    return said if len(said) <= 240 else f"{said[:239]}…"


def a_type(value: object) -> str:
    """What `value` is, with its article: `an int`, `a Tensor`."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOaeio' else 'a'} {name}"  # most that begin with u are a user


# What other libraries call it -> what it is called here.
_OTHER_WORDS = {
    "criterion": "task",
    "learning_rate": "lr",
    "loss": "task",
    "max_epochs": "epochs",
    "metrics": "task",
    "unfreeze": "thaw",
    "wd": "weight_decay",
}


def nearest(word: str, known: Sequence[str], *, count: int = 3) -> list[str]:
    """The `count` entries of `known` that mean `word` or are spelt most like it, best first."""
    from difflib import SequenceMatcher

    matcher = SequenceMatcher(autojunk=False)
    matcher.set_seq2(word.lower())
    scored = []
    for candidate in dict.fromkeys(known):
        matcher.set_seq1(candidate.lower())
        if candidate == _OTHER_WORDS.get(word):
            scored.append((-2.0, 0, candidate))
        elif matcher.quick_ratio() > 0.3:
            scored.append((-matcher.ratio(), _letter_distance(word, candidate), candidate))
    return [candidate for _, _, candidate in sorted(scored)[:count]]


def _letter_distance(word: str, candidate: str) -> int:
    """How far the letters lie apart, so that `layer4` is nearer to `layer5` than `layer1` is."""
    return sum(abs(ord(a) - ord(b)) for a, b in zip(word, candidate, strict=False))
