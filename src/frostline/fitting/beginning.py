"""What a run begins from: settings, checked and written down, or held against those of before."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from frostline.config import RunSettings
from frostline.devices import resolve_device
from frostline.errors import ConfigError, DriftError
from frostline.fingerprints import Fingerprint
from frostline.fitting.longer import is_length_alone, lengthened
from frostline.plans import Phase
from frostline.records import BY_MODEL, RunFolder
from frostline.session import Session, content
from frostline.tuning import PLAIN
from frostline.wording import option


def check_settings(settings: RunSettings) -> None:
    """Refuse what would not be heeded, or only after hours.

    Raises:
        ConfigError: there is no such device, no compiler, or the forms are more than phases or
            round where nothing is to be.
    """
    device, features = resolve_device(settings.device), settings.features
    phases = len(settings.plan) or 1
    if len(features.forms) > phases:
        raise ConfigError(
            f"got {len(features.forms)} forms for {phases} phase{'s' if phases > 1 else ''}. Give "
            "one for each phase, or none."
        )
    rounded = [form for form in features.forms if form not in (BY_MODEL, str(PLAIN))]
    if settings.training.precision == "exact" and rounded:
        raise ConfigError(
            f"precision 'exact' keeps every bit, and the form {rounded[0]!r} does not; leave one "
            "out."
        )
    if rounded and features.store == "off":
        raise ConfigError(
            "without features the model computes all itself, so the form "
            f"{rounded[0]!r} would not be heeded; leave out the form, or 'off'."
        )
    compilers = ("g++", "clang++", "c++")
    there = "CXX" in os.environ or any(map(shutil.which, compilers))
    if features.compile and device.type == "cpu" and not there:  # torch would say it hours later
        raise ConfigError(
            "torch.compile needs a C++ compiler on a CPU, and none of "
            f"{', '.join(compilers)} is there. Install g++, or leave {option('compile', True)} out."
        )


def about(settings: RunSettings) -> dict[str, str]:
    """What a delta says about how to get its base, and about the plan that it belongs to."""
    model = settings.model
    notes = {"model": model.name, "weights": model.weights}
    if settings.data.classes:
        notes["classes"] = json.dumps(settings.data.classes)
    if not model.is_from_python:
        notes["head"] = json.dumps({"on": model.on, "hidden": model.hidden, "at": model.head})
        notes["weights_digest"] = model.weights_digest
    if plan := settings.as_plan():
        notes["plan"] = plan.dumps()
    return notes


@contextmanager
def run_folder(out: str | Path | None, *, resume: bool) -> Iterator[RunFolder | None]:
    """The folder of a run, locked while it goes; None where nothing is kept.

    Raises:
        ConfigError: a run is to be resumed, and none is there.
        OutputError: a run is going there, or something lies there already.
    """
    if out is None:
        if resume:
            raise ConfigError(f"resume needs the run's folder. Give it as {option('out')}.")
        yield None
        return
    folder = RunFolder(Path(out))
    check = folder.check_is_run if resume else folder.check_free
    folder.check_idle()
    check()
    with folder.locked():
        check()  # another run may have come and gone meanwhile
        folder.sweep()
        try:
            yield folder
        except Exception:
            if not resume:
                folder.discard_start()
            raise


def continued(
    folder: RunFolder | None, settings: RunSettings, *, resume: bool
) -> tuple[RunSettings, tuple[str, ...]]:
    """The settings; of a resumed run as they were written, with the length that is asked for now.

    Returns:
        Beside them lines for people where the length is another, or where features are kept.
    Raises:
        ConfigError: the run has other settings, or has done more epochs already.
    """
    if folder is None or not resume:
        return settings, ()
    stored = RunSettings.read(folder.settings)
    if _has_moved(stored, settings):  # whether it is the same data is found by their content
        stored = stored.model_copy(update={"data": settings.data})
    found, line = lengthened(folder, stored, settings)
    check_same_settings(stored if stored.plan == settings.plan else found, settings)
    before, now = stored.features, settings.features
    moved = [
        f"{name} {new}, not {old} as before"
        for name in ("store", "storage", "compile")
        if (new := getattr(now, name)) != (old := getattr(before, name))
    ]
    lines = (line, f"Features  {'; '.join(moved)}" if moved else "")
    return found, tuple(filter(None, lines))


def _has_moved(stored: RunSettings, given: RunSettings) -> bool:
    """Whether the data are elsewhere now, and read as before."""
    before, now = stored.data, given.data
    is_gone = bool(before.path) and not Path(before.path).exists()
    return is_gone and before.model_copy(update={"path": now.path}) == now


def begun(
    folder: RunFolder | None, settings: RunSettings, session: Session, *, resume: bool
) -> None:
    """Write down settings and frozen part; of a resumed run, what `continued` made of them.

    Raises:
        DriftError: what stays frozen in a resumed run is not what it was.
        ConfigError: another part is to stay frozen.
    """
    if folder is None:
        return
    planned = session.planned
    if not resume:
        settings.write(folder.settings)
        folder.write_frozen(planned.untouched)
        _write_plan(folder, settings)
        return
    if not folder.frozen.exists() and not folder.has_trained:  # killed between the two files
        folder.write_frozen(planned.untouched)
    stored, before = RunSettings.read(folder.settings), folder.read_frozen()
    if before != planned.untouched:
        _check_frozen(folder, before, session, may_thaw=len(settings.plan) > len(stored.plan))
        folder.write_frozen(planned.untouched)
    if settings != stored:
        folder.result.unlink(missing_ok=True)  # of the end that is none now
        settings.write(folder.settings)
    _write_plan(folder, settings)  # which a kill may have left as it was


def _check_frozen(
    folder: RunFolder, before: Fingerprint, session: Session, *, may_thaw: bool
) -> None:
    """Hold what a resumed run began with against what is there now.

    Args:
        may_thaw: whether it has phases more, which may train what stayed frozen in the others.
    """
    expected, found = before.tensors, session.planned.untouched.tensors
    thawed = {name for name in expected if name not in found}
    now = {**found, **content(session.model, thawed).tensors}
    moved = [name for name, digest in expected.items() if now.get(name) != digest]
    if moved:
        raise DriftError(
            f"cannot resume: the frozen part is not what {folder.root} started with; "
            f"{len(moved)} tensors differ, first {', '.join(moved[:3])}. "
            "Give the same weights, model and selector."
        )
    others = {"frozen": [name for name in found if name not in expected]}
    if not may_thaw:
        others["to train"] = sorted(thawed)
    told = [f"{', '.join(n[:3])} ({len(n)} in all) is now {how}" for how, n in others.items() if n]
    if told:
        raise ConfigError(
            f"cannot resume with another part frozen than {folder.root} began with: "
            f"{'; '.join(told)}. Freeze the same, or start a new run with another {option('out')}."
        )


def _write_plan(folder: RunFolder, settings: RunSettings) -> None:
    if plan := settings.as_plan():
        plan.save(folder.plan)


def check_same_settings(stored: RunSettings, given: RunSettings) -> None:
    """Make sure a resumed run is the same run, but for its device, length and Frostline's version.

    Raises:
        ConfigError: names each setting that differs.
    """
    before, now = (_as_asked(settings).model_dump() for settings in (stored, given))
    for one in (before, now):
        one["task"] = one["task"] or {}
    # No matter how many were kept before; its length was looked at by `lengthened`.
    now["training"] |= {name: before["training"][name] for name in ("keep", "epochs")}
    differing = [
        f"{section}.{key} was {before[section].get(key)!r} and is {now[section].get(key)!r}"
        for section in ("model", "data", "task", "freeze", "training")
        for key in sorted({*before[section], *now[section]})
        if before[section].get(key) != now[section].get(key)
    ]
    if stored.plan != given.plan and (given.plan or not is_length_alone(stored.plan)):
        differing.append(f"the plan was {_short(stored.plan)} and is {_short(given.plan)}")
    if differing:
        raise ConfigError(
            f"cannot resume with other settings: {'; '.join(differing)}. Leave them as they were, "
            f"or start a new run with another {option('out')}."
        )


def _as_asked(settings: RunSettings) -> RunSettings:
    """Without the thresholds that the run itself chose."""
    if settings.task is None or not settings.task.chosen:
        return settings
    task = settings.task.model_copy(update={"thresholds": ()})
    return settings.model_copy(update={"task": task})


def _short(phases: Sequence[Phase]) -> str:
    return f"fl.Plan({list(phases)})" if phases else "none"
