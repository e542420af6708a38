"""Optimizer state by parameter name: it finds its parameter whatever the groups and their order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NotRequired, TypedDict

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from frostline.errors import ConfigError
from frostline.optimizer_sync import members, states
from frostline.optimizer_sync.members import Group, keeper, same
from frostline.optimizer_sync.states import State, copied
from frostline.selectors import Entry
from frostline.units import some_of

_FORMAT = "frostline optimizer state 2"
_BEFORE = "frostline optimizer state 1"  # knew of parameters' states and groups only
_NOT_SAVED = frozenset({"params", "param_names"})


class NamedParameter(TypedDict):
    """What was saved of one parameter; `group` is an index into the saved groups."""

    shape: list[int]
    dtype: NotRequired[str]
    group: int
    state: dict[str, Any]


class OptimizerState(TypedDict):
    """A whole saved state: plain data and tensors, which `torch.load(weights_only=True)` reads.

    A few optimizers of other libraries keep objects of their own; these are in it as they are.
    What belongs to no single parameter (counters, a schedule of its own, random generators) is
    `shared`, entries of the optimizer's state under a name instead of a parameter, and `further`,
    entries of its `state_dict()` beside state and groups.
    """

    format: str
    optimizer: str
    parameters: dict[str, NamedParameter]
    groups: list[dict[str, Any]]
    shared: dict[str, Any]
    further: dict[str, Any]


def optimizer_state(optimizer: Optimizer, model: nn.Module) -> OptimizerState:
    """The optimizer's state and hyperparameters of the parameters of `model`, by name.

    Everything in it is a copy: all that the optimizer's own `state_dict()` holds, but for
    parameters of other models in the same optimizer.

    Raises:
        ConfigError: the optimizer keeps no state by parameter, keeps more than names can find
            again, holds nothing of the model, or a state of another shape than its parameter.

    Example:
        >>> optimizer = torch.optim.AdamW(fl.param_groups(model, lr=1e-3))
        >>> model(images).sum().backward()
        >>> optimizer.step()
        >>> list(fl.optimizer_state(optimizer, model)["parameters"])
        ['head.2.weight', 'head.2.bias']
    """
    members.check_optimizer(optimizer)
    params = members.model_params(model)
    groups = members.groups_of_model(optimizer.param_groups, params)
    shared, further = _beside_parameters(optimizer)
    known = keeper(optimizer).state
    parameters: dict[str, NamedParameter] = {}
    for index, group in enumerate(groups):
        for entry in params.of_group(group):
            if (key := states.outgrown(optimizer, entry.tensor, group)) is not None:
                shape = tuple(known[entry.tensor][key].shape)
                raise ConfigError(
                    f"{entry.name} has the shape {tuple(entry.tensor.shape)}, but the optimizer "
                    f"keeps '{key}' of it with {shape}: its data were resized since. Let it begin "
                    "again: fl.sync(optimizer, model)."
                )
            parameters[entry.name] = NamedParameter(
                shape=list(entry.tensor.shape),
                dtype=str(entry.tensor.dtype),
                group=index,
                state=copied(known.get(entry.tensor, {})),
            )
    return OptimizerState(
        format=_FORMAT,
        optimizer=type(optimizer).__name__,
        parameters=parameters,
        groups=[
            {key: copied(value) for key, value in group.items() if key not in _NOT_SAVED}
            for group in groups
        ],
        shared=shared,
        further=further,
    )


def load_optimizer_state(
    optimizer: Optimizer,
    model: nn.Module,
    state: Mapping[str, Any],
    *,
    missing: Literal["refuse", "fresh"] = "refuse",
    hyperparameters: Literal["saved", "own"] = "saved",
) -> None:
    """Load what `optimizer_state` gave, by name; training goes on bit for bit.

    Groups may be other in number and order. Tensors are copied and placed as the optimizer's own
    `load_state_dict` does, but keep their bits: only what had its parameter's dtype follows it to
    another. Other models' parameters in the optimizer keep their state; what it keeps for all is
    taken over.

    Args:
        missing: "refuse" asks that the saved parameters be those that the optimizer holds of
            the model; with "fresh" one that was not saved begins without state, and what was
            saved of others is left out.
        hyperparameters: those that were saved, or the optimizer's own.

    Raises:
        ConfigError: it is no such state, of another optimizer, of other parameters or shapes,
            its hyperparameters do not fit these groups, or the optimizer's own `load_state_dict`
            refuses it. Nothing has been changed then.

    Example:
        >>> optimizer = torch.optim.AdamW(fl.param_groups(model, lr=1e-3))
        >>> model(images).sum().backward()
        >>> optimizer.step()
        >>> state = fl.optimizer_state(optimizer, model)
        >>> later = torch.optim.AdamW(fl.param_groups(model, lr=1e-5))
        >>> fl.load_optimizer_state(later, model, state)
        >>> later.param_groups[0]["lr"]
        0.001
    """
    # Long since all is found before anything is changed: what is refused leaves all as it was.
    _check_choices(missing, hyperparameters)
    members.check_optimizer(optimizer)
    params, groups = members.model_params(model), optimizer.param_groups
    own = members.groups_of_model(groups, params)
    _check_format(state, optimizer)
    shared, further = _beside_parameters(optimizer)
    if state["format"] == _FORMAT:
        shared, further = copied(state["shared"]), {**further, **copied(state["further"])}
    saved: dict[str, NamedParameter] = state["parameters"]
    entries = {id(entry.tensor): entry for group in own for entry in params.of_group(group)}
    # A tied parameter may have been met under another of its names when it was saved.
    names = {key: [n for n in entry.names if n in saved] for key, entry in entries.items()}
    found = {key: saved[known[0]] for key, known in names.items() if known}
    if missing == "refuse":
        _check_names(params.title, entries, found, saved)
    with_groups = found if hyperparameters == "saved" else {}
    settings = [_settings(params.of_group(g), with_groups, state["groups"]) for g in groups]
    known = keeper(optimizer).state
    to_be = {p: known.get(p, {}) for g in groups for p in g["params"]}  # of other models as it is
    for group, chosen in zip(groups, settings, strict=True):
        now = {**group, **chosen}
        for entry in (held := params.of_group(group)):
            to_be[entry.tensor] = _begun(optimizer, entry, found.get(id(entry.tensor)), now)
        if held:
            states.check_even(optimizer, now, [to_be[p] for p in group["params"]])
    packed = optimizer.state_dict()
    shared |= {at: to_be[p] for at, p in _positions(optimizer, packed).items() if to_be[p]}
    merged = [{**p, **chosen} for p, chosen in zip(packed["param_groups"], settings, strict=True)]
    _load(optimizer, {**further, "state": shared, "param_groups": merged})
    # Again, since torch's casts every float but `step` to the parameter's dtype, and breaks texts.
    keeper(optimizer).state.update({p: its for p, its in to_be.items() if its})
    for group in optimizer.param_groups:
        if params.of_group(group):
            states.even_out(optimizer, group)


def _begun(optimizer: Optimizer, entry: Entry, saved: NamedParameter | None, group: Group) -> State:
    """A copy of the saved state for the parameter as it is now, or what it begins with."""
    if saved is None:
        return states.begun(optimizer, entry.tensor, group) or {}
    before, now = tuple(saved["shape"]), tuple(entry.tensor.shape)
    if before != now:
        raise ConfigError(
            f"{entry.name} was saved with the shape {before}, but has {now} in this model. "
            "Load into the model that was trained."
        )
    states.check_fit(optimizer, entry, saved["state"])
    tensors = (v for v in saved["state"].values() if isinstance(v, Tensor) and v.dim())
    # The format before did not say which dtype the parameter had; most of its state has the same.
    known = saved.get("dtype") or str(next((v.dtype for v in tensors), entry.tensor.dtype))
    former: torch.dtype = getattr(torch, known.removeprefix("torch."))
    return states.placed(saved["state"], entry.tensor, group, former, counters="go along")


def _beside_parameters(optimizer: Optimizer) -> tuple[dict[Any, Any], dict[str, Any]]:
    """A copy of what the optimizer keeps for no single parameter: `shared` and `further`."""
    # Refused is what a name could not find again, as what goes by the positions of parameters.
    packed = optimizer.state_dict()
    positions = _positions(optimizer, packed)
    known = keeper(optimizer).state
    if any(packed["state"].get(at) and not known.get(p) for at, p in positions.items()):
        raise _refused(optimizer, "keeps its parameters' states in another object")
    shared = {key: value for key, value in packed["state"].items() if key not in positions}
    further = {key: v for key, v in packed.items() if key not in ("state", "param_groups")}
    for key, value in {**shared, **further}.items():
        if not isinstance(key, str) or _goes_by_position(value):
            raise _refused(optimizer, f"keeps '{key}' by the positions of its parameters")
    return copied(shared), copied(further)


def _positions(optimizer: Optimizer, packed: Mapping[str, Any]) -> dict[Any, nn.Parameter]:
    """What stands for each parameter in what torch's `load_state_dict` reads."""
    groups = packed.get("param_groups")
    if "state" not in packed or groups is None or len(groups) != len(optimizer.param_groups):
        raise _refused(optimizer, f"saves itself in a form of its own ({', '.join(packed)})")
    pairs = zip(groups, optimizer.param_groups, strict=True)
    return {
        at: parameter
        for packed_group, group in pairs
        for at, parameter in zip(packed_group["params"], group["params"], strict=True)
    }


def _goes_by_position(value: Any) -> bool:
    """Whether a mapping in it has other keys than names, as positions or parameters."""
    if isinstance(value, Mapping):
        return any(not isinstance(k, str) or _goes_by_position(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return any(_goes_by_position(inner) for inner in value)
    return isinstance(value, nn.Parameter)


def _refused(optimizer: Optimizer, why: str) -> ConfigError:
    return ConfigError(
        f"{type(optimizer).__name__} {why}, so none of it has a parameter's name. Save "
        "optimizer.state_dict() and load it into an optimizer made the same way; or save the "
        "state of the optimizer inside."
    )


def _check_choices(missing: str, hyperparameters: str) -> None:
    for name, value, known in (
        ("missing", missing, ("refuse", "fresh")),
        ("hyperparameters", hyperparameters, ("saved", "own")),
    ):
        if value not in known:
            raise ConfigError(f"{name} is {value!r}; it is {known[0]!r} or {known[1]!r}.")


def _check_format(state: Mapping[str, Any], optimizer: Optimizer) -> None:
    if not isinstance(state, Mapping) or state.get("format") not in (_FORMAT, _BEFORE):
        raise ConfigError(
            "this is no optimizer state by name that this version reads. Pass what "
            "fl.optimizer_state(optimizer, model) gave; what optimizer.state_dict() gave goes to "
            "optimizer.load_state_dict."
        )
    kind = type(optimizer).__name__
    if state["optimizer"] != kind:
        raise ConfigError(
            f"the state was saved from {state['optimizer']}, but this optimizer is {kind}, which "
            "keeps other numbers. Make the optimizer that was saved, or begin without state."
        )


def _check_names(
    title: str, entries: Mapping[int, Entry], found: Mapping[int, Any], saved: Mapping[str, Any]
) -> None:
    unknown = [entry.name for key, entry in entries.items() if key not in found]
    if unknown:
        raise ConfigError(
            f"the saved state knows nothing of {some_of(unknown, most=3)} of {title}. To let what "
            'it does not know begin without state: fl.load_optimizer_state(..., missing="fresh").'
        )
    held = {name for entry in entries.values() for name in entry.names}
    absent = [name for name in saved if name not in held]
    if absent:
        raise ConfigError(
            f"the saved state holds {some_of(absent, most=3)}, which this optimizer does not. Thaw "
            "it and fl.sync(optimizer, model) before loading; or leave it out: "
            'fl.load_optimizer_state(..., missing="fresh").'
        )


def _settings(
    entries: tuple[Entry, ...],
    found: Mapping[int, NamedParameter],
    saved_groups: list[dict[str, Any]],
) -> dict[str, Any]:
    """The hyperparameters that were saved for the parameters of a group, which must be one set."""
    chosen: dict[str, Any] = {}
    first = ""
    for entry in entries:
        if id(entry.tensor) not in found:
            continue
        settings = saved_groups[found[id(entry.tensor)]["group"]]
        keys = dict.fromkeys([*chosen, *settings])
        both = chosen.keys() & settings.keys()
        other = (k for k in keys if k not in both or not same(chosen[k], settings[k]))
        if first and (key := next(other, None)) is not None:
            raise ConfigError(
                f"{first} and {entry.name} stand in one group, but were saved with {key} "
                f"{chosen.get(key)} and {settings.get(key)}. Make the groups as they were, or "
                'keep their own: fl.load_optimizer_state(..., hyperparameters="own").'
            )
        chosen, first = settings, first or entry.name
    return {key: copied(value) for key, value in chosen.items()}


def _load(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """By the optimizer's own `load_state_dict`; if it refuses, the optimizer stays as it was."""
    # torch's makes new groups and states, so that the old ones can be put back.
    before = [(one, dict(vars(one))) for one in (optimizer, keeper(optimizer))]
    try:
        optimizer.load_state_dict(state)
    except Exception as error:
        for one, own in before:
            vars(one).clear()
            vars(one).update(own)
        raise ConfigError(
            f"{type(optimizer).__name__}.load_state_dict refuses the saved state: {error}. Make "
            "the optimizer with the options of the one that was saved, or begin without state."
        ) from error
