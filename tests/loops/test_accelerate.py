"""A session in a plain loop and under Accelerate: the bits of `fl.fit`, and resumed to the bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

import frostline as fl
from frostline.engine import Training
from phased_net import HEAD, HEAD_AGAIN, Net, net, rows

NECK = fl.Phase(name="neck", train="neck | head", epochs=2, lr=0.02)
PLAN = fl.Plan([HEAD, NECK, HEAD_AGAIN])
SGD = partial(torch.optim.SGD, momentum=0.9, fused=True)


@pytest.fixture
def accelerated() -> Iterator[Callable[..., Accelerator]]:
    """Makes an accelerator as a process of its own would have it."""

    def made(**options: Any) -> Accelerator:
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
        return Accelerator(cpu=True, **options)

    yield made
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def bits(model: nn.Module) -> dict[str, str]:
    return dict(fl.fingerprint(model).tensors)


def trained(
    session: fl.Session,
    *,
    backward: Callable[[torch.Tensor], object] = torch.Tensor.backward,
    optimizer: Any = None,
    after_step: Callable[[int], object] = lambda _: None,
    casting: Callable[[], AbstractContextManager[Any]] = nullcontext,
    **options: Any,
) -> None:
    """The user's loop; `after_step` is given the number of steps that this call made."""
    steps = 0
    while not session.is_over:
        session.enter()
        stepping = optimizer or session.optimizer
        if not session.phase_end:
            data = session.data(rows(), rows(12, seed=2), batch_size=8, **options)
        while not session.phase_end:
            for batch in session.epoch(data.train):
                with casting():
                    loss = nn.functional.cross_entropy(data(batch), batch.targets)
                backward(loss)
                stepping.step()
                stepping.zero_grad()
                session.after_step()
                steps += 1
                after_step(steps)
            session.end_epoch({"accuracy": 0.5})
        session.leave()


def of_fit(precision: str) -> dict[str, str]:
    """The bits that `fl.fit` ends its last phase with; then it puts the best ones."""
    last: dict[str, str] = {}

    class Last(fl.Hook):
        def on_phase(self, training: Training) -> None:
            last.update(bits(training.model))

    options: dict[str, Any] = {"plan": PLAN, "batch_size": 8, "device": "cpu", "features": "off"}
    fl.fit(net(), rows(), rows(12, seed=2), precision=precision, hooks=[Last()], **options)
    return last


# The same bits


@pytest.mark.parametrize(("mixed", "precision"), [("no", "exact"), ("bf16", "bf16")])
def test_accelerate_ends_at_the_bits_of_fit(
    accelerated: Callable[..., Accelerator], mixed: str, precision: str
) -> None:
    accelerator = accelerated(mixed_precision=mixed)
    model = accelerator.prepare(net())
    trained(fl.Session(model, PLAN, precision="exact"), backward=accelerator.backward)
    assert bits(model) == of_fit(precision)


def test_a_plain_loop_in_autocast_ends_at_the_bits_of_fit() -> None:
    model = net()
    session = fl.Session(model, PLAN, precision="exact")
    trained(session, casting=partial(torch.autocast, "cpu", torch.bfloat16))
    assert bits(model) == of_fit("bf16")


@pytest.mark.parametrize("freezes_first", [True, False])
@pytest.mark.parametrize("features", ["off", "stored"])
def test_preparing_before_or_after_freezing_makes_no_difference(
    tmp_path: Path, accelerated: Callable[..., Accelerator], freezes_first: bool, features: str
) -> None:
    store = "off" if features == "off" else str(tmp_path)
    plain, model = net(), net()
    adam = torch.optim.AdamW(plain.parameters(), lr=0.1, fused=True)
    trained(fl.Session(plain, PLAN, optimizer=adam, precision="exact"))

    accelerator = accelerated()
    if freezes_first:
        fl.train_only(model, "head")
    adam = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    ready, optimizer = accelerator.prepare(model, adam)
    session = fl.Session(ready, PLAN, optimizer=optimizer.optimizer, precision="exact")
    trained(session, backward=accelerator.backward, optimizer=optimizer, features=store)
    assert bits(model) == bits(plain)


def test_accumulated_gradients_of_accelerate_are_those_of_the_session(
    accelerated: Callable[..., Accelerator],
) -> None:
    """Accelerate counts the batches of a loader that it prepared; the session counts the steps."""
    plain, model = net(), net()
    plan = fl.Plan([HEAD, NECK])
    loader = DataLoader(rows(24), batch_size=6)
    session = fl.Session(plain, plan, optimizer=SGD, accumulate=2)
    while not session.is_over:
        session.enter()
        data = session.data(loader, loader)
        while not session.phase_end:
            for batch in session.epoch(data.train):
                (nn.functional.cross_entropy(data(batch), batch.targets) / 2).backward()
                if session.step_is_due:
                    session.optimizer.step()
                    session.optimizer.zero_grad()
                    session.after_step()
            session.end_epoch()
        session.leave()

    accelerator = accelerated(gradient_accumulation_steps=2)
    ready, batches = accelerator.prepare(model, DataLoader(rows(24), batch_size=6))
    session = fl.Session(ready, plan, optimizer=SGD, steps_per_epoch=2)
    while not session.is_over:
        session.enter()
        while not session.phase_end:
            torch.manual_seed(1_000_003 * session.position.epochs)  # as session.epoch does
            ready.train()
            for inputs, targets in batches:
                with accelerator.accumulate(ready):
                    session.before_step()
                    accelerator.backward(nn.functional.cross_entropy(ready(inputs), targets))
                    if accelerator.sync_gradients:
                        session.optimizer.step()
                        session.optimizer.zero_grad()
                        session.after_step()
            session.end_epoch()
        session.leave()
    assert bits(model) == bits(plain)


# Saved and resumed


class _StoppedError(Exception):
    pass


@pytest.mark.parametrize("stop_after", [1, 4, 6, 9, 12, 16, 18])
def test_a_state_of_accelerate_carries_the_session(
    tmp_path: Path, accelerated: Callable[..., Accelerator], stop_after: int
) -> None:
    def begun(model: Net) -> tuple[Accelerator, fl.Session]:
        accelerator = accelerated()
        session = fl.Session(accelerator.prepare(model), PLAN, optimizer=SGD)
        accelerator.register_for_checkpointing(session)
        return accelerator, session

    def stop(steps: int) -> None:
        if steps == stop_after:
            accelerator.save_state(str(tmp_path))
            raise _StoppedError

    whole, model = net(), net()
    accelerator, session = begun(whole)
    trained(session, backward=accelerator.backward)
    accelerator, session = begun(net())
    with pytest.raises(_StoppedError):
        trained(session, backward=accelerator.backward, after_step=stop)
    accelerator, session = begun(model)
    accelerator.load_state(str(tmp_path))
    trained(session, backward=accelerator.backward)
    assert bits(model) == bits(whole)


# What is refused


def test_a_wrapped_optimizer_is_refused_where_it_is_made_or_given(
    accelerated: Callable[..., Accelerator],
) -> None:
    accelerator, told = accelerated(), r"AcceleratedOptimizer is no torch.*`optimizer\.optimizer`"
    model = accelerator.prepare(net())
    made = fl.Session(model, PLAN, optimizer=lambda groups: accelerator.prepare(SGD(groups, lr=1)))
    given = accelerator.prepare(SGD(model.parameters(), lr=1))
    for session in (made, fl.Session(model, PLAN, optimizer=given)):
        with pytest.raises(fl.ConfigError, match=told):
            session.enter()


# An average beside it


def test_an_average_of_the_weights_leaves_what_is_frozen_as_it_is() -> None:
    model = net()
    session = fl.Session(model, fl.Plan([HEAD, NECK]))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    trained(session, after_step=lambda _: average.update_parameters(model))
    before, after = bits(net().body), bits(average.module.body)
    assert after == before
    assert bits(average.module.head) != bits(model.head)
