#!/usr/bin/env bash
# Lightning writes PYTORCH_NVML_BASED_CUDA_CHECK=1 into the environment when it is imported, so that
# a process may still fork after it asked for CUDA. One expects that to cost a moment, once. But torch
# (the CUDA build, on a machine without NVIDIA's driver) then tries to load the driver's library at
# each question instead of answering in 1 to 4 us, and every step of an optimizer asks once: the step
# of a small head takes a third longer, in plain loops too. With the variable deleted behind the
# import it does not. Seen with lightning 2.6.6, torch 2.15.0, one thread:
#   us a question: 1.4 without, 67 with it; us a step of a head of 1280 x 2, Adam: 441, 580
. "$(dirname "$0")/environment.bash" torch==2.15.0 numpy==2.4.6 lightning==2.6.6
quietly python -W ignore - <<'EOF'
import os
import statistics
import time

import lightning
import torch
from torch import nn

NAME = "PYTORCH_NVML_BASED_CUDA_CHECK"
assert os.environ[NAME] == "1"
torch.set_num_threads(1)
head = nn.Linear(1280, 2)
rows, classes = torch.randn(32, 1280), torch.randint(2, (32,))
optimizer = torch.optim.Adam(head.parameters())


def step():
    optimizer.zero_grad()
    nn.functional.cross_entropy(head(rows), classes).backward()
    optimizer.step()


def microseconds(work, count=300):
    begun = time.perf_counter()
    for _ in range(count):
        work()
    return (time.perf_counter() - begun) / count * 1e6


asked, really = [0], torch.cuda.is_available


def counting():
    asked[0] += 1
    return really()


torch.cuda.is_available = counting
microseconds(step, 100)
torch.cuda.is_available = really
times = {(what, kept): [] for what in (really, step) for kept in (False, True)}
for _ in range(7):
    for (what, kept), found in times.items():
        os.environ.pop(NAME, None)
        if kept:
            os.environ[NAME] = "1"
        found.append(microseconds(what))
median = {key: statistics.median(found) for key, found in times.items()}
for what, word in ((really, "question"), (step, "step")):
    print(f"us a {word}: {median[what, False]:.1f} without the variable, {median[what, True]:.1f} with")
assert torch.backends.cuda.is_built() and not really(), "a driver is here, which answers otherwise"
assert asked[0] == 100
assert median[really, True] > 5 * median[really, False]
assert median[step, True] > 1.08 * median[step, False]
EOF
