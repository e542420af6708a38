"""Whether the data are apart, and come as the weights are used to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Subset, TensorDataset

from frostline._files import file_digest
from frostline.checkup.findings import Finding, counted, error, listed, warning
from frostline.checkup.subject import Preprocess, Subject, check
from frostline.data import ImageDataset, ImageSet, Samples
from frostline.fingerprints import digest
from frostline.preprocessing import Preprocessing

_MOST_DECODED = 512  # samples of a data set that can be compared only by decoding all of them
_SIDE = 96  # pixels of the picture that two ways of preprocessing are compared on


@check("same-data")
def same_data(subject: Subject) -> Iterator[Finding]:
    train, val = (
        given.dataset if isinstance(given, DataLoader) else given
        for given in (subject.train_data, subject.val_data)
    )
    shared, count = ([], 0) if train is None or val is None else _overlap(train, val)
    if shared:
        whole = len(shared) == count
        yield (error if whole else warning)(
            f"{len(shared):,} of {counted(count, 'validation sample')} also in the training data: "
            f"{listed(shared)}",
            "metrics on samples that were trained on say nothing about new ones"
            if whole
            else "the metrics will be too good",
            "train_data, val_data = torch.utils.data.random_split(train_data, [0.8, 0.2])"
            if whole
            else "Remove one of each; keep pictures of one thing on one side.",
            tuple(shared),
        )


def _overlap(train: Any, val: Any) -> tuple[list[str], int]:
    """Names of the validation samples that are in both, and how many there are in all."""
    (train_base, train_at), (val_base, val_at) = _based(train), _based(val)
    if train_base is val_base and train_at is not None and val_at is not None:
        known = set(train_at)
        return [f"sample {at}" for at in val_at if at in known], len(val_at)
    before, now = _contents(train), _contents(val)
    if before is None or now is None:
        return [], 0
    known_content = set(before.values())
    return [name for name, content in now.items() if content in known_content], len(now)


def _based(data: Any) -> tuple[Any, list[int] | None]:
    """The innermost data set and the positions in it; no positions where it has no length."""
    if isinstance(data, Subset):
        base, above = _based(data.dataset)
        return base, None if above is None else [above[at] for at in data.indices]
    return data, list(range(len(data))) if hasattr(data, "__len__") else None


def _contents(data: Any) -> dict[str, str] | None:
    """Name -> content digest of each sample; None where that would take too long or cannot be."""
    if isinstance(data, ImageDataset | ImageSet):
        images = data.images if isinstance(data, ImageDataset) else data
        paths = [sample.path for sample in images.samples]
        known = data.digests if isinstance(data, ImageDataset) else {}
        return {str(p): known.get(p) or file_digest(p) for p in paths if p.is_file()}
    if isinstance(data, TensorDataset):
        data = data.tensors[0]
    count = len(data) if hasattr(data, "__len__") else 0
    if not 0 < count <= (count if isinstance(data, Tensor) else _MOST_DECODED):
        return None
    with torch.random.fork_rng(devices=()):
        if Samples in type(data).__mro__:
            return {data.name(i): found.hex() for i, found in enumerate(data.ids(range(count)))}
        if not hasattr(data, "__getitem__"):
            return None
        return {f"sample {i}": _sample_digest(data[i]) for i in range(count)}


def _sample_digest(sample: Any) -> str:
    """Of its first tensor, the input; of all that it holds where there is none."""
    inputs = sample[0] if isinstance(sample, tuple | list) and sample else sample
    tensors = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
    return "".join(map(digest, tensors)) or repr(inputs)


@check("preprocessing")
def preprocessing(subject: Subject) -> Iterator[Finding]:
    mine, theirs = subject.preprocessing, subject.weights_preprocessing
    differing = () if mine is None or theirs is None else tuple(_differing(mine, theirs))
    if differing:
        yield warning(
            f"the preprocessing is not that of the weights: {listed(differing)}",
            "pretrained layers were trained on pictures that came in another way; nothing fails, "
            "and the accuracy is lower",
            "preprocessing = weights_preprocessing  # in torchvision weights.transforms()",
            differing,
        )


def _differing(mine: Preprocess, theirs: Preprocess) -> Iterator[str]:
    """In words, what differs: the steps where both say them, else what becomes of a picture."""
    if isinstance(mine, Preprocessing) and isinstance(theirs, Preprocessing):
        for field in fields(Preprocessing):
            ours, wanted = getattr(mine, field.name), getattr(theirs, field.name)
            if ours != wanted:
                yield f"{field.name} is {ours}, not {wanted}"
        return
    drawn = torch.randint(256, (_SIDE, _SIDE, 3), generator=torch.Generator().manual_seed(0))
    picture = Image.frombytes("RGB", (_SIDE, _SIDE), bytes(drawn.flatten().tolist()))
    ours, wanted = mine(picture), theirs(picture)
    if not isinstance(ours, Tensor) or not isinstance(wanted, Tensor):
        yield f"it gives {type(ours).__name__}, not {type(wanted).__name__}"
    elif ours.shape != wanted.shape:
        yield f"a picture becomes {tuple(ours.shape)}, not {tuple(wanted.shape)}"
    elif not torch.allclose(ours.float(), wanted.float(), atol=1e-2):
        yield (
            f"a picture's numbers lie in {_span(ours)} with mean {ours.float().mean():.2f}, not in "
            f"{_span(wanted)} with mean {wanted.float().mean():.2f}"
        )


def _span(tensor: Tensor) -> str:
    return f"{float(tensor.min()):.2f}..{float(tensor.max()):.2f}"


@check("input-range")
def input_range(subject: Subject) -> Iterator[Finding]:
    """Pictures that the weights' preprocessing cannot have made."""
    theirs, example = subject.weights_preprocessing, subject.example
    if not isinstance(theirs, Preprocessing) or not _is_pictures(example):
        return
    reach = [((0 - m) / s, (1 - m) / s) for m, s in zip(theirs.mean, theirs.std, strict=True)]
    low, high = min(r[0] for r in reach), max(r[1] for r in reach)
    least, most = float(example.min()), float(example.max())
    seen = f"the example's numbers lie in {_span(example)}"
    if least < low - 0.01 or most > high + 0.01:
        seen += f", beyond {low:.2f}..{high:.2f}"
    elif least >= 0 and most <= 1 and low < -0.5:
        seen += ": scaled, but not normalised"
    else:
        return
    yield warning(
        seen,
        "the weights were trained on pictures less the mean and divided by the deviation of each "
        "channel; others shift every layer",
        f"example = (example - torch.tensor({list(theirs.mean)}).view(-1, 1, 1)) / "
        f"torch.tensor({list(theirs.std)}).view(-1, 1, 1)  # of pictures in 0..1",
    )


def _is_pictures(example: object) -> bool:
    if not isinstance(example, Tensor) or example.dim() != 4 or example.shape[1] != 3:
        return False
    return example.numel() > 0 and bool(example.isfinite().all())
