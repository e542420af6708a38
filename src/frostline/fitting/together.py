"""What several processes agree on before a run and in the end: its settings, and one model."""

from __future__ import annotations

from pathlib import Path

from frostline.config import RunSettings
from frostline.errors import DriftError
from frostline.records import RunFolder
from frostline.session import Survey
from frostline.units import some_of
from frostline.world import World, decided, is_restarted


def resumes(out: str | Path | None, world: World, *, resume: bool) -> bool:
    """Whether the run goes on with the one in `out`: asked for, or begun before a restart.

    A launcher that starts its processes again after one of them died starts them with the same
    arguments.
    """
    if world.size == 1 and not is_restarted():
        return resume
    begun = is_restarted() and out is not None and RunFolder(Path(out)).settings.is_file()
    return bool(decided(world, resume or begun))


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
