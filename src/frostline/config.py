"""A run's settings, all that is needed to repeat it: `run.toml` <-> checked values."""

from __future__ import annotations

import tomllib
from pathlib import Path

import tomli_w
from pydantic import BaseModel, Field, field_validator

from frostline._files import checked, with_sum, write_text
from frostline._version import __version__
from frostline.choices import BadImages, HeadPlace, NormPolicy, Storage
from frostline.data import Levels
from frostline.errors import ConfigError
from frostline.plans import Phase, Plan
from frostline.preprocessing import Preprocessing, TextPreprocessing
from frostline.recipe import Data, Recipe, config_errors
from frostline.records import BY_MODEL, no_run
from frostline.tasks import Classification, Task, TaskSettings, task_from
from frostline.tuning import Form

_FROM_PYTHON = "python:"

# Settings whose option has another name.
OPTION_OF = {"store": "features", "forms": "form"}


class _Section(Data):
    __repr__ = BaseModel.__repr__  # none of these is a name of fl


class ModelSettings(_Section):
    """Which network, with which weights and head.

    `dropout` is the probability of all dropout that is not frozen; None leaves what the network
    has. `weights` is `DEFAULT`, `none`, a published entry or an absolute path, with `:PLACE` of one
    of several networks; `weights_digest` is the xxh3_128 of that file, of an index with all its
    files. `start` is the run whose best weights were put into it, if any.
    """

    name: str
    weights: str = "DEFAULT"
    weights_digest: str = ""
    on: HeadPlace = "classifier"
    hidden: tuple[int, ...] = ()
    dropout: float | None = Field(default=None, ge=0, lt=1)
    head: str = ""
    start: str = ""

    @property
    def is_from_python(self) -> bool:
        """Whether the model was handed over as an object, so that only its maker can rebuild it."""
        return self.name.startswith(_FROM_PYTHON)

    @classmethod
    def from_python(cls, class_name: str) -> ModelSettings:
        """For a model that was handed over as an object."""
        return cls(name=f"{_FROM_PYTHON}{class_name}", weights="none")


class DataSettings(_Section):
    """Which pictures or texts, how they were divided, and what the labels mean.

    Of texts, `is_text` is set, and `text_column` is `premise+hypothesis` for pairs; of a table
    without a header columns are numbers. `max_tokens` is where longer texts are cut, at most where
    the model does. The columns are those of a table; `split_column` is empty for `split` or
    `is_valid`, if there. `black_and_white` is whether masks hold 0 and 255 for two classes.
    `levels` is what became black and white in pictures of more than 8 bits, where there are such.
    """

    path: str = ""
    is_text: bool = False
    text_column: str = ""
    max_tokens: int | None = Field(default=None, ge=1)
    file_column: str = Field(default="file", min_length=1)
    label_column: str = Field(default="label", min_length=1)
    split_column: str = ""
    val_fraction: float = Field(default=0.2, gt=0, lt=1)
    folds: int | None = Field(default=None, ge=2)
    fold: int = Field(default=0, ge=0)
    bad_images: BadImages = "skip"
    augment: str = "none"
    batch_size: int = Field(default=32, ge=1)
    classes: tuple[str, ...] = ()
    levels: Levels | None = None
    black_and_white: bool | None = None

    @field_validator("levels")
    @classmethod
    def _rising_levels(cls, given: Levels | None) -> Levels | None:
        if given is not None and not given[0] < given[1]:
            raise ValueError(f"levels are black and white, the lower first, not {given}")
        return given


class FreezeSettings(_Section):
    """What stays fixed: one selector to freeze, or one to train; by default all but the head."""

    freeze: str | None = None
    train: str | None = None
    norm: NormPolicy = "hold"


class FeatureSettings(_Section):
    """What is kept of the frozen part, and where.

    `store` is `auto` (the user's cache folder), `off` or a folder; `forms` is how the frozen part
    was computed in each phase, `model` where the model did it: written when the phase begins, or
    given to repeat another run.
    """

    store: str = "auto"
    storage: Storage = "auto"
    budget_bytes: int | None = Field(default=None, ge=1)
    compile: bool = False
    forms: tuple[str, ...] = ()

    @field_validator("forms")
    @classmethod
    def _known_forms(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for text in given:
            if text != BY_MODEL:
                Form.parse(text)
        return given


class RunSettings(_Section):
    """Everything about a run.

    `task` is none for a classification, whose classes are those of `data`, and for a task of one's
    own. `length_changes` is where it was given another number of epochs while it ran.

    Raises:
        ConfigError: from `read`, when the file is missing, damaged or from a later version.
    """

    frostline: str = __version__
    model: ModelSettings
    data: DataSettings = DataSettings()
    task: TaskSettings | None = None
    freeze: FreezeSettings = FreezeSettings()
    training: Recipe = Recipe()
    features: FeatureSettings = FeatureSettings()
    plan: tuple[Phase, ...] = ()
    device: str = "auto"
    preprocessing: Preprocessing | TextPreprocessing | None = None
    length_changes: tuple[str, ...] = ()

    def as_plan(self) -> Plan | None:
        """The plan of the run; None where it has none."""
        return Plan(self.plan) if self.plan else None

    def as_task(self) -> Task | None:
        """The task of the run; None where it was one that only its maker can make again."""
        if self.task is not None:
            return task_from(self.task)
        return Classification(self.data.classes) if self.data.classes else None

    @classmethod
    def read(cls, path: Path) -> RunSettings:
        """Read `run.toml`.

        Raises:
            ConfigError: the file is missing, no TOML, or holds what this version does not know.
        """
        try:
            content = tomllib.loads(checked(path.read_bytes()))
        except FileNotFoundError:
            raise no_run(path) from None
        except (OSError, ValueError, RecursionError) as error:
            # Not TOML's own errors alone: numbers may have endless digits, tables endless depth.
            raise ConfigError(
                f"{path} cannot be read: {error}. Restore it from a copy; if you changed it by "
                "hand, delete its last line, the checksum."
            ) from error
        try:
            with config_errors():
                return cls.model_validate(content)
        except ConfigError as error:
            written = content.get("frostline", "an unknown version")
            raise ConfigError(
                f"{path} does not fit this Frostline ({__version__}; it was written by {written}): "
                f"{error} Fix it, or use the Frostline that wrote it."
            ) from error

    def write(self, path: Path) -> None:
        """Write `run.toml`, whole or not at all.

        Raises:
            OutputError: it cannot be written.
        """
        content = self.model_dump(mode="json", exclude_none=True)
        content["plan"] = [phase.as_dict() for phase in self.plan]
        write_text(path, with_sum(tomli_w.dumps(content)))
