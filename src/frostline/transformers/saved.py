"""The optimizer and the schedule of a run under a plan, as the Trainer saves and loads them.

The Trainer keeps their states by position, and loads them into an optimizer that it has just
made, before any callback is called. So they are saved in the form that the optimizer had in the
beginning, whatever joined, left or moved since; the groups as they are, by name, stand in the
callback's state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, final

from torch import Tensor, nn
from torch.optim import Optimizer

from frostline.errors import ConfigError
from frostline.optimizer_sync import group_names
from frostline.session import prepare_optimizer
from frostline.session.attached import checked_state

_OF_GROUPS = ("base_lrs", "_last_lr", "lr_lambdas", "min_lrs")  # that schedulers keep
_LISTS = ("params", "param_names")


@final
class SavedForms:
    """Looks after how an optimizer and its schedule are saved.

    Attributes:
        names: of each group in the beginning, as the Trainer made it.
    """

    def __init__(self, optimizer: Optimizer, root: nn.Module) -> None:
        self.optimizer, self.root = optimizer, root
        self.names = group_names(optimizer, root)
        self._groups = [
            ({k: v for k, v in group.items() if k not in _LISTS}, list(group["params"]))
            for group in optimizer.param_groups
        ]
        self._is_first_form = True
        optimizer.register_state_dict_post_hook(self._in_first_form)
        optimizer.register_load_state_dict_pre_hook(lambda *_: self._reset_first())

    @contextmanager
    def as_they_are(self) -> Iterator[None]:
        """Within it the optimizer's state is that of its present groups: phases go by it."""
        self._is_first_form = False
        try:
            yield
        finally:
            self._is_first_form = True

    def reset(self) -> None:
        """Give the optimizer the groups of the beginning again, without state."""
        groups = self.optimizer.param_groups
        if group_names(self.optimizer, self.root) == self.names:
            return
        groups.clear()
        self.optimizer.state.clear()
        for settings, params in self._groups:
            self.optimizer.add_param_group({**settings, "params": list(params)})

    def _reset_first(self) -> None:
        """Before the Trainer loads a state, which it saved in the first form."""
        if self._is_first_form:
            self.reset()

    def watch(self, scheduler: Any) -> None:
        """Let the schedule be saved in its first form too."""
        plain, count = scheduler.state_dict, len(self.names)

        def state_dict() -> dict[str, Any]:
            state = dict(plain())
            state.pop("state_dict", None)  # this stand-in itself
            for name in _OF_GROUPS:
                if isinstance(state.get(name), list | tuple):
                    values = list(state[name])
                    state[name] = (values + values[:1] * count)[:count]
            return state

        scheduler.state_dict = state_dict

    def state(self, scheduler: Any) -> dict[str, Any]:
        """What the first form leaves out, as plain data."""
        own = vars(scheduler)
        return {
            "first": self.names,
            "settings": [_settings(group) for group in self.optimizer.param_groups],
            "schedule": {
                name: [float(value) for value in own[name]]
                for name in _OF_GROUPS
                if name in own and name != "lr_lambdas"
            },
        }

    def restore(self, state: Mapping[str, Any], scheduler: Any) -> None:
        """Bring what the Trainer loaded into the first form to that of the moment of the save.

        Raises:
            ConfigError: the Trainer made another optimizer than the run that was saved.
        """
        if checked_state(state)["first"] != self.names:
            raise ConfigError(
                "the Trainer made its optimizer over other parameters than in the run that was "
                "saved, so states went to others than their own. Freeze or thaw nothing before "
                "the Trainer is made that was not so then."
            )
        optimizer = self.optimizer
        loaded = dict(optimizer.state)
        prepare_optimizer(optimizer, self.root, state, schedulers=[scheduler])
        for group, settings in zip(optimizer.param_groups, state["settings"], strict=True):
            group.update({k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()})
            optimizer.state.update({p: loaded[p] for p in group["params"] if p in loaded})
        vars(scheduler).update({name: list(v) for name, v in state["schedule"].items()})

    def _in_first_form(self, optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        if not self._is_first_form:
            return state
        present = [p for group in optimizer.param_groups for p in group["params"]]
        places = {id(parameter): place for place, parameter in enumerate(present)}
        states: dict[int, Any] = {}
        groups: list[dict[str, Any]] = []
        count = 0
        for settings, params in self._groups:
            numbers = list(range(count, count + len(params)))
            count += len(params)
            groups.append({**settings, "params": numbers})
            for number, parameter in zip(numbers, params, strict=True):
                if (place := places.get(id(parameter))) in state["state"]:
                    states[number] = state["state"][place]
        return {**state, "state": states, "param_groups": groups}


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: value for name, value in group.items() if name not in _LISTS}
    for name, value in found.items():
        if isinstance(value, Tensor):
            raise ConfigError(
                f"the optimizer's {name} is a tensor, which a Trainer's checkpoint does not hold "
                "to the bit. Make the optimizer with a plain number."
            )
    return found
