"""A run that is resumed for another number of epochs: which phase grows, or what follows."""

from __future__ import annotations

from collections.abc import Sequence

from frostline.config import RunSettings
from frostline.deltas import read_delta
from frostline.errors import ConfigError
from frostline.plans import Phase
from frostline.records import RunFolder, read_records
from frostline.wording import either, option

_NAME = "longer"


def lengthened(
    folder: RunFolder, stored: RunSettings, given: RunSettings
) -> tuple[RunSettings, str]:
    """`stored` with the length that `given` asks for, and a line for people where it is another.

    A run that has ended gets a phase more, which goes on with what the last one trained, from its
    last weights and with the optimizer's state, on a learning-rate schedule of its own. In one
    that was stopped the last phase gets another number of epochs, and its schedule ends there.

    Raises:
        ConfigError: it has done more epochs already, or its phases have no number of them.
    """
    asked, plan = given.training.epochs, stored.plan
    if asked == stored.training.epochs:
        if plan and len(given.plan) > len(plan) and given.plan[: len(plan)] == plan:
            more = len(given.plan) - len(plan)
            line = f"Length    {len(given.plan)} phases, {more} more than before"
            return stored.model_copy(update={"plan": given.plan}), line
        return stored, ""
    phases = plan or (Phase(epochs=stored.training.epochs),)
    *before, own = (_epochs(folder, phase, n, asked) for n, phase in enumerate(phases, 1))
    done, mark, at = _position(folder)
    earlier = sum(before)
    if at == len(phases) > 1:  # those before it may have ended early
        earlier = sum(line.phase < at for line in read_records(folder).epochs[:done])
    planned, size = earlier + own, asked - earlier
    if asked < done or (asked == done and mark != str(done)) or size < 1:
        part = " and a part of the next" if mark != str(done) else ""
        raise ConfigError(
            f"cannot train for {asked} epochs in all: {folder.root} has done {done} of {planned}"
            f"{part}. Ask for more, or start a new run with another {option('out')}."
        )
    stored = stored.model_copy(
        update={"training": stored.training.model_copy(update={"epochs": asked})}
    )
    if at == len(phases) and (folder.result.exists() or done >= planned):
        return _followed(stored, phases, done)
    phases = (*phases[:-1], phases[-1].model_copy(update={"epochs": size}))
    changed: dict[str, object] = {"plan": phases if plan else ()}
    if at == len(phases) and mark != "0":
        change = f"{planned} -> {asked} after epoch {mark}"
        changed["length_changes"] = (*stored.length_changes, change)
    line = (
        f"Length    {asked} epochs in all, not {planned}: from epoch {mark} on the learning rate "
        "follows its schedule over that length"
    )
    return stored.model_copy(update=changed), line


def _followed(stored: RunSettings, phases: tuple[Phase, ...], done: int) -> tuple[RunSettings, str]:
    """As `lengthened`, of a run that has ended with these phases."""
    asked, features = stored.training.epochs, stored.features
    if asked == done:
        return stored, f"Length    all of {asked} epochs are done already"
    phases = (*phases, _following(phases[-1], asked - done))
    # In the form of the phase that it goes on with: that one's features are stored.
    forms = (*features.forms, *features.forms[-1:])[: len(phases)]
    changed = {"plan": phases, "features": features.model_copy(update={"forms": forms})}
    line = (
        f"Length    {asked} epochs, of which {done} are done: the others go on from the last "
        "weights, with a learning-rate schedule of their own"
    )
    return stored.model_copy(update=changed), line


def is_length_alone(phases: Sequence[Phase]) -> bool:
    """Whether these phases say no more than how many epochs each takes."""
    return all(phase == Phase(name=phase.name, epochs=phase.epochs) for phase in phases)


def _following(phase: Phase, epochs: int) -> Phase:
    name = phase.name.removesuffix(f", {_NAME}")
    name = f"{name}, {_NAME}" if name not in ("", _NAME) else _NAME
    changes = {"name": name, "epochs": epochs, "start": "last", "state": "keep"}
    return Phase(**{**dict(phase), **changes})


def _epochs(folder: RunFolder, phase: Phase, number: int, asked: int) -> int:
    if phase.epochs is not None and phase.steps is None:
        return phase.epochs
    raise ConfigError(
        f"cannot train for {asked} epochs in all: {phase.label(number)} of the plan of "
        f"{folder.root} is not counted in epochs. Write into a copy of {folder.plan} what you "
        "want, and start a new run from this one"
        + either(
            ": fl.fit(model, ..., plan=fl.Plan.load(copy)).",
            f": --from {folder.root} --plan FILE.",
        )
    )


def _position(folder: RunFolder) -> tuple[int, str, int]:
    """Epochs done, the mark of the position, and the phase, counted from 1."""
    if not folder.last.exists():
        return 0, "0", 1
    about = read_delta(folder.last).about
    mark = about.get("position") or about.get("epoch", "0")
    return int(mark.partition(".")[0]), mark, int(about.get("phase", "1"))
