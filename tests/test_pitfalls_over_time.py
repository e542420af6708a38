"""What goes wrong elsewhere once what is frozen changes while training goes on, and must not here.

Numbers as in the list of pitfalls. For each, a control ("by hand", in plain torch) shows that the
hand-made way goes wrong, so that the tests say something; then Frostline's does not. They stand in
one long file as the list does, since all share a net, a plain loop and a look into a run.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils.checkpoint import checkpoint
from torch.utils.data import TensorDataset

import frostline as fl
from frostline.callbacks import saving
from frostline.deltas import read_delta
from frostline.engine import Hook, Training
from frostline.records import RunFolder

HEAD = fl.Phase(train="head", epochs=2, lr=0.05)
NECK = fl.Phase(train="neck | head", epochs=2, lr=0.02)
ALL = fl.Phase(train="all", epochs=2, lr=0.02)


class Net(nn.Module):
    """Body and neck are of one shape, so that only identity and name tell them apart."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.BatchNorm1d(6))
        self.neck = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.BatchNorm1d(6))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.neck(self.body(x)))


def made(kind: Callable[[], nn.Module] = Net) -> Any:
    """A net with the weights that all of its kind start from."""
    torch.manual_seed(0)
    return kind()


def data(count: int = 16, seed: int = 1) -> TensorDataset:
    inputs = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(inputs, inputs[:, :3].argmax(dim=1))


def fitted(model: nn.Module, *phases: fl.Phase, **options: Any) -> fl.Run:
    given = {"device": "cpu", "features": "off", "batch_size": 8, **options}
    train, val = given.pop("data", (data(), data(8, seed=2)))
    return fl.fit(model, train, val, plan=fl.Plan(phases), **given)


def ended(model: nn.Module, *phases: fl.Phase, **options: Any) -> dict[str, Tensor]:
    """The bits at the end of the last epoch; a run gives back those of its best."""
    seen: dict[str, Tensor] = {}
    hooks = [Watch(epoch=lambda _: seen.update(bits(model))), *options.pop("hooks", [])]
    fitted(model, *phases, hooks=hooks, **options)
    return seen


def step(model: nn.Module, optimizer: torch.optim.Optimizer, *, times: int = 1) -> None:
    """Steps of a plain loop, all on one batch."""
    inputs, targets = data(8).tensors
    for _ in range(times):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model.train()(inputs), targets).backward()
        optimizer.step()


def switch(module: nn.Module, *, on: bool) -> None:
    """Freezing and thawing as it is done by hand."""
    for parameter in module.parameters():
        parameter.requires_grad = on


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def wanting(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def named(model: nn.Module, *parts: str) -> set[str]:
    """Names of the parameters of these parts."""
    return {name for name, _ in model.named_parameters() if name.startswith(parts)}


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> set[str]:
    """Names of the parameters and buffers that are not the same to the bit."""
    assert one.keys() == other.keys()
    return {name for name, value in one.items() if not torch.equal(value, other[name])}


def moved(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return differing(bits(model), before)


def parts(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def held(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[str]:
    """Names of what the optimizer holds, as often as it does."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(p)] for group in optimizer.param_groups for p in group["params"]]


class Watch(Hook):
    """Looks at the training after steps, after epochs and before phases; keeps what it is told."""

    def __init__(
        self,
        step: Callable[[Training], object] = lambda _: None,
        epoch: Callable[[Training], object] = lambda _: None,
        phase: Callable[[Training], object] = lambda _: None,
    ) -> None:
        self._step, self._epoch, self._phase = step, epoch, phase
        self.lines: list[str] = []
        self.batches = 0

    def on_start(self, training: Training) -> None:
        self._training = training

    def on_notice(self, text: str, /) -> None:
        self.lines.append(text)
        if text.startswith("Phase"):  # told once the phase has its optimizer, before its first step
            self._phase(self._training)

    def on_batch(self, *_: object) -> None:
        self.batches += 1

    def on_step(self, training: Training) -> None:
        self._step(training)

    def on_epoch(self, training: Training) -> None:
        self._epoch(training)

    @property
    def warnings(self) -> list[str]:
        return [line for line in self.lines if line.startswith("Warning")]


# 8: the freeze is lost, or comes back


def test_the_freeze_of_a_run_comes_back_with_its_delta(tmp_path: Path) -> None:
    """Pitfall 8: the freeze is lost on checkpoint reload, since a state_dict carries no flag."""
    run = fitted(made(), HEAD, out=tmp_path / "run")
    trained = bits(run.model)
    by_hand = made()
    by_hand.load_state_dict(trained)
    step(by_hand, torch.optim.AdamW(wanting(by_hand), lr=0.1))
    assert parts(moved(by_hand, trained)) == {"body", "neck", "head"}
    loaded = made()
    fl.load_delta(loaded, RunFolder(tmp_path / "run").best, freeze="as saved")
    assert moved(loaded, trained) == set()
    assert trainable(loaded) == {"head.weight", "head.bias"}
    step(loaded, torch.optim.AdamW(loaded.parameters(), lr=0.1))
    assert parts(moved(loaded, trained)) == {"head"}


def test_a_delta_freezes_nothing_unless_asked(tmp_path: Path) -> None:
    """Pitfall 8: a freeze is silently re-applied on resume."""
    file, old = io.BytesIO(), made()
    switch(old.body, on=False)
    torch.save(old, file)
    file.seek(0)
    assert not trainable(torch.load(file, weights_only=False).body), "by hand it is re-applied"
    trained = ended(made(), HEAD, out=tmp_path / "run")
    loaded = made()
    fl.load_delta(loaded, RunFolder(tmp_path / "run").last)
    assert moved(loaded, trained) == set()
    step(loaded, torch.optim.AdamW(wanting(loaded), lr=0.1))
    assert parts(moved(loaded, trained)) == {"body", "neck", "head"}


def test_a_delta_thaws_nothing_unless_asked(tmp_path: Path) -> None:
    """Pitfall 8: what is frozen in the model stays frozen, whatever the delta's run trained."""
    fitted(made(), ALL, out=tmp_path / "run")
    loaded = made()
    fl.freeze(loaded, "body")
    fl.load_delta(loaded, RunFolder(tmp_path / "run").best)
    before = bits(loaded)
    step(loaded, torch.optim.AdamW(loaded.parameters(), lr=0.1))
    assert parts(moved(loaded, before)) == {"neck", "head"}


class Stop(Exception):  # noqa: N818 - it stands for a kill
    pass


def stop_in_epoch_four(training: Training) -> None:
    if training.position.epochs == 3:
        raise Stop


def script(net: Net, *, first: int) -> None:
    """A user's own: frozen at the top, thawed when the third of four epochs begins."""
    switch(net.body, on=False)
    for epoch in range(first, 5):
        if epoch == 3:
            switch(net.body, on=True)
        step(net, torch.optim.SGD(wanting(net), lr=0.1))


def test_a_resumed_phase_trains_what_it_is_to_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pitfall 8: the freeze of the first epochs is re-applied where a run is resumed."""
    monkeypatch.setattr(saving, "SAVE_SECONDS", math.inf)  # the end of the first phase alone
    by_hand = made()
    before = bits(by_hand)["body.0.weight"]
    script(by_hand, first=4)
    assert torch.equal(by_hand.body[0].weight, before), "nobody thaws it again"
    out, seen, net = tmp_path / "run", [], made()
    with pytest.raises(Stop):
        fitted(made(), HEAD, ALL, out=out, hooks=[Watch(stop_in_epoch_four)])
    watch = Watch(lambda training: seen.append(trainable(training.model)))
    resumed = ended(net, HEAD, ALL, out=out, resume=True, hooks=[watch])
    assert seen == [named(net, "")] * 2
    assert differing(resumed, ended(made(), HEAD, ALL)) == set()
    assert trainable(net) == named(net, "")


# 10-12: it was not trained


MISSPELT = [
    fl.Phase(train="bodi | head", epochs=1),
    fl.Phase(freeze="bodi", epochs=1),
    fl.Phase(train="all", lr_mult={"bodi": 2}, epochs=1),
]


@pytest.mark.parametrize("wrong", MISSPELT, ids=["train", "freeze", "lr_mult"])
def test_a_misspelt_part_of_a_later_phase_is_refused_before_the_first_step(
    wrong: fl.Phase, tmp_path: Path
) -> None:
    """Pitfall 10: a misspelt pattern trains or freezes nothing, silently; one of several too."""
    by_hand, net = made(), made()
    for name, parameter in by_hand.named_parameters():
        parameter.requires_grad = name.startswith(("bodi.", "head."))
    assert trainable(by_hand) == named(net, "head")
    before, watch = bits(net), Watch()
    with pytest.raises(fl.SelectorError, match=r"^phase 2: .*'bodi' matches no parameter of Net"):
        fitted(net, HEAD, wrong, out=tmp_path / "run", hooks=[watch])
    assert watch.batches == 0
    assert moved(net, before) == set()
    assert not (tmp_path / "run").exists()


def test_a_thawed_layer_joins_the_optimizer() -> None:
    """Pitfall 11: thawed layers get gradients but are in no optimizer."""
    net = made()
    fl.freeze(net, "body")
    optimizer = torch.optim.AdamW(wanting(net), lr=0.1)
    step(net, optimizer)
    fl.thaw(net, "body")
    before = bits(net)
    step(net, optimizer)
    assert net.body[0].weight.grad is not None
    assert not moved(net, before) & named(net, "body"), "by hand it does not train"
    assert set(fl.sync(optimizer, net).joined) == named(net, "body")
    step(net, optimizer)
    assert named(net, "body") <= moved(net, before)


def test_the_optimizer_of_each_phase_holds_just_what_trains() -> None:
    """Pitfall 11: in a plan, what a phase thaws is in its optimizer, and what it freezes is not."""
    net, seen = made(), []

    def look(training: Training) -> None:
        assert training.session.optimizer is not None
        seen.append(sorted(held(training.session.optimizer, net)))

    last = ended(net, HEAD, ALL, NECK, hooks=[Watch(epoch=look)])
    expected = [named(net, *phase) for phase in (("head",), ("",), ("neck", "head"))]
    assert seen == [sorted(names) for names in expected for _ in range(2)]
    assert named(net, "") <= differing(last, bits(made()))


def not_in_by_value(optimizer: torch.optim.Optimizer, module: nn.Module) -> list[nn.Parameter]:
    """What of `module` the optimizer lacks, compared by value, as some callbacks do."""
    known = [p for group in optimizer.param_groups for p in group["params"]]
    return [p for p in module.parameters() if not any(torch.equal(p, q) for q in known)]


def plain_start() -> Net:
    """Every bias zero, every scale of a norm one: each equals its fellows."""
    net = made()
    for layer in (net.body[0], net.neck[0]):
        nn.init.zeros_(layer.bias)
    return net


def test_a_thawed_zero_bias_joins_though_another_equals_it() -> None:
    """Pitfall 12: thawed parameters are found by value, so that a zero bias is never added."""
    net = plain_start()
    switch(net.body, on=False)
    optimizer = torch.optim.SGD(wanting(net), lr=0.1)
    switch(net.body, on=True)
    assert not_in_by_value(optimizer, net.body) == [net.body[0].weight], "by hand three are missed"
    before = bits(net)
    assert set(fl.sync(optimizer, net).joined) == named(net, "body")
    step(net, optimizer)
    assert named(net, "") <= moved(net, before)


def test_zero_biases_that_a_phase_thaws_together_all_train() -> None:
    """Pitfall 12: in a plan."""
    net = plain_start()
    before = bits(net)
    assert named(net, "") <= differing(ended(net, HEAD, ALL, optimizer="sgd"), before)


# 13: resume


def test_a_run_with_a_thaw_resumes_into_other_groups() -> None:
    """Pitfall 13: "different number of parameter groups" after a thaw that added one."""
    net = made()
    switch(net.body, on=False)
    optimizer = torch.optim.AdamW(wanting(net), lr=0.01)
    step(net, optimizer, times=2)
    switch(net.body, on=True)
    optimizer.add_param_group({"params": list(net.body.parameters())})
    step(net, optimizer, times=2)
    weights, state = bits(net), fl.optimizer_state(optimizer, net)
    resumed = made()
    again = torch.optim.AdamW(resumed.parameters(), lr=0.01)
    with pytest.raises(ValueError, match="different number of parameter groups"):
        again.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(weights)
    fl.load_optimizer_state(again, resumed, state)
    step(net, optimizer, times=3)
    step(resumed, again, times=3)
    assert moved(resumed, bits(net)) == set()


def test_optimizer_state_does_not_go_to_another_layer_of_the_same_shape() -> None:
    """Pitfall 13: state keyed by position loads silently onto another layer."""
    net = made()
    optimizer = torch.optim.AdamW([*net.neck.parameters(), *net.head.parameters()])
    step(net, optimizer)
    necks = optimizer.state[net.neck[0].weight]["exp_avg"]
    again = torch.optim.AdamW([*net.body.parameters(), *net.head.parameters()])
    again.load_state_dict(optimizer.state_dict())
    assert torch.equal(again.state[net.body[0].weight]["exp_avg"], necks), "by hand it does"
    again = torch.optim.AdamW([*net.body.parameters(), *net.head.parameters()])
    state = fl.optimizer_state(optimizer, net)
    with pytest.raises(fl.ConfigError, match=r"saved state knows nothing of body\.0\.weight"):
        fl.load_optimizer_state(again, net, state)
    fl.load_optimizer_state(again, net, state, missing="fresh")
    assert set(again.state) == set(net.head.parameters())
    for key, value in optimizer.state[net.head.weight].items():
        assert torch.equal(again.state[net.head.weight][key], value)


def test_between_phases_each_layer_keeps_its_own_state_and_no_others() -> None:
    """Pitfall 13: the optimizers of both phases hold as many tensors of the same shapes."""
    net = made()
    seen: list[dict[str, dict[str, Tensor]]] = []

    def look(training: Training) -> None:
        assert training.session.optimizer is not None
        saved = fl.optimizer_state(training.session.optimizer, net)["parameters"]
        seen.append({name: entry["state"] for name, entry in saved.items()})

    last = fl.Phase(train="body | head", epochs=1, lr=0.02)
    fitted(net, NECK, last, hooks=[Watch(epoch=look, phase=look)])
    _, _, left, begun, _ = seen
    assert begun.keys() == named(net, "body", "head")
    assert {name for name, state in begun.items() if state} == named(net, "head")
    for name in named(net, "head"):
        assert begun[name].keys() == left[name].keys()
        assert all(torch.equal(begun[name][key], left[name][key]) for key in begun[name])


# 14: schedules


# Of these mistakes by hand 2.9 makes some without a word, and some not at all.
IS_NEW = torch.__version__ >= "2.15"
SCHEDULES: dict[str, tuple[Callable[[torch.optim.Optimizer], Any], type[Exception]]] = {
    "LambdaLR": (lambda o: lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)), ValueError),
    "restarts": (lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=3), ValueError),
    "OneCycleLR": (
        lambda o: lr_scheduler.OneCycleLR(
            o, max_lr=[group["lr"] for group in o.param_groups], total_steps=20
        ),
        KeyError,
    ),
}


def thawed_midway(schedule: Callable[[torch.optim.Optimizer], Any]) -> Any:
    """A net whose body was thawed after three steps; its optimizer and scheduler."""
    net = made()
    fl.freeze(net, "body")
    optimizer = torch.optim.SGD([{"params": wanting(net), "lr": 0.1}])
    scheduler = schedule(optimizer)
    for _ in range(3):
        step(net, optimizer)
        scheduler.step()
    fl.thaw(net, "body")
    return net, optimizer, scheduler


@pytest.mark.parametrize(("schedule", "error"), SCHEDULES.values(), ids=SCHEDULES)
def test_a_schedule_goes_on_over_a_thaw(
    schedule: Callable[[torch.optim.Optimizer], Any], error: type[Exception]
) -> None:
    """Pitfall 14: schedulers crash on groups added at a thaw, or leave them where they are."""
    net, optimizer, scheduler = thawed_midway(schedule)
    optimizer.add_param_group({"params": list(net.body.parameters()), "lr": 0.05})
    step(net, optimizer)
    if IS_NEW:
        with pytest.raises(error):
            scheduler.step()
    net, optimizer, scheduler = thawed_midway(schedule)
    fl.sync(optimizer, net, schedulers=[scheduler], lr=0.05)
    groups = [{"params": [nn.Parameter(torch.ones(1))], "lr": lr} for lr in (0.1, 0.05)]
    whole = torch.optim.SGD(groups)
    reference = schedule(whole)
    for number in range(10):
        whole.step()
        reference.step()
        if number >= 3:
            step(net, optimizer)
            scheduler.step()
            rates, expected = ([g["lr"] for g in o.param_groups] for o in (optimizer, whole))
            assert rates[0] == expected[0]
            assert rates[1] == pytest.approx(expected[1], rel=1e-9)


def test_what_a_phase_thaws_follows_its_schedule_like_the_rest() -> None:
    """Pitfall 14: in a plan; each phase begins its own schedule."""
    seen: list[set[float]] = []

    def look(training: Training) -> None:
        assert training.session.optimizer is not None
        groups = training.session.optimizer.param_groups
        seen.append({round(group["lr"] / group["base_lr"], 6) for group in groups})

    later = ALL.model_copy(update={"layer_decay": 0.5, "warmup": 0.0, "schedule": "cosine"})
    fitted(made(), HEAD, later, hooks=[Watch(look)])
    cosine = [(1 + math.cos(math.pi * t / 4)) / 2 for t in range(4)]
    assert all(len(factors) == 1 for factors in seen)
    assert [factors.pop() for factors in seen[4:]] == pytest.approx(cosine, abs=1e-5)


# 15: checkpointing


class Checkpointed(Net):
    """Its neck's first layer is computed again for the backward, in one of torch's two ways."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        below = checkpoint(self.neck[0], self.body(x), use_reentrant=self.reentrant)
        return self.head(self.neck[1:](below))


class WhollyCheckpointed(Net):
    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=True)


def test_no_gradients_under_reentrant_checkpointing_are_told_by_name() -> None:
    """Pitfall 15: reentrant checkpointing over frozen inputs kills all gradients within."""
    by_hand = made(partial(Checkpointed, reentrant=True))
    switch(by_hand.body, on=False)
    with pytest.warns(UserWarning, match="None of the inputs have requires_grad"):
        step(by_hand, torch.optim.SGD(wanting(by_hand), lr=0.1))
    assert by_hand.neck[0].weight.grad is None
    assert by_hand.head.weight.grad is not None
    watch = Watch()
    with pytest.warns(UserWarning, match="None of the inputs have requires_grad"):
        fitted(made(partial(Checkpointed, reentrant=True)), HEAD, NECK, hooks=[watch])
    assert len(watch.warnings) == 1
    told = "2 trainable tensors got no gradient from the first batch: neck.0.weight, neck.0.bias"
    assert told in watch.warnings[0]
    assert "use_reentrant=False" in watch.warnings[0]


def test_a_loss_without_gradients_under_reentrant_checkpointing_is_refused() -> None:
    """Pitfall 15: where it stands around all that trains, torch only says "does not require"."""
    with (
        pytest.warns(UserWarning, match="None of the inputs have requires_grad"),
        pytest.raises(fl.FreezeError, match=r"depend on any trainable .* \(use_reentrant=False\)"),
    ):
        fitted(made(WhollyCheckpointed), HEAD)


def test_other_checkpointing_over_a_frozen_body_trains_as_without() -> None:
    """Pitfall 15: non-reentrant checkpointing works, to the bit and without a warning."""
    watch = Watch()
    again = ended(made(partial(Checkpointed, reentrant=False)), HEAD, NECK, hooks=[watch])
    assert differing(again, ended(made(), HEAD, NECK)) == set()
    assert watch.warnings == []


# 16: names that are not where one looks


class LanguageModel(nn.Module):
    """A head tied to its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.body(self.embed(tokens)))


def tokens() -> tuple[TensorDataset, TensorDataset]:
    given = torch.arange(12) % 6
    return TensorDataset(given, (given + 1) % 6), TensorDataset(given[:6], given[:6])


def test_a_tied_head_is_frozen_thawed_and_saved_once_by_its_own_name(tmp_path: Path) -> None:
    """Pitfall 16: `head.*` matches nothing, since its weight is named after the embedding."""
    net: LanguageModel = made(LanguageModel)
    assert not named(net, "head"), "by hand there is nothing of that name"
    phases = (
        fl.Phase(freeze="head.*", epochs=1, lr=0.05),
        fl.Phase(train="body | head.*", epochs=1, lr=0.05),
    )
    seen, before = [], bits(net)

    def look(training: Training) -> None:
        assert training.session.optimizer is not None
        seen.append((sorted(held(training.session.optimizer, net)), moved(net, before)))

    options: Any = {"data": tokens(), "out": tmp_path / "run"}
    fitted(net, *phases, hooks=[Watch(epoch=look)], **options)
    body = {"body.weight", "body.bias"}
    assert seen[0] == (sorted(body), body)
    assert seen[1] == (sorted(body | {"embed.weight"}), body | {"embed.weight", "head.weight"})
    last = RunFolder(tmp_path / "run").last
    assert read_delta(last).tensors.keys() == body | {"embed.weight"}
    loaded: LanguageModel = made(LanguageModel)
    fl.load_delta(loaded, last, freeze="as saved")
    assert loaded.head.weight is loaded.embed.weight
    assert trainable(loaded) == body | {"embed.weight"}
    assert moved(loaded, before) == body | {"embed.weight", "head.weight"}


def test_a_tied_head_leaves_and_joins_an_optimizer_once() -> None:
    """Pitfall 16: in a loop of one's own, with its state."""
    net: LanguageModel = made(LanguageModel)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.arange(6)).square().sum().backward()
    optimizer.step()
    average = optimizer.state[net.head.weight]["exp_avg"].clone()
    fl.freeze(net, "head.*")
    left = fl.sync(optimizer, net)
    assert left.left == ("embed.weight",)
    fl.thaw(net, "head.*")
    assert fl.sync(optimizer, net, kept=left).joined == ("embed.weight",)
    assert sorted(held(optimizer, net)) == ["body.bias", "body.weight", "embed.weight"]
    assert torch.equal(optimizer.state[net.embed.weight]["exp_avg"], average)


class WeightNormed(Net):
    def __init__(self) -> None:
        super().__init__()
        self.neck[0] = nn.utils.parametrizations.weight_norm(self.neck[0])


def test_a_weight_normed_layer_is_trained_by_the_name_of_its_weight(tmp_path: Path) -> None:
    """Pitfall 16: `weight_norm` hides `.weight` behind `parametrizations`."""
    net: WeightNormed = made(WeightNormed)
    assert not named(net, "neck.0.weight"), "by hand there is nothing of that name"
    halves = named(net, "neck.0.parametrizations")
    assert len(halves) == 2
    before, seen = bits(net), {}
    later = fl.Phase(train="neck.0.weight | head", epochs=2, lr=0.05)
    watch = Watch(epoch=lambda t: seen.update({t.position.epochs: moved(net, before)}))
    last = ended(net, HEAD, later, out=tmp_path / "run", hooks=[watch])
    assert seen[2] == named(net, "head")
    assert seen[4] == named(net, "head") | halves
    loaded = made(WeightNormed)
    fl.load_delta(loaded, RunFolder(tmp_path / "run").last, freeze="as saved")
    assert moved(loaded, last) == set()
    assert trainable(loaded) == named(net, "head") | halves


class Lazy(Net):
    def __init__(self) -> None:
        super().__init__()
        self.neck[0] = nn.LazyLinear(6)


def test_a_lazy_model_is_told_what_to_do_and_then_runs() -> None:
    """Pitfall 16: lazy modules raise something obscure before their first call."""
    net = made(Lazy)
    with pytest.raises(ValueError, match="uninitialized parameter"):
        sum(p.numel() for p in net.parameters())
    with pytest.raises(fl.SelectorError, match="Run one batch through the model, then"):
        fitted(net, HEAD, NECK)
    optimizer = torch.optim.SGD(net.head.parameters(), lr=0.1)
    with pytest.raises(fl.SelectorError, match="Run one batch through the model, then"):
        fl.sync(optimizer, net)
    net.eval()(data(8).tensors[0])
    before = bits(net)
    assert parts(differing(ended(net, HEAD, NECK), before)) == {"neck", "head"}


# 17: everything frozen


IDLE = [fl.Phase(train="none", epochs=1), fl.Phase(freeze="all", epochs=1)]


@pytest.mark.parametrize("idle", IDLE, ids=["train", "freeze"])
def test_a_last_phase_that_trains_nothing_is_refused_before_the_first(
    idle: fl.Phase, tmp_path: Path
) -> None:
    """Pitfall 17: "element 0 of tensors does not require grad", hours in."""
    by_hand = made()
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1)
    step(by_hand, optimizer)
    switch(by_hand, on=False)
    with pytest.raises(RuntimeError, match="element 0 of tensors does not require grad"):
        step(by_hand, optimizer)
    net, watch = made(), Watch()
    before = bits(net)
    with pytest.raises(fl.ConfigError, match=r"^phase 3: .* leaves nothing to train in Net"):
        fitted(net, HEAD, NECK, idle, out=tmp_path / "run", hooks=[watch])
    assert watch.batches == 0
    assert moved(net, before) == set()
    assert not (tmp_path / "run").exists()


def test_an_optimizer_that_would_be_emptied_is_refused_before_the_next_step() -> None:
    """Pitfall 17: in a loop of one's own."""
    net = made()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    step(net, optimizer)
    fl.freeze(net, "all", leaving="nothing")
    with pytest.raises(fl.FreezeError, match="nothing in Net is trainable"):
        fl.sync(optimizer, net)
    assert len(held(optimizer, net)) == len(list(net.parameters()))


# 20: what is written


class Wide(Net):
    """Most of its bytes are in the body."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 4000), nn.ReLU(), nn.Linear(4000, 6))


def full_checkpoint(path: Path) -> int:
    """Bytes of what is written by hand, of a model whose body was frozen after one step."""
    net = made(Wide)
    optimizer = torch.optim.AdamW(net.parameters())
    step(net, optimizer)
    switch(net.body, on=False)
    step(net, optimizer)
    torch.save((net.state_dict(), optimizer.state_dict()), path)
    return path.stat().st_size


def test_every_checkpoint_of_a_plan_holds_what_it_trains_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pitfall 20: frozen weights, and their optimizer state, are saved with every checkpoint."""
    monkeypatch.setattr(saving, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(saving, "_SHARE_OF_TIME", 0)
    full = full_checkpoint(tmp_path / "full.pt")
    net = made(Wide)
    fitted(net, HEAD, NECK, HEAD, keep=99, out=tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    files = [*folder.earlier_ones(), folder.last]
    assert len(files) == 12
    head, neck = named(net, "head"), named(net, "neck")
    statistics = {f"neck.2.{b}" for b in ("running_mean", "running_var", "num_batches_tracked")}
    # What an earlier phase trained stays in; it is no longer that of the base.
    contents = {"1": head, "2": head | neck | statistics, "3": head | neck | statistics}
    stepped = {"1": head, "2": head | neck, "3": head}
    for file in files:
        delta = read_delta(file)
        state = folder.state(delta.about["position"])
        optimizer = torch.load(state, weights_only=True)["optimizer"]
        assert delta.tensors.keys() == contents[delta.about["phase"]]
        assert optimizer["parameters"].keys() == stepped[delta.about["phase"]]
        assert file.stat().st_size + state.stat().st_size < full / 20


# 21: compiled and wrapped models


class Counted:
    """A backend for torch.compile that compiles nothing, and counts the calls of its graphs."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, graph: torch.fx.GraphModule, *_: object, **__: object) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            self.runs += 1
            return graph.forward(*arguments)

        return run


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.floors = nn.Sequential(*(nn.Linear(6, 6) for _ in range(4)))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.floors(x))


@pytest.fixture
def counted() -> Iterator[Counted]:
    torch._dynamo.reset()
    yield Counted()
    torch._dynamo.reset()


def test_every_batch_of_a_plan_of_many_phases_is_compiled(
    counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pitfall 21: toggling requires_grad recompiles until the limit of 8, then runs eager."""
    choices = list(combinations(range(4), 2)) + list(combinations(range(4), 3))
    assert len(choices) > torch._dynamo.config.recompile_limit
    by_hand = made(Tower)
    compiled = torch.compile(by_hand, backend=counted)
    for chosen in choices:
        for number, floor in enumerate(by_hand.floors):
            switch(floor, on=number in chosen)
        compiled(data(8).tensors[0])
    if IS_NEW:
        assert counted.runs == torch._dynamo.config.recompile_limit < len(choices)
    torch._dynamo.reset()
    counted.runs = 0
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counted))
    monkeypatch.setenv("CXX", "needed by the default backend only")
    phases = [
        fl.Phase(train=" | ".join(["head", *(f"floors.{n}" for n in chosen)]), epochs=1, lr=0.01)
        for chosen in choices
    ]
    watch = Watch()
    fitted(made(Tower), *phases, compile=True, hooks=[watch])
    assert counted.runs == watch.batches == 3 * len(choices)


def test_every_batch_of_many_runs_in_one_process_is_compiled(
    counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pitfall 21: the limit counts over all models of a class that a process has compiled."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counted))
    monkeypatch.setenv("CXX", "needed by the default backend only")
    watch = Watch()
    for chosen in combinations(range(4), 2):
        train = " | ".join(["head", *(f"floors.{n}" for n in chosen)])
        phase = fl.Phase(train=train, epochs=1, lr=0.01)
        fitted(made(Tower), phase, compile=True, hooks=[watch])
        fitted(made(Tower), phase, compile=True, hooks=[watch])
    assert counted.runs == watch.batches == 2 * 3 * 6


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_a_model_wrapped_for_several_processes_is_not_frozen_or_thawed() -> None:
    """Pitfall 21: under DDP, which notes what is trainable when it wraps, it errors or hangs."""
    by_hand = made()
    wrapped = nn.parallel.DistributedDataParallel(by_hand)
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1)
    switch(by_hand.body, on=False)
    step(wrapped, optimizer)
    with pytest.raises(RuntimeError, match="Expected to have finished reduction"):
        step(wrapped, optimizer)
    net = made()
    before, wrapped = bits(net), nn.parallel.DistributedDataParallel(net)
    told = r"already wrapped in DistributedDataParallel.*Freeze and thaw first, then wrap"
    for call in (fl.freeze, fl.thaw, fl.train_only):
        with pytest.raises(fl.FreezeError, match=told):
            call(wrapped, "body")
    with pytest.raises(fl.FreezeError, match=told):
        fitted(wrapped, HEAD, NECK)
    assert moved(net, before) == set()
    assert trainable(net) == named(net, "")
