#!/usr/bin/env bash
# tensordict writes float8 tensors to its memory-mapped folders without a word, and then cannot
# read the folder: its table of dtypes, from text back to dtype, has no float8. bfloat16 works.
# Whoever keeps features or weights of a frozen part in eight bits finds out when they are needed.
# Seen with tensordict 0.15.3, torch 2.15.0:
#   bfloat16: read back, equal
#   float8_e4m3fn: written (60 bytes), reading raises KeyError: 'torch.float8_e4m3fn'
#   float8_e5m2: written (60 bytes), reading raises KeyError: 'torch.float8_e5m2'
. "$(dirname "$0")/environment.bash" torch==2.15.0 numpy==2.4.6 tensordict==0.15.3
python -W ignore - <<'EOF'
from pathlib import Path

import torch
from tensordict import TensorDict

seen = {}
for dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):
    name = str(dtype).removeprefix("torch.")
    features = torch.linspace(-2, 2, 60).view(10, 6).to(dtype)
    TensorDict({"features": features}, batch_size=[10]).memmap(name)
    try:
        back = TensorDict.load_memmap(name)["features"]
        seen[name] = "read back, equal" if torch.equal(back, features) else "other values"
    except KeyError as error:
        written = Path(name, "features.memmap").stat().st_size
        seen[name] = f"written ({written} bytes), reading raises KeyError: {error}"
    print(f"{name}: {seen[name]}")
assert seen["bfloat16"] == "read back, equal"
for name in ("float8_e4m3fn", "float8_e5m2"):
    assert seen[name] == f"written (60 bytes), reading raises KeyError: 'torch.{name}'", seen
EOF
