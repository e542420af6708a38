#!/usr/bin/env bash
# The same tensors with the same notes, saved twice by safetensors, are two different files: the
# entries of `metadata` are written in another order each time, within one process too. Whoever tells
# a frozen base or a checkpoint by the hash of its file takes equal ones for others as soon as there
# are two notes. With one note the files are equal.
# Seen with safetensors 0.8.0: 1 file of 20 saves with one note, 20 files of 20 saves with six notes
. "$(dirname "$0")/environment.bash" numpy==2.4.6 safetensors==0.8.0
python - <<'EOF'
import numpy
from safetensors.numpy import save

weights = {"weight": numpy.zeros(4, dtype=numpy.float32)}
found = []
for names in ("a", "abcdef"):
    notes = dict.fromkeys(names, "the same")
    found.append(len({save(weights, metadata=notes) for _ in range(20)}))
print("{} file of 20 saves with one note, {} files of 20 saves with six notes".format(*found))
assert found[0] == 1 and found[1] > 5, found
EOF
