"""What a sweep gives: a line for each member, best first, and the winner's run."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from frostline._files import json_with_sum, write_text
from frostline.fitting import Run
from frostline.records import RunFolder, accuracy_interval
from frostline.sweeps.ranking import CHANCE, Standing
from frostline.sweeps.settings import Setting, varied
from frostline.tables import COLUMNS, Displayed, Table, columns, hanging
from frostline.tasks import Metrics
from frostline.units import format_seconds, some_of

_ROWS = 20  # of the table for people
_INDENT = 10


@final
@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """One setting, and what came of it.

    Attributes:
        number: in the order of the combinations, from 1.
        epoch: the best one, by the rule by which a run keeps it; 0 where no metric was a number.
        standing: by that epoch; None where there is none.
        history: validation metrics of each epoch that it was trained for.
        together: whether it was trained with others at once.
        failed: what ended it, where its loss stopped being a number.
    """

    number: int
    setting: Setting
    epoch: int
    standing: Standing | None
    history: tuple[Metrics, ...]
    together: bool = False
    failed: str = ""

    @property
    def metrics(self) -> Metrics | None:
        """Of its best epoch."""
        return None if self.standing is None else self.standing.metrics

    @property
    def epochs(self) -> int:
        """That it was trained for."""
        return len(self.history)

    def p_value(self, other: Member) -> float | None:
        """How often two equally good members would differ by as much; None where not known.

        McNemar's test, over the validation samples of each one's best epoch.
        """
        if self.standing is None or other.standing is None:
            return None
        return self.standing.p_value(other.standing)


@final
@dataclass(frozen=True)
class Sweep(Displayed):
    """What a sweep gave; printing it shows the table.

    Attributes:
        members: best first.
        run: of the winner, trained by itself as `fl.fit` trains; its model holds the best weights.
        epochs: that the winner, and all who were not dropped, were trained for.
        says: lines for people on how they were trained.
        seconds: that all members took, with their features; `training_seconds` those of their
            epochs alone.
        run_seconds: that the winner's own run took.

    Example:
        >>> found = fl.sweep(model, data, data, lr=[1e-3, 1e-2], epochs=2, features="features")
        >>> [member.setting.lr for member in found.members]
        [0.01, 0.001]
        >>> found.winner is found.members[0]
        True
    """

    members: tuple[Member, ...]
    run: Run
    epochs: int
    says: tuple[str, ...] = ()
    seconds: float = 0.0
    training_seconds: float = 0.0
    run_seconds: float = 0.0

    @property
    def winner(self) -> Member:
        """The best member."""
        return self.members[0]

    @property
    def alike(self) -> tuple[Member, ...]:
        """Others that its validation samples cannot tell from the winner, by McNemar's test."""
        found = ((one, self.winner.p_value(one)) for one in self.members[1:])
        return tuple(one for one, p in found if p is not None and p >= CHANCE)

    def table(self) -> Table:
        """A row for each of the best members, with what differs among them; then what to know."""
        names = varied([member.setting for member in self.members])
        heads = ("", *names, "kept", "accuracy", "95 %", "loss")
        rows = tuple(
            self._row(place, one, names) for place, one in enumerate(self.members[:_ROWS], 1)
        )
        notes = tuple(hanging(line, indent=_INDENT) for line in self._notes())
        return Table(columns(*heads, left=0), rows, notes=notes)

    def _row(self, place: int, member: Member, names: list[str]) -> tuple[str, ...]:
        cells = member.setting.cells()
        own = (cells[name] for name in names)
        found = member.metrics
        if found is None:
            return str(place), *own, "-", "-", "-", "-"
        low, high = accuracy_interval(found.headline(), found.samples) or (0.0, 0.0)
        values = found.headline()
        return (
            str(place),
            *own,
            f"{member.epoch}/{member.epochs}",
            f"{values['accuracy']:.3f}" if "accuracy" in values else "-",
            f"{low:.2f}-{high:.2f}" if "accuracy" in values else "-",
            f"{values['loss']:.3f}" if "loss" in values else "-",
        )

    def _notes(self) -> Iterator[str]:
        more = len(self.members) - _ROWS
        if more > 0:
            where = "" if self.run.folder is None else ": sweep.csv in the run's folder has all"
            yield f"          and {more} more{where}"
        yield f"Best      {self.winner.setting.line()}"
        if alike := self.alike:
            places = [str(self.members.index(one) + 1) for one in alike]
            found = self.winner.metrics
            yield (
                f"Chance    {found.samples if found else 0} samples cannot tell it from "
                f"{some_of(places, most=10)} (McNemar's test, 5 %)"
            )
        dropped = sum(one.epochs < self.epochs and not one.failed for one in self.members)
        if dropped:
            yield f"Dropped   {dropped} of {len(self.members)} members before the last epoch"
        for reason in dict.fromkeys(one.failed for one in self.members if one.failed):
            places = [str(n) for n, one in enumerate(self.members, 1) if one.failed == reason]
            yield f"Failed    {some_of(places, most=10)}: {reason}"
        yield from self.says
        best = self.run.best
        yield (
            f"Alone     in {format_seconds(self.run_seconds)}; kept is epoch {best.epoch}: "
            f"{best.validation.line()} on {best.validation.samples} samples"
        )
        yield f"Verified  {self.run.proof}"
        if self.run.folder is not None:
            yield f"Written   to {self.run.folder.root}"

    def _parts(self) -> tuple[Table]:
        return (self.table(),)

    def __str__(self) -> str:
        return self.table().render(width=COLUMNS)

    __repr__ = __str__

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "members": [self._entry(place, one) for place, one in enumerate(self.members, 1)],
            "epochs": self.epochs,
            "says": list(self.says),
            "seconds": self.seconds,
            "training_seconds": self.training_seconds,
            "run_seconds": self.run_seconds,
        }

    def _entry(self, place: int, member: Member) -> dict[str, object]:
        found = {} if member.metrics is None else member.metrics.headline()
        samples = 0 if member.metrics is None else member.metrics.samples
        low, high = accuracy_interval(found, samples) or (None, None)
        is_dropped = member.epochs < self.epochs and not member.failed
        return {
            "place": place,
            "number": member.number,
            **member.setting.as_dict(),
            "epoch": member.epoch,
            **found,
            "low": low,
            "high": high,
            "samples": samples,
            "p_value": self.winner.p_value(member),
            "dropped_after": member.epochs if is_dropped else None,
            "failed": member.failed,
            "together": member.together,
        }

    def csv(self) -> str:
        """A line for each member, best first."""
        page = io.StringIO()
        entries = [self._entry(place, one) for place, one in enumerate(self.members, 1)]
        names = list(dict.fromkeys(name for entry in entries for name in entry))
        writer = csv.DictWriter(page, names, lineterminator="\n")
        writer.writeheader()
        for entry in entries:
            writer.writerow({name: _cell(value) for name, value in entry.items()})
        return page.getvalue()

    def write(self, folder: RunFolder) -> None:
        """Beside the winner's files.

        Raises:
            OutputError: it cannot be written.
        """
        write_text(folder.swept, json_with_sum(self.as_dict()))
        write_text(folder.swept_table, self.csv())


def _cell(value: object) -> object:
    return "-".join(map(str, value)) if isinstance(value, tuple) else value
