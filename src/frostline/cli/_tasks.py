"""What is to be learnt, as it stands on the command line or as the targets look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import typer

from frostline.cli import _options as options

if TYPE_CHECKING:
    from frostline.choices import TaskChoice, TaskName
    from frostline.config import DataSettings
    from frostline.tasks import TaskSettings


@final
@dataclass(frozen=True, slots=True)
class AskedTask:
    """The options that say it."""

    task: TaskChoice
    loss: str = ""
    thresholds: str = ""

    def of(self, data: DataSettings) -> TaskSettings | None:
        """As a run's settings have it; none for a classification.

        Raises:
            ConfigError: the task has no such loss.
        """
        from frostline.tasks import TaskSettings, task_from

        kind = _likely(data) if self.task == "auto" else self.task
        if self.thresholds and kind != "multilabel":
            raise typer.BadParameter(f"{kind} has no thresholds.", param_hint="--thresholds")
        if kind == "classification":
            if self.loss not in ("", "cross_entropy"):
                told = "classification minimises cross_entropy."
                raise typer.BadParameter(told, param_hint="--loss")
            return None
        chosen = self.thresholds == "best"
        cuts = (
            ()
            if chosen or not self.thresholds
            else (options.as_number(self.thresholds, "--thresholds"),)
        )
        found = TaskSettings(kind=kind, loss=self.loss, thresholds=cuts, chosen=chosen)
        with options.usage_errors():
            return task_from(found).settings()


def _likely(data: DataSettings) -> TaskName:
    from frostline.cli._terminal import notes, say
    from frostline.data import likely_task, looks_like_words

    if data.is_text:
        why = looks_like_words(data.path)
        if why:
            say(notes(), f"Task     tokens, since {why}; --task says otherwise")
            return "tokens"
        return _of_texts(data)
    columns = ("file_column", "label_column", "split_column")
    kind, why = likely_task(data.path, **{name: getattr(data, name) for name in columns})
    if why:
        say(notes(), f"Task     {kind}, since {why}; --task says otherwise")
    return kind


def _of_texts(data: DataSettings) -> TaskName:
    """A regression where labels are numbers of which some have fractions, as with pictures."""
    from frostline.cli._terminal import notes, say
    from frostline.data import check_are_classes, hold_fractions, read_texts
    from frostline.errors import DataError
    from frostline.runs.texts import columns_of

    columns = columns_of(data)
    try:
        found = read_texts(
            data.path,
            text=columns.text,
            label=columns.label,
            split=columns.split,
            classify=False,
        )
    except DataError:  # reading them says what is wrong
        return "classification"
    named = f"the column {found.columns.label}"
    if not hold_fractions(found.train.labels):
        check_are_classes(found.train.labels, named)
        if lists := [label for label in found.train.labels if "|" in label]:
            told = "texts are learnt with one label each, and each list is taken for a class"
            say(notes(), f"Warning: {named} holds {lists[0]!r}: {told}.")
        return "classification"
    why = f"{named} holds numbers with fractions"
    say(notes(), f"Task     regression, since {why}; --task says otherwise")
    return "regression"
