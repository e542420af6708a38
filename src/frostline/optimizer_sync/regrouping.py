"""The groups of an optimizer by names of parameters, to be made again before its state is loaded.

A loop that saves `optimizer.state_dict()` keeps states by position. With the names of each group
beside it, positions mean something: an optimizer that is made anew gets the same groups, with the
same parameters in the same order, and then loads that file as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn
from torch.optim import Optimizer

from frostline.errors import ConfigError
from frostline.optimizer_sync import members, schedules
from frostline.optimizer_sync.schedules import Scheduler
from frostline.units import some_of


def group_names(optimizer: Optimizer, model: nn.Module) -> list[list[str]]:
    """The names of the parameters in each group, in their order.

    Raises:
        ConfigError: it holds something that is no parameter of the model.
    """
    members.check_optimizer(optimizer)
    params = members.model_params(model)
    strange = [
        tuple(parameter.shape)
        for group in optimizer.param_groups
        for parameter in group["params"]
        if id(parameter) not in params.by_id
    ]
    if strange:
        raise ConfigError(
            f"the optimizer holds {len(strange)} tensors that are no parameters of this "
            f"{params.title}, the first of shape {strange[0]}. Make it from the parameters of the "
            "very model that is trained, and register there whatever else it is to train."
        )
    groups = optimizer.param_groups
    return [[entry.name for entry in params.of_group(group)] for group in groups]


def regroup(
    optimizer: Optimizer,
    model: nn.Module,
    names: Iterable[Sequence[str]],
    *,
    schedulers: Sequence[Scheduler] = (),
) -> None:
    """Give the optimizer the groups that `group_names` told, without state, for it to be loaded.

    All groups get the settings of the first, until `optimizer.load_state_dict` brings their own;
    the schedulers are made ready for theirs.

    Raises:
        ConfigError: a name is of no parameter of the model, or the optimizer takes in no group.
            Nothing has been changed then.
    """
    members.check_optimizer(optimizer)
    params = members.model_params(model)
    known = {name: entry.tensor for entry in params.by_id.values() for name in entry.names}
    names = [list(group) for group in names]
    if missing := [name for group in names for name in group if name not in known]:
        raise ConfigError(
            f"the saved optimizer holds {some_of(missing, most=3)}, which this {params.title} does "
            "not have. Build the model as it was, or train on without the checkpoint."
        )
    before = list(optimizer.param_groups)
    settings = {k: v for k, v in before[0].items() if k not in ("params", "param_names")}
    with_names = "param_names" in before[0]
    optimizer.param_groups.clear()
    try:
        for group in names:
            made = {**settings, "params": [known[name] for name in group]}
            optimizer.add_param_group(made | ({"param_names": group} if with_names else {}))
    except Exception as error:
        optimizer.param_groups[:] = before
        kind = type(optimizer).__name__
        raise ConfigError(f"{kind} does not take the saved groups: {error}.") from error
    optimizer.state.clear()
    schedules.lengthen(schedulers, len(names))
