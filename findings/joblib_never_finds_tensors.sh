#!/usr/bin/env bash
# joblib.Memory, which scikit-learn's pipelines use as their cache, never finds the features of a
# torch tensor or module again: joblib's hash takes in where the tensor lies in memory, so an equal
# copy counts as another argument. (A NumPy array is hashed by its content.)
# Seen with joblib 1.6.0, torch 2.15.0:
#   equal arrays: 1 call, equal tensors: 2 calls, equal modules: 2 calls
. "$(dirname "$0")/environment.bash" torch==2.15.0 numpy==2.4.6 joblib==1.6.0
python -W ignore - <<'EOF'
import copy

import joblib
import numpy
import torch

calls = []
memory = joblib.Memory("cache", verbose=0)


@memory.cache
def features(images, backbone=None):
    calls.append(1)
    return numpy.asarray(images).sum()


def counted(*arguments):
    calls.clear()
    features(*arguments)
    features(*copy.deepcopy(arguments))
    return len(calls)


array = numpy.ones((4, 3), dtype=numpy.float32)
seen = [
    counted(array),
    counted(torch.ones(4, 3)),
    counted(array, torch.nn.Linear(3, 2).requires_grad_(False)),
]
print("equal arrays: {} call, equal tensors: {} calls, equal modules: {} calls".format(*seen))
assert seen == [1, 2, 2], seen
EOF
