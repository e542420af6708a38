"""The loop: modes, gradients, random numbers, resuming, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import frostline as fl
from frostline.config import RunSettings
from frostline.data import ImageDataset, read_set
from frostline.engine import Hook, Training
from frostline.fitting.fitting import fit
from frostline.recipe import Recipe
from frostline.records import EpochRecord
from frostline.tasks import Classification, Predictions
from small_world import write_pictures


class Net(nn.Module):
    """A body to freeze; batch norm and dropout in what is trained."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU())
        self.neck = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.2))
        self.head = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.neck(self.body(x)))


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    model = Net()
    fl.freeze(model, "body")
    return model


def data(count: int = 26, seed: int = 1, classes: int = 3) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 6, generator=generator)
    return TensorDataset(inputs, inputs[:, :classes].argmax(dim=1))


def fitted(model: nn.Module | None = None, **options: Any) -> fl.Run:
    wanted: dict[str, Any] = {"epochs": 2, "batch_size": 8, "lr": 0.05, "device": "cpu"}
    return fit(model or net(), data(), data(12, seed=2), **{**wanted, **options})


def bits(model: nn.Module) -> str:
    return str(fl.fingerprint(model))


def figures(run: fl.Run) -> list[tuple[float, ...]]:
    """All but the times."""
    return [
        (r.lr, *r.train.values(), r.best, *r.validation.headline().values()) for r in run.history
    ]


class Watch(Hook):
    """Calls a function at each batch, epoch and end."""

    def __init__(self, look: Callable[[str], object] = lambda _: None) -> None:
        self.look = look
        self.events: list[str] = []

    def on_start(self, training: Training) -> None:  # noqa: ARG002
        self.events.append("start")

    def on_batch(self, stage: str, done: int, total: int, /) -> None:  # noqa: ARG002
        self.events.append(stage)
        self.look(stage)

    def on_epoch(self, training: Training) -> None:  # noqa: ARG002
        self.events.append("epoch")

    def on_end(self) -> None:
        self.events.append("end")


class Spied(nn.Module):
    """Notes the mode, the gradient switch and the inputs of each pass."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.passes: list[tuple[bool, bool, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.passes.append((self.training, torch.is_grad_enabled(), x.clone()))
        return self.inner(x)


# Modes, gradients, random state


def test_the_frozen_part_is_in_eval_and_the_rest_in_train_during_steps() -> None:
    model, seen = net(), []

    def look(stage: str) -> None:
        if stage == "train":
            seen.append((model.body[1].training, model.neck[1].training, model.head.training))

    fitted(model, hooks=[Watch(look)])
    assert set(seen) == {(False, True, True)}


def test_validation_is_in_eval_without_gradients() -> None:
    model = Spied(net())
    fitted(model)
    modes = {(training, gradients) for training, gradients, _ in model.passes}
    assert modes == {(True, True), (False, False)}


def test_no_sample_of_the_validation_data_is_trained_on() -> None:
    model = Spied(net())
    fitted(model)
    held_out = {tuple(row.tolist()) for row in data(12, seed=2).tensors[0]}
    trained_on = [x for training, _, x in model.passes if training]
    assert not held_out & {tuple(row.tolist()) for x in trained_on for row in x}


def test_an_epoch_trains_on_every_sample_once() -> None:
    model = Spied(net())
    fitted(model, epochs=1)
    rows = [tuple(row.tolist()) for training, _, x in model.passes if training for row in x]
    assert sorted(rows) == sorted(tuple(row.tolist()) for row in data().tensors[0])


def modes(model: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


def test_modes_are_as_they_were_after_training() -> None:
    model = net()
    model.eval()
    model.neck[0].train()
    before = modes(model)
    fitted(model)
    assert modes(model) == before


def test_modes_and_random_state_are_restored_after_a_failure() -> None:
    model = net()
    model.neck.eval()
    before = modes(model)

    def fail(_: str) -> None:
        raise RuntimeError("stop here")

    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="stop here"):
        fitted(model, hooks=[Watch(fail)])
    assert modes(model) == before
    assert torch.equal(torch.get_rng_state(), state)


def test_the_random_state_is_as_it_was_after_training() -> None:
    model = net()
    state = torch.get_rng_state()
    fitted(model)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_frozen_does_not_move_and_what_is_trained_does() -> None:
    model = net()
    body, head = fl.fingerprint(model, "body"), fl.fingerprint(model, "head")
    fitted(model)
    assert fl.fingerprint(model, "body") == body
    assert fl.fingerprint(model, "head") != head


def test_batch_norm_frozen_by_hand_is_held() -> None:
    torch.manual_seed(0)
    model = Net()
    model.body.requires_grad_(False)
    mean = model.body[1].running_mean.clone()
    run = fitted(model)
    assert torch.equal(model.body[1].running_mean, mean)
    assert run.proof.tensors == 7


def test_gradients_of_before_the_run_are_no_part_of_it() -> None:
    stale = net()
    for parameter in stale.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, 1e3)
    fitted(stale, optimizer="sgd")
    clean = net()
    fitted(clean, optimizer="sgd")
    assert bits(stale) == bits(clean)


# The same numbers again


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_the_same_seed_gives_the_same_bits(optimizer: str) -> None:
    one, other = net(), net()
    first, second = fitted(one, optimizer=optimizer), fitted(other, optimizer=optimizer)
    assert bits(one) == bits(other)
    assert figures(first) == figures(second)


def test_the_callers_random_state_does_not_count() -> None:
    one, other = net(), net()
    fitted(one)
    torch.manual_seed(77)
    fitted(other)
    assert bits(one) == bits(other)


def test_another_seed_gives_other_weights() -> None:
    one, other = net(), net()
    fitted(one, seed=0)
    fitted(other, seed=1)
    assert bits(one) != bits(other)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("boundary", [1, 2, 3])
def test_a_run_resumed_at_an_epoch_ends_at_the_same_bits(
    tmp_path: Path, optimizer: str, boundary: int
) -> None:
    def stop(training: Training) -> None:
        if training.position.epochs == boundary:
            raise KeyboardInterrupt

    options: dict[str, Any] = {"epochs": 4, "optimizer": optimizer, "warmup": 1.0}
    whole = net()
    expected = fitted(whole, **options)
    hook = Hook()
    hook.on_epoch = stop  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        fitted(out=tmp_path / "run", hooks=[hook], **options)
    resumed = net()
    found = fitted(resumed, out=tmp_path / "run", resume=True, **options)
    assert bits(resumed) == bits(whole)
    assert figures(found) == figures(expected)


def test_the_best_delta_goes_on_a_fresh_base_though_a_buffer_moved_only_later(
    tmp_path: Path,
) -> None:
    class Late(Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("epochs", torch.zeros(()))
            self.register_buffer("late", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.late += self.training and self.epochs >= 1
            return super().forward(x)

    def late() -> Late:
        torch.manual_seed(0)
        model = Late()
        fl.freeze(model, "body")
        return model

    def count(_: Training) -> None:
        model.epochs += 1

    model, hook = late(), Hook()
    hook.on_epoch = count  # type: ignore[method-assign]
    run = fitted(model, epochs=3, lr=1e-12, monitor="accuracy", hooks=[hook], out=tmp_path / "run")
    assert run.best.epoch == 1
    fresh = late()
    fl.load_delta(fresh, tmp_path / "run" / "best" / "delta.safetensors")
    assert bits(fresh) == bits(model)


def test_a_run_stopped_within_an_epoch_repeats_that_epoch(tmp_path: Path) -> None:
    whole = net()
    fitted(whole, epochs=3)
    count = iter(range(9))

    def stop(_: str) -> None:
        if next(count) == 8:  # 4 batches to train and 2 to validate, then into the next epoch
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted(epochs=3, out=tmp_path / "run", hooks=[Watch(stop)])
    resumed = net()
    fitted(resumed, epochs=3, out=tmp_path / "run", resume=True)
    assert bits(resumed) == bits(whole)


def test_views_of_a_picture_are_the_same_after_a_resume(tmp_path: Path) -> None:
    from frostline.data import Augment

    class Tiny(nn.Sequential):
        def __init__(self) -> None:
            torch.manual_seed(0)
            super().__init__(nn.Flatten(), nn.Linear(192, 4), nn.Linear(4, 2))
            fl.freeze(self, "1")

    photos = write_pictures(tmp_path / "photos")
    preprocessing = fl.Preprocessing(resize=8, crop=(8, 8))
    names = ("dark", "light")
    seen = ImageDataset(
        read_set(photos / "train", classes=names), preprocessing, augment=Augment("live")
    )
    val = ImageDataset(read_set(photos / "val", classes=names), preprocessing)
    whole, stopped, resumed = Tiny(), Tiny(), Tiny()
    fit(whole, seen, val, epochs=3, device="cpu")
    hook = Hook()

    def stop(training: Training) -> None:
        if training.position.epochs == 1:
            raise KeyboardInterrupt

    hook.on_epoch = stop  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, seen, val, epochs=3, device="cpu", out=tmp_path / "run", hooks=[hook])
    fit(resumed, seen, val, epochs=3, device="cpu", out=tmp_path / "run", resume=True)
    assert bits(resumed) == bits(whole)


def test_a_run_that_was_over_is_only_loaded_by_a_resume(tmp_path: Path) -> None:
    first, again = net(), net()
    fitted(first, out=tmp_path / "run")
    run = fitted(again, out=tmp_path / "run", resume=True)
    assert bits(again) == bits(first)
    assert len(run.history) == 2


def test_a_run_is_resumed_on_the_device_that_is_asked_for_then(tmp_path: Path) -> None:
    fitted(out=tmp_path / "run")
    file = tmp_path / "run" / "run.toml"
    RunSettings.read(file).model_copy(update={"device": "cuda:77"}).write(file)
    run = fitted(out=tmp_path / "run", resume=True)
    assert len(run.history) == 2


def test_an_infinite_validation_loss_survives_a_resume(tmp_path: Path) -> None:
    class Sure(Net):
        def forward(self, x: Tensor) -> Tensor:
            logits = super().forward(x)
            return logits if self.training else logits.masked_fill(logits < 0, -math.inf)

    def sure() -> Sure:
        torch.manual_seed(0)
        model = Sure()
        fl.freeze(model, "body")
        return model

    first = fitted(sure(), out=tmp_path / "run", schedule="constant")
    assert math.isinf(first.history[0].validation.loss)
    again = fitted(sure(), out=tmp_path / "run", resume=True, schedule="constant")
    assert figures(again) == figures(first)


# What the recipe says is done


def test_early_stopping_ends_after_that_many_epochs_without_a_better_figure() -> None:
    run = fitted(epochs=50, patience=2, lr=1e-12, monitor="accuracy")
    assert [record.best for record in run.history] == [True, False, False]


def test_the_model_ends_with_the_best_epochs_weights() -> None:
    model, kept = net(), {}

    def keep(training: Training) -> None:
        kept[training.position.epochs] = bits(model)

    hook = Hook()
    hook.on_epoch = keep  # type: ignore[method-assign]
    run = fitted(model, epochs=6, lr=0.5, schedule="constant", hooks=[hook])
    assert run.best.epoch < 6, "needs a run that gets worse"
    assert bits(model) == kept[run.best.epoch]


@pytest.mark.parametrize("monitor", ["accuracy", "macro_f1", "loss"])
def test_the_best_epoch_has_the_best_value_and_of_ties_the_lowest_loss(monitor: str) -> None:
    run = fitted(epochs=5, lr=0.3, schedule="constant", monitor=monitor)
    found = [record.validation.headline() for record in run.history]
    sign = 1 if monitor == "loss" else -1
    order = [(sign * values[monitor], values["loss"]) for values in found]
    assert run.best.epoch == order.index(min(order)) + 1


def test_clipping_bounds_the_step_of_plain_sgd() -> None:
    model = net()
    before = [p.detach().clone() for p in model.parameters()]
    fitted(
        model,
        epochs=1,
        batch_size=26,
        optimizer="sgd",
        momentum=0.0,
        weight_decay=0.0,
        warmup=0,
        lr=1.0,
        clip_norm=1e-3,
    )
    moved = [p.detach() - b for p, b in zip(model.parameters(), before, strict=True)]
    assert float(torch.cat([m.flatten() for m in moved]).norm()) == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.usefixtures("two_threads")
def test_momentum_begins_with_a_late_first_gradient_as_in_plain_sgd(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Skips(Net):
        """The neck is part of every second step alone, beginning with the second."""

        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += self.training
            features = self.body(x)
            return self.head(self.neck(features) if self.calls % 2 == 0 else features)

    def trained() -> nn.Module:
        torch.manual_seed(0)
        model = Skips()
        fl.freeze(model, "body")
        fitted(model, optimizer="sgd")
        return model

    def plain(groups: list[Any], recipe: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD([dict(g) for g in groups], momentum=recipe.momentum)

    found = trained()
    monkeypatch.setattr("frostline.session.optimizers.make_optimizer", plain)
    assert bits(found) == bits(trained())


def test_smoothing_is_in_the_training_loss_but_not_in_the_validation_loss() -> None:
    plain, smooth = net(), net()
    one = fitted(plain, epochs=1, lr=1e-12)
    other = fitted(smooth, epochs=1, lr=1e-12, label_smoothing=0.5)
    assert one.best.train["loss"] != pytest.approx(other.best.train["loss"], rel=1e-6)
    assert one.best.validation.loss == pytest.approx(other.best.validation.loss, rel=1e-6)


def test_weights_of_a_loss_balance_classes_and_average_to_one() -> None:
    from frostline.tasks.classification import _weights

    weights = _weights(torch.tensor([0] * 6 + [1] * 2), 2)
    assert weights.tolist() == pytest.approx([8 / 12, 8 / 4])
    assert (6 * weights[0] + 2 * weights[1]) / 8 == pytest.approx(1.0)


def test_balanced_weights_count_the_labels_of_any_data() -> None:
    rare = torch.tensor([0] * 6 + [1] * 2)
    first = Predictions(torch.zeros(2, 2), torch.tensor([0, 1]), ("a", "b"))
    for data in (TensorDataset(torch.zeros(8, 3), rare), [(torch.zeros(3), int(y)) for y in rare]):
        recipe = Recipe(epochs=1, lr=0.1, class_weights="balanced")
        task = Classification().completed(first, data=data, recipe=recipe)
        loss = task.loss(torch.tensor([[0.0, 0.0]] * 8), rare)
        assert loss.item() == pytest.approx(math.log(2))
        assert task._weights is not None
        assert task._weights.tolist() == pytest.approx([8 / 12, 8 / 4])


def test_biases_and_norms_are_not_decayed() -> None:
    model = net()
    before = model.neck[1].weight.detach().clone()
    model.neck[1].weight.register_hook(torch.zeros_like)
    fitted(model, weight_decay=0.9, lr=0.1)
    assert torch.equal(model.neck[1].weight, before)


def test_lower_stages_learn_more_slowly_with_layer_decay() -> None:
    def moved(**options: float) -> float:
        model = net()
        before = model.neck[0].weight.detach().clone()
        fitted(model, epochs=1, lr=1e-3, weight_decay=0.0, **options)
        return float((model.neck[0].weight.detach() - before).norm())

    assert moved(layer_decay=0.1) < 0.5 * moved()


# What is refused, or said


def test_a_loss_that_is_not_finite_stops_before_a_step_and_names_the_files(tmp_path: Path) -> None:
    class Diverging(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            logits = super().forward(x)
            return logits * math.inf if self.training else logits

    model = Diverging(nn.Flatten(), nn.Linear(192, 4), nn.Linear(4, 2))
    fl.freeze(model, "1")
    before = bits(model)
    photos = write_pictures(tmp_path, train=2, val=1)
    names = ("dark", "light")
    sets = [
        ImageDataset(read_set(photos / part, classes=names), fl.Preprocessing(8, (8, 8)))
        for part in ("train", "val")
    ]
    with pytest.raises(fl.NonFiniteLoss, match=r"the loss became nan on the batch of .*0\.png.*No"):
        fit(model, *sets, device="cpu")
    assert bits(model) == before


def test_an_output_of_nan_in_validation_names_the_samples_and_is_no_best_epoch() -> None:
    class Late(Net):
        def forward(self, x: Tensor) -> Tensor:
            logits = super().forward(x)
            return logits if self.training or x.shape[0] != 3 else logits * math.nan

    torch.manual_seed(0)
    model = Late()
    fl.freeze(model, "body")
    with pytest.raises(fl.NonFiniteLoss, match=r"output became NaN on the batch of sample 8, "):
        fit(model, data(), data(11, seed=2), epochs=1, batch_size=8, device="cpu")


def test_a_single_sample_at_the_end_says_what_to_do_about_batch_norm() -> None:
    with pytest.raises(
        fl.TrainingError, match=r"holds 1 sample, but a trainable batch norm.*`batc"
    ):
        fitted(batch_size=25)


def test_a_single_sample_at_the_end_trains_where_norms_are_frozen() -> None:
    model = net()
    fl.freeze(model, "kind:norm")
    fitted(model, batch_size=25)


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_batch_beyond_the_devices_memory_says_what_to_do(where: str) -> None:
    class Greedy(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, x: Tensor) -> Tensor:  # noqa: ARG004
            if where == "forward" and torch.is_grad_enabled() and x.requires_grad:
                raise torch.OutOfMemoryError("out of memory")
            return x.clone()

        @staticmethod
        def backward(context: Any, grad: Tensor) -> Tensor:  # noqa: ARG004
            raise torch.OutOfMemoryError("out of memory")

    class Large(Net):
        def forward(self, x: Tensor) -> Tensor:
            logits = super().forward(x)
            if where == "forward" and self.training:
                raise torch.OutOfMemoryError("out of memory")
            return Greedy.apply(logits)

    torch.manual_seed(0)
    model = Large()
    fl.freeze(model, "body")
    with pytest.raises(fl.TrainingError, match=r"batch of 8 samples does not fit .*`batch_size`"):
        fitted(model)


@dataclass
class Answer:
    logits: Tensor


@pytest.mark.parametrize(
    "wrap",
    [
        lambda logits: {"logits": logits},
        lambda logits: (logits, torch.zeros(1)),
        lambda logits: [logits],
        lambda logits: Answer(logits),
    ],
    ids=["dict", "tuple", "list", "dataclass"],
)
def test_logits_are_found_in_what_the_model_returns(wrap: Callable[[Tensor], object]) -> None:
    class Wrapped(Net):
        def forward(self, x: Tensor) -> Any:
            return wrap(super().forward(x))

    torch.manual_seed(0)
    model = Wrapped()
    fl.freeze(model, "body")
    plain = net()
    assert figures(fitted(model)) == figures(fitted(plain))


def test_a_dict_of_inputs_goes_in_by_name() -> None:
    class Named(Net):
        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return super().forward(torch.cat([left, right], dim=1))

    class Items(Dataset[tuple[dict[str, Tensor], int]]):
        def __init__(self, source: TensorDataset) -> None:
            self.source = source

        def __len__(self) -> int:
            return len(self.source)

        def __getitem__(self, index: int) -> tuple[dict[str, Tensor], int]:
            x, y = self.source[index]
            return {"left": x[:2], "right": x[2:]}, int(y)

    torch.manual_seed(0)
    model = Named()
    fl.freeze(model, "body")
    run = fit(
        model,
        Items(data()),
        Items(data(12, seed=2)),
        epochs=2,
        batch_size=8,
        lr=0.05,
        device="cpu",
    )
    assert figures(run) == figures(fitted(net()))


def test_logits_of_another_width_than_the_classes_are_refused() -> None:
    with pytest.raises(fl.ModelError, match=r"shape \(4, 3\) for 4 samples, but there are 4 class"):
        fitted(classes=["a", "b", "c", "d"])


def test_an_output_that_is_no_row_of_logits_is_refused() -> None:
    class Flat(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[:, 0]

    model = Flat()
    with pytest.raises(
        fl.ModelError, match=r"shape \(4,\).*Put a head on it that gives \(batch, c"
    ):
        fitted(model)


@pytest.mark.parametrize("count", [3, 4])
def test_a_data_set_may_say_how_many_classes_it_has(count: int) -> None:
    sets = data(), data(12, seed=2)
    sets[0].classes = count
    options: dict[str, Any] = {"epochs": 1, "batch_size": 8, "device": "cpu"}
    if count == 3:
        assert fit(net(), *sets, **options).history
        return
    with pytest.raises(fl.ModelError, match=r"but there are 4 classes"):
        fit(net(), *sets, **options)


def test_a_single_class_is_refused() -> None:
    single = TensorDataset(torch.randn(8, 6), torch.zeros(8, dtype=torch.long))
    with pytest.raises(fl.DataError, match=r"one class, so nothing to tell apart"):
        fit(Net(classes=1), single, single, device="cpu")


@pytest.mark.parametrize("label", [3, -1, -100])
@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize("place", [0, 19])
def test_a_label_out_of_range_is_refused_by_its_sample(part: str, place: int, label: int) -> None:
    sets = {"train": data(20), "val": data(20, seed=2)}
    sets[part].tensors[1][place] = label
    with pytest.raises(
        fl.DataError, match=rf"label of sample {place} is {label}, but the model tells 3 classes"
    ):
        fit(net(), sets["train"], sets["val"], batch_size=8, epochs=1, device="cpu")


def test_a_model_with_nothing_to_train_is_refused() -> None:
    model = net()
    fl.freeze(model, "all", leaving="nothing")
    with pytest.raises(fl.FreezeError, match=r"nothing in Net is trainable"):
        fitted(model)


def test_a_loss_that_no_trainable_parameter_changes_is_refused() -> None:
    class Unused(Net):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Linear(2, 2)

    model = Unused()
    fl.train_only(model, "unused")
    with pytest.raises(
        fl.FreezeError, match=r"the loss does not depend on any trainable parameter"
    ):
        fitted(model)


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_training_where_gradients_are_off_is_refused_by_that_reason(off: Any) -> None:
    with off(), pytest.raises(fl.FreezeError, match=r"gradients are switched off around the tr"):
        fitted(net())


def test_options_beside_a_recipe_are_refused() -> None:
    with pytest.raises(fl.ConfigError, match=r"got a recipe and epochs, lr beside it"):
        fitted(recipe=fl.Recipe())


@pytest.mark.parametrize(
    ("name", "near"),
    [("learning_rate", "lr"), ("losses", "loss"), ("batchsize", "batch_size"), ("pln", "plan")],
)
def test_an_unknown_option_is_refused_with_the_nearest_of_fit_and_recipe(
    name: str, near: str
) -> None:
    told = rf"there is no option '{name}' \(nearest: '{near}'\).* options are .*lr.*batch_size"
    with pytest.raises(fl.ConfigError, match=told):
        fitted(**{name: 1.0})


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"forms": 5}, r"^forms is an int. Give a list of texts"),
        ({"forms": [5]}, r"^forms holds an int. Give a list of texts"),
        ({"hooks": 1}, r"^hooks is an int. Give a list of objects of fl.Hook"),
        ({"hooks": [1]}, r"^hooks holds an int. Give a list of objects"),
        ({"plan": 1}, r"^plan is an int. Give a fl.Plan"),
    ],
)
def test_what_is_no_list_of_what_is_wanted_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(fl.ConfigError, match=told):
        fitted(**options)


def test_a_run_is_printed_in_a_few_lines(tmp_path: Path) -> None:
    first, proof, *_, last = str(
        fitted(out=tmp_path / "run", epochs=2, features="off")
    ).splitlines()
    assert first.startswith("Run of Net, 2 epochs; kept is epoch ")
    assert first.endswith(" samples")
    assert proof.endswith("are bit for bit as they were")
    assert last == f"Written   to {tmp_path / 'run'}"


@pytest.mark.parametrize("device", ["cuda:77", "gpu", "meta"])
def test_a_device_that_cannot_compute_here_is_refused(device: str) -> None:
    with pytest.raises(fl.ConfigError, match=rf"no device '{device}' here. Use auto, or one of: "):
        fitted(device=device)


# Other precision, other data


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_lower_precision_trains_weights_that_stay_fp32(precision: str) -> None:
    model = net()
    head = bits(model)
    run = fitted(model, precision=precision)
    assert bits(model) != head
    assert model.head.weight.dtype == torch.float32
    assert math.isfinite(run.best.train["loss"])


def test_runs_of_different_precision_do_not_touch_each_other() -> None:
    before = figures(fitted(net()))
    assert figures(fitted(net(), precision="bf16")) != before
    assert figures(fitted(net())) == before


def test_a_dataloader_is_used_as_it_is() -> None:
    torch.manual_seed(0)
    model = Spied(net())
    loader = DataLoader(data(), batch_size=13, shuffle=True)
    fit(model, loader, DataLoader(data(12, seed=2), batch_size=6), epochs=1, features="off")
    sizes = [(training, len(x)) for training, _, x in model.passes]
    looked = (False, 4)  # a few samples, at the output
    assert sizes == [looked, (True, 13), (True, 13), (False, 6), (False, 6)]


def test_a_shuffling_dataloader_gives_the_same_bits_again() -> None:
    def run(model: nn.Module) -> str:
        loader = DataLoader(data(), batch_size=13, shuffle=True)
        fit(model, loader, data(12, seed=2), epochs=2, device="cpu")
        return bits(model)

    first = run(net())
    torch.manual_seed(5)
    assert run(net()) == first


def test_batches_in_a_list_are_trained_on() -> None:
    inputs, targets = data().tensors
    batches = [(inputs[:13], targets[:13]), (inputs[13:], targets[13:])]
    run = fit(net(), batches, batches, epochs=2, device="cpu")
    assert run.best.validation.samples == 26


# Hooks


def test_hooks_are_called_in_the_order_of_what_happens() -> None:
    watch = Watch()
    fitted(epochs=1, hooks=[watch])
    assert watch.events == ["start", *["train"] * 4, *["validate"] * 2, "epoch", "end"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_every_hook_is_told_of_the_end_when_a_run_is_cut_short(error: type[BaseException]) -> None:
    def stop(_: str) -> None:
        raise error

    watches = [Watch(stop), Watch()]
    with pytest.raises(error):
        fitted(hooks=watches)
    assert [watch.events[-1] for watch in watches] == ["end", "end"]


def test_a_record_says_what_an_epoch_gave() -> None:
    record = fitted(epochs=1, lr=0.05, warmup=0, schedule="constant").history[0]
    assert isinstance(record, EpochRecord)
    assert (record.epoch, record.lr, record.best) == (1, 0.05, True)
    assert record.validation.samples == 12
    assert record.samples_per_second > 0


def test_the_cost_of_a_step_moves_neither_weights_nor_statistics_nor_modes() -> None:
    from frostline.estimates.measuring import measure_step

    model = net()
    model.neck.eval()
    before, mode, state = bits(model), modes(model), torch.get_rng_state()
    inputs, targets = data().tensors
    cost = measure_step(model, inputs, targets)
    assert bits(model) == before
    assert modes(model) == mode
    assert torch.equal(torch.get_rng_state(), state)
    trainable = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    steps = 4 * sum(p.requires_grad for p in model.parameters())  # a count for each tensor
    assert (cost.gradient_bytes, cost.state_bytes) == (trainable, 2 * trainable + steps)


def test_a_frozen_body_saves_fewer_activations() -> None:
    from frostline.estimates.measuring import measure_step

    inputs, targets = data().tensors
    torch.manual_seed(0)
    whole = measure_step(Net(), inputs, targets)
    assert measure_step(net(), inputs, targets).saved_bytes < whole.saved_bytes


@pytest.fixture(autouse=True)
def _no_run_is_written_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".tmp")]
