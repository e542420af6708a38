"""What a run begins with that goes on from another one's weights, perhaps with other classes."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

from torch import Tensor, nn

from frostline.config import OPTION_OF, RunSettings
from frostline.data import DataFinding
from frostline.deltas import all_tensors, put_tensors, save_delta
from frostline.errors import ConfigError, ModelError
from frostline.fitting import is_length_alone
from frostline.models import LoadedModel
from frostline.models.classifiers import logit_layer
from frostline.records import BY_MODEL, RunFolder
from frostline.runs.material import Audited, all_contents, contents
from frostline.units import some_of
from frostline.wording import option


@final
@dataclass(frozen=True)
class Start:
    """The weights of another run, the classes of its head, and what it has seen.

    Attributes:
        run: its folder.
        epoch: whose weights these are.
        tensors: all that it trained or began with, by name.
        trained_on, validated_on: content digests of files; the former of those of its own start
            as well.
    """

    run: str
    epoch: int
    classes: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    trained_on: frozenset[str] = frozenset()
    validated_on: frozenset[str] = frozenset()

    def put(self, loaded: LoadedModel, classes: Sequence[str]) -> None:
        """Give a model of the same kind these weights; a class's are found by its name.

        A class that the other run lacked keeps what the new head has for it.

        Raises:
            ModelError: the model has not all of these tensors.
        """
        own = all_tensors(loaded.model)
        if missing := [name for name in self.tensors if name not in own]:
            raise ModelError(
                f"{loaded.spec} has no {some_of(missing, most=3)}, which {self.run} trained. Use "
                "the model and the versions that it was trained with."
            )
        pairs = [(n, self.classes.index(c)) for n, c in enumerate(classes) if c in self.classes]
        content = dict(self.tensors)
        for name in _of_logits(loaded) if tuple(classes) != self.classes else ():
            if name in content:
                new = own[name].detach().cpu().clone()
                for place, before in pairs:
                    new[place] = content[name][before]
                content[name] = new
        put_tensors(loaded.model, content)

    def keep(self, model: nn.Module, classes: Sequence[str], folder: RunFolder) -> None:
        """Write what `put` gave a model into its run's folder."""
        own = all_tensors(model)
        about = {"run": self.run, "epoch": str(self.epoch), "classes": json.dumps(list(classes))}
        content = {name: own[name].detach().cpu().clone() for name in self.tensors}
        save_delta(model, folder.start, about=about, content=content)
        folder.write_seen_before(sorted(self.trained_on))

    def changes(self, found: Audited) -> tuple[str, ...]:
        """Lines for people: what is new and what is gone since that run."""
        splits, before = found.splits, self.trained_on | self.validated_on
        gets, loses = ", with fresh weights in the head", ", with their weights"
        classes = _class_changes(self.classes, splits.names, gets=gets, loses=loses)
        here = all_contents(found)
        new = sum(digest not in before for digest in here)
        gone = len(before - set(here))
        lost = f"; {gone} of its {len(before)} are not here" if gone else ""
        return (
            f"Start    the best weights of {self.run}, of epoch {self.epoch}",
            f"Classes  {classes}",
            f"Samples  {len(here)}: {len(here) - new} that it knew, {new} new{lost}",
        )

    def audited(self, found: Audited) -> Audited:
        """With a finding where that run was trained on what is to judge this one."""
        judging = contents(found)[1]
        if not (known := sum(digest in self.trained_on for digest in judging)):
            return found
        message = (
            f"{known} of the {len(judging)} samples to validate on were trained on by {self.run}, "
            "so the metrics are better than they would be on new data. Put them into the training "
            "part: divide the data into train/ and val/."
        )
        finding = DataFinding("warning", "seen-before", message)
        return replace(found, findings=(finding, *found.findings))


def settings_of_start(before: RunSettings, now: RunSettings, given: Collection[str]) -> RunSettings:
    """The settings of a run that begins with another's: its own, but for those that are given.

    Args:
        before: of the other run.
        now: all that there may be, with a model of which nothing is taken.
        given: names of the options that count of these.

    Raises:
        ConfigError: epochs are given, and the other run had a plan.
    """
    by_selector = not {"freeze", "train", "plan"}.isdisjoint(given)
    plan = before.plan
    if by_selector:
        plan = now.plan
    elif is_length_alone(plan):
        plan = ()
    elif "epochs" in given:
        raise ConfigError(
            f"{option('epochs')} says nothing of the plan of that run. Leave it out, or give "
            f"another plan: {option('plan', 'FILE')}."
        )
    sections = {}
    for section in ("data", "freeze", "training", "features"):
        values = dict(getattr(now, section))
        chosen = {name: v for name, v in values.items() if OPTION_OF.get(name, name) in given}
        sections[section] = getattr(before, section).model_copy(update=chosen)
    data, features = sections["data"], sections["features"]
    # Recorded forms are those of the frozen parts of before; the last is left open if none was.
    is_same = not by_selector and "precision" not in given and BY_MODEL not in features.forms
    if "form" not in given:
        forms = features.forms[: len(plan) or 1] if is_same else ()
        sections["features"] = features.model_copy(update={"forms": forms})
    changed = {
        **sections,
        "data": data.model_copy(update={"path": now.data.path, "classes": ()}),
        "task": before.task and before.task.model_copy(update={"labels": ()}),
        "freeze": now.freeze if by_selector else sections["freeze"],
        "plan": plan,
        "device": now.device if "device" in given else before.device,
        "length_changes": (),
        "frostline": now.frostline,
    }
    return before.model_copy(update=changed)


def check_kept(start: Start, classes: Sequence[str]) -> None:
    """Refuse other classes where the classifier is kept.

    Raises:
        ConfigError: the data have others than the run.
    """
    if set(classes) != set(start.classes):
        raise ConfigError(
            f"{start.run} kept the network's own classifier, whose classes stay as they are, and "
            f"here they change: {_class_changes(start.classes, classes)}. Give the same classes, "
            f"or start a run with a new head ({option('on', 'classifier')})."
        )


def _class_changes(
    before: Sequence[str], now: Sequence[str], *, gets: str = "", loses: str = ""
) -> str:
    """`2 -> 3; new wasp`, with what becomes of the weights."""
    added, gone = ([c for c in a if c not in b] for a, b in ((now, before), (before, now)))
    words = [f"{len(before)} -> {len(now)}"] if added or gone else [f"the same {len(now)}"]
    words += [f"new {some_of(added, most=5)}{gets}"] if added else []
    words += [f"gone {some_of(gone, most=5)}{loses}"] if gone else []
    return "; ".join(words)


def _of_logits(loaded: LoadedModel) -> list[str]:
    """The tensors that have a row for each class."""
    head = loaded.model.get_submodule(loaded.head)
    path = f"{loaded.head}.{len(head) - 1}" if isinstance(head, nn.Sequential) else loaded.head
    return [f"{path}.{name}" for name, _ in logit_layer(loaded.model, path).named_parameters()]
