"""A session under loops of one's own: the bits of `fl.fit`, resuming, optimizers, proofs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import frostline as fl
from frostline.engine import Hook, Training
from frostline.session import Pipeline
from frostline.session.randomness import seed_epoch
from phased_net import HEAD, HEAD_AGAIN, net, rows

NECK = fl.Phase(name="neck", train="neck | head", epochs=2, lr=0.02, layer_decay=0.5)
THREE = fl.Plan([HEAD, NECK, HEAD_AGAIN])
BEST = fl.Plan([HEAD, NECK.model_copy(update={"start": "best"}), HEAD_AGAIN])
STEPS = fl.Plan([fl.Phase(train="head", steps=5, lr=0.05), NECK])


def bits(model: nn.Module) -> dict[str, str]:
    return dict(fl.fingerprint(model).tensors)


def accuracy(data: Pipeline, model: nn.Module) -> float:
    model.eval()
    with torch.no_grad():
        hits = [
            (data(batch).argmax(dim=1) == batch.targets).float()
            for batch in data.validation.epoch(0)
        ]
    return float(torch.cat(hits).mean())


def trained(session: fl.Session, *, stop_after: int | None = None, **options: Any) -> list[str]:
    """A loop of one's own; gives the proofs of its phases."""
    proofs, steps = [], 0
    while not session.is_over:
        session.enter()
        if not session.phase_end:
            data = session.data(rows(), rows(12, seed=2), batch_size=8, **options)
        while not session.phase_end:
            for batch in session.epoch(data.train):
                loss = nn.functional.cross_entropy(data(batch), batch.targets)
                loss.backward()
                session.optimizer.step()
                session.optimizer.zero_grad()
                session.after_step()
                steps += 1
                if steps == stop_after:
                    return proofs
            session.end_epoch({"accuracy": accuracy(data, session.model)})
        proofs.append(str(session.leave()))
    return proofs


ADAM = partial(torch.optim.AdamW, fused=True)
SGD = partial(torch.optim.SGD, momentum=0.9, fused=True)


# The bits of fit


@pytest.mark.parametrize(
    ("plan", "optimizer", "features"),
    [
        (THREE, "adamw", "off"),
        (THREE, "sgd", "off"),
        (BEST, "adamw", "off"),
        (STEPS, "sgd", "off"),
        (THREE, "adamw", "stored"),
    ],
)
def test_a_loop_of_ones_own_ends_at_the_bits_of_fit(
    tmp_path: Path, plan: fl.Plan, optimizer: str, features: str
) -> None:
    folder = "off" if features == "off" else str(tmp_path)
    own, ours = net(), net()
    made = ADAM if optimizer == "adamw" else SGD
    session = fl.Session(own, plan, optimizer=made, precision="exact")
    proofs = trained(session, features=folder)
    last: dict[str, str] = {}
    fl.fit(
        ours,
        rows(),
        rows(12, seed=2),
        plan=plan,
        optimizer=optimizer,
        precision="exact",
        batch_size=8,
        device="cpu",
        features=folder,
        hooks=[noting(last)],
    )
    assert bits(own) == last
    assert len(proofs) == len(plan)
    assert all("bit for bit as they were" in proof for proof in proofs)


def noting(last: dict[str, str]) -> Hook:
    """Notes the weights after each phase; at its end `fit` puts the best ones."""

    class Last(Hook):
        def on_phase(self, training: Training) -> None:
            last.update(bits(training.model))

    return Last()


# Going on later


def saved(session: fl.Session, file: Path) -> None:
    torch.save({"model": session.model.state_dict(), "session": session.state_dict()}, file)


def loaded(session: fl.Session, file: Path) -> fl.Session:
    content = torch.load(file, weights_only=True)
    session.model.load_state_dict(content["model"])
    session.load_state_dict(content["session"])
    return session


@pytest.mark.parametrize("plan", [THREE, BEST, STEPS])
@pytest.mark.parametrize("stop_after", [1, 3, 4, 6, 8, 11, 14])
def test_a_session_that_was_restored_goes_on_to_the_same_bits(
    tmp_path: Path, plan: fl.Plan, stop_after: int
) -> None:
    whole, cut, resumed = net(), net(), net()
    trained(fl.Session(whole, plan, optimizer=SGD))
    session = fl.Session(cut, plan, optimizer=SGD)
    trained(session, stop_after=stop_after)
    saved(session, tmp_path / "state.pt")
    trained(loaded(fl.Session(resumed, plan, optimizer=SGD), tmp_path / "state.pt"))
    assert bits(resumed) == bits(whole)


def test_a_restored_session_that_is_saved_before_it_enters_loses_nothing(tmp_path: Path) -> None:
    whole, model = net(), net()
    trained(fl.Session(whole, THREE, optimizer=SGD))
    session = fl.Session(model, THREE, optimizer=SGD)
    trained(session, stop_after=3)
    saved(session, tmp_path / "first.pt")
    saved(loaded(fl.Session(net(), THREE, optimizer=SGD), tmp_path / "first.pt"), tmp_path / "2.pt")
    resumed = loaded(fl.Session(net(), THREE, optimizer=SGD), tmp_path / "2.pt")
    trained(resumed)
    assert bits(resumed.model) == bits(whole)


def test_an_optimizer_that_is_kept_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    def made(model: nn.Module) -> fl.Session:
        return fl.Session(model, THREE, optimizer=ADAM(fl.param_groups(model, lr=0.1)))

    whole, cut, resumed = net(), net(), net()
    trained(made(whole))
    session = made(cut)
    trained(session, stop_after=13)
    saved(session, tmp_path / "state.pt")
    trained(loaded(made(resumed), tmp_path / "state.pt"))
    assert bits(resumed) == bits(whole)


def test_a_loop_that_keeps_the_optimizers_state_goes_on_without_it_in_the_sessions() -> None:
    fresh = fl.Plan([HEAD, HEAD_AGAIN.model_copy(update={"state": "fresh", "epochs": 2})])
    whole, model = net(), net()
    trained(fl.Session(whole, fresh, optimizer=ADAM(whole.parameters())))
    optimizer = ADAM(model.parameters())
    session = fl.Session(model, fresh, optimizer=optimizer)
    trained(session, stop_after=10)  # within the phase that began fresh
    state = session.state_dict(optimizer=False)
    assert state["optimizer"] is None
    resumed = fl.Session(model, fresh, optimizer=optimizer)
    resumed.load_state_dict(state)
    trained(resumed)
    assert bits(model) == bits(whole)


def test_a_state_of_another_plan_is_refused(tmp_path: Path) -> None:
    session = fl.Session(net(), THREE, optimizer=SGD)
    trained(session, stop_after=2)
    saved(session, tmp_path / "state.pt")
    with pytest.raises(fl.ConfigError, match="the state is of another plan"):
        loaded(fl.Session(net(), STEPS, optimizer=SGD), tmp_path / "state.pt")
    with pytest.raises(fl.ConfigError, match="this is no state of a session"):
        session.load_state_dict({})


def test_another_frozen_part_is_refused_when_the_session_goes_on() -> None:
    session = fl.Session(net(), THREE, optimizer=SGD)
    trained(session, stop_after=2)
    other = net()
    with torch.no_grad():
        other.body[0].weight.add_(1)
    resumed = fl.Session(other, THREE, optimizer=SGD)
    resumed.load_state_dict(session.state_dict())
    with pytest.raises(fl.DriftError, match="cannot resume within head"):
        resumed.enter()


# The optimizer


def rates(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, float]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: group["lr"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


@pytest.mark.parametrize("plan", [THREE, STEPS])
def test_an_optimizer_that_is_kept_ends_at_the_bits_of_one_made_for_each_phase(
    plan: fl.Plan,
) -> None:
    kept, made = net(), net()
    optimizer = ADAM(fl.param_groups(kept, lr=0.1))
    trained(fl.Session(kept, plan, optimizer=optimizer))
    trained(fl.Session(made, plan, optimizer=ADAM))
    assert bits(kept) == bits(made)


def test_an_optimizer_that_is_kept_gets_the_rates_of_each_phase() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    session = fl.Session(model, THREE, optimizer=optimizer)
    session.enter()
    assert set(rates(optimizer, model)) == {"head.weight", "head.bias"}
    assert set(rates(optimizer, model).values()) == {0.05}
    session.leave()
    session.enter()
    found = rates(optimizer, model)
    assert found["head.weight"] == 0.02
    assert found["neck.0.weight"] == pytest.approx(0.01)


def test_rates_of_an_optimizer_stay_where_nothing_says_others() -> None:
    model = net()
    optimizer = torch.optim.SGD(
        [{"params": model.head.parameters(), "lr": 0.7}, {"params": model.neck.parameters()}],
        lr=0.3,
    )
    plan = fl.Plan([fl.Phase(train="head", epochs=1), fl.Phase(train="head | neck", epochs=1)])
    session = fl.Session(model, plan, optimizer=optimizer, steps_per_epoch=4)
    session.enter()
    session.before_step()
    assert rates(optimizer, model) != {"head.weight": 0.7, "head.bias": 0.7}  # it warms up
    session.leave()
    session.enter()
    found = rates(optimizer, model)
    assert found["head.weight"] == 0.7
    assert found["neck.0.weight"] == 0.3  # of the group that it left


def test_schedulers_keep_the_rates_of_their_optimizer() -> None:
    model = net()
    optimizer = torch.optim.SGD(fl.param_groups(model, lr=0.3))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    session = fl.Session(model, THREE, optimizer=optimizer, schedulers=[scheduler])
    session.enter()
    optimizer.step()
    scheduler.step()
    session.before_step()
    assert set(rates(optimizer, model).values()) == {0.15}


def test_a_rate_that_a_phase_keeps_constant_is_left_as_the_loop_sets_it() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    constant = fl.Phase(train="head", epochs=1, schedule="constant", warmup=0)
    session = fl.Session(model, fl.Plan([constant]), optimizer=optimizer)
    session.enter()
    optimizer.param_groups[0]["lr"] = 0.2
    session.before_step()
    assert optimizer.param_groups[0]["lr"] == 0.2


def test_a_phase_that_begins_fresh_begins_without_state() -> None:
    fresh = fl.Plan([HEAD, HEAD_AGAIN.model_copy(update={"state": "fresh"})])
    for optimizer in (ADAM, ADAM(net().parameters())):
        model = net()
        if isinstance(optimizer, torch.optim.Optimizer):
            optimizer = ADAM(model.parameters(), lr=0.1)
        session = fl.Session(model, fresh, optimizer=optimizer)
        trained(session, stop_after=8)
        session.end_epoch({"accuracy": 1.0})
        session.leave()
        assert session.optimizer.state[model.head.weight]
        session.enter()
        assert not session.optimizer.state[model.head.weight].get("step")


# Steps, epochs, phases


def test_gradients_of_several_batches_make_one_step() -> None:
    model = net()
    session = fl.Session(model, fl.Plan([HEAD]), optimizer=SGD, accumulate=3)
    session.enter()
    data = session.data(rows(), rows(), batch_size=8)
    seen = 0
    for batch in session.epoch(data.train):
        (nn.functional.cross_entropy(data(batch), batch.targets) / 3).backward()
        seen += 1
        if session.step_is_due:
            session.optimizer.step()
            session.optimizer.zero_grad()
            session.after_step()
    assert seen == 4
    assert session.position.phase_steps == 2  # of three batches and of the one that is left
    assert session.steps_per_epoch == 2


def test_a_loop_of_another_library_needs_neither_data_nor_epoch() -> None:
    """As callbacks of a trainer would call it, with an optimizer and batches of its own."""
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    plan = fl.Plan(
        [
            fl.Phase(train="head", until=fl.Until(monitor="loss", target=0.5), epochs=3),
            fl.Phase(train="head | neck", steps=4),
        ]
    )
    session = fl.Session(model, plan, optimizer=optimizer, steps_per_epoch=4)
    batches = list(torch.utils.data.DataLoader(rows(), batch_size=8))
    session.enter()
    ended = []
    for epoch in range(3):
        model.train()
        for inputs, targets in batches:
            session.before_step()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
            session.after_step()
        session.end_epoch({"loss": 1.0 - 0.5 * epoch})
        if session.phase_end:
            ended.append((session.phase_end, session.leave().tensors))
            if not session.is_over:
                session.enter()
    assert [end for end, _ in ended] == ["loss reached 0.5", "4 steps"]
    assert session.is_over
    session.verify()


def test_a_phase_that_watches_a_metric_says_that_the_epoch_had_none() -> None:
    plan = fl.Plan([fl.Phase(train="head", epochs=3, until=fl.Until(monitor="loss", patience=1))])
    session = fl.Session(net(), plan, optimizer=SGD, steps_per_epoch=1)
    session.enter()
    with pytest.raises(fl.ConfigError, match="watches loss, and the epoch ended with accuracy"):
        session.end_epoch({"accuracy": 0.5})


def test_what_a_phase_froze_and_something_else_moved_is_drift_by_name() -> None:
    session = fl.Session(net(), THREE, optimizer=SGD)
    session.enter()
    with torch.no_grad():
        session.model.get_parameter("neck.0.bias")[0] += 1
    with pytest.raises(fl.DriftError, match=r"neck\.0\.bias"):
        session.leave()


def test_a_session_that_was_not_entered_or_is_over_says_so() -> None:
    session = fl.Session(net(), fl.Plan([HEAD]), optimizer=SGD)
    with pytest.raises(fl.ConfigError, match=r"Enter a phase first: session\.enter"):
        _ = session.optimizer
    with pytest.raises(fl.ConfigError, match=r"Enter a phase first: session\.enter"):
        session.leave()
    session.enter()
    with pytest.raises(fl.ConfigError, match="does not know how many an epoch has"):
        session.before_step()
    session.leave()
    with pytest.raises(fl.ConfigError, match="the last phase of the plan was left"):
        session.enter()


@pytest.mark.parametrize(
    ("asked", "call"),
    [
        ("data", lambda session: session.data(rows(8), rows(8))),
        ("epoch", lambda session: next(session.epoch([]))),
        ("end_epoch", lambda session: session.end_epoch()),
    ],
)
def test_what_needs_a_phase_says_so_outside_of_one(
    asked: str, call: Callable[[fl.Session], object]
) -> None:
    session = fl.Session(net(), fl.Plan([HEAD]), optimizer=SGD)
    refusal = rf"^session\.{asked}\(\) was called in no phase\. Enter a phase first"
    with pytest.raises(fl.ConfigError, match=refusal):
        call(session)
    session.enter()
    session.leave()
    with pytest.raises(fl.ConfigError, match=refusal):
        call(session)
    assert session.position.epochs == 0


def test_a_loader_of_ones_own_is_not_taken_for_the_sessions_batches() -> None:
    session = fl.Session(net(), fl.Plan([HEAD]), optimizer=SGD)
    session.enter()
    with pytest.raises(fl.DataError, match=r"got a DataLoader\. Pass the loader to session\.data"):
        next(session.epoch(DataLoader(rows(8))))  # type: ignore[arg-type]  # that is the mistake


def test_an_epochs_metric_may_be_a_tensor_and_is_kept_as_a_number() -> None:
    session = fl.Session(net(), fl.Plan([HEAD]), optimizer=SGD)
    session.enter()
    session.end_epoch({"accuracy": torch.tensor(0.5)})
    assert (session.position.best.value, type(session.position.best.value)) == (0.5, float)
    for value in ("good", torch.ones(2)):
        with pytest.raises(
            fl.ConfigError, match=r"^the metric accuracy of the epoch is a \w+\. Give"
        ):
            session.end_epoch({"accuracy": value})
    assert session.position.epochs == 1


def test_a_plan_that_is_none_and_steps_of_no_batch_are_refused() -> None:
    for plan, found in ((HEAD, "a Phase"), ("plan.toml", "a str"), ([HEAD], "a list")):
        with pytest.raises(fl.ConfigError, match=rf"^the plan is {found}\. Give fl\.Plan\("):
            fl.Session(net(), plan)  # type: ignore[arg-type]  # that is the mistake
    with pytest.raises(fl.ConfigError, match=r"^asked for steps of 0 batches\. Use 1 or more"):
        fl.Session(net(), fl.Plan([HEAD]), accumulate=0)


def test_a_step_that_belongs_to_no_phase_is_refused(tmp_path: Path) -> None:
    session = fl.Session(net(), THREE, optimizer=SGD)
    with pytest.raises(fl.ConfigError, match=r"after_step\(\) was called in no phase\. Enter a"):
        session.after_step()
    trained(session, stop_after=3)
    saved(session, tmp_path / "state.pt")
    again = loaded(session, tmp_path / "state.pt")
    with pytest.raises(fl.ConfigError, match="in no phase"):
        again.after_step()
    again.enter()
    again.leave()
    with pytest.raises(fl.ConfigError, match="in no phase"):
        again.after_step()
    assert again.position.phase_steps == 3


def test_a_plan_that_does_not_fit_is_refused_before_anything_is_frozen() -> None:
    model = net()
    with pytest.raises(fl.SelectorError, match="phase 2"):
        fl.Session(model, fl.Plan([HEAD, fl.Phase(train="neckk", epochs=1)]), optimizer=SGD)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.skipif(torch.accelerator.is_available(), reason="seeds the accelerator too")
def test_seeds_of_many_epochs_are_not_kept_for_a_device_that_is_not_there() -> None:
    waiting = len(torch.cuda._queued_calls)
    seed_epoch(7, 2)
    assert len(torch.cuda._queued_calls) == waiting
    drawn = torch.rand(2)
    torch.manual_seed(7 + 2 * 1_000_003)
    assert torch.equal(drawn, torch.rand(2))
