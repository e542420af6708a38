"""What the phases of a plan freeze in one model, each alone and all together."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import final

from torch import Tensor, nn

from frostline.casting import cast_dtypes
from frostline.deltas import all_tensors, saved_besides
from frostline.errors import ConfigError, DriftError
from frostline.fingerprints import Fingerprint, fingerprint_of
from frostline.freezing import Frozen, Proof, freezes_kept, frozen_part, train_only
from frostline.plans import Phase
from frostline.plans.parts import naming, place_of
from frostline.selectors import parse
from frostline.wrapped import stored_bytes


def freeze_for(model: nn.Module, phases: Sequence[Phase], number: int) -> Frozen:
    """Freeze what that phase freezes, counted from 0, and thaw the rest; a handle on the former.

    One that names nothing goes on with what the phase before it trained, the first with the model
    as it is.

    Raises:
        SelectorError, FreezeError: the phase does not fit the model.
    """
    for index in range(number, -1, -1):
        phase = phases[index]
        with naming(place_of(index + 1, phase)):
            if phase.train is not None:
                return train_only(model, phase.train, norm=phase.norm)
            if phase.freeze is not None:
                return train_only(model, ~parse(phase.freeze), norm=phase.norm)
    return frozen_part(model)


@final
@dataclass(frozen=True, slots=True)
class Survey:
    """What the phases of a plan will do to a model.

    Attributes:
        untouched: content hashes of the tensors that stay frozen in every phase.
        trained: of each phase, the parameters that are trainable.
        step_seconds: of each phase, of a plain training step; 0 where it was not measured.
        not_covered: what is frozen in a phase and in no file, with what it is.
    """

    untouched: Fingerprint
    trained: tuple[tuple[str, ...], ...]
    step_seconds: tuple[float, ...]
    not_covered: tuple[str, ...] = ()

    def trained_until(self, phase: int) -> tuple[str, ...]:
        """Parameters that are trainable in a phase up to this one, counted from 0."""
        return tuple(dict.fromkeys(chain.from_iterable(self.trained[: phase + 1])))

    def copies(self, model: nn.Module) -> dict[str, Tensor]:
        """Copies of what some phase may move, as it is now."""
        moving = {n: t for n, t in all_tensors(model).items() if n not in self.untouched.tensors}
        return {name: tensor.detach().clone() for name, tensor in moving.items()}

    def verify(self, model: nn.Module) -> Proof:
        """Prove that what no phase was to move is what it was before the first.

        Raises:
            DriftError: it is not; names the tensors.
        """
        expected = self.untouched.tensors
        tensors = _tensors_of(model, expected)
        found = fingerprint_of(tensors)
        moved = [name for name, digest in expected.items() if found.tensors.get(name) != digest]
        if moved:
            raise DriftError(
                f"{len(moved)} tensors that no phase was to move are not what they were, first "
                f"{', '.join(moved[:3])}. Look for code that writes them.",
                moved,
            )
        return Proof(len(tensors), sum(map(stored_bytes, tensors.values())), found)


def survey(
    model: nn.Module,
    phases: Sequence[Phase],
    *,
    measure: Callable[[], float] | None = None,
) -> Survey:
    """Go through the freezes of all phases; afterwards the model is as it was.

    Args:
        phases: without any it is one that goes on as the model is frozen.
        measure: called with the model frozen as in each phase; gives seconds of a plain step.

    Raises:
        SelectorError, FreezeError: a phase does not fit the model.
        ConfigError: a phase would train what is kept in half the bits.
    """
    phases = phases or (Phase(epochs=1),)
    digests: dict[str, str] = {}
    not_covered: dict[str, None] = {}
    trained, seconds = [], []
    whole = _every_tensor(model)
    with freezes_kept(model):
        for number in range(len(phases)):
            frozen = freeze_for(model, phases, number)
            not_covered.update(dict.fromkeys(frozen.in_no_file))
            found = frozen.fingerprint.tensors
            known = digests if number else found
            # Rows of a tensor have a proof in each phase, but no place in a file of tensors.
            digests = {n: d for n, d in known.items() if n in found and n in whole}
            trained.append(tuple(n for n, p in model.named_parameters() if p.requires_grad))
            seconds.append(measure() if measure else 0.0)
    made = Survey(Fingerprint(digests), tuple(trained), tuple(seconds), tuple(not_covered))
    # A delta would have two bases if what is kept in half the bits were thawed.
    kept = cast_dtypes(model)
    thawed = [name for name in made.trained_until(len(phases)) if name in kept]
    if thawed:
        raise ConfigError(
            f"the plan trains {', '.join(thawed[:3])}, kept in {kept[thawed[0]]} since it was "
            "frozen with dtype. Thaw what a phase trains before the run, and freeze it without."
        )
    return made


def content(model: nn.Module, names: Container[str]) -> Fingerprint:
    """Hashes of the model's tensors of these names."""
    return fingerprint_of(_tensors_of(model, names))


def _tensors_of(model: nn.Module, names: Container[str]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in _every_tensor(model).items() if name in names}


def _every_tensor(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under each of their names, and what modules save besides."""
    return {**all_tensors(model, every_name=True), **saved_besides(model)}
