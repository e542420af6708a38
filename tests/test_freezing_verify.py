"""`verify`: what it catches, in which words, and what it rightly lets pass."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import frostline as fl
from frostline.fingerprints import BLOCK_NUMBERS, SAMPLED_NUMBERS
from frostline.freezing.modes import FrozenMark


class Net(nn.Module):
    """A body with batch norm and dropout, and a head."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Dropout(0.5))
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x))
        return out


@pytest.fixture
def net() -> Net:
    return Net()


def test_an_untouched_part_is_proved_with_its_size(net: Net) -> None:
    proof = fl.freeze(net, "body").verify()
    assert str(proof) == "7 frozen tensors (152 B) are bit for bit as they were"


def test_a_proof_of_nothing_says_that_nothing_was_frozen(net: Net) -> None:
    assert str(fl.train_only(net, "all").verify()) == "nothing was frozen"


def test_the_proof_carries_the_fingerprint(net: Net) -> None:
    assert fl.freeze(net, "body").verify().fingerprint == fl.fingerprint(net, "body")


def test_training_the_head_is_no_drift(net: Net) -> None:
    frozen = fl.freeze(net, "body")
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.5)
    net.train()(torch.randn(8, 4)).sum().backward()
    optimizer.step()
    frozen.verify()


def test_moved_weights_are_named_with_their_distance(net: Net) -> None:
    frozen = fl.freeze(net, "body")
    net.body[0].weight.data[1, 2] += 0.25
    with pytest.raises(fl.DriftError, match=r"body\.0\.weight: moved by up to 0\.25 \(1 of 16 num"):
        frozen.verify()


def test_one_flipped_bit_in_a_buffer_is_caught(net: Net) -> None:
    frozen = fl.freeze(net, "body")
    net.body[1].running_var.view(torch.int32)[3] ^= 1
    with pytest.raises(fl.DriftError, match=r"one thing.*\n  body\.1\.running_var: moved by up to"):
        frozen.verify()


def test_a_counter_that_counted_on_is_caught(net: Net) -> None:
    frozen = fl.freeze(net, "body")
    net.body[1].num_batches_tracked += 1
    with pytest.raises(fl.DriftError, match=r"num_batches_tracked: moved by up to 1 \(1 of 1 num"):
        frozen.verify()


def test_the_sign_of_zero_is_a_drift_though_no_value_moved(net: Net) -> None:
    nn.init.zeros_(net.body[0].bias)
    frozen = fl.freeze(net, "body")
    net.body[0].bias.data.neg_()
    with pytest.raises(fl.DriftError, match=r"0\.bias: differs in bits, by less than its numbers"):
        frozen.verify()


def test_infinite_numbers_that_stayed_do_not_hide_how_far_others_moved(net: Net) -> None:
    net.body[0].bias.data[:2] = torch.tensor([float("-inf"), float("nan")])
    frozen = fl.freeze(net, "body")
    net.body[0].bias.data[3] += 2
    with pytest.raises(fl.DriftError, match=r"moved by up to 2 \(1 of 4 numbers\)"):
        frozen.verify()


def test_a_number_that_became_nan_is_caught(net: Net) -> None:
    frozen = fl.freeze(net, "body")
    net.body[0].bias.data[0] = float("nan")
    with pytest.raises(fl.DriftError, match=r"moved by up to nan \(1 of 4 numbers\)"):
        frozen.verify()


def test_a_large_tensor_that_moved_everywhere_says_how_many_were_compared() -> None:
    net = Net(width=4 * SAMPLED_NUMBERS)
    frozen = fl.freeze(net, "body")
    net.body[0].weight.data += 0.5
    with pytest.raises(fl.DriftError, match=r"moved by at least 0\.5 \(\d+ of 65536 compared\)"):
        frozen.verify()


def test_a_change_between_the_sampled_numbers_is_placed_in_its_block() -> None:
    net = Net(width=BLOCK_NUMBERS)
    frozen = fl.freeze(net, "body.0")
    net.body[0].weight.data.view(-1)[BLOCK_NUMBERS + 1] += 4
    with pytest.raises(fl.DriftError, match="moved by about 4 within numbers 65536 to 131071"):
        frozen.verify()


def test_a_bit_too_small_for_any_sum_is_caught_and_placed_nowhere() -> None:
    net = Net(width=BLOCK_NUMBERS)
    frozen = fl.freeze(net, "body.0")
    net.body[0].weight.data.view(torch.int32).view(-1)[2 * BLOCK_NUMBERS + 1] ^= 1
    with pytest.raises(
        fl.DriftError, match=r"0\.weight: differs in bits, by less than its numbers"
    ):
        frozen.verify()


def test_gradients_switched_back_on_are_caught(net: Net) -> None:
    frozen = fl.freeze(net, "body")
    net.body.requires_grad_(True)
    with pytest.raises(
        fl.DriftError, match=r"4 things.*\n  body\.0\.weight: wants gradients again"
    ):
        frozen.verify()


def test_a_part_switched_on_and_trained_says_both(net: Net) -> None:
    frozen = fl.freeze(net, "body")
    net.body[0].bias.requires_grad_(True)
    net.body[0].bias.data += 1
    with pytest.raises(
        fl.DriftError, match=r"bias: wants gradients again; .*, and moved by up to 1"
    ):
        frozen.verify()


def test_train_mode_set_behind_the_freeze_is_caught(net: Net) -> None:
    frozen = fl.freeze(net, "body")
    net.body[2].training = True
    with pytest.raises(fl.DriftError, match=r"body\.2: was put in train mode behind the freeze"):
        frozen.verify()


def test_train_mode_set_on_the_whole_frozen_model_is_caught(net: Net) -> None:
    frozen = fl.freeze(net, "all", leaving="nothing")
    net.training = True
    with pytest.raises(fl.DriftError, match=r"\(model\): was put in train mode"):
        frozen.verify()


def test_what_was_thawed_and_frozen_again_is_no_business_of_the_first_handle(net: Net) -> None:
    first = fl.freeze(net, "body")
    whole = first.verify()
    fl.thaw(net, "body")
    with torch.no_grad():
        for tensor in (*net.body.parameters(), *net.body.buffers()):
            tensor.add_(1)  # as training does
    again = fl.freeze(net, "body")
    assert str(first.verify()) == f"nothing is frozen any more, {whole.tensors} thawed since"
    assert again.verify().tensors == whole.tensors
    next(net.body.parameters()).data.add_(1)
    with pytest.raises(fl.DriftError, match=r"body\.0\.weight: moved by up to 1"):
        again.verify()


def test_part_that_was_frozen_all_along_is_compared_beside_part_that_was_not(net: Net) -> None:
    first = fl.freeze(net, "body")
    fl.thaw(net, "body.0")
    net.body[0].weight.data.add_(1)
    fl.freeze(net, "body")
    assert "2 thawed since" in str(first.verify())
    net.body[1].running_mean.add_(1)
    with pytest.raises(fl.DriftError, match=r"one thing .*\n  body\.1\.running_mean: moved"):
        first.verify()


def test_freezing_again_what_drifted_does_not_hide_it(net: Net) -> None:
    first = fl.freeze(net, "body")
    net.body[0].weight.data.add_(1)
    fl.freeze(net, "body")
    with pytest.raises(fl.DriftError, match=r"body\.0\.weight: moved by up to 1"):
        first.verify()


def test_rows_that_were_thawed_and_frozen_again_are_not_compared() -> None:
    net = nn.Sequential(nn.Embedding(6, 2), nn.Linear(2, 2))
    first = fl.freeze(net, "rows:0.weight[0:3]")
    fl.thaw(net, "0")
    net[0].weight.data.add_(1)
    fl.freeze(net, "rows:0.weight[0:3]")
    assert first.verify().thawed == 1


@pytest.mark.parametrize(
    ("harm", "advice"),
    [
        (lambda net: net.body[0].weight.data.add_(1), "Look for code that writes these after"),
        (lambda net: setattr(net.body[1], "running_mean", torch.ones(2, 4)), "run the model once"),
        (lambda net: net.half(), "Cast a model before freezing it"),
        (lambda net: net.body.requires_grad_(True), "thaw them: their handles know of it"),
        (lambda net: net.body.__setitem__(0, nn.Linear(4, 4)), "and verify by that handle"),
        (lambda net: setattr(net.body, "training", True), "Set modes by train\\(\\) and eval"),
    ],
)
def test_each_kind_of_drift_has_its_advice(
    net: Net, harm: Callable[[Net], object], advice: str
) -> None:
    frozen = fl.freeze(net, "body")
    harm(net)
    with pytest.raises(fl.DriftError, match=rf"\n{advice}|\n.*{advice}"):
        frozen.verify()


def test_a_frozen_weight_that_became_something_else_is_gone_and_not_thawed(net: Net) -> None:
    frozen = fl.freeze(net, "body")
    nn.utils.parametrizations.weight_norm(net.body[0])
    with pytest.raises(fl.DriftError, match=r"body\.0\.weight: is gone"):
        frozen.verify()


def test_a_held_layer_with_statistics_stays_so_whatever_is_put_below_it() -> None:
    class WithOwn(nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:
            return self.act(super().forward(x))  # as timm's norms with their activations

    norm = WithOwn(4)
    norm.act = nn.Identity()
    net = nn.Sequential(nn.Linear(4, 4), norm, nn.Linear(4, 2))
    frozen = fl.freeze(net, "0 | 1")
    norm.act = nn.PReLU(4)
    net.train()(torch.randn(8, 4))
    assert not norm.training
    assert frozen.verify().thawed == 0


def test_a_part_is_held_again_when_what_came_later_is_gone(net: Net) -> None:
    frozen = fl.freeze(net, "body")
    net.body.add_module("adapter", nn.Linear(4, 4))
    assert net.train().body.training
    del net.body.adapter
    assert not net.train().body.training
    assert frozen.verify().thawed == 0


def test_a_mark_that_an_earlier_frostline_saved_is_read() -> None:
    mark = object.__new__(FrozenMark)
    mark.__setstate__([frozenset({"weight"}), "hold", frozenset(), {}])
    assert (mark.names, mark.since) == (frozenset({"weight"}), {})


def test_a_head_put_on_a_wholly_frozen_model_trains_as_any(net: Net) -> None:
    fl.freeze(net, "all", leaving="nothing")
    net.train()
    assert not net.training
    net.head = nn.Sequential(nn.Linear(4, 2), nn.Dropout())
    net.train()
    twin = pickle.loads(pickle.dumps(copy.deepcopy(net)))
    for one in (net, twin):
        training = [path for path, module in one.named_modules() if module.training]
        assert training == ["", "head", "head.0", "head.1"]
    assert not twin.eval().training
    assert twin.train().training
    frozen = fl.train_only(net, "head")  # as the refusal of freezing all advises
    assert frozen.verify().thawed == 0


def test_a_replaced_module_is_caught_even_with_equal_weights(net: Net) -> None:
    frozen = fl.freeze(net, "body")
    net.body[1] = nn.BatchNorm1d(4)
    with pytest.raises(
        fl.DriftError, match=r"body\.1\.weight: is gone; it or the module that held"
    ):
        frozen.verify()


def test_a_removed_module_is_caught(net: Net) -> None:
    frozen = fl.freeze(net, "body")
    del net.body[0]
    with pytest.raises(fl.DriftError, match=r"body\.0\.weight: is gone"):
        frozen.verify()


def test_a_removed_parameter_is_caught(net: Net) -> None:
    frozen = fl.freeze(net, "body")
    net.body[0].register_parameter("bias", None)
    with pytest.raises(fl.DriftError, match=r"body\.0\.bias: is gone"):
        frozen.verify()


def test_conversion_to_sync_batch_norm_after_the_freeze_is_caught(net: Net) -> None:
    frozen = fl.freeze(net, "body")
    nn.SyncBatchNorm.convert_sync_batchnorm(net)
    with pytest.raises(fl.DriftError, match=r"body\.1\.running_mean: is gone"):
        frozen.verify()


def test_a_dtype_change_is_named(net: Net) -> None:
    frozen = fl.freeze(net, "body.0")
    net.half()
    with pytest.raises(fl.DriftError, match=r"dtype changed from torch\.float32 to torch\.float16"):
        frozen.verify()


def test_a_shape_change_is_named(net: Net) -> None:
    frozen = fl.freeze(net, "body.0")
    net.body[0].bias = nn.Parameter(torch.zeros(5), requires_grad=False)
    with pytest.raises(fl.DriftError, match=r"shape changed from \(4,\) to \(5,\)"):
        frozen.verify()


def test_every_drift_is_listed_and_kept_as_data(net: Net) -> None:
    frozen = fl.freeze(net, "body")
    net.body[0].weight.data += 1
    net.body[1].running_mean += 1
    with pytest.raises(fl.DriftError, match=r"^2 things that Net was to keep frozen") as caught:
        frozen.verify()
    assert [str(drift).partition(":")[0] for drift in caught.value.drifts] == [
        "body.0.weight",
        "body.1.running_mean",
    ]


def test_the_statistics_of_a_norm_frozen_in_part_are_proved_too(net: Net) -> None:
    frozen = fl.freeze(net, "body.1.weight")
    net.body[1].running_mean += 1
    with pytest.raises(fl.DriftError, match=r"running_mean: moved by up to 1"):
        frozen.verify()


def test_what_was_thawed_is_no_longer_owed(net: Net) -> None:
    frozen = fl.freeze(net, "body")
    fl.thaw(net, "body.0")
    net.body[0].weight.data += 1
    assert frozen.verify().tensors == 5


def test_the_statistics_of_a_thawed_norm_are_no_longer_owed(net: Net) -> None:
    frozen = fl.freeze(net, "body")
    fl.thaw(net, "body.1")
    net.train()(torch.randn(8, 4))
    assert frozen.verify().tensors == 2


def test_a_module_replaced_after_its_thaw_is_no_drift(net: Net) -> None:
    frozen = fl.freeze(net, "body")
    fl.thaw(net, "body.1")
    net.body[1] = nn.BatchNorm1d(4)
    assert frozen.verify().tensors == 2


def test_leaving_the_context_is_no_drift(net: Net) -> None:
    with fl.frozen(net, "body") as frozen:
        pass
    net.body[0].weight.data += 1
    assert frozen.verify().tensors == 0


def test_compiling_a_part_after_the_freeze_is_no_drift(net: Net) -> None:
    frozen = fl.freeze(net, "body")
    net.body = torch.compile(net.body, backend="eager")
    assert frozen.verify().tensors == 7


def test_loading_the_same_weights_is_no_drift(net: Net) -> None:
    frozen = fl.freeze(net, "body")
    net.load_state_dict(copy.deepcopy(net.state_dict()))
    frozen.verify()


def test_another_memory_layout_is_no_drift() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1))
    frozen = fl.freeze(net, "0")
    net.to(memory_format=torch.channels_last)
    frozen.verify()


def test_a_copied_handle_watches_the_copied_model(net: Net) -> None:
    twin = copy.deepcopy(fl.freeze(net, "body"))
    net.body[0].weight.data += 1
    twin.verify()
    twin.model.get_submodule("body.0").weight.data += 1
    with pytest.raises(fl.DriftError, match=r"body\.0\.weight: moved by up to 1"):
        twin.verify()


def test_a_pickled_handle_still_verifies(net: Net) -> None:
    loaded = pickle.loads(pickle.dumps(fl.freeze(net, "body")))
    assert loaded.verify().tensors == 7


@pytest.mark.parametrize(
    "dtype",
    [
        torch.bool,
        torch.int8,
        torch.int64,
        torch.float16,
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.complex64,
    ],
)
def test_tensors_of_any_dtype_are_watched(dtype: torch.dtype) -> None:
    net = nn.ModuleDict({"body": nn.ParameterDict(), "head": nn.Linear(2, 2)})
    net["body"]["codes"] = nn.Parameter(torch.ones(5).to(dtype), requires_grad=False)
    frozen = fl.freeze(net, "body")
    net["body"]["codes"].data = torch.zeros(5).to(dtype)
    with pytest.raises(fl.DriftError, match=r"body\.codes: moved by up to 1 \(5 of"):
        frozen.verify()
