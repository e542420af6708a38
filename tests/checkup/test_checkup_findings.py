"""What a checkup gives, what it says of bad arguments, and what happens when a check crashes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checkup_zoo import ZOO, Net, adam, compiled, pictures, rows, told
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

import frostline as fl
from frostline.checkup import CODES
from frostline.checkup.findings import listed
from frostline.data import ImageDataset, read_splits
from frostline.errors import ConfigError, SelectorError
from small_world import hash_of, write_picture, write_pictures


def broken() -> fl.Checkup:
    """An error, a warning and a note at once."""
    net = Net()
    for parameter in net.backbone[1].parameters():
        parameter.requires_grad = False
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    return fl.doctor(net, pictures(), optimizer=optimizer)


def test_errors_come_first_and_notes_last() -> None:
    checkup = broken()
    assert checkup.codes == (
        "moving-statistics",
        "frozen-in-optimizer",
        "live-dropout",
        "frozen-above-trainable",
    )
    assert [finding.level for finding in checkup] == ["error", "warning", "warning", "note"]
    assert (checkup.worst, checkup.ok, len(checkup)) == ("error", False, 4)


def test_nothing_found_is_ok() -> None:
    net = Net()
    fl.freeze(net, "backbone")
    checkup = fl.doctor(net)
    assert (checkup.worst, checkup.ok, checkup.findings) == (None, True, ())
    assert str(checkup) == (
        "Nothing found. Not given, so not looked at: example, optimizer, train_data."
    )


def test_a_checkup_reads_as_text() -> None:
    net = Net()
    optimizer = adam(net)
    fl.freeze(net, "backbone")
    text = str(fl.doctor(net, pictures(), optimizer=optimizer))
    assert text == (
        "warning: frozen-in-optimizer\n"
        "  8 frozen parameters in the optimizer: backbone.0.0.weight, backbone.0.0.bias,\n"
        "  backbone.0.1.weight, backbone.0.1.bias, backbone.1.0.weight and 3 more\n"
        "  Why:  as soon as one has a gradient of any kind, zeros too, momentum and\n"
        "        weight decay move it; its state takes memory\n"
        "  Fix:  fl.sync(optimizer, model)  # the trainable join, the frozen leave\n"
        "\n"
        "1 warning. Not given, so not looked at: train_data."
    )


@pytest.mark.parametrize("name", ZOO)
def test_a_finding_fits_eighty_columns_but_for_long_words(name: str) -> None:
    for line in str(told(name)).splitlines():
        assert len(line) <= 80 or len(line.split()) <= 2, line


def test_a_checkup_is_plain_data() -> None:
    document = json.loads(json.dumps(broken().as_dict()))
    assert (document["ok"], document["worst"]) == (False, "error")
    assert document["not_given"] == ["train_data"]
    first = document["findings"][0]
    assert set(first) == {"code", "level", "seen", "why", "fix", "names"}
    assert first["names"] == ["backbone.1.1"]


def test_five_names_are_told_and_the_others_counted() -> None:
    assert listed(list("abcde")) == "a, b, c, d, e"
    assert listed(list("abcdefgh")) == "a, b, c, d, e and 3 more"


def test_codes_are_told_once() -> None:
    assert len(set(CODES)) == len(CODES)


def test_freeze_and_train_together_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"got freeze and train together\. Give one of freeze"):
        fl.doctor(Net(), freeze="backbone", train="head")


def test_a_plan_beside_train_is_refused() -> None:
    plan = fl.Plan([fl.Phase(epochs=1)])
    with pytest.raises(ConfigError, match="got train and plan together"):
        fl.doctor(Net(), train="head", plan=plan)


def test_an_optimizer_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"the optimizer is Net, no torch\.optim\.Optimizer"):
        fl.doctor(Net(), optimizer=Net())  # type: ignore[arg-type]


def test_a_model_that_is_none_is_refused() -> None:
    with pytest.raises(SelectorError, match=r"looks at a torch\.nn\.Module, got str"):
        fl.doctor("resnet18")  # type: ignore[arg-type]


def test_a_selector_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(SelectorError, match="it ends where a term was expected"):
        fl.doctor(Net(), freeze="backbone &")


class NoParameters(torch.optim.SGD):
    """An optimizer whose groups are not what torch's are."""

    def __getattribute__(self, name: str) -> object:
        if name == "param_groups" and object.__getattribute__(self, "__dict__").get("odd"):
            raise RuntimeError("no groups here")
        return object.__getattribute__(self, name)


def test_a_check_that_crashes_is_a_note_and_the_others_go_on() -> None:
    net = Net()
    for parameter in net.backbone.parameters():
        parameter.requires_grad = False
    optimizer = NoParameters(net.parameters(), lr=0.1)
    optimizer.odd = True  # type: ignore[attr-defined]
    checkup = fl.doctor(net, pictures(), optimizer=optimizer)
    assert checkup.codes[0] == "moving-statistics"
    crashed = [finding for finding in checkup if finding.code == "check-failed"]
    assert {finding.level for finding in crashed} == {"note"}
    assert "not-in-optimizer ended with RuntimeError: no groups here" in "".join(
        finding.seen for finding in crashed
    )


def test_a_plan_thaws_what_may_stay_in_the_optimizer() -> None:
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    plan = fl.Plan([fl.Phase(train="head", epochs=1), fl.Phase(train="all", epochs=1)])
    assert "frozen-in-optimizer" not in fl.doctor(net, optimizer=optimizer, plan=plan).codes


def test_a_plan_is_checked_in_its_first_phase() -> None:
    net = Net()
    plan = fl.Plan([fl.Phase(freeze="backbone", epochs=1)])
    assert fl.doctor(net, pictures(), optimizer=adam(net.head), plan=plan).codes == ()
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_samples_of_any_data_set_are_compared_by_content() -> None:
    class Rows(Dataset[Tensor]):
        def __init__(self, rows: Tensor) -> None:
            self.rows = rows

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, index: int) -> Tensor:
            return self.rows[index]

    net = Net()
    fl.freeze(net, "backbone")
    checkup = fl.doctor(net, train_data=Rows(rows()[:4]), val_data=Rows(rows()[3:]))
    assert checkup.codes == ("same-data",)
    assert (checkup.worst, checkup.findings[0].names) == ("warning", ("sample 0",))


def test_samples_of_ones_own_are_compared_by_their_ids() -> None:
    class Words(fl.Samples):
        def __init__(self, *words: str) -> None:
            self.words = words
            self.targets = [0] * len(words)

        def __len__(self) -> int:
            return len(self.words)

        def load(self, row: int) -> torch.Tensor:
            return torch.tensor([float(sign) for sign in self.words[row].encode()])

        def name(self, sample: int) -> str:
            return self.words[sample]

    net = nn.Linear(2, 2)
    checkup = fl.doctor(net, train_data=Words("ice", "fog"), val_data=Words("hail", "ice"))
    (finding,) = [finding for finding in checkup.findings if finding.code == "same-data"]
    assert finding.names == ("ice",)


def test_data_that_cannot_be_indexed_is_left_alone() -> None:
    class Stream(IterableDataset[Tensor]):
        def __iter__(self) -> object:
            raise AssertionError("the doctor read the stream")

    net = Net()
    fl.freeze(net, "backbone")
    assert fl.doctor(net, train_data=Stream(), val_data=Stream()).codes == ()


def test_pictures_are_compared_by_their_files(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "data")
    write_picture(folder / "val" / "dark" / "0.png", 50, seed=hash_of("train"))
    splits = read_splits(folder)
    parts = [ImageDataset(part, fl.Preprocessing()) for part in (splits.train, splits.val)]
    net = Net()
    fl.freeze(net, "backbone")
    checkup = fl.doctor(net, train_data=parts[0], val_data=parts[1])
    assert checkup.codes == ("same-data",)
    assert checkup.findings[0].names == (str(folder / "val" / "dark" / "0.png"),)


def test_two_ways_of_preprocessing_are_compared_by_what_they_do() -> None:
    from torchvision.transforms import v2

    plain = v2.Compose([v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)])
    net = Net()
    fl.freeze(net, "backbone")
    theirs = fl.Preprocessing(resize=96, crop=(96, 96))
    told = fl.doctor(net, preprocessing=plain, weights_preprocessing=theirs).findings[0]
    assert "numbers lie in 0.00..1.00 with mean 0.50, not in -2.12..2.64" in told.seen
    wide = fl.Preprocessing(resize=64, crop=(64, 64))
    told = fl.doctor(net, preprocessing=plain, weights_preprocessing=wide).findings[0]
    assert "a picture becomes (3, 96, 96), not (3, 64, 64)" in told.seen


def test_the_same_preprocessing_written_twice_is_the_same() -> None:
    from torchvision.transforms._presets import ImageClassification

    net = Net()
    fl.freeze(net, "backbone")
    preset = ImageClassification(crop_size=64, resize_size=72)
    mine = fl.Preprocessing(resize=72, crop=(64, 64))
    assert fl.doctor(net, preprocessing=mine, weights_preprocessing=preset).codes == ()


def test_frozen_norms_below_trainable_layers_are_not_worth_a_word() -> None:
    net = Net()
    fl.freeze(net, "kind:norm")
    assert fl.doctor(net, pictures()).codes == ()


def test_dropout_of_rate_zero_is_not_live() -> None:
    net = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.0)), nn.ReLU(), nn.Linear(4, 3))
    for parameter in net[0].parameters():
        parameter.requires_grad = False
    assert fl.doctor(net, rows()).codes == ()


def test_norms_left_to_adapt_are_not_told() -> None:
    net = Net()
    fl.freeze(net, "backbone", norm="adapt")
    assert "moving-statistics" not in fl.doctor(net, pictures()).codes


class TwoOutputs(Net):
    """Logits, and those of an auxiliary classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(x), self.aux(self.backbone(x).mean((2, 3)))


def test_an_auxiliary_output_counts_as_used() -> None:
    net = TwoOutputs()
    fl.freeze(net, "backbone")
    assert fl.doctor(net, pictures(), targets=torch.arange(6) % 3).codes == ()


def test_a_model_compiled_from_outside_is_seen_to_be() -> None:
    given = compiled(2).arguments
    around = torch.compile(Net(), backend="eager")
    assert "recompiles" in fl.doctor(around, plan=given["plan"]).codes
    assert "recompiles" not in fl.doctor(Net(), plan=given["plan"]).codes


def test_arguments_and_names_reach_the_forward() -> None:
    class Two(Net):
        def forward(self, x: Tensor, scale: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x * scale)

    net = Two()
    fl.freeze(net, "backbone")
    assert fl.doctor(net, (pictures(), torch.ones(()))).codes == ()
    assert fl.doctor(net, {"x": pictures(), "scale": torch.ones(())}).codes == ()
    told = fl.doctor(net, pictures()).findings[0]
    assert "missing 1 required positional argument: 'scale'" in told.seen


def test_targets_of_a_regression_are_numbers() -> None:
    net = Net()
    fl.freeze(net, "backbone")
    assert fl.doctor(net, pictures(), targets=torch.randn(6, 3)).codes == ()


class Angle(fl.Task):
    """Angles, which wrap around."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (1 - torch.cos(outputs[:, 0] - targets)).mean()

    def summarise(self, outputs: Tensor, targets: Tensor) -> fl.Metrics:
        raise NotImplementedError


class Blind(Angle):
    """One that no output matters to."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 0 * super().loss(outputs, targets)


def test_gradients_are_those_of_the_task_that_is_given() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    fl.freeze(net, "0")
    example, angles = torch.randn(6, 3), torch.rand(6)
    assert fl.doctor(net, example, targets=angles, task=Angle()).codes == ()
    assert fl.doctor(net, example, targets=angles, task=Blind()).codes == ("zero-gradient",)
    with pytest.raises(ConfigError, match="there is no task 'regresion'"):
        fl.doctor(net, example, task="regresion")


def test_a_module_that_takes_no_hooks_is_a_note() -> None:
    class NoHooks(nn.Linear):
        def register_forward_hook(self, *_: object, **__: object) -> object:  # type: ignore[override]
            raise RuntimeError("no hooks on me")

    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), NoHooks(8, 3))
    fl.freeze(net, "0")
    checkup = fl.doctor(net, rows())
    assert [(f.code, f.level) for f in checkup] == [("not-tried", "note")]
    assert "ended with RuntimeError: no hooks on me" in checkup.findings[0].seen
    assert not any(module._forward_pre_hooks for module in net.modules())


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
def test_a_scripted_part_frozen_by_hand_is_one_finding() -> None:
    part = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    net = nn.Sequential(torch.jit.script(part), nn.Linear(4, 3))
    assert "check-failed" not in fl.doctor(net, rows()).codes
    for parameter in net[0].parameters():
        parameter.requires_grad_(False)
    findings = [f for f in fl.doctor(net, rows()) if f.code == "cannot-freeze"]
    assert [f.names for f in findings] == [
        ("0.0.weight", "0.0.bias", "0.1.0.weight", "0.1.0.bias"),
    ]
    assert "fl.freeze would refuse it" in findings[0].why
    assert findings[0].fix.startswith("Freeze the Python module it was made from")


def test_a_norm_left_to_adapt_in_a_held_part_is_no_replacement() -> None:
    net = Net()
    fl.freeze(net, "backbone", norm="adapt")
    assert "replaced-norm" not in fl.doctor(net, pictures()).codes


def test_a_norm_that_came_after_the_freeze_is_told_once() -> None:
    net = Net()
    fl.freeze(net, "backbone")
    net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    net.backbone[1][1] = nn.BatchNorm2d(8)
    checkup = fl.doctor(net, pictures())
    assert checkup.codes[0] == "replaced-norm"
    assert checkup.findings[0].names == ("backbone.0.1", "backbone.1.1")
    assert not {"moving-statistics", "held-though-trainable"} & set(checkup.codes)


def test_a_part_unfrozen_by_hand_beside_a_new_norm_is_told_too() -> None:
    net = Net()
    fl.freeze(net, "backbone")
    net.backbone[1][1] = nn.BatchNorm2d(8)
    net.backbone[1][0].requires_grad_(True)
    assert {"replaced-norm", "held-though-trainable"} <= set(fl.doctor(net).codes)


def test_noise_in_eval_from_code_that_asks_a_mode_which_no_eval_reaches() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 8)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(self.layer(x), training=self.training)

        def train(self, mode: bool = True) -> Block:
            del mode  # passed over
            return self

    net = nn.Sequential(Block().requires_grad_(False), nn.Linear(8, 3))
    finding = next(f for f in fl.doctor(net, rows()) if f.code == "random-in-eval")
    assert "between two passes of one batch; in train mode after model.eval(): 0" in finding.seen
    assert finding.fix.startswith("fl.freeze(model, '0')")


def test_state_that_a_forward_keeps_is_not_taken_for_noise() -> None:
    class Counting(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 3)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x) * self.calls

    codes = fl.doctor(nn.Sequential(Counting()), rows()).codes
    assert "changes-in-eval" in codes
    assert "random-in-eval" not in codes


def test_a_switch_on_a_module_is_mended_by_a_freeze_that_leaves_what_trains() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    model[0].requires_grad = False
    (found,) = (one for one in fl.doctor(model) if one.code == "useless-switch")
    assert found.fix == "fl.freeze(model, '0')"
    model[1].requires_grad = False
    (found,) = (one for one in fl.doctor(model) if one.code == "useless-switch")
    assert found.fix == "fl.freeze(model, '0 | 1', leaving='nothing')"
