"""A plan: phases in a row, made by hand, read from TOML, or ready made for a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self, final

from pydantic import field_validator
from torch import nn

from frostline._files import write_text
from frostline.errors import ConfigError
from frostline.plans import text
from frostline.plans.checks import check
from frostline.plans.phases import Phase
from frostline.plans.showing import model_table, plan_table
from frostline.recipe import Data, Recipe
from frostline.selectors import Selector, inventory, select, select_whole
from frostline.selectors import stages as stages_of
from frostline.tables import Displayed, Table
from frostline.wording import either

Head = str | Selector
_HEAD = "stage:-1"
_MOST_STAGES = 4  # that a gradual plan thaws by itself
_MOST_PHASES = 1000


@final
class Plan(Data, Displayed):
    """What is trainable when: one or more phases, trained one after the other.

    `print(plan)` shows its table, `plan[0]` is its first phase, equal plans are equal.

    Attributes:
        phases: in the order in which they are trained.

    Raises:
        ConfigError: there is no phase, or one of them cannot be.

    Example:
        >>> plan = fl.Plan([fl.Phase(train="head", epochs=5), fl.Phase(train="all", epochs=10)])
        >>> print(plan)
        phase     trains   length           lr   settings
        ─────────────────────────────────────────────────
        phase 1   head     5 epochs    default
        phase 2   all      10 epochs   default
    """

    phases: tuple[Phase, ...]

    def __init__(self, phases: Iterable[Phase | Mapping[str, Any]] = (), **options: Any) -> None:
        super().__init__(phases=phases, **options)

    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]  # as in Data

    @field_validator("phases", mode="before")
    @classmethod
    def _some(cls, given: object) -> object:
        if isinstance(given, Phase | Mapping | str) or not isinstance(given, Iterable):
            raise ValueError("a plan is a list of phases, as fl.Plan([fl.Phase(...)])")
        if not (phases := tuple(given)):
            raise ValueError("a plan has at least one phase, as fl.Plan([fl.Phase(epochs=5)])")
        if len(phases) > _MOST_PHASES:
            raise ValueError(
                f"a plan has at most {_MOST_PHASES:,} phases, and this one has {len(phases):,}; "
                "make those that train the same one phase"
            )
        return phases

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a plan from TOML, as `save` or `frostline plan` writes it.

        Raises:
            ConfigError: there is no such file, or it holds no plan; says where, and what to fix.
        """
        content = text.read_text(Path(path))
        try:
            return cls.loads(content)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write the plan as TOML, whole or not at all; `load` gives an equal plan.

        Raises:
            OutputError: it cannot be written.
        """
        write_text(Path(path), self.dumps())

    @classmethod
    def loads(cls, toml: str) -> Self:
        """The plan that TOML text holds.

        Raises:
            ConfigError: it holds no plan; names the phase and the nearest known option.
        """
        return cls(text.from_toml(toml))

    def dumps(self) -> str:
        """The plan as TOML: a `[[phase]]` for each, with what differs from the defaults."""
        return text.to_toml(self.phases)

    def table(self, model: nn.Module) -> Table:
        """The plan's table with how much each phase trains in `model`.

        Raises:
            SelectorError, ConfigError: as `check`.
        """
        return model_table(model, self.phases)

    def check(self, model: nn.Module, *, recipe: Recipe | None = None) -> tuple[str, ...]:
        """Warnings about what the plan would do in `model`; empty where there is nothing to say.

        These are phases that end at once or repeat the one before, multipliers without effect,
        learning rates of one parameter that jump by more than 100 times between phases, or that
        span more than 1000 times within one, and rates too high for Adam. Nothing of the model is
        changed, neither bits nor switches.

        Args:
            recipe: what fills in what phases leave open; the defaults without one.

        Raises:
            SelectorError: a selector matches nothing; the phase is named.
            ConfigError: a phase would leave nothing to train, or contradicts the recipe.
        """
        return check(model, self.phases, recipe=recipe or Recipe())

    @classmethod
    def head_only(
        cls, model: nn.Module, *, epochs: int = 10, lr: float | None = None, head: Head = "stage:-1"
    ) -> Self:
        """Only the head; the pretrained network is used as it is.

        Source: Donahue et al. 2014, DeCAF; features of a frozen network under a new classifier.
        """
        return cls._fitting(model, _head(model, head, epochs, lr=lr))

    @classmethod
    def gradual(
        cls,
        model: nn.Module,
        *,
        stages: int | None = None,
        epochs_each: int = 1,
        lr: float | None = None,
        layer_decay: float = 0.385,
        head: Head = "stage:-1",
    ) -> Self:
        """The head first, then one stage more in each phase, from the top down.

        Args:
            stages: how many train in the end, the head among them; by default the top 4.
            lr: of the last stage, once others train as well.
            layer_decay: factor for each stage below; the paper divides by 2.6.

        Source: Howard & Ruder 2018, ULMFiT: gradual unfreezing, discriminative fine-tuning.
        """
        count = _stage_count(model)
        asked = min(_MOST_STAGES, count) if stages is None else stages
        if not 1 <= asked <= count:
            raise ConfigError(
                f"stages={asked} asks for what {type(model).__name__} does not have: it has "
                f"{count}, the head among them. Ask for 1 to {count}; see them: "
                + either("print(fl.summary(model)).", "`frostline inspect MODEL`.")
            )
        first = _head(model, head, epochs_each)
        thawed = (
            Phase(
                name=f"top {number}",
                # The stages hold the last one; a head that is another trains beside them.
                train=f"stage:-{number}..-1{'' if str(head) == _HEAD else f' | {head}'}",
                epochs=epochs_each,
                lr=lr,
                layer_decay=layer_decay,
            )
            for number in range(2, asked + 1)
        )
        return cls._fitting(model, first, *thawed)

    @classmethod
    def lp_ft(
        cls,
        model: nn.Module,
        *,
        probe_epochs: int = 5,
        tune_epochs: int = 10,
        lr: float = 1e-4,
        layer_decay: float | None = 0.75,
        head: Head = "stage:-1",
    ) -> Self:
        """The head first; then everything, from the head's best epoch, at a much lower rate.

        A head that already fits bends the pretrained features less than a random one would.

        Args:
            lr: of the last stage while everything trains; the probe has the default of a head.

        Source: Kumar et al. 2022, Fine-Tuning can Distort Pretrained Features and Underperform
            Out-of-Distribution.
        """
        probe = _head(model, head, probe_epochs, name="probe")
        tune = Phase(
            name="tune",
            train="all",
            epochs=tune_epochs,
            lr=lr,
            layer_decay=layer_decay,
            start="best",
        )
        return cls._fitting(model, probe, tune)

    @classmethod
    def surgical(
        cls,
        model: nn.Module,
        *,
        stage: int,
        head_epochs: int = 5,
        epochs: int = 10,
        lr: float = 1e-4,
        head: Head = "stage:-1",
    ) -> Self:
        """The head first, as it is new; then one chosen stage beside it.

        An early stage where the pictures differ from those of the pretraining (blur, another
        camera), a late one where the meaning of the classes does.

        Args:
            stage: from 0 in forward order, negative from the end; not the head's own.
            lr: of the second phase.

        Source: Lee et al. 2022, Surgical Fine-Tuning Improves Adaptation to Distribution Shifts.
        """
        chosen = f"stage:{stage}"
        if set(select(model, chosen).names) <= set(select(model, head).names):
            below = _stage_count(model) - 2
            others = f"Choose one below it, 0 to {below}" if below >= 0 else "It has no other stage"
            raise ConfigError(
                f"stage={stage} of {type(model).__name__} is the head, which trains in any case. "
                f"{others}; Plan.head_only trains the head alone."
            )
        tune = Phase(name="tune", train=f"{chosen} | {head}", epochs=epochs, lr=lr)
        return cls._fitting(model, _head(model, head, head_epochs), tune)

    @classmethod
    def full(
        cls,
        model: nn.Module,
        *,
        epochs: int = 10,
        lr: float | None = None,
        layer_decay: float | None = 0.75,
    ) -> Self:
        """Everything from the start, at lower rates towards the input.

        `lp_ft` spares the pretrained features the first steps of a random head.

        Source: Clark et al. 2020, ELECTRA, and Bao et al. 2021, BEiT, for the layer-wise decay.
        """
        every = Phase(name="all", train="all", epochs=epochs, lr=lr, layer_decay=layer_decay)
        return cls._fitting(model, every)

    @classmethod
    def norm_and_bias(
        cls, model: nn.Module, *, epochs: int = 10, lr: float = 1e-3, head: Head = "stage:-1"
    ) -> Self:
        """The head with all norms and biases; a kind that the model lacks is left out.

        Source: Ben Zaken et al. 2021, BitFit; Cai et al. 2020, TinyTL.
        """
        own = set(select(model, head).names)
        kinds = [
            k
            for k in ("kind:norm", "kind:bias")
            if set(select_whole(model, k, kinds_may_miss=True).names) - own
        ]
        if not kinds:
            raise ConfigError(
                f"{type(model).__name__} has neither a norm nor a bias below its head, so there "
                "is nothing for this plan to train there. Use Plan.head_only or Plan.lp_ft."
            )
        train = " | ".join([*kinds, str(head)])
        return cls._fitting(
            model, Phase(name="norms and biases", train=train, epochs=epochs, lr=lr)
        )

    @classmethod
    def _fitting(cls, model: nn.Module, *phases: Phase) -> Self:
        """The plan, once it is known that each of its phases trains something in `model`."""
        plan = cls(phases)
        plan.check(model)
        return plan

    def __len__(self) -> int:
        return len(self.phases)

    def __iter__(self) -> Iterator[Phase]:  # type: ignore[override]  # phases, not names of fields
        return iter(self.phases)

    def __getitem__(self, number: int) -> Phase:
        return self.phases[number]

    def __repr__(self) -> str:
        return f"fl.Plan([{', '.join(map(repr, self.phases))}])"

    def _parts(self) -> tuple[Table]:
        return (plan_table(self.phases),)

    def __str__(self) -> str:
        return str(plan_table(self.phases))


def _head(
    model: nn.Module, head: Head, epochs: int, *, name: str = "head", lr: float | None = None
) -> Phase:
    select(model, head)  # where it matches nothing, that is said of the head, not of a phase
    # A phase makes a text of it, or says that it has none.
    return Phase(name=name, train=head, epochs=epochs, lr=lr)  # type: ignore[arg-type]


def _stage_count(model: nn.Module) -> int:
    return len(stages_of(inventory(model)))
