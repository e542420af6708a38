"""What in a Trainer's run `Freeze` cannot keep in step with a plan, as yet or at all."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from frostline.errors import ConfigError
from frostline.plans import Plan
from frostline.session import Session
from frostline.transformers.package import TrainerState, TrainingArguments
from frostline.units import some_of


def check_plan(plan: Plan) -> None:
    """Raises ConfigError for what no checkpoint of the Trainer can hold."""
    for number, phase in enumerate(plan, 1):
        if phase.start == "best":
            raise ConfigError(
                f"{phase.label(number)} begins with the best weights of the phase before, which a "
                "Trainer's checkpoint does not hold. Leave start out, and take the best of all by "
                "load_best_model_at_end=True; or train one phase in each run."
            )


def check_arguments(args: TrainingArguments) -> None:
    """Raises ConfigError for several processes or shards, and for options at odds with a plan."""
    if args.deepspeed or args.fsdp:
        named = "deepspeed" if args.deepspeed else "fsdp"
        raise ConfigError(
            f"the Trainer runs with {named}, whose shards would not learn of a thaw. As yet Freeze "
            f"serves one device: leave {named} out."
        )
    if args.world_size > 1 or args.n_gpu > 1:
        raise ConfigError(
            f"the Trainer runs on {max(args.world_size, args.n_gpu)} devices, whose copies of the "
            "model would not learn of a thaw. As yet Freeze serves one: start one process, with "
            "CUDA_VISIBLE_DEVICES=0."
        )
    if args.restore_callback_states_from_checkpoint:
        raise ConfigError(
            "restore_callback_states_from_checkpoint would put a new callback without a plan in "
            "the place of Freeze, which goes on by itself. Leave it out."
        )


def check_state(state: TrainerState) -> None:
    """Raises ConfigError for a search, and for two of the callback."""
    if state.is_hyper_param_search:
        raise ConfigError(
            "the Trainer is searching hyperparameters, and one Freeze would go through the plan of "
            "all its trials. Make a Trainer with its own Freeze for each trial."
        )


def inner(optimizer: Optimizer) -> Optimizer:
    """The optimizer inside Accelerate's wrapper; raises ConfigError for one that trains nothing."""
    found: Any = optimizer
    if type(found).__name__ == "AcceleratedOptimizer":
        found = found.optimizer
    if type(found).__name__ == "LayerWiseDummyOptimizer":
        raise ConfigError(
            "the Trainer has a layer-wise optimizer, which steps in hooks of the parameters that "
            "a freeze does not reach. Choose another optim, as adamw_torch."
        )
    return found  # type: ignore[no-any-return]  # as it was given


def check_members(session: Session, held: set[str]) -> None:
    """Raises ConfigError where the plan trains what the Trainer made no place for.

    Args:
        held: names of what the optimizer holds before the first phase.
    """
    wanted = session.planned.trained_until(len(session.phases))
    if missing := [name for name in wanted if name not in held]:
        raise ConfigError(
            f"the plan trains {some_of(missing, most=3)}, which the optimizer does not hold: it "
            "was frozen as the Trainer made that. Leave freezing to the plan: "
            "fl.thaw(model, 'all') before the Trainer is made."
        )
