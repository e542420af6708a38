"""Lean beside what else sits between a model and autograd: DDP, offloading, hooks on gradients."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lean_world import check, same, step
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks

import frostline as fl


def network() -> nn.Module:
    """Frozen but for the first convolution and the norm behind it."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
        *(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU6(), nn.MaxPool2d(2)),
        *(nn.Dropout(0.3), nn.Flatten(), nn.Linear(8 * 36, 5)),
    )
    fl.train_only(model, "0 | 1")
    return model.train()


def pictures(seed: int) -> Tensor:
    return torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def test_two_processes_of_ddp_give_the_plain_gradients(tmp_path: Path) -> None:
    if not dist.is_available():
        pytest.skip("this build of PyTorch has no torch.distributed")
    mp.spawn(_worker, (str(tmp_path),), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for plain, *leaned in found:
        assert len(plain) == 4 * 3
        assert [same(plain, lean) for lean in leaned] == [True, True]
    for one, other in zip(*found, strict=True):
        assert same(one, other)  # averaged, or both would have their own


def _worker(rank: int, folder: str) -> None:
    """Gradients of DDP plainly, around a model that is leaned, and leaned as a whole."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = [_gradients(nn.parallel.DistributedDataParallel(network()), rank)]
    for whole in (False, True):
        wrapped = nn.parallel.DistributedDataParallel(network())
        with fl.lean(wrapped if whole else wrapped.module, at_least_bytes=0):
            found.append(_gradients(wrapped, rank))
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads may abort an interpreter that shuts down


def _gradients(model: nn.Module, rank: int) -> list[Tensor]:
    """Of three steps."""
    found = []
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    torch.manual_seed(rank)
    for number in range(3):
        optimizer.zero_grad()
        model(pictures(10 * rank + number)).square().mean().backward()
        found += [p.grad.clone() for p in model.parameters() if p.grad is not None]
        optimizer.step()
    return found


def test_what_is_offloaded_comes_back_the_same() -> None:
    def offloaded(model: nn.Module, inputs: Tensor) -> Tensor:
        with save_on_cpu():
            return model(inputs)

    model = network()
    plain = step(model, pictures(1))
    with fl.lean(model, at_least_bytes=0):
        leaned = step(model, pictures(1), offloaded)
    assert same(plain.gradients, leaned.gradients)


def test_hooks_that_change_what_is_saved_see_it_all() -> None:
    seen: list[int] = []

    def pack(tensor: Tensor) -> Any:
        seen.append(tensor.nbytes)
        return tensor.to(torch.float64) if tensor.is_floating_point() else tensor

    def unpack(packed: Tensor) -> Tensor:
        return packed.to(torch.float32) if packed.is_floating_point() else packed

    def run(model: nn.Module, inputs: Tensor) -> Tensor:
        with saved_tensors_hooks(pack, unpack):
            return model(inputs)

    model = network()
    plain = step(model, pictures(1))
    with fl.lean(model, at_least_bytes=0):
        leaned = step(model, pictures(1), run)
    assert seen
    assert same(plain.gradients, leaned.gradients)


def test_hooks_on_tensors_and_modules_see_what_they_see_plain() -> None:
    def noted(model: nn.Module) -> list[Tensor]:
        found: list[Tensor] = []
        handles = [
            *(
                module.register_full_backward_hook(
                    lambda _m, given, taken: found.extend(
                        t.clone() for t in (*given, *taken) if t is not None
                    )
                )
                for module in (model[3], model[4], model[6])  # type: ignore[index]  # sequential
            ),
            *(
                p.register_post_accumulate_grad_hook(lambda p: found.append(p.grad.clone()))
                for p in model.parameters()
                if p.requires_grad
            ),
        ]
        step(model, pictures(2))
        for handle in handles:
            handle.remove()
        return found

    model = network()
    plain = noted(copy.deepcopy(model))
    with fl.lean(model, at_least_bytes=0):
        leaned = noted(model)
    assert len(plain) > 6
    assert same(plain, leaned)


def test_with_all_frozen_the_input_still_gets_its_gradient() -> None:
    model = network()
    fl.freeze(model, "all", leaving="nothing")
    plain, leaned = check(model, pictures(3).requires_grad_())
    assert leaned < plain / 2


def test_a_cut_holds_while_its_attention_is_leaned_and_afterwards() -> None:
    model = nn.Sequential(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), nn.Linear(16, 2))
    fl.freeze(model, "0")
    inputs = torch.randn(4, 5, 16)
    cut = fl.cut(model, inputs)
    plain = cut.suffix(*cut.prefix(inputs))
    with fl.lean(model):
        assert torch.equal(cut.suffix(*cut.prefix(inputs)), plain)
    assert torch.equal(cut.suffix(*cut.prefix(inputs)), plain)
