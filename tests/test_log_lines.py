"""What a bar shows on a terminal, as lines in a log."""

from __future__ import annotations

import io

from rich.console import Console

from frostline.callbacks.progress import BatchBar, LogLines


def test_a_log_says_now_and_then_how_far_it_is() -> None:
    said = io.StringIO()
    lines = LogLines(Console(file=said), every_seconds=0)
    for done in range(1, 4):
        lines.say("checking the data", done * 1000, 12_000)
    lines.say("features", 1, 2)  # of something new nothing at once
    assert said.getvalue() == (
        "checking the data: 2,000 of 12,000\nchecking the data: 3,000 of 12,000\n"
    )


def test_what_is_over_before_it_is_time_says_nothing() -> None:
    said = io.StringIO()
    bar = BatchBar(Console(file=said), samples_per_batch=8)
    for done in range(1, 101):
        bar.on_batch("train", done, 100)
    bar.on_end()
    assert said.getvalue() == ""
