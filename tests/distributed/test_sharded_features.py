"""Features through a model of which each of two processes holds a part, and training on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import on_ranks
from safetensors.torch import load_file
from sharded_models import BELOW, BLOCKS, SMALL_PARTS, pictures, sharded, small_mobilenet, vit
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torchvision.models import mobilenet_v2

import frostline as fl
from frostline.world import ALONE, World

PARTS = tuple(f"features.{number}" for number in range(19))
PHASES = fl.Plan(
    [
        fl.Phase(train="classifier", epochs=2, lr=1e-2),
        fl.Phase(train="classifier | features.4", epochs=1, lr=1e-3),
    ]
)


class Pictures(fl.Samples):
    """21 small ones, so that one of two processes has a batch less than the other."""

    def __init__(self, *, broken: int = -1) -> None:
        self.targets, self.broken = torch.arange(21) % 3, broken

    def __len__(self) -> int:
        return 21

    def load(self, row: int) -> Tensor:
        if row == self.broken:
            raise fl.DataError(f"picture {row} is torn")
        return torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(row))


def network(weights: Path) -> Any:
    model = mobilenet_v2(num_classes=3)
    model.load_state_dict(load_file(weights), strict=False)
    torch.nn.init.zeros_(model.classifier[1].weight)
    return model


def example() -> Tensor:
    return torch.stack([Pictures().load(row) for row in (0, 1)])


def _extracted(root: Path, weights: Path) -> dict[str, Any]:
    model = sharded(network(weights), *PARTS)
    fl.train_only(model, "classifier")
    cut = fl.cut(model, example())
    gathered = _gathers(model)
    found = {"line": (cut.why, cut.error), "key": (cut.key["prefix"], str(cut.key["tensors"]))}
    for name, broken in {"torn": 20, "first": -1, "again": -1}.items():
        samples = Pictures(broken=broken)
        try:
            data = fl.extract(cut, samples, root / "store", precision="exact", batch_size=4)
        except fl.DataError as error:
            found[name] = str(error).removeprefix("process 1: ")
            continue
        found[name] = (data.computed, sum(data.computed_by), data.values(torch.arange(21))[0])
    gathered.clear()
    loss = cut.suffix(*data.values(torch.arange(4))).square().sum()
    loss.backward()
    found["gathered to train"] = list(gathered)
    return found


def _gathers(model: nn.Module) -> list[str]:
    """The units that are gathered from now on."""
    gathered: list[str] = []
    for path in ("", *PARTS):
        unit: Any = model.get_submodule(path)
        group = unit._get_fsdp_state()._fsdp_param_group
        plain = group.unshard

        def unshard(*given: Any, path: str = path, plain: Any = plain, **named: Any) -> Any:
            gathered.append(path)
            return plain(*given, **named)

        group.unshard = unshard
    return gathered


def test_a_sharded_frozen_part_gives_the_rows_of_the_plain_one(
    tmp_path: Path, data_dir: Path
) -> None:
    weights = data_dir / "weights" / "mobilenet_v2.features.safetensors"
    first, second = on_ranks(_extracted, tmp_path, weights)
    plain = network(weights)
    fl.train_only(plain, "classifier")
    cut = fl.cut(plain, example(), at="features")
    options = {"precision": "exact", "batch_size": 4}
    data = fl.extract(cut, Pictures(), tmp_path / "store", **options)
    alone = fl.extract(cut, Pictures(), tmp_path / "alone", **options)
    rows = alone.values(torch.arange(21))[0]
    assert (data.computed, alone.computed) == (0, 21)
    for found in (first, second):
        assert found["line"] == ("behind features, as asked", 0.0)
        assert found["key"] == (cut.key["prefix"], str(cut.key["tensors"]))
        assert found["torn"] == "picture 20 is torn"
        assert found["first"][:2] == (21, 21)
        assert found["again"][:2] == (0, 0)
        assert torch.equal(found["first"][2], rows)
        assert torch.equal(found["again"][2], rows)
        assert set(found["gathered to train"]) == {""}  # of the root, which has the classifier


def trained(model: nn.Module, store: Path, *, world: World = ALONE) -> fl.Session:
    """Both phases, on stored features."""
    session = fl.Session(
        model,
        PHASES,
        optimizer=lambda groups: torch.optim.AdamW(groups, fused=False),
        world=world,
        seed=3,
    )
    while not session.is_over:
        session.enter()
        data = session.data(
            Pictures(), Pictures(), batch_size=6, features=str(store), precision="exact"
        )
        assert "Frost " in data.says[0], data.says
        while not session.phase_end:
            for batch in session.epoch(data.train):
                nn.functional.cross_entropy(data(batch), batch.targets).backward()
                session.optimizer.step()
                session.optimizer.zero_grad()
                session.after_step()
            session.end_epoch()
        session.leave()
    return session


def _trained(root: Path) -> dict[str, Any]:
    model = sharded(small_mobilenet(), *SMALL_PARTS)
    session = trained(model, root / "store")
    fl.save_delta(model, root / "sharded.safetensors")
    return {"proof": str(session.verify()), "bits": fl.fingerprint(model)}


def test_phases_on_stored_features_end_at_the_bits_of_one_process(tmp_path: Path) -> None:
    """Both processes are given the same batches: their mean gradient is that of one."""
    first, second = on_ranks(_trained, tmp_path)
    plain = small_mobilenet()
    session = trained(plain, tmp_path / "alone")
    assert first == second == {"proof": str(session.verify()), "bits": fl.fingerprint(plain)}
    again = small_mobilenet()
    fl.train_only(again, "classifier | features.4")
    fl.load_delta(again, tmp_path / "sharded.safetensors")
    assert fl.fingerprint(again) == fl.fingerprint(plain)


def _in_bfloat16() -> dict[str, Any]:
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, output_dtype=torch.float32)
    cuts = {}
    for name, options in {"half": {"mp_policy": half}, "plain": {}}.items():
        model = vit(dropout=0.0)
        fl.freeze(model, BELOW)
        for block in BLOCKS:
            sharded(model.get_submodule(block), **options)
        cuts[name] = fl.cut(sharded(model), pictures()[0])
    values = {name: cut.prefix(pictures()[0])[0] for name, cut in cuts.items()}
    with pytest.MonkeyPatch.context() as patch:  # a torch that does not find back
        for module in ("sharding", "cutting.at_module"):
            patch.setattr(f"frostline.{module}.can_be_cut_short", lambda _: False)
        whole = fl.cut(cuts["plain"].suffix.model, pictures()[0]).prefix(pictures()[0])[0]
    away = (values["half"] - values["plain"]).norm() / values["plain"].norm()
    return {
        "lines": {cut.why for cut in cuts.values()},
        "keys": {cut.key["prefix"] for cut in cuts.values()},
        "tensors": len({str(cut.key["tensors"]) for cut in cuts.values()}),
        "runs to its end": torch.equal(whole, values["plain"]),
        "away": float(away),
        "crosses": {str(cut.frontier.values[0].dtype) for cut in cuts.values()},
    }


def test_a_part_that_is_computed_in_bfloat16_has_rows_of_its_own() -> None:
    for found in on_ranks(_in_bfloat16):
        assert found["lines"] == {f"behind {BLOCKS[1]}, as asked"}
        assert len(found["keys"]) == 2
        assert found["tensors"] == 1
        assert found["runs to its end"]
        assert 1e-4 < found["away"] < 0.1
        assert found["crosses"] == {"torch.float32"}
