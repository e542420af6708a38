"""The phases of a run on its model: what each freezes, what none moves, what each proves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import final

import torch
from torch import Tensor, nn

from frostline.backward import Lean, is_lean, lean
from frostline.callbacks.journal import Journal
from frostline.callbacks.saving import Saver
from frostline.config import RunSettings
from frostline.deltas import all_tensors
from frostline.engine import Fed, Left, Proven, Training
from frostline.errors import DriftError
from frostline.fingerprints import Fingerprint, fingerprint_of
from frostline.fingerprints.unlisted import saved_state
from frostline.folder import RunFolder
from frostline.freezing import Frozen, Proof, freezes_kept
from frostline.freezing.modes import is_held
from frostline.phasing import freeze_for
from frostline.plans import Phase
from frostline.records import BY_MODEL, FedNote
from frostline.runs.feeding import Feed, Wanted
from frostline.selectors import inventory
from frostline.units import format_count, format_seconds

Supply = Callable[[Wanted], Feed]
_OPEN_EPOCHS = 10  # of a phase that ends by what it reaches


@final
@dataclass(frozen=True, slots=True)
class Survey:
    """What the phases of a run will do to a model.

    Attributes:
        untouched: content hashes of the tensors that stay frozen in every phase.
        trained: of each phase, the parameters that are trainable.
        seconds_per_sample: of each phase, of a plain training step; 0 where it was not measured.
        not_covered: what is frozen in a phase and in no file, with what it is.
    """

    untouched: Fingerprint
    trained: tuple[tuple[str, ...], ...]
    seconds_per_sample: tuple[float, ...]
    not_covered: tuple[str, ...] = ()

    def trained_until(self, phase: int) -> tuple[str, ...]:
        """Parameters that are trainable in a phase up to this one, counted from 0."""
        return tuple(dict.fromkeys(chain.from_iterable(self.trained[: phase + 1])))


def survey(
    model: nn.Module,
    phases: Sequence[Phase],
    *,
    measure: Callable[[], float] | None = None,
) -> Survey:
    """Go through the freezes of all phases; afterwards the model is as it was.

    Args:
        measure: called with the model frozen as in each phase; gives seconds per sample of a step.

    Raises:
        SelectorError, FreezeError: a phase does not fit the model.
    """
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
    return Survey(Fingerprint(digests), tuple(trained), tuple(seconds), tuple(not_covered))


@final
class Book:
    """The settings of a run as they lie in its folder, where the forms of its phases are noted."""

    def __init__(self, folder: RunFolder | None, settings: RunSettings) -> None:
        self._folder = folder
        self.settings = settings

    def form(self, phase: int) -> str:
        """How the frozen part was computed in that phase when it began; empty before that."""
        return dict(enumerate(self.settings.features.forms)).get(phase, "")

    def note_form(self, phase: int, form: str) -> None:
        """Write down how the frozen part is computed in a phase that begins."""
        forms = (*self.settings.features.forms[:phase], form)
        features = self.settings.features.model_copy(update={"forms": forms})
        self.settings = self.settings.model_copy(update={"features": features})
        self.write()

    def write(self) -> None:
        if self._folder is not None:
            self.settings.write(self._folder.settings)


@final
class PhasedCourse:
    """The course of a run through its phases.

    Attributes:
        says: lines for people on what was computed once, or why nothing could be.
        computed: rows of features that were computed.
    """

    def __init__(
        self,
        saver: Saver,
        planned: Survey,
        book: Book,
        supply: Supply,
        wanted: Wanted,
        journal: Journal,
    ) -> None:
        self._saver = saver
        self._journal = journal
        self._survey = planned
        self._book = book
        self._supply = supply
        self._wanted = wanted
        self._frozen: Frozen | None = None
        self._is_plain = True
        self._lean: Lean | None = None
        self.says: tuple[str, ...] = ()
        self.computed = 0

    def enter(self, training: Training, /) -> None:
        """Freeze what the phase freezes; at its beginning, put the weights it starts from.

        Raises:
            DriftError: the run is resumed, and what was frozen in this phase is not what it was.
        """
        at = training.position
        if at.is_fresh and at.phase and training.phase.start == "best":
            self._saver.put_phase_best(training.model)
            training.optimizer = None  # its state belongs to the weights of the last epoch
        self._frozen = freeze_for(training.model, training.phases, at.phase)
        found = str(self._frozen.fingerprint)
        if at.frozen and at.frozen != found:
            raise DriftError(
                f"cannot resume within {training.phase.label(at.phase + 1)}: what was frozen in "
                "this phase is not what it was. Give the same model and plan, or start a new run."
            )
        at.frozen = found

    def feed(self, training: Training, /) -> Fed:
        """The phase's batches through its own frost line; hooks are told how they will go."""
        number, phase = training.position.phase, training.phase
        if len(training.phases) > 1:
            self._tell(*self._outlook(training), self._announcement(training))
        epochs = phase.epochs or -(-(phase.steps or 0) // training.steps_per_epoch)
        form = self._book.form(number)
        start = time.perf_counter()
        fed = self._supply(
            replace(self._wanted, epochs=epochs or _OPEN_EPOCHS, form=form, explains=number == 0)
        )
        self._journal.note_feed(_noted(fed, number + 1, time.perf_counter() - start))
        self._is_plain = fed.form == BY_MODEL
        if not form:
            self._book.note_form(number, fed.form)
        self._tell(*fed.says)
        self.says += fed.says
        self.computed += fed.computed
        if training.recipe.lean and isinstance(fed.forward, nn.Module) and not is_lean(fed.forward):
            self._lean = lean(fed.forward)
        compiles = self._book.settings.features.compile
        forward = torch.compile(fed.forward) if compiles else fed.forward
        return Fed(fed.train, fed.validation, forward, fed.prefix)

    def leave(self, training: Training, /) -> Left:
        """Prove that what was frozen in this phase did not move.

        Raises:
            DriftError: it did; names the tensors.
        """
        assert self._frozen is not None
        self.close()
        proof = self._frozen.verify()
        model, moved = self._frozen.model, set(training.position.moved)
        moved.update(name for name, p in model.named_parameters() if p.requires_grad)
        for name, _ in model.named_buffers():
            if not is_held(model.get_submodule(name.rpartition(".")[0])):
                moved.add(name)
        if len(training.phases) > 1:
            self._tell(self._conclusion(training))
        proven = Proven(proof.tensors, proof.nbytes, str(proof.fingerprint))
        names = tuple(sorted(moved & all_tensors(model).keys()))
        return Left(proven, names, self._plain_step_seconds(training))

    def close(self) -> None:
        """Make what was leaned for a phase plain again, however the phase ended."""
        if self._lean is not None:
            self._lean.remove()
            self._lean = None

    def proof(self, model: nn.Module) -> Proof:
        """Prove that what no phase was to move is what it was before the first.

        Of one phase alone it is all that the phase froze, rows too.

        Raises:
            DriftError: it is not; names the tensors.
        """
        if len(self._survey.trained) == 1 and self._frozen is not None:
            return self._frozen.verify()
        expected = self._survey.untouched.tensors
        tensors = {n: t for n, t in _every_tensor(model).items() if n in expected}
        found = fingerprint_of(tensors)
        moved = [name for name, digest in expected.items() if found.tensors.get(name) != digest]
        if moved:
            raise DriftError(
                f"{len(moved)} tensors that no phase was to move are not what they were, first "
                f"{', '.join(moved[:3])}. Look for code that writes them.",
                moved,
            )
        return Proof(len(tensors), sum(t.nbytes for t in tensors.values()), found)

    def _outlook(self, training: Training) -> Iterator[str]:
        """Before the first phase: what the steps of all would cost in a plain loop."""
        steps = [phase.total_steps(training.steps_per_epoch) for phase in training.phases]
        each = zip(self._survey.seconds_per_sample, steps, strict=True)
        costs = [seconds * self._wanted.batch_size * (count or 0) for seconds, count in each]
        if training.position.phase == 0 and all(costs):
            told = " + ".join(map(format_seconds, costs))
            yield f"Plan      {len(costs)} phases; the steps of a plain loop take about {told}"

    def _announcement(self, training: Training) -> str:
        at, phase = training.position, training.phase
        parameters = list(training.model.parameters())
        trains = sum(p.numel() for p in parameters if p.requires_grad)
        whole = sum(p.numel() for p in parameters)
        return (
            f"Phase     {at.phase + 1} of {len(training.phases)}, "
            f"{phase.label(at.phase + 1)}: trains {format_count(trains)} of {format_count(whole)} "
            f"parameters{self._plain_cost(training, phase.total_steps(training.steps_per_epoch))}"
        )

    def _conclusion(self, training: Training) -> str:
        at = training.position
        return (
            f"          {training.phase_end} in {format_seconds(at.phase_seconds)}"
            f"{'' if self._is_plain else self._plain_cost(training, at.phase_steps)}"
            "; what was frozen did not move"
        )

    def _plain_cost(self, training: Training, steps: int | None) -> str:
        seconds = self._plain_step_seconds(training) * (steps or 0)
        return (
            f"; the steps of a plain loop take about {format_seconds(seconds)}" if seconds else ""
        )

    def _plain_step_seconds(self, training: Training) -> float:
        each = self._survey.seconds_per_sample[training.position.phase]
        return each * self._wanted.batch_size

    def _tell(self, *lines: str) -> None:
        for hook in self._wanted.hooks:
            for line in lines:
                hook.on_notice(line)


def _noted(fed: Feed, phase: int, seconds: float) -> FedNote:
    return FedNote(
        phase=phase,
        form=fed.form,
        seconds=seconds,
        decode_seconds=fed.decode_seconds,
        prefix_seconds=fed.prefix_seconds,
        computed=fed.computed,
        nbytes=fed.nbytes,
        plain_seconds_per_sample=fed.plain_seconds_per_sample,
        stored_samples=fed.stored_samples,
    )


def _every_tensor(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under each of their names, and what modules save besides."""
    stock = inventory(model)
    root = stock.model
    return {
        **dict(root.named_parameters(remove_duplicate=False)),
        **dict(root.named_buffers(remove_duplicate=False)),
        **saved_state(stock.modules, {id(p) for p in root.parameters()}),
    }
