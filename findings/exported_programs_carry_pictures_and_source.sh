#!/usr/bin/env bash
# A model is exported to be handed on. One expects weights and a graph in the file; there is also the
# example that it was traced with, number by number (somebody's photos, if these were real), and the
# lines of the source that made each operation, with comments and the path of the file. A linear model
# of 7 KB traced on 8 photos of 224 x 224 makes a file of 4.8 MB. The ONNX file has no example, but has
# the lines too.
# Seen with torch 2.15.0, onnx 1.23.2, onnxscript 0.7.2, CPU:
#   weights: 0.01 MB
. "$(dirname "$0")/environment.bash" torch==2.15.0 numpy==2.4.6 onnx==1.23.2 onnxscript==0.7.2
cat >model.py <<'EOF'
import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(3, 600)

    def forward(self, photos):
        return self.head(photos.mean((2, 3)))  # ask Ann before you change this
EOF
quietly python -W ignore - <<'EOF'
import io
import zipfile
from pathlib import Path

import torch
from model import Net

photos = torch.rand(8, 3, 224, 224, generator=torch.Generator().manual_seed(0))
picture = photos[0].numpy().tobytes()
net = Net().eval()
weights = sum(p.numel() * p.element_size() for p in net.parameters())
print(f"weights: {weights / 1e6:.2f} MB")
found = {}


def contents(data):
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return data
    archive = zipfile.ZipFile(io.BytesIO(data))
    return b"".join(contents(archive.read(name)) for name in archive.namelist())


def show(words, file):
    data = Path(file).read_bytes()
    inside = contents(data)
    found[words] = picture in inside, b"ask Ann" in inside
    has = f"has the example: {found[words][0]}, the comment: {found[words][1]}"
    print(f"{words}: {len(data) / 1e6:.2f} MB, {has}")


program = torch.export.export(net, (photos,))
torch.export.save(program, "net.pt2")
show(".pt2", "net.pt2")
torch.onnx.export(program, dynamo=True, verbose=False).save("net.onnx")
program.example_inputs = None
torch.export.save(program, "bare.pt2")
show(".pt2 without example_inputs", "bare.pt2")
show(".onnx", "net.onnx")
assert found == {
    ".pt2": (True, True),
    ".pt2 without example_inputs": (False, True),
    ".onnx": (False, True),
}, found
EOF
