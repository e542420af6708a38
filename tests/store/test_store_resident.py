"""Reading a store larger than the limit gives its pages back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from frostline.store import FeatureKey, FeatureStore, ValueSpec, reading

ROWS, WIDTH = 20_000, 4096  # 328 MB
mapped_file_bytes = reading._resident_file_bytes


def test_pages_that_were_read_are_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("resident memory is read from /proc")
    monkeypatch.setattr(reading, "_ASKED_EVERY", 1)
    spec = ValueSpec("value", (WIDTH,), torch.float32)
    features = FeatureStore(tmp_path).open(FeatureKey({"what": "test"}), (spec,))
    ids = [number.to_bytes(16, "big") for number in range(ROWS)]
    with features.writer() as writer:
        for start in range(0, ROWS, 500):
            values = torch.arange(start, start + 500).float()[:, None].expand(-1, WIDTH)
            writer.put(ids[start : start + 500], [values.contiguous()])
    rows = features.read(ids)
    before, most = mapped_file_bytes(), 0
    monkeypatch.setattr(reading, "RESIDENT_BYTES", 16 << 20)
    # A process that has loaded many libraries holds more of theirs than of these rows.
    monkeypatch.setattr(reading, "_resident_file_bytes", lambda: mapped_file_bytes() - before)
    assert sum(f.stat().st_size for f in tmp_path.rglob("*.npy")) > ROWS * WIDTH * 4
    for indices in torch.randperm(ROWS).split(20)[:400]:
        (found,) = rows.gather(indices)
        assert torch.equal(found[:, 0].long(), indices)
        most = max(most, mapped_file_bytes() - before)
    assert most < 200 << 20
