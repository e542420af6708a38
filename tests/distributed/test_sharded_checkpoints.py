"""The resume state of a session, saved by two processes and read by two, or by one."""

from __future__ import annotations

import os
import pickle
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import ends_of, on_ranks
from sharded_models import SMALL_PARTS, sharded, small_mobilenet
from test_sharded_features import PHASES, Pictures
from torch import nn

import frostline as fl
from frostline.session import load_checkpoint, save_checkpoint
from frostline.world import world_here

KILLED_AT = 10  # of 12 steps: in the second phase, within its epoch


def _session(model: nn.Module, plan: fl.Plan = PHASES) -> fl.Session:
    make = torch.optim.AdamW
    return fl.Session(model, plan, optimizer=make, world=world_here("cpu"), seed=3)


def _trained(session: fl.Session, folder: Path | None = None, *, steps: int = 99) -> dict[str, Any]:
    """Each process on its share of each batch; saved after the first and the last of the steps."""
    count = steps
    while not session.is_over:
        session.enter()
        data = session.data(Pictures(), Pictures(), batch_size=6)
        while not session.phase_end:
            for batch in session.epoch(data.train):
                nn.functional.cross_entropy(data(batch), batch.targets).backward()
                session.optimizer.step()
                session.optimizer.zero_grad()
                session.after_step()
                if folder is not None and steps in (count, 1):
                    save_checkpoint(session, folder)
                steps -= 1
                if not steps:
                    return _bits(session)
            session.end_epoch()
        session.leave()
    return _bits(session)


def _bits(session: fl.Session) -> dict[str, Any]:
    state = fl.optimizer_state(session.optimizer, session.model)["parameters"]
    moments = {name: one["state"]["exp_avg"] for name, one in state.items()}
    return {
        "model": dict(fl.fingerprint(session.model).tensors),
        "moments": dict(fl.fingerprints.fingerprint_of(moments).tensors),
        "steps": session.position.phase_steps,
    }


def _whole() -> dict[str, Any]:
    return _trained(_session(sharded(small_mobilenet(), *SMALL_PARTS)))


def _killed(folder: Path) -> None:
    session = _session(sharded(small_mobilenet(), *SMALL_PARTS))
    found = _trained(session, folder, steps=KILLED_AT)
    (folder.parent / f"at {session.world.rank}").write_bytes(pickle.dumps(found))
    session.world.barrier()
    if session.world.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    session.world.barrier()


def _resumed(folder: Path) -> dict[str, Any]:
    session = _session(sharded(small_mobilenet(), *SMALL_PARTS))
    load_checkpoint(session, folder)
    return _trained(session)


def test_a_killed_group_goes_on_to_the_bits_of_one_that_was_not(tmp_path: Path) -> None:
    whole = on_ranks(_whole)
    ends = ends_of(_killed, tmp_path / "cut")
    assert [end.status for end in ends] == [1, -signal.SIGKILL]
    saved = [pickle.loads((tmp_path / f"at {rank}").read_bytes()) for rank in (0, 1)]
    plain = _session(small_mobilenet())
    load_checkpoint(plain, tmp_path / "cut")
    plain.enter()
    found = _bits(plain)
    assert found == saved[0]
    own = [n for n, digest in saved[0]["model"].items() if digest != saved[1]["model"][n]]
    assert own
    assert all("running" in name for name in own)  # each process has its own statistics
    assert _trained(plain)["steps"] == 4
    resumed = on_ranks(_resumed, tmp_path / "cut")
    assert resumed == whole
    assert whole[0]["model"] != saved[0]["model"]


def _saved(folder: Path) -> fl.Session:
    """A session of one process without a group, saved after its third step."""
    session = _session(small_mobilenet())
    _trained(session, folder, steps=3)
    return session


def test_a_checkpoint_that_is_cut_short_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, session = tmp_path / "last", _saved(tmp_path / "last")
    before = _bits(session)
    nn.functional.cross_entropy(session.model(_pictures()), torch.tensor([0, 1])).backward()
    session.optimizer.step()
    session.after_step()
    rename = Path.rename

    def killed(path: Path, target: Path) -> Path:
        if path.name == "last.writing":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(session, folder)
    assert not folder.exists()
    monkeypatch.undo()
    assert _loaded(folder) == before
    save_checkpoint(session, folder)
    assert _loaded(folder) == _bits(session) != before
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def _pictures() -> torch.Tensor:
    return torch.stack([Pictures().load(row) for row in (0, 1)])


def _loaded(folder: Path) -> dict[str, Any]:
    session = _session(small_mobilenet())
    load_checkpoint(session, folder)
    session.enter()
    return _bits(session)


def test_a_checkpoint_that_does_not_do_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "last"
    _saved(folder)
    other = small_mobilenet()
    with torch.no_grad():
        other.features[0][0].weight[0] += 1
    with pytest.raises(fl.DeltaError, match=r"last was trained on another base: 1 of"):
        load_checkpoint(_session(other), folder)
    head = small_mobilenet()
    head.classifier[1] = nn.Linear(head.last_channel, 4)
    with pytest.raises(fl.DeltaError, match=r"holds classifier\.1\.weight with the shape"):
        load_checkpoint(_session(head), folder)
    plan = fl.Plan([fl.Phase(train="classifier.1.bias", epochs=1)])
    with pytest.raises(fl.ConfigError, match="the state is of another plan"):
        load_checkpoint(_session(small_mobilenet(), plan), folder)
    with pytest.raises(fl.ConfigError, match=r"there is no whole checkpoint at .*nothing"):
        load_checkpoint(_session(other), tmp_path / "nothing")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").touch()
    with pytest.raises(fl.OutputError, match="mine is there and is no checkpoint"):
        save_checkpoint(_session(other), tmp_path / "mine")
    for at in (0.3, 0.6, 0.9):
        _flip(next(folder.glob("*.distcp")), at)
        with pytest.raises(fl.CorruptDelta, match=r"last (is damaged|cannot be read)"):
            load_checkpoint(_session(small_mobilenet()), folder)
        _flip(next(folder.glob("*.distcp")), at)
    assert _loaded(folder)["steps"] == 3


def _flip(file: Path, at: float) -> None:
    """One bit of it, at this share of its length; the second time it is as before."""
    content = bytearray(file.read_bytes())
    content[int(len(content) * at)] ^= 4
    file.write_bytes(content)
