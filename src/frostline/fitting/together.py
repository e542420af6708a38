"""What several processes agree on before a run and in the end: its settings, and one model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from frostline.config import RunSettings
from frostline.data import GivenSamples, Samples, some_targets
from frostline.errors import ConfigError, DataError, DriftError, ModelError
from frostline.records import RunFolder
from frostline.session import Survey
from frostline.sharding import is_sharded, own_class
from frostline.units import some_of
from frostline.wording import option
from frostline.world import World, decided, is_restarted

_LOOKED_AT = 16  # samples of a data set


def resumes(out: str | Path | None, world: World, *, resume: bool) -> bool:
    """Whether the run goes on with the one in `out`: asked for, or begun before a restart.

    A launcher that starts its processes again after one of them died starts them with the same
    arguments.
    """
    if world.size == 1 and not is_restarted():
        return resume
    begun = is_restarted() and out is not None and RunFolder(Path(out)).settings.is_file()
    return bool(decided(world, resume or begun))


def check_shared(settings: RunSettings, world: World) -> None:
    """Refuse what several processes cannot heed together.

    Raises:
        ConfigError: names the options.
    """
    if world.size > 1 and settings.training.sync_norm and settings.features.compile:
        raise ConfigError(
            f"{option('compile', True)} takes batch norms out of the hands of "
            f"{option('sync_norm', True)}. Leave one of them out."
        )


def check_whole(model: nn.Module) -> None:
    """Refuse a model of which each process holds a part: its gradients are summed by other means.

    Raises:
        ModelError: it is one; says what trains it.
    """
    if is_sharded(model):
        raise ModelError(
            f"the processes hold parts of this {own_class(model).__name__} (fully_shard), and "
            "fl.fit trains models that each process holds whole. Train it in a loop of your own, "
            "on stored features too, as under 'Sharding' in docs/processes.md: fl.Session(model, "
            "plan, world=world)."
        )


def check_same_data(data: Sequence[Samples], world: World) -> None:
    """Make sure that all processes were given the same samples, as far as a few of them say.

    Raises:
        DataError: they were not, as where each divided a data set at random.
    """
    if world.size == 1:
        return
    for samples, part in zip(data, ("training", "validation"), strict=True):
        if isinstance(samples, GivenSamples):
            continue  # looked at batch by batch
        places = torch.linspace(0, len(samples) - 1, min(_LOOKED_AT, len(samples))).long()
        own = [len(samples), repr(some_targets(samples.targets, places))]
        if decided(world, own) != own:
            raise DataError(
                f"the {part} data of process {world.rank} are not those of process 0. Let each "
                "make them by the same seed, as torch.Generator().manual_seed(0)."
            )


def of_all(settings: RunSettings, world: World) -> RunSettings:
    """The settings of the first process, which alone reads the folder of a run."""
    if world.size == 1:
        return settings
    found = decided(world, settings.model_dump(mode="json"))
    return settings if world.rank == 0 else RunSettings.model_validate(found)


def check_alike(planned: Survey, world: World) -> None:
    """Make sure that what no phase trains is the same in all processes.

    Raises:
        DriftError: it is not; names tensors.
    """
    if world.size == 1:
        return
    own = planned.untouched.tensors
    first = decided(world, own)
    differing = [name for name in {**first, **own} if first.get(name) != own.get(name)]
    if differing:
        raise DriftError(
            f"{len(differing)} frozen tensors of process {world.rank} are not those of process 0: "
            f"{some_of(differing, most=3)}. Load the same weights in all processes."
        )
