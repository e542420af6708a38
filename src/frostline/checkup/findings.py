"""What a checkup gives: findings, worst first, as text of 80 columns and as plain data.

A line is longer only where one name or one word of code is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Literal, final

from frostline.tables import Displayed, hanging
from frostline.units import some_of

Level = Literal["error", "warning", "note"]

LEVELS: tuple[Level, ...] = ("error", "warning", "note")
"""From the worst: what is asked will not happen; it is hardly meant; it is good to know."""


@final
@dataclass(frozen=True, slots=True)
class Finding(Displayed):
    """One thing that is wrong with a set-up, or good to know about it.

    Attributes:
        code: stable name of the kind of finding, for machines; docs/doctor.md lists them.
        level: how bad it is.
        seen: what was found, with the first names.
        why: why it matters.
        fix: a line of Python, or on the command line the option that does the same, with what
            else there is to say behind a `#`; or a sentence where no single line does it.
        names: everything that it is about, by dotted names.

    Example:
        >>> optimizer = torch.optim.SGD(model.backbone.parameters(), lr=0.1)
        >>> finding = fl.doctor(model, images, targets=labels, optimizer=optimizer).findings[0]
        >>> finding.code, finding.names
        ('not-in-optimizer', ('head.2.weight', 'head.2.bias'))
    """

    code: str
    level: Level
    seen: str
    why: str
    fix: str
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = (("  ", self.seen), ("  Why:  ", self.why), ("  Fix:  ", self.fix))
        texts = (hanging(start + text, indent=len(start)) for start, text in parts)
        return "\n".join([f"{self.level}: {self.code}", *texts])


error, warning, note = (partial(Finding, "", level) for level in LEVELS)
"""A finding of that level; the check that it comes from gives it its code."""


@final
@dataclass(frozen=True, slots=True)
class Checkup(Displayed):
    """All findings, worst first; `print` shows them.

    Attributes:
        findings: errors, then warnings, then notes; within each the more harmful first.
        not_given: what was left out, so that nothing about it could be checked.

    Example:
        >>> print(fl.doctor(model, images, targets=labels))
        Nothing found. Not given, so not looked at: optimizer, train_data.
    """

    findings: tuple[Finding, ...]
    not_given: tuple[str, ...] = ()

    @property
    def worst(self) -> Level | None:
        """The level of the first finding; None where there is none."""
        return self.findings[0].level if self.findings else None

    @property
    def ok(self) -> bool:
        """Whether there is no error; warnings and notes may be there."""
        return self.worst != "error"

    @property
    def codes(self) -> tuple[str, ...]:
        """The codes of the findings, in their order."""
        return tuple(finding.code for finding in self.findings)

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {"ok": self.ok, "worst": self.worst, **asdict(self)}

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def __str__(self) -> str:
        counts = {level: sum(f.level == level for f in self.findings) for level in LEVELS}
        parts = [counted(count, level) for level, count in counts.items() if count]
        line = f"{', '.join(parts) or 'Nothing found'}."
        if self.not_given:
            line += f" Not given, so not looked at: {', '.join(self.not_given)}."
        return "\n\n".join([*map(str, self.findings), hanging(line, indent=0)])


def listed(names: Sequence[str]) -> str:
    """The first five names, and how many more there are."""
    return some_of(names, most=5)


def counted(count: int, one: str) -> str:
    """`1 parameter`, `2 parameters`."""
    return f"{count:,} {one}{'s' * (count != 1)}"


def enumerated(names: Sequence[str], one: str, what: str) -> str:
    """`2 trainable parameters in no optimizer: head.weight, head.bias`."""
    return f"{counted(len(names), one)} {what}: {listed(names)}"
