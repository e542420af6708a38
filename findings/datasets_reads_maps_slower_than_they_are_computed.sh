#!/usr/bin/env bash
# Features of a frozen network are kept in a Hugging Face dataset: `dataset.map` computes them, the
# torch format reads them back. A tensor of (rows, channels, height, width) becomes a list of lists
# of lists there, and one expects that to cost something: twice, or ten times the reading of flat
# rows. It costs a thousand times: reading the last map of MobileNetV2 for a batch of 64 takes longer
# than computing it anew in one thread. The same numbers as flat rows (`flatten(1)` before, `view`
# behind) are read in no time, with the same bits. The type that datasets has for arrays of fixed shape,
# Array3D, refuses tensors (ArrowTypeError). Seen with datasets 5.2.0, torch 2.15.0, one thread:
#   64 pictures at 224 px, map of 1280 x 7 x 7: computed 6.0 s, read 23 s, read flat 0.01 s
. "$(dirname "$0")/environment.bash" \
    torch==2.15.0 torchvision==0.29.2 numpy==2.4.6 datasets==5.2.0 pyarrow==26.0.1
export HF_DATASETS_CACHE="$folder/cache" HF_HUB_OFFLINE=1
quietly python -W ignore - <<'EOF'
import time

import datasets
import pyarrow
import torch
from datasets import Array3D, Dataset, Features, Value
from torchvision.models import mobilenet_v2

datasets.disable_progress_bars()
torch.set_num_threads(1)
torch.manual_seed(0)
ROWS = 64
frozen = mobilenet_v2().features.eval()
pictures = torch.randn(ROWS, 3, 224, 224)
numbers = Dataset.from_dict({"row": list(range(ROWS))})


def seconds(work):
    begun = time.perf_counter()
    found = work()
    return time.perf_counter() - begun, found


with torch.no_grad():
    frozen(pictures[:8])
    computing, maps = seconds(lambda: frozen(pictures))


def kept(values, features=None):
    def give(batch):
        return {"features": values[batch["row"]]}

    made = numbers.map(give, batched=True, batch_size=ROWS, features=features)
    return made.with_format("torch")


nested, flat = kept(maps), kept(maps.flatten(1))
reading, again = seconds(lambda: nested[:ROWS]["features"])
reading_flat, again_flat = seconds(lambda: flat[:ROWS]["features"])
assert torch.equal(again, maps)
assert torch.equal(again_flat.view_as(maps), maps)
shape = Array3D(tuple(maps.shape[1:]), "float32")
try:
    kept(maps, Features({"row": Value("int64"), "features": shape}))
    refused = False
except pyarrow.ArrowTypeError:
    refused = True
print(f"a batch of {ROWS} maps of {tuple(maps.shape[1:])}:")
print(f"computed {computing:.1f} s, read {reading:.1f} s, read as flat rows {reading_flat:.3f} s")
print(f"Array3D refuses tensors: {refused}")
assert reading > computing
assert reading > 200 * reading_flat
assert refused
EOF
