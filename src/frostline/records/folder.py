"""What lies where in a run folder.

run.toml                     every setting, to repeat the run
frozen.json                  digest of each frozen tensor before training
trained_on.txt               content digest of each training file
validated_on.txt             the same of each validation file
data.json                    how the pictures were divided, how many of each class, what is odd
plan.toml                    the plan, where there is one, to repeat the run with
metrics.jsonl                one line for each epoch
course.json                  what was said, and how long it took beside the epochs
base.safetensors             weights of the base, where they were asked for
start.safetensors            what the run began with, where that are the weights of another run
seen_before.txt              content digest of each file that those were trained on
best/delta.safetensors       what was trained, at the best epoch
best/predictions.safetensors what that epoch made of each validation sample
best/answers.json            of the worst ones, where the task has no classes
last/delta.safetensors       the same where the run was last written
last/state-N.pt              optimizer and position after epoch N, to resume from; N.B after B
                             batches more
last/delta-N.safetensors     earlier ones, with their states, where several are kept
result.json                  metrics of the best epoch, and the proof
report.html                  all of it on one page
sweep.json, sweep.csv        the members of the sweep that this run won, best first
model.safetensors, .pt2, .torchscript, .onnx  the model, exported; no part of what the run reads
run.lock                     while a run is going here
tensorboard/                 curves, where tensorboard is installed
"""

from __future__ import annotations

import contextlib
import errno
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

from frostline._files import (
    FileLock,
    check_writable,
    checked,
    is_text,
    json_checked,
    json_with_sum,
    lock,
    output_errors,
    with_sum,
    write_text,
)
from frostline.errors import ConfigError, OutputError
from frostline.fingerprints import Fingerprint
from frostline.wording import either, option

# What a file system without locks answers; a run goes on there without one.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
# The beginning of a file of a run, as `replacing` names it.
_OWN_FILE = re.compile(
    r"\.(run\.toml|plan\.toml|report\.html|(frozen|data|course|result|sweep)\.json|metrics\.jsonl"
    r"|sweep\.csv|answers\.json|((trained|validated)_on|seen_before)\.txt|(base|start|predictions)\.safetensors|delta[-.\d]*\.safetensors"
    r"|state-[\d.]+\.pt)\.[^.]+\.tmp$"
)
_TRIES, _TRY_SECONDS = 10, 0.02  # who only looks whether a run is going holds the lock for a moment


@final
class _File:
    """A path below a run's folder, read as an attribute of it."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __get__(self, folder: RunFolder, kind: object) -> Path:
        return folder.root / self._path


@final
@dataclass(frozen=True, slots=True)
class RunFolder:
    """The files of one run."""

    root: Path

    settings = _File("run.toml")
    frozen = _File("frozen.json")
    trained_on = _File("trained_on.txt")
    validated_on = _File("validated_on.txt")
    data = _File("data.json")
    plan = _File("plan.toml")
    metrics = _File("metrics.jsonl")
    course = _File("course.json")
    base = _File("base.safetensors")
    start = _File("start.safetensors")
    seen_before = _File("seen_before.txt")
    best = _File("best/delta.safetensors")
    predictions = _File("best/predictions.safetensors")
    answers = _File("best/answers.json")
    last = _File("last/delta.safetensors")
    result = _File("result.json")
    report = _File("report.html")
    swept = _File("sweep.json")
    swept_table = _File("sweep.csv")
    lock_file = _File("run.lock")
    tensorboard = _File("tensorboard")

    def state(self, position: str) -> Path:
        return self.root / "last" / f"state-{position}.pt"

    def earlier(self, position: str) -> Path:
        return self.root / "last" / f"delta-{position}.safetensors"

    def earlier_ones(self) -> list[Path]:
        """Deltas that were kept from before the last one, the latest first."""
        return sorted(self.last.parent.glob("delta-*.safetensors"), key=_order, reverse=True)

    def forget_old(self, last: str, *, keep: int) -> None:
        """Take away all but the last `keep` deltas and their states; `last` is the newest's."""
        stay = {self.last, self.state(last)}
        for file in self.earlier_ones()[: keep - 1]:
            stay |= {file, self.state(_mark(file))}
        for file in (*self.last.parent.glob("state-*.pt"), *self.earlier_ones()):
            if file not in stay:
                file.unlink(missing_ok=True)

    def check_free(self) -> None:
        """Make sure a new run may be written here, before any work is done for it.

        Raises:
            OutputError: something is here already, or the folder cannot be written, or its name is
                no UTF-8, from where safetensors reads nothing back (0.8).
        """
        if not is_text(str(self.root.absolute())):
            raise OutputError(
                f"the path {self.root.absolute()} is no UTF-8, so what a run saves there could not "
                f"be read back. Choose another {option('out')}."
            )
        if self.root.exists() and not self._is_empty_folder():
            raise OutputError(
                f"{self.root} already holds {self._content()} choose another {option('out')}."
            )
        check_writable(self.root)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep all other runs out of the folder; who reads it needs no lock.

        The system lets go of the lock of a run that is killed.

        Raises:
            OutputError: a run is going here, or the folder cannot be written.
        """
        with output_errors(self.lock_file):
            self.root.mkdir(parents=True, exist_ok=True)
            held = self._try_lock(tries=_TRIES)
        with held:
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    self.lock_file.unlink()
                    self.root.rmdir()  # only where the run left nothing

    def check_idle(self) -> None:
        """Make sure that no run is going here.

        Raises:
            OutputError: one is.
        """
        if self.lock_file.exists():
            with contextlib.suppress(OSError):  # one that cannot even be read: writing it says why
                self._try_lock(tries=1).__exit__()

    def _try_lock(self, *, tries: int) -> FileLock | contextlib.nullcontext[None]:
        for _ in range(tries):
            try:
                held = lock(self.lock_file, mode="exclusive", wait=False)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                return contextlib.nullcontext()
            if held is not None:
                return held
            time.sleep(_TRY_SECONDS)
        raise OutputError(
            f"a run is going in {self.root}, and two would mix their files; nothing was changed. "
            f"Wait for its end, or choose another {option('out')}."
        )

    def _content(self) -> str:
        if not self.settings.exists():
            return "something; nothing was overwritten. For a new run"
        if self.has_trained:
            go_on = f"{option('resume', True)} goes on with it"
            return f"a run; nothing was overwritten. {go_on}; for a new run"
        return (
            "a run that has not finished an epoch; nothing was overwritten. If it is not running "
            f"now, {option('resume', True)} with the same settings begins it again. For other "
            "settings delete that folder, in which nothing is trained yet, or"
        )

    @property
    def has_trained(self) -> bool:
        """Whether an epoch was finished here, as far as the files say; if in doubt, yes."""
        states = set(self.last.parent.glob("state-*.pt"))
        return (
            self.best.exists()
            or self.result.exists()
            or bool(states - {self.state("0")})
            or (self.last.exists() and not states)
            or (self.metrics.exists() and self.metrics.stat().st_size > 0)
        )

    def discard_start(self) -> None:
        """Take away what a run wrote that failed before its first epoch was finished.

        Only files that a run writes, and none where anything was trained. What cannot be removed
        stays: there is a failure to report already.
        """
        if self.has_trained:
            return
        started = (
            *(self.last, self.state("0"), self.metrics, self.trained_on, self.validated_on),
            *(self.frozen, self.data, self.plan, self.course, self.start, self.seen_before),
            *self.tensorboard.glob("events.out.tfevents.*"),
            self.settings,  # last: as long as they are there, it is seen to be a run
        )
        with contextlib.suppress(OSError):
            for file in started:
                file.unlink(missing_ok=True)
        for folder in (self.last.parent, self.tensorboard, self.root):
            with contextlib.suppress(OSError):  # something else lies in it
                folder.rmdir()

    def _is_empty_folder(self) -> bool:
        try:
            # A run that was killed while it wrote its first file left that file's beginning.
            left = (path for path in self.root.iterdir() if path != self.lock_file)
            return self.root.is_dir() and all(path.match(".*.tmp") for path in left)
        except OSError as error:
            raise OutputError(
                f"cannot look into {self.root}: {error.strerror}. Choose another {option('out')}."
            ) from error

    def sweep(self) -> None:
        """Take away the beginnings of files that a killed run left."""
        for folder in (self.root, self.best.parent, self.last.parent):
            for file in folder.glob(".*.tmp"):
                if _OWN_FILE.match(file.name):
                    with contextlib.suppress(OSError):  # it is in no one's way
                        file.unlink()

    def check_is_run(self) -> None:
        """Make sure there is a run here.

        Raises:
            ConfigError: there is none.
        """
        if not self.root.is_dir():
            raise ConfigError(f"there is no folder {self.root}. Give a folder that a run wrote.")
        if not self.settings.is_file():
            raise no_run(self.settings)

    def write_frozen(self, fingerprint: Fingerprint) -> None:
        """Note what the frozen part was before training."""
        write_text(self.frozen, json_with_sum({"tensors": fingerprint.tensors}))

    def read_frozen(self) -> Fingerprint:
        """What the frozen part was before training.

        Raises:
            ConfigError: the note is missing or damaged.
        """
        try:
            return Fingerprint(json_checked(self.frozen.read_text())["tensors"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{self.frozen} is missing or damaged ({error}), so nothing can be proven. "
                "Restore it from a copy, or train again."
            ) from error

    def write_result(self, content: Mapping[str, object]) -> None:
        """Write what came out in the end."""
        write_text(self.result, json_with_sum(dict(content)))

    def write_data(self, trained_on: Iterable[str], validated_on: Iterable[str]) -> None:
        """Note the content of the training and validation files."""
        for file, digests in ((self.trained_on, trained_on), (self.validated_on, validated_on)):
            write_text(file, with_sum("".join(f"{digest}\n" for digest in digests)))

    def write_seen_before(self, digests: Iterable[str]) -> None:
        """Note the content of the files that the weights it begins with were trained on."""
        write_text(self.seen_before, with_sum("".join(f"{digest}\n" for digest in digests)))

    def read_seen_before(self) -> tuple[str, ...]:
        """Content digests of these; raises as `read_trained_on`."""
        return _lines(self.seen_before)

    def read_trained_on(self) -> tuple[str, ...]:
        """Content digests of the files the run has trained on, in the order of the data.

        Raises:
            ConfigError: the note is damaged; where there is none, nothing is given.
        """
        return _lines(self.trained_on)

    def read_validated_on(self) -> tuple[str, ...]:
        """The same of the files it was judged by."""
        return _lines(self.validated_on)


def _lines(file: Path) -> tuple[str, ...]:
    try:
        return tuple(checked(file.read_bytes()).split())
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{file} is damaged ({error}), so it is not known which pictures the run has seen. "
            "Restore it from a copy, or delete it to go on without."
        ) from error


def _mark(file: Path) -> str:
    """`3.17` of `delta-3.17.safetensors`."""
    return file.name.partition("-")[2].removesuffix(".safetensors")


def _order(file: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in _mark(file).split(".") if part.isdigit())


def no_run(settings: Path) -> ConfigError:
    """What to say where a folder has no settings of a run."""
    wrote = either("fl.fit(..., out=...)", "`frostline train --out`")
    return ConfigError(
        f"{settings.parent} is no run: it has no {settings.name}. Give the folder that {wrote} "
        "wrote."
    )
