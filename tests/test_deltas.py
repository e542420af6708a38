"""Deltas: they hold what was trained, fit their own base only, and are whole or refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import frostline as fl
from frostline.deltas import read_delta


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6))
        self.neck = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.neck(self.body(x)))


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


def trained() -> Net:
    """Body frozen; neck and head with other values than a fresh net, statistics moved."""
    model = net()
    fl.freeze(model, "body")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    model.train()
    model(torch.randn(8, 4))
    return model


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    fl.save_delta(trained(), tmp_path / "d.safetensors", about={"epoch": "3"})
    return tmp_path / "d.safetensors"


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def rewrite(file: Path, change: Callable[[dict[str, str]], object]) -> None:
    """Save the file again with another header."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as content:
        header = dict(content.metadata())
    change(header)
    save_file(load_file(file), file, metadata=header)


def test_a_delta_on_its_base_gives_the_trained_model(tmp_path: Path) -> None:
    expected = trained()
    fl.save_delta(expected, tmp_path / "d")
    model = net()
    assert not same(state(model), state(expected))
    fl.load_delta(model, tmp_path / "d")
    assert same(state(model), state(expected))


def test_what_was_noted_comes_back(saved: Path) -> None:
    assert fl.load_delta(net(), saved).about == {"epoch": "3"}


def test_a_delta_holds_what_is_trainable_and_free_buffers_only(saved: Path) -> None:
    names = set(read_delta(saved).tensors)
    assert {n.partition(".")[0] for n in names} == {"neck", "head"}
    assert "neck.1.running_mean" in names


def test_buffers_that_did_not_change_are_left_out_where_the_base_is_known(tmp_path: Path) -> None:
    model = net()
    fl.freeze(model, "body")
    fl.save_delta(model, tmp_path / "d", base=fl.fingerprint(model))
    assert not [n for n in read_delta(tmp_path / "d").tensors if "running" in n]


def test_buffers_of_an_adapting_norm_are_kept(tmp_path: Path) -> None:
    model, path = net(), tmp_path / "d"
    fl.freeze(model, "body", norm="adapt")
    base = fl.fingerprint(model)
    model.train()
    model(torch.randn(8, 4))
    fl.save_delta(model, path, base=base)
    assert "body.1.running_mean" in read_delta(path).tensors
    assert "body.1.weight" not in read_delta(path).tensors


def test_another_base_is_refused_by_the_names_of_its_tensors(saved: Path) -> None:
    model = net()
    before = state(model)
    with torch.no_grad():
        model.body[0].bias[0] += 1
    with pytest.raises(fl.DeltaError, match=r"another base: 1 of 7 .* first body\.0\.bias\. Load"):
        fl.load_delta(model, saved)
    before["body.0.bias"][0] += 1
    assert same(state(model), before)


def test_another_base_loads_when_it_is_not_to_be_checked(saved: Path) -> None:
    model = net(seed=5)
    fl.load_delta(model, saved, check_base=False)
    assert torch.equal(model.head.weight, read_delta(saved).tensors["head.weight"])


def test_the_order_of_the_tensors_is_no_difference(saved: Path) -> None:
    model, turned = net(), net()
    order = list(model.body[1]._buffers.items())
    turned.body[1]._buffers.clear()
    turned.body[1]._buffers.update(reversed(order))
    fl.load_delta(turned, saved)


def test_a_missing_file_says_where_runs_keep_theirs(tmp_path: Path) -> None:
    with pytest.raises(
        fl.DeltaError, match=r"there is no delta at .*none.*best/ and last/.*wait.*resume=True"
    ):
        read_delta(tmp_path / "none")


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_a_cut_file_is_refused(saved: Path, length: int) -> None:
    saved.write_bytes(saved.read_bytes()[:length])
    with pytest.raises(fl.DeltaError, match=r"cannot be read as safetensors.*take another copy"):
        read_delta(saved)


def test_a_text_file_is_refused(tmp_path: Path) -> None:
    for name, error, told in (
        ("d.safetensors", fl.CorruptDelta, "cannot be read as safetensors"),
        ("run.toml", fl.DeltaError, r"is no delta: those are \.safetensors files"),
    ):
        (tmp_path / name).write_text("these are no tensors\n" * 50)
        with pytest.raises(error, match=told) as found:
            read_delta(tmp_path / name)
        assert type(found.value) is error


def test_a_plain_checkpoint_is_refused(tmp_path: Path) -> None:
    save_file(net().state_dict(), tmp_path / "full.safetensors")
    with pytest.raises(fl.DeltaError, match=r"no Frostline delta.*model\.load_state_dict"):
        read_delta(tmp_path / "full.safetensors")


def test_a_later_version_is_refused_with_both_versions(saved: Path) -> None:
    rewrite(saved, lambda header: header.update(version="3"))
    with pytest.raises(fl.DeltaError, match=r"delta version 3, this Frostline reads 2"):
        read_delta(saved)


@pytest.mark.parametrize("key", ["base", "base_tensors", "about"])
def test_a_header_without_all_its_parts_is_refused(saved: Path, key: str) -> None:
    rewrite(saved, lambda header: header.pop(key))
    with pytest.raises(fl.DeltaError, match="damaged: its header"):
        read_delta(saved)


@pytest.mark.parametrize("text", ["{", "[1]", "null"])
def test_a_header_that_is_no_json_object_is_refused(saved: Path, text: str) -> None:
    rewrite(saved, lambda header: header.update(base_tensors=text))
    with pytest.raises(fl.DeltaError, match="damaged: its header"):
        read_delta(saved)


def test_a_changed_digest_in_the_header_is_found(saved: Path) -> None:
    def flip(header: dict[str, str]) -> None:
        digests = json.loads(header["base_tensors"])
        digests["body.0.weight"] = "0" * 32
        header["base_tensors"] = json.dumps(digests)

    rewrite(saved, flip)
    with pytest.raises(fl.DeltaError, match="damaged: its header"):
        read_delta(saved)


@pytest.mark.parametrize("place", [-1, -200])
def test_one_flipped_bit_of_the_content_is_found(saved: Path, place: int) -> None:
    content = bytearray(saved.read_bytes())
    content[place] ^= 1
    saved.write_bytes(content)
    model = net()
    before = state(model)
    with pytest.raises(fl.DeltaError, match=r"is damaged: \S+ (is|are) not what was written"):
        fl.load_delta(model, saved)
    assert same(state(model), before)


def test_a_head_of_another_width_is_refused_with_both_shapes(saved: Path) -> None:
    model = net()
    model.head = nn.Linear(6, 4)
    before = state(model)
    with pytest.raises(fl.DeltaError, match=r"head\.weight is \(3, 6\) .* there and \(4, 6\) .*he"):
        fl.load_delta(model, saved)
    assert same(state(model), before)


def test_another_dtype_is_refused(saved: Path) -> None:
    with pytest.raises(fl.DeltaError, match=r"torch\.float32 there and .* torch\.float64 here"):
        fl.load_delta(net().double(), saved)


def test_a_model_without_these_tensors_is_refused_by_their_names(saved: Path) -> None:
    model = net()
    del model.head
    with pytest.raises(fl.DeltaError, match=r"holds head\.bias, head\.weight, which this model"):
        fl.load_delta(model, saved)


def test_a_model_in_which_all_is_frozen_has_no_delta(tmp_path: Path) -> None:
    model = net()
    fl.freeze(model, "all", leaving="nothing")
    with pytest.raises(fl.DeltaError, match=r"nothing in Net is trainable, so there is no delta"):
        fl.save_delta(model, tmp_path / "d")
    assert not list(tmp_path.iterdir())


def test_a_dtype_that_safetensors_lacks_is_refused_by_the_tensors_name(tmp_path: Path) -> None:
    model = nn.ModuleDict({"head": nn.Linear(2, 2, bias=False, dtype=torch.complex128)})
    with pytest.raises(fl.DeltaError, match=r"no torch\.complex128, the dtype of head\.weight"):
        fl.save_delta(model, tmp_path / "d")
    assert not list(tmp_path.iterdir())


def test_tied_weights_are_saved_once_and_stay_tied(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
        model[1].weight = model[0].weight
        model.append(nn.Linear(4, 2))
        return model

    model = tied()
    fl.train_only(model, "0")
    with torch.no_grad():
        model[0].weight.add_(1)
    fl.save_delta(model, tmp_path / "d")
    assert list(read_delta(tmp_path / "d").tensors) == ["0.weight"]
    loaded = tied()
    fl.load_delta(loaded, tmp_path / "d")
    assert loaded[1].weight is loaded[0].weight
    assert torch.equal(loaded[0].weight, model[0].weight)


def test_every_kind_of_tensor_comes_back_bit_for_bit(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen = nn.Parameter(torch.ones(2))
            self.short = nn.Parameter(torch.tensor([0.1, -0.0, float("nan")], dtype=torch.bfloat16))
            self.scale = nn.Parameter(torch.tensor(3.5))
            self.none = nn.Parameter(torch.empty(0, 4))
            self.strided = nn.Parameter(torch.randn(2, 3, 4, 5).to(memory_format=CHANNELS_LAST))
            self.register_buffer("mask", torch.tensor([True, False]))
            self.register_buffer("count", torch.tensor(7))
            self.register_buffer("passing", torch.ones(2), persistent=False)

    model = Odd()
    model.frozen.requires_grad_(False)
    fl.save_delta(model, tmp_path / "d")
    loaded = Odd()
    with torch.no_grad():
        for name, value in (*loaded.named_parameters(), *loaded.named_buffers()):
            if name != "frozen":
                value.zero_()
    fl.load_delta(loaded, tmp_path / "d")
    assert fl.fingerprint(loaded) == fl.fingerprint(model)
    assert len(read_delta(tmp_path / "d").tensors) == 7


CHANNELS_LAST = torch.channels_last


def test_a_failing_save_leaves_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("frostline._tensor_files.save_file", full)
    with pytest.raises(fl.OutputError, match=r"cannot write .*No space left.*Nothing was overwr"):
        fl.save_delta(trained(), saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_save_cut_short_leaves_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def interrupted(_: object, path: Path, **__: object) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("frostline._tensor_files.save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fl.save_delta(trained(), saved)
    assert saved.read_bytes() == before


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(fl.OutputError, match=r"cannot write .*d\.safetensors"):
        fl.save_delta(trained(), tmp_path / "file" / "d.safetensors")


def test_a_new_head_on_a_frozen_network_weighs_less_than_a_hundredth(tmp_path: Path) -> None:
    from torchvision.models import mobilenet_v2

    model = mobilenet_v2()
    model.classifier[1] = nn.Linear(1280, 2)
    fl.train_only(model, "classifier")
    fl.save_delta(model, tmp_path / "d.safetensors")
    save_file(model.state_dict(), tmp_path / "full.safetensors")
    delta, full = ((tmp_path / f"{n}.safetensors").stat().st_size for n in ("d", "full"))
    # The digests of the 312 tensors of the base weigh more than the head itself.
    assert delta < 0.01 * full


def averaged(model: Net) -> Net:
    """A copy whose frozen weights were rounded by steps of an average that multiplies and adds."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for mean, value in zip(copied.parameters(), model.parameters(), strict=True):
            for _ in range(5):
                mean.copy_(0.9 * mean + (1 - 0.9) * value)
    return copied


def test_a_delta_whose_base_moved_by_rounding_is_refused_when_it_is_written(tmp_path: Path) -> None:
    model = trained()
    mean = averaged(model)
    assert not torch.equal(mean.body[0].weight, model.body[0].weight)
    message = (
        r"body\.0\.weight, .*moved since being frozen, so the delta would fit no base .*"
        r"Copy the frozen weights over from the model itself, then save; or, .* freeze them again"
    )
    with pytest.raises(fl.DeltaError, match=message):
        fl.save_delta(mean, tmp_path / "d")
    assert not (tmp_path / "d").exists()
    mean.body.load_state_dict(model.body.state_dict())
    fl.save_delta(mean, tmp_path / "d")
    fl.load_delta(net(), tmp_path / "d")


def test_frozen_weights_that_moved_are_a_base_once_they_are_frozen_again(tmp_path: Path) -> None:
    mean = averaged(trained())
    fl.freeze(mean, "body")
    fl.save_delta(mean, tmp_path / "d")
    base = net()
    base.body.load_state_dict(mean.body.state_dict())
    fl.load_delta(base, tmp_path / "d")


def test_what_a_delta_put_into_a_frozen_part_is_its_base(tmp_path: Path, saved: Path) -> None:
    model = net()
    fl.train_only(model, "head")
    fl.load_delta(model, saved)
    fl.save_delta(model, tmp_path / "next")
    again = net()
    fl.load_delta(again, saved)
    fl.load_delta(again, tmp_path / "next")
    assert same(state(again), state(model))


def test_a_model_that_was_cast_after_the_freeze_is_a_base(tmp_path: Path) -> None:
    fl.save_delta(trained().double(), tmp_path / "d")
    fl.load_delta(net().double(), tmp_path / "d")


def test_what_was_thawed_is_no_longer_owed_by_a_delta(tmp_path: Path) -> None:
    model = trained()
    fl.thaw(model, "body")
    with torch.no_grad():
        model.body[0].weight.add_(1)
    for parameter in model.body.parameters():
        parameter.requires_grad_(False)
    fl.save_delta(model, tmp_path / "d")
