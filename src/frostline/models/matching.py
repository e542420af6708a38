"""Which tensors of a file are a model's: all behind one prefix, by the model's own names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from frostline.errors import WeightsError
from frostline.wording import option

# Names in published torchvision files that its models have since changed.
_RENAMED = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\."), r"\1\2."),
    (re.compile(r"\.mlp\.linear_1\."), ".mlp.0."),
    (re.compile(r"\.mlp\.linear_2\."), ".mlp.3."),
)
# What DataParallel, torch.compile and their like put into the names of a part that they wrap.
_WRAPPED = re.compile(r"(?<=\.)(?:module|_orig_mod|_fsdp_wrapped_module)\.")
# What the methods of the field train beside the network and leave out when they use it.
# Source: main_lincls.py of MoCo, eval_linear.py of SwAV, models_mae.py of MAE.
_TRAINED_BESIDE = re.compile(
    r"(?:queue|queue_ptr|prototypes|projector|projection_head|predictor|mask_token|decoder_\w+)\b"
)
# A running average of the network that is trained, under the names of MoCo (encoder_k), MoCo v3
# and lightly (momentum), BYOL (target), timm and torchvision (ema).
_AVERAGE = re.compile(r"(?:^|[._])(?:ema|swa|momentum|target|encoder_k)(?=[._])")

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Match:
    """How a model and the names behind one prefix of a file fit.

    Attributes:
        prefix: with its last dot; empty where the names stand alone.
        found: what stands behind it, by the model's names.
        beside: names in the file that stand elsewhere, or are none of the network's.
        missing: names in the model for which there is nothing.
        strange: names behind the prefix that the model has not, or in another shape.
        misfits: those of `missing` and `strange` that are not excused.
    """

    prefix: str
    found: dict[str, Tensor]
    beside: tuple[str, ...]
    missing: tuple[str, ...]
    strange: tuple[str, ...]
    misfits: frozenset[str]

    @property
    def taken(self) -> dict[str, Tensor]:
        """The tensors for the model, by its names."""
        left = {*self.strange}
        return {name: value for name, value in self.found.items() if name not in left}


def find_match(
    tensors: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    *,
    excused: Collection[str] = (),
    within: str = "",
    file: str,
) -> Match:
    """The one place in a file where a model's names stand; if none fits, the nearest.

    Of several that fit, a running average is passed over for the network that it follows, and of
    equal ones the first is taken.

    Args:
        tensors: by their names in the file.
        wanted: the model's tensors, by every name that they have.
        excused: module paths under which nothing needs to fit.
        within: part of the prefix, such as `teacher`; nothing else of the file is looked at.
        file: its name, for messages.

    Raises:
        WeightsError: several places fit and hold other numbers; or nothing is `within`.
    """
    gone = tuple(f"{path}." for path in excused)
    nearest: list[Match] = []
    for spelt in _spellings(_within(tensors, within, file)):
        matches = [_matched(spelt, wanted, prefix, gone) for prefix in _prefixes(spelt, wanted)]
        if fitting := [match for match in matches if not match.misfits]:
            return _the_one(fitting, file)
        nearest.append(matches[0])
    return min(nearest, key=lambda match: len(match.misfits))


def _within(tensors: Mapping[str, Tensor], place: str, file: str) -> Mapping[str, Tensor]:
    held = {n: v for n, v in tensors.items() if not place or f".{place}." in f".{n}"}
    if held:
        return held
    parts = dict.fromkeys(name.partition(".")[0] for name in tensors)
    raise WeightsError(
        f"{file} holds nothing behind {place!r}. It has {', '.join([*parts][:_SHOWN])}."
    )


def _spellings(tensors: Mapping[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
    """The file's names as they are, as torchvision spells them today, and without wrappers."""
    yield tensors
    renamed = _renamed(tensors, _today)
    yield renamed
    yield _renamed(renamed, lambda name: _WRAPPED.sub("", name))


def _today(name: str) -> str:
    for pattern, replacement in _RENAMED:
        name = pattern.sub(replacement, name)
    return name


def _renamed(tensors: Mapping[str, Tensor], change: Callable[[str], str]) -> Mapping[str, Tensor]:
    changed = {change(name): value for name, value in tensors.items()}
    return changed if len(changed) == len(tensors) else tensors


def _prefixes(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """What stands before names of the model: most names first, no average, then the shortest.

    Without those that hold less than half as many as the first, of which many are chance.
    """
    held = Counter[str]({"": 0})
    for name in tensors:
        starts = (0, *(dot.end() for dot in re.finditer(r"\.", name)))
        held.update(name[:start] for start in starts if name[start:] in wanted)
    ordered = sorted(held, key=lambda p: (-held[p], bool(_AVERAGE.search(p)), len(p), p))
    return [prefix for prefix in ordered if 2 * held[prefix] >= held[ordered[0]]]


def _matched(
    tensors: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    prefix: str,
    gone: tuple[str, ...],
) -> Match:
    found, beside = dict[str, Tensor](), list[str]()
    own = {name.partition(".")[0] for name in wanted}
    for full, value in tensors.items():
        name = full.removeprefix(prefix)
        foreign = name.partition(".")[0] not in own and _TRAINED_BESIDE.match(name)
        if not full.startswith(prefix) or foreign:
            beside.append(full)
        else:
            found[name] = value
    strange = [n for n, v in found.items() if n not in wanted or v.shape != wanted[n].shape]
    # A tied tensor is there if it came under any of its names.
    held = {id(wanted[name]) for name in found.keys() - {*strange}}
    missing = [n for n, value in wanted.items() if n not in found and id(value) not in held]
    misfits = {n for n in (*missing, *strange) if not f"{n}.".startswith(gone)}
    misfits.difference_update(name for name in missing if is_counter(name))
    return Match(prefix, found, tuple(beside), tuple(missing), tuple(strange), frozenset(misfits))


def is_counter(name: str) -> bool:
    """Whether it counts batches, which files from before torch 0.4.1 lack."""
    return name.rpartition(".")[2] == "num_batches_tracked"


def _the_one(fitting: list[Match], file: str) -> Match:
    trained = [match for match in fitting if not _AVERAGE.search(match.prefix)] or fitting
    first = trained[0]
    others = [match for match in trained[1:] if not _equal(match.taken, first.taken)]
    if not others:
        return first
    places = [match.prefix.rstrip(".") for match in (first, *others)]
    raise WeightsError(
        f"{file} holds {len(places)} networks that fit, behind {' and '.join(places[:_SHOWN])}. "
        f"Say which, as in {option('weights', f'{file}:{places[0]}')}."
    )


def _equal(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    try:
        return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)
    except RuntimeError:  # sparse, quantised, or without data
        return False
