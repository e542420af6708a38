"""`fully_shard` on two processes: freezing, proofs, deltas and optimizers go by whole tensors."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from ranks import on_ranks
from safetensors import safe_open
from sharded_models import BELOW, BLOCKS, both, pictures, same, sharded, vit, whole
from torch import nn
from torch.utils.data import TensorDataset

import frostline as fl
from frostline.sharding import is_shard
from frostline.world import world_here


def _loss(model: nn.Module, *, seed: int = 0) -> torch.Tensor:
    """Of the same pictures and dropouts on all processes, so that their mean is one's own."""
    images, classes = pictures()
    torch.manual_seed(seed)
    return nn.functional.cross_entropy(model(images), classes)


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, *, seed: int = 0) -> None:
    # Not by fused kernels: what they do with the last few numbers of a tensor they round otherwise,
    # and other numbers are the last ones in a shard.
    _loss(model, seed=seed).backward()
    optimizer.step()
    optimizer.zero_grad()


def _error(work: Any) -> str:
    try:
        work()
    except fl.FrostlineError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _proofs() -> dict[str, Any]:
    plain, model = both()
    print_of_plain = fl.fingerprint(plain)
    before = vit()
    first = fl.freeze(before, BELOW)
    sharded(before, *BLOCKS)
    frozen = fl.freeze(model, BELOW)
    token = model.class_token
    found = {
        "one row is a shard on both": is_shard(token),
        "rows here": token.to_local().shape[0],
        "fingerprint": fl.fingerprint(model) == print_of_plain,
        "before and after": first.fingerprint == frozen.fingerprint,
        "proof": (str(first.verify()), str(frozen.verify())),
        "held": [model.train().get_submodule(part).training for part in BLOCKS],
        "held before": [before.train().get_submodule(part).training for part in BLOCKS],
        "trains": next(name for name, p in before.named_parameters() if p.requires_grad),
    }
    _loss(before).backward()
    found["gradients"] = next(n for n, p in before.named_parameters() if p.grad is not None)
    weight = model.encoder.layers.encoder_layer_1.mlp[0].weight
    if torch.distributed.get_rank() == 1:
        weight.data.to_local()[-1, -1] += 0.5
    found["drift"] = _error(frozen.verify)
    return found


def test_a_sharded_model_is_proved_by_the_tensors_of_the_plain_one() -> None:
    first, second = on_ranks(_proofs)
    assert (first.pop("rows here"), second.pop("rows here")) == (1, 0)
    assert first == second
    drift = first.pop("drift")
    assert "DriftError: one thing that FSDPVisionTransformer" in drift
    assert "encoder.layers.encoder_layer_1.mlp.0.weight: moved by up to 0.5 (1 of 888" in drift
    assert first.pop("proof") == ("28 frozen tensors (53.8 KB) are bit for bit as they were",) * 2
    assert first == {
        "one row is a shard on both": True,
        "fingerprint": True,
        "before and after": True,
        "held": [False, False, True],
        "held before": [False, False, True],
        "trains": "encoder.layers.encoder_layer_2.ln_1.weight",
        "gradients": "encoder.layers.encoder_layer_2.ln_1.weight",
    }


def _gathered_root() -> dict[str, Any]:
    _, model = both()
    fl.train_only(model, "heads | encoder.ln")
    with torch.no_grad():
        model.eval()(pictures()[0])
    is_gathered = not is_shard(model.heads.head.weight)
    fl.freeze(model, "encoder.ln")
    optimizer = torch.optim.AdamW(fl.param_groups(model, lr=1e-3))
    model.train()
    _step(model, optimizer)
    return {
        "gathered": is_gathered,
        "in the optimizer": [name for g in optimizer.param_groups for name in g["param_names"]],
        "sharded in it": [is_shard(p) for g in optimizer.param_groups for p in g["params"]],
        "trains": [name for name, p in model.named_parameters() if p.requires_grad],
    }


def test_what_is_frozen_after_an_evaluation_stays_frozen() -> None:
    """The root keeps what it gathered: switches thrown there are lost."""
    for found in on_ranks(_gathered_root):
        assert found == {
            "gathered": True,
            "in the optimizer": ["heads.head.weight", "heads.head.bias"],
            "sharded in it": [True, True],
            "trains": ["heads.head.weight", "heads.head.bias"],
        }


def _deltas(folder: Path) -> dict[str, Any]:
    rank = world_here("cpu").rank
    plain, model = both()
    for one, file in ((plain, f"plain{rank}"), (model, "sharded")):
        fl.freeze(one, BELOW)
        optimizer = torch.optim.AdamW(fl.param_groups(one, lr=1e-3), fused=False)
        for seed in range(2):
            _step(one, optimizer, seed=seed)
        fl.save_delta(one, folder / f"{file}.safetensors", about={"made": "here"})
    other = vit()
    fl.freeze(other, BELOW)
    sharded(other, *BLOCKS)
    delta = fl.load_delta(other, folder / "plain0.safetensors")
    missing = folder / "file" / "delta.safetensors"
    return {
        "differ": same(model, plain),
        "loaded differ": same(other, plain),
        "loaded": len(delta.tensors),
        "here": set(fl.deltas.delta_content(model)) == set(delta.tensors),
        "refused": _error(lambda: fl.save_delta(model, missing)).partition(":")[0],
        "other base": _error(lambda: fl.load_delta(_moved(), folder / "plain0.safetensors")),
    }


def _moved() -> nn.Module:
    model = vit()
    with torch.no_grad():
        model.conv_proj.bias[1] += 1
    fl.freeze(model, BELOW)
    return sharded(model, *BLOCKS)


def test_a_delta_of_shards_is_that_of_one_process(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way of a folder")
    first, second = on_ranks(_deltas, tmp_path)
    assert first["refused"] == second.pop("refused") == "OutputError"
    assert first.pop("refused")
    assert "trained on another base: 1 of 28 frozen tensors differ, first conv_proj.bias" in (
        first.pop("other base")
    )
    second.pop("other base")
    assert first == second == {"differ": [], "loaded differ": [], "loaded": 16, "here": True}
    mine, its = (
        _content(tmp_path / "sharded.safetensors"),
        _content(tmp_path / "plain0.safetensors"),
    )
    assert mine == its
    assert len(mine) == 17


def _content(file: Path) -> dict[str, object]:
    """The header, and the bytes of each tensor."""
    with safe_open(file, "pt") as content:
        tensors = {name: content.get_tensor(name).numpy().tobytes() for name in content.keys()}  # noqa: SIM118
        return {**tensors, "": content.metadata()}


def _optimizers() -> dict[str, Any]:
    plain, _ = both()
    model = copy.deepcopy(plain)
    made = []
    for one in (plain, model):
        fl.freeze(one, BELOW)
        made.append(torch.optim.AdamW(fl.param_groups(one, lr=1e-3), fused=False))
        _step(one, made[-1])
    unnamed = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    sharded(model, *BLOCKS)
    synced = fl.sync(made[1], model)
    kept = {type(value).__name__ for state in made[1].state.values() for value in state.values()}
    left = {}
    for one, optimizer in ((plain, made[0]), (model, made[1])):
        _step(one, optimizer, seed=1)
        fl.thaw(one, BLOCKS[1])
        fl.sync(optimizer, one)
        _step(one, optimizer, seed=2)
        fl.freeze(one, BLOCKS[2])
        left[one] = fl.sync(optimizer, one)
        _step(one, optimizer, seed=3)
        fl.thaw(one, BLOCKS[2])
        fl.sync(optimizer, one, kept=left[one])
        _step(one, optimizer, seed=4)
    state = fl.optimizer_state(made[0], plain)
    again = torch.optim.AdamW(fl.param_groups(model, lr=1e-3), fused=False)
    fl.load_optimizer_state(again, model, state)
    for one, optimizer in ((plain, made[0]), (model, again)):
        _step(one, optimizer, seed=5)
    weight = model.heads.head.weight
    return {
        "synced": str(synced),
        "kept": kept,
        "left": str(left[model]) == str(left[plain]),
        "differ": same(model, plain),
        "moments": torch.equal(
            whole(again.state[weight]["exp_avg"]),
            made[0].state[plain.heads.head.weight]["exp_avg"],
        ),
        "unnamed": _error(lambda: fl.sync(unnamed, model)),
        "rows": _error(lambda: fl.freeze(model, "rows:heads.head.weight[0:2]")),
        "doctor": str(fl.doctor(model, pictures()[0], optimizer=again)).splitlines()[0],
    }


def test_an_optimizer_goes_along_with_shards_bit_for_bit() -> None:
    first, second = on_ranks(_optimizers)
    assert first == second
    assert "whose own were replaced when it was sharded. Make the optimizer after" in (
        first.pop("unnamed")
    )
    assert "no rows of heads.head.weight can be held: it is a DTensor" in first.pop("rows")
    assert first == {
        "synced": "nothing joined, nothing left",
        "kept": {"Tensor", "DTensor"},
        "left": True,
        "differ": [],
        "moments": True,
        "doctor": "note: not-tried",
    }


def _casts() -> tuple[Any, ...]:
    plain, model = vit(), vit()
    for one in (plain, model):
        fl.freeze(one, BELOW, dtype="bfloat16")
    sharded(model, *BLOCKS)
    images, _ = pictures()
    return (
        torch.equal(model.eval()(images), plain.eval()(images)),
        fl.fingerprint(model) == fl.fingerprint(plain),
        model.conv_proj.weight.to_local().dtype,
        _error(lambda: fl.freeze(both()[1], BELOW, dtype="bfloat16")),
    )


def test_weights_kept_in_half_the_bits_are_sharded_so() -> None:
    for is_same, has_its_print, dtype, refused in on_ranks(_casts):
        assert is_same
        assert dtype == torch.bfloat16
        assert has_its_print
        assert "cannot be kept in bfloat16: it is a DTensor" in refused


def _left_out() -> tuple[Any, ...]:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3))
    fl.freeze(model, "rows:0.weight[0:2] | 0.bias")
    sharded(model[0])
    session = fl.Session(model, epochs=1, optimizer=None)
    session.enter()
    model(torch.ones(2, 6)).sum().backward()
    try:
        session.optimizer.step()
    except fl.FreezeError as error:
        refused = str(error)
    found = [(one.code, one.seen) for one in fl.doctor(model, optimizer=session.optimizer)]
    data = TensorDataset(torch.ones(2, 6), torch.tensor([0, 1]))
    return found, refused, _error(lambda: fl.fit(model, data, data, epochs=1))


def test_what_sharding_left_out_and_what_it_rules_out_is_named() -> None:
    for found, refused, fitted in on_ranks(_left_out):
        assert fitted.startswith("ModelError: the processes hold parts of this Sequential")
        assert "Train it in a loop of your own" in fitted
        assert found[:2] == [
            (
                "fsdp-left-out",
                "2 trainable parameters in no part that fully_shard was applied to: 1.weight, "
                "1.bias",
            ),
            ("fsdp-rows", "1 parameter with frozen rows, sharded since: 0.weight"),
        ]
        assert "no rows of 0.weight can be held: it is a DTensor" in refused
