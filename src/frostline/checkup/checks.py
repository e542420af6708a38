"""One thing to look for in a set-up: a code, and what finds it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import final

from frostline.checkup.findings import LEVELS, Finding
from frostline.checkup.subject import Subject
from frostline.errors import one_line

Find = Callable[[Subject], Iterator[Finding]]

error, warning, note = (partial(Finding, "", level) for level in LEVELS)
"""A finding of that level; the check that it comes from gives it its code."""

CRASHED = "check-failed"


@final
@dataclass(frozen=True, slots=True)
class Check:
    """One thing to look for.

    Attributes:
        code: of its findings.
        find: gives them; none where what it needs was not given.
    """

    code: str
    find: Find

    def findings(self, subject: Subject) -> Iterator[Finding]:
        """What it finds; its crash is a finding too, since models of strangers do strange."""
        try:
            for found in self.find(subject):
                yield replace(found, code=self.code)
        except Exception as failure:
            yield Finding(
                CRASHED,
                "note",
                f"the check for {self.code} ended with {one_line(failure)}",
                "nothing is known of what it looks for; the other checks were made",
                "Look for what is unusual in the model or the optimizer at that place, or report "
                "it.",
                (self.code,),
            )


def check(code: str) -> Callable[[Find], Check]:
    """Make a check of a function. In a file they stand in their order, the most harmful first."""
    return partial(Check, code)
