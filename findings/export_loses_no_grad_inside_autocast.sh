#!/usr/bin/env bash
# torch.export loses a `no_grad` block that stands inside an autocast block: the exported module
# gives the same output, bit for bit, and other gradients. Whoever trains what was exported (a head
# over a frozen part, say) trains by a gradient that the model does not have. Without the autocast
# block around it, `no_grad` is kept and the gradients are equal.
# Seen with torch 2.15.0, CPU, torch.export.export(..., strict=False):
#   no_grad inside autocast: same output True, gradient off by 0.367
#   no_grad alone: same output True, gradient off by 0.000
. "$(dirname "$0")/environment.bash" torch==2.15.0 numpy==2.4.6
python -W ignore - <<'EOF'
import contextlib

import torch


class Model(torch.nn.Module):
    def __init__(self, around):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)
        self.around = around

    def forward(self, inputs):
        with self.around():
            outputs = self.layer(inputs)
            with torch.no_grad():
                shift = outputs.sin()
            return (outputs + shift).float()


def gradient(outputs, module):
    outputs.square().sum().backward()
    return next(p.grad for name, p in module.named_parameters() if name.endswith("weight"))


seen = {}
for words, around in (
    ("no_grad inside autocast", lambda: torch.autocast("cpu", torch.bfloat16)),
    ("no_grad alone", contextlib.nullcontext),
):
    torch.manual_seed(0)
    model, inputs = Model(around), torch.randn(8, 4)
    exported = torch.export.export(model, (inputs,), strict=False).module()
    outputs, plain = exported(inputs), model(inputs)
    same = torch.equal(outputs, plain)
    true = gradient(plain, model).clone()
    model.layer.zero_grad()
    found = gradient(outputs, exported)
    seen[words] = same, float((found - true).norm() / true.norm())
    print("{}: same output {}, gradient off by {:.3f}".format(words, *seen[words]))
assert seen["no_grad inside autocast"][0] and seen["no_grad inside autocast"][1] > 0.1, seen
assert seen["no_grad alone"] == (True, 0.0), seen
EOF
