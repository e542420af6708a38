#!/usr/bin/env bash
# An optimizer that keeps a text in a parameter's state (a mode, the name of a phase) gets it back
# from `load_state_dict` as the text of a generator object, and a bounded deque without its bound:
# `_cast` builds every iterable anew from a generator.
# Seen with torch 2.15.0:
#   'slow' comes back as '<generator object Optimizer.load_state_dict.<'..., deque(maxlen=2) as
#   deque(maxlen=None)
. "$(dirname "$0")/environment.bash" torch==2.15.0 numpy==2.4.6
python -W ignore - <<'EOF'
from collections import deque

import torch

parameter = torch.nn.Parameter(torch.ones(2))
optimizer = torch.optim.SGD([parameter], lr=0.1)
optimizer.state[parameter] = {"mode": "slow", "losses": deque([1.0, 2.0], maxlen=2)}
optimizer.load_state_dict(optimizer.state_dict())
mode, losses = optimizer.state[parameter].values()
print(f"'slow' comes back as {mode[:45]!r}..., deque(maxlen=2) as deque(maxlen={losses.maxlen})")
assert mode.startswith("<generator object Optimizer.load_state_dict"), mode
assert list(losses) == [1.0, 2.0] and losses.maxlen is None
EOF
