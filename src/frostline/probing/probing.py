"""`fl.probe`: the features of every stage in one pass, a linear probe on each, and its price."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, final

import torch
from torch import Tensor, nn

from frostline.calling import call_with, in_turn
from frostline.choices import PrefixPrecision
from frostline.data import Samples, first_batch, inputs_of, lengths_of, open_data
from frostline.devices import resolve_device, to_device
from frostline.errors import ConfigError, DataError
from frostline.estimates.by_depth import DepthCost, costs_by_depth
from frostline.estimates.steps import Setup
from frostline.features import Computing, Decisions, FeatureData, computing, extract
from frostline.freezing import frozen
from frostline.freezing.modes import modes_kept
from frostline.probing.judging import Score, check_task, judge_for
from frostline.probing.readout import Readout, cut_behind, matrices
from frostline.probing.results import Probe, StageScore
from frostline.probing.taps import Tap, find_taps, stages_to_probe
from frostline.session.pipelines import CHECKED_SAMPLES, TRIED_SAMPLES, default_store
from frostline.store import FeatureStore
from frostline.tasks import Task, task_of
from frostline.tuning import PLAIN
from frostline.world import world_here
from frostline.wrappers import check_is_model

Progress = Callable[[int, int], None]

_ALL = "all"


@in_turn
def probe(
    model: nn.Module,
    train: object,
    val: object,
    *,
    task: Task | str | None = None,
    batch_size: int = 32,
    features: str | Path = "auto",
    precision: PrefixPrecision = "auto",
    device: str = "auto",
    calibration_seconds: float = 1.0,
    progress: Progress | None = None,
) -> Probe:
    """Say how well the features of each stage of `model` serve, and what freezing up to it costs.

    One pass over the data computes what each stage hands to the next one, as the model is in eval
    mode, averaged to one vector for each sample: a map over its positions, tokens over those that
    are no padding; the last stage's as the head reads it. The pass runs in the fastest faithful
    form, as that of `fl.fit`, and its vectors are kept in the feature store: a second probe runs
    no forward pass over data. On each stage's vectors a ridge regression is fitted, its penalty
    chosen on the training samples alone, and judged on the validation samples.

    The model is afterwards what it was: weights, gradients, switches and modes.

    Args:
        model: pretrained; its last stage is taken for the head and not probed. `fl.summary` and
            the selectors `stage:0`, `stage:1` and so on show the stages.
        train: dataset of (input, target), to fit the probes on.
        val: the same, to judge them on.
        task: `classification`, which is the default, or `regression`.
        batch_size: samples in a pass, and in the steps whose cost is told.
        features: folder of the feature store; `auto` is one in the user's cache folder, `off`
            keeps nothing.
        precision: of the pass: `exact`, `auto` or the relative error to allow.
        calibration_seconds: to spend, about, on timing what steps cost here.
        progress: called with (rows done, rows to compute).

    Raises:
        ConfigError: there is no validation data, the task has no linear probe, or there are several
            processes.
        ModelError: the model has one stage, or none of them gives features.
        CutError: the model cannot be followed.
        DataError: targets do not fit the task, or there is no fixed data.
        FreezeError: a layer of the model cannot be frozen.

    Example:
        >>> print(fl.probe(model, data, data, features="features", calibration_seconds=0))
        Sequential by stage: 16 samples to train on, 16 to validate
        ...
        Next: fl.train_only(model, 'stage:1..-1')
    """
    check_is_model(model)
    kind, target_device = task_of(task), resolve_device(device)
    check_task(kind)
    stages_to_probe(model)  # refuses a model without them
    _check_alone(device)
    samples = _opened(train, "train"), _opened(val, "val")
    model.to(target_device)
    first = first_batch(samples[0], CHECKED_SAMPLES, kind.targets)
    few = to_device(first.inputs, target_device)
    mask = few.get("attention_mask") if isinstance(few, Mapping) else None
    with frozen(model, _ALL), modes_kept(model), _store(features) as store:
        model.eval()
        taps, left_out = find_taps(
            model, lambda: call_with(model, few), rows=len(first.targets), mask=mask
        )
        asked = _Asked(kind, batch_size, precision, progress)
        found = _computed(model, taps, few, samples, store, asked, target_device)
    told, true = map(_targets, found.data)
    judge = judge_for(kind, told, true, found.data[0].names)
    scores = [judge.score(*vectors) for vectors in zip(*found.vectors, strict=True)]
    sizes = [_feature_bytes(tap, found, mask) for tap in taps]
    typical = to_device(_typical(samples[0], few), target_device)
    setup = Setup(model, typical, task=kind, batch_size=batch_size)
    above = [[path for paths in tap.above for path in paths] for tap in taps]
    costs, core_share = costs_by_depth(setup, above, sizes, seconds=calibration_seconds)
    each = zip(taps, scores, sizes, costs, found.vectors[0], strict=True)
    return Probe(
        type(model).__name__,
        judge.metric,
        tuple(_stage(*one, found, batch_size) for one in each),
        (len(samples[0]), len(samples[1])),
        batch_size,
        found.compute.words,
        sum(data.computed for data in found.data),
        left_out,
        core_share,
    )


@final
@dataclass(frozen=True, slots=True)
class _Asked:
    task: Task
    batch_size: int
    precision: PrefixPrecision
    progress: Progress | None


@final
@dataclass(frozen=True, slots=True)
class _Found:
    """What the pass gave: of training and validation the features, and a matrix of each stage."""

    compute: Computing
    data: tuple[FeatureData, ...]
    vectors: tuple[list[Tensor], ...]


def _check_alone(device: str) -> None:
    world = world_here(device)
    if world.size > 1:
        raise ConfigError(
            f"a probe runs in one process, and {world.size} were started. Start one alone; "
            "training then takes as many as you like."
        )


def _opened(data: object, what: str) -> Samples:
    if data is None:
        use = "to fit probes on" if what == "train" else "to judge them on"
        raise ConfigError(f"got no samples {use}. Give `{what}`, a data set of (input, target).")
    samples = open_data(data)
    if why := samples.why_not_stored():
        raise DataError(why)
    return samples


@contextmanager
def _store(features: str | Path) -> Iterator[FeatureStore]:
    with ExitStack() as kept:
        if features == "off":
            features = kept.enter_context(TemporaryDirectory(prefix="frostline-probe-"))
        yield FeatureStore(default_store() if features == "auto" else features)


def _computed(
    model: nn.Module,
    taps: Sequence[Tap],
    few: Any,
    samples: tuple[Samples, Samples],
    store: FeatureStore,
    asked: _Asked,
    device: torch.device,
) -> _Found:
    """All vectors, from the store as far as it has them."""
    made = cut_behind(Readout(model, taps), few)
    total = sum(map(len, samples))
    compute = computing(
        made,
        lambda: inputs_of(samples[0], range(min(TRIED_SAMPLES, len(samples[0])))),
        precision=asked.precision,
        batch_size=asked.batch_size,
        device=device,
        planned_samples=total,
        decisions=Decisions(store.root),
    )
    data: list[FeatureData] = []
    for part in samples:
        progress = asked.progress and partial(_told, asked.progress, sum(map(len, data)), total)
        data.append(
            extract(
                made,
                part,
                store,
                compute=compute,
                as_targets=asked.task.targets,
                progress=progress,
            )
        )
    vectors = tuple(matrices(made, each.values, len(each), device) for each in data)
    return _Found(compute, tuple(data), vectors)


def _told(progress: Progress, before: int, total: int, done: int, _: int) -> None:
    progress(before + done, total)


def _targets(data: FeatureData) -> Tensor:
    if not isinstance(data.targets, Tensor):
        raise DataError("the targets differ in shape. A probe needs one for each sample.")
    return data.targets


def _typical(samples: Samples, few: Any) -> Any:
    """A few samples of about the mean length, where they differ in length."""
    lengths = lengths_of(samples)
    if not lengths:
        return few
    mean = sum(lengths) / len(lengths)
    nearest = sorted(range(len(lengths)), key=lambda row: (abs(lengths[row] - mean), row))
    return inputs_of(samples, nearest[:CHECKED_SAMPLES])


def _feature_bytes(tap: Tap, found: _Found, mask: Tensor | None) -> int:
    """Of one sample's features as a run would store them, on average."""
    form, nbytes = found.compute.tuned.form, float(tap.nbytes)
    if form != PLAIN and tap.itemsize > form.torch_dtype.itemsize:
        nbytes *= form.torch_dtype.itemsize / tap.itemsize
    lengths = [length for data in found.data for length in data.lengths or ()]
    if tap.of_length and mask is not None and lengths:
        nbytes *= sum(lengths) / len(lengths) / mask.shape[1]
    return round(nbytes)


def _stage(
    tap: Tap,
    score: Score,
    nbytes: int,
    cost: DepthCost,
    vectors: Tensor,
    found: _Found,
    batch_size: int,
) -> StageScore:
    train, validation = (len(data) for data in found.data)
    return StageScore(
        stage=tap.stage,
        name=", ".join(tap.paths),
        shape=tap.shape,
        pooled=tap.pooling,
        width=vectors.shape[1],
        score=score[0],
        low=score[1],
        high=score[2],
        feature_bytes=nbytes,
        stored_bytes=nbytes * (train + validation),
        step_seconds=cost.step_seconds,
        epoch_seconds=(cost.step_seconds * train + cost.forward_seconds * validation) / batch_size,
        memory_bytes=cost.memory.total,
        train=f"stage:{tap.stage + 1}..-1",
    )
