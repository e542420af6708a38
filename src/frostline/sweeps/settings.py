"""The settings of a sweep's members: every combination of the values that were given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from numbers import Real
from typing import Any, TypeAlias, final

from frostline.engine import Hook
from frostline.errors import ConfigError, a_type
from frostline.models import check_head
from frostline.recipe import Recipe
from frostline.wording import either, option

Head: TypeAlias = tuple[int, ...]
Numbers: TypeAlias = float | Sequence[float] | None


@final
@dataclass(frozen=True, slots=True)
class Setting:
    """What one member is trained with.

    Attributes:
        head: hidden widths of its head; None is the head that the model has.
        dropout: probability of all dropout above the frost line; None is as the model has it.
    """

    lr: float
    weight_decay: float
    seed: int
    head: Head | None = None
    dropout: float | None = None

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)

    def cells(self) -> dict[str, str]:
        """For people, by name."""
        return {
            "head": "as it is" if self.head is None else _head_words(self.head),
            "drop": "as it is" if self.dropout is None else f"{self.dropout:g}",
            "lr": f"{self.lr:.3g}",
            "decay": f"{self.weight_decay:.3g}",
            "seed": str(self.seed),
        }

    def line(self) -> str:
        """In one line for people; what is as the model has it is left out."""
        found = self.cells() | {"head": "" if self.head is None else _head_words(self.head)}
        found["drop"] = "" if self.dropout is None else f"{self.dropout:g}"
        words = {"drop": "dropout", "decay": "weight decay"}
        return ", ".join(f"{words.get(name, name)} {cell}" for name, cell in found.items() if cell)

    def recipe(self, recipe: Recipe) -> Recipe:
        """The recipe of its own single run."""
        own = {"lr": self.lr, "weight_decay": self.weight_decay, "seed": self.seed}
        return recipe.model_copy(update=own)


@final
@dataclass(frozen=True, slots=True)
class Asked:
    """What to try, as `fl.sweep` takes it, and whether losers are dropped."""

    lr: Numbers = None
    weight_decay: Numbers = None
    heads: Iterable[int | Sequence[int]] | None = None
    dropout: Numbers = None
    seeds: Iterable[int] | int | None = None
    drop: bool = True


@final
@dataclass(frozen=True, slots=True)
class Single:
    """How a member is trained by itself.

    Attributes:
        classes: that its head is for.
        form: in which the features are stored.
    """

    setting: Setting
    classes: int
    form: str
    hooks: tuple[Hook, ...]


def every_setting(recipe: Recipe, asked: Asked, *, usual_lr: float) -> tuple[Setting, ...]:
    """Every combination, the seed counting fastest; what was given twice counts once.

    Args:
        recipe: what is not varied.
        usual_lr: the learning rate where neither says one.

    Raises:
        ConfigError: names the value that is out of its range, or the list that is empty.
    """
    rates = _numbers("lr", asked.lr, recipe.lr or usual_lr)
    decays = _numbers("weight_decay", asked.weight_decay, recipe.weight_decay)
    chosen = _listed("seeds", asked.seeds, recipe.seed)
    for name, values in (("lr", rates), ("weight_decay", decays), ("seed", chosen)):
        for value in values:
            given: dict[str, Any] = {name: value}
            Recipe(**given)  # refuses what is out of range
    shapes: tuple[Head | None, ...] = (None,) if asked.heads is None else tuple(_heads(asked.heads))
    drops = (None,) if asked.dropout is None else _numbers("dropout", asked.dropout, 0.0)
    for p in drops:
        if p is not None and not 0 <= p < 1:
            raise ConfigError(f"dropout={p:g}: a probability from 0 to below 1 is wanted, as 0.5.")
    every = product(dict.fromkeys(shapes), dict.fromkeys(drops), rates, decays, chosen)
    return tuple(
        Setting(float(rate), float(decay), int(seed), head, p)
        for head, p, rate, decay, seed in dict.fromkeys(every)
    )


def varied(settings: Sequence[Setting]) -> list[str]:
    """The names of what differs among members, as `cells` has them."""
    names = list(settings[0].cells())
    pairs = zip(names, ("head", "dropout", "lr", "weight_decay", "seed"), strict=True)
    return [name for name, field in pairs if len({getattr(s, field) for s in settings}) > 1]


def _numbers(name: str, given: Numbers, usual: float) -> tuple[float, ...]:
    return tuple(map(float, _listed(name, given, usual)))


def _listed(name: str, given: object, usual: float) -> tuple[float, ...]:
    """Numbers that were given, one or several, each once."""
    if given is None:
        return (usual,)
    values = (given,) if isinstance(given, Real) else given
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ConfigError(f"{name} is {a_type(given)}. Give numbers, as {name}=[1e-3, 1e-2].")
    found: list[float] = []
    for value in values:
        if isinstance(value, bool) or not isinstance(value, Real):
            raise ConfigError(f"{name} holds {a_type(value)}. Give numbers, as {name}=[0.01, 0.1].")
        found.append(value)  # type: ignore[arg-type]  # a number of any kind
    if not found:
        raise ConfigError(
            f"{option(name)} is empty, so there is nothing to try. Give a value, or leave it out."
        )
    return tuple(dict.fromkeys(found))


def _heads(given: object) -> Iterable[Head]:
    if isinstance(given, str | int) or not isinstance(given, Iterable):
        raise ConfigError(
            f"heads is {a_type(given)}. Give hidden widths for each head, as heads=[(), 100, "
            "(256, 64)]; () has none."
        )
    every = list(given)
    if not every:
        raise ConfigError(
            f"{option('heads')} is empty, so there is no head to try. Give one, or leave it out."
        )
    for one in every:
        widths = tuple(one) if isinstance(one, Iterable) and not isinstance(one, str) else (one,)
        check_head(classes=2, hidden=widths, on="classifier")
        yield widths


def _head_words(head: Head) -> str:
    return "-".join(map(str, head)) or "linear"


def refuse_plan(options: object) -> None:
    """Refuse phases: a sweep trains in one.

    Raises:
        ConfigError: says what to do instead.
    """
    if options:
        raise ConfigError(
            "a sweep trains in one phase, and a plan was given. Leave it out, sweep what its first "
            "phase trains, and train the plan with what was best: "
            + either("fl.fit(model, ..., plan=plan, lr=...).", "`frostline train --plan FILE`.")
        )
