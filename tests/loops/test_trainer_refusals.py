"""What a Trainer's run would do to a freeze is refused, with what to do instead."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from trainer_world import Labelled, trainer

import frostline as fl
from frostline.transformers import Freeze
from frostline.transformers.refusals import check_arguments, check_state, inner

HEAD = fl.Plan([fl.Phase(name="head", train="head", epochs=1)])


def asked(**changes: Any) -> Any:
    """Arguments as the Trainer hands them over; several devices are not at hand."""
    none = {"deepspeed": None, "fsdp": [], "world_size": 1, "n_gpu": 0}
    return SimpleNamespace(**{**none, "restore_callback_states_from_checkpoint": False, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"deepspeed": "zero.json"}, "runs with deepspeed, whose shards would not learn"),
        ({"fsdp": ["full_shard"]}, "runs with fsdp, whose shards would not learn of a thaw"),
        ({"world_size": 2}, "runs on 2 devices, whose copies .* CUDA_VISIBLE_DEVICES=0"),
        ({"n_gpu": 4}, "runs on 4 devices"),
    ],
)
def test_several_devices_are_refused_as_yet(changes: dict[str, Any], message: str) -> None:
    check_arguments(asked())
    with pytest.raises(fl.ConfigError, match=message):
        check_arguments(asked(**changes))


def test_callbacks_restored_by_the_trainer_are_refused_as_it_is_made(tmp_path: Path) -> None:
    with pytest.raises(fl.ConfigError, match="would put a new callback without a plan in"):
        trainer(
            Labelled(),
            tmp_path,
            Freeze(HEAD, module="model"),
            restore_callback_states_from_checkpoint=True,
        )


def test_a_search_of_hyperparameters_is_refused() -> None:
    with pytest.raises(fl.ConfigError, match="Make a Trainer with its own Freeze for each trial"):
        check_state(SimpleNamespace(is_hyper_param_search=True))  # type: ignore[arg-type]


def test_a_layer_wise_optimizer_is_refused() -> None:
    class LayerWiseDummyOptimizer(torch.optim.SGD):
        """Named as transformers' own, which needs a package beside it."""

    with pytest.raises(fl.ConfigError, match="steps in hooks of the parameters"):
        inner(LayerWiseDummyOptimizer([nn.Parameter(torch.ones(1))]))


def test_a_phase_from_the_best_weights_is_refused() -> None:
    phases = [HEAD.phases[0], fl.Phase(train="neck", epochs=1, start="best")]
    with pytest.raises(fl.ConfigError, match="by load_best_model_at_end=True"):
        Freeze(fl.Plan(phases), monitor="eval_loss")


def test_a_phase_with_a_schedule_beside_the_trainers_is_refused(tmp_path: Path) -> None:
    plan = fl.Plan([fl.Phase(train="head", epochs=1, schedule="cosine")])
    with pytest.raises(fl.ConfigError, match="has a schedule of its own, and so has the loop"):
        trainer(Labelled(), tmp_path, Freeze(plan, module="model")).train()


def test_what_was_frozen_before_the_trainer_made_its_optimizer_cannot_join(
    tmp_path: Path,
) -> None:
    model = Labelled()
    fl.train_only(model, "model.head")
    plan = fl.Plan([*HEAD, fl.Phase(train="neck", epochs=1)])
    with pytest.raises(fl.ConfigError, match=r"neck.0.weight.*, which the optimizer does not hold"):
        trainer(model, tmp_path, Freeze(plan, module="model")).train()


def test_an_optimizer_of_another_model_is_refused(tmp_path: Path) -> None:
    made = trainer(Labelled(), tmp_path, Freeze(HEAD, module="model"))
    made.optimizer = torch.optim.AdamW(Labelled().parameters(), lr=1e-3)
    with pytest.raises(fl.ConfigError, match="holds 10 tensors that are no parameters of this Lab"):
        made.train()


def test_a_part_that_the_model_does_not_have_is_named(tmp_path: Path) -> None:
    with pytest.raises(fl.ConfigError, match=r"Labelled has no module 'modle', .* Nearest: model"):
        trainer(Labelled(), tmp_path, Freeze(HEAD, module="modle")).train()


def test_freeze_has_no_session_before_the_trainer_trains() -> None:
    with pytest.raises(fl.ConfigError, match="no session before the Trainer trains"):
        _ = Freeze(HEAD).session
