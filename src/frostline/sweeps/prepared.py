"""A sweep of what `frostline train` would train: each member is the run of its own settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from torch import nn

from frostline.config import RunSettings
from frostline.engine import Hook
from frostline.errors import ConfigError
from frostline.fitting import Run, fit
from frostline.runs.preparing import Prepared
from frostline.sweeps.settings import Setting
from frostline.tasks import Task
from frostline.wording import option
from frostline.world import ALONE


@final
@dataclass(frozen=True)
class OfPrepared:
    """Data that was looked through, and a model with a linear head that was built once."""

    prepared: Prepared

    @property
    def model(self) -> nn.Module:
        return self.prepared.loaded.model

    @property
    def data(self) -> tuple[object, object]:
        return self.prepared.datasets()

    @property
    def settings(self) -> RunSettings:
        return self.prepared.settings

    @property
    def task(self) -> Task:
        return self.prepared.task

    def check(self, settings: Sequence[Setting]) -> None:
        """Make sure that another seed draws another head alone.

        Raises:
            ConfigError: it draws frozen weights too.
        """
        others = [one for one in settings if one.seed != self.settings.training.seed]
        if not others:
            return
        found = self._of(others[0], "").frozen.fingerprint
        if found != self.prepared.frozen.fingerprint:
            raise ConfigError(
                "the frozen part is drawn by the seed, so that members of several seeds would "
                "share no features. Load weights "
                f"({option('weights', 'FILE')}), or leave out {option('seeds')}."
            )

    def run(self, setting: Setting, classes: int, *, form: str, hooks: Sequence[Hook]) -> Run:
        del classes  # those of the data
        one = self._of(setting, form)
        data, model = one.datasets(), one.loaded.model
        return fit(
            model, *data, task=one.task, settings=one.settings, hooks=tuple(hooks), world=ALONE
        )

    def win(
        self,
        setting: Setting,
        classes: int,
        *,
        form: str,
        hooks: Sequence[Hook],
        out: str | Path | None,
    ) -> Run:
        if out is None:
            return self.run(setting, classes, form=form, hooks=hooks)
        return self._of(setting, form).run(out, hooks=tuple(hooks), world=ALONE)

    def _of(self, setting: Setting, form: str) -> Prepared:
        """As `frostline train` would prepare the member."""
        settings = self.settings
        head = {"dropout": setting.dropout}
        if setting.head is not None:
            head |= {"hidden": setting.head}  # type: ignore[dict-item]  # fields of the model's
        changed = {
            "model": settings.model.model_copy(update=head),
            "training": setting.recipe(settings.training),
            "features": settings.features.model_copy(update={"forms": (form,) if form else ()}),
        }
        return self.prepared.with_settings(settings.model_copy(update=changed))
