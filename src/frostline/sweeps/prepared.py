"""A sweep of what `frostline train` would train: each member is the run of its own settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from torch import nn

from frostline.config import RunSettings
from frostline.errors import ConfigError
from frostline.fitting import Run, fit
from frostline.runs.preparing import Prepared
from frostline.sweeps.settings import Setting, Single
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

    def run(self, one: Single) -> Run:
        member = self._of(one.setting, one.form)
        return fit(
            member.loaded.model,
            *member.datasets(),
            task=member.task,
            settings=member.settings,
            hooks=one.hooks,
            world=ALONE,
        )

    def win(self, one: Single, out: str | Path | None) -> Run:
        if out is None:
            return self.run(one)
        return self._of(one.setting, one.form).run(out, hooks=one.hooks, world=ALONE)

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
