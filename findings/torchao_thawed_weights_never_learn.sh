#!/usr/bin/env bash
# A layer that torchao has quantised can be thawed, and then learns nothing: its weight takes
# `requires_grad_(True)` and says so, `backward()` runs, an optimizer accepts and steps it, but the
# weight never gets a gradient (its bias does).
# Seen with torchao 0.18.0, torch 2.15.0, CPU, for int8 weight-only and float8 weight-only:
#   Int8WeightOnlyConfig: requires_grad True, gradient of weight None, of bias there; 20 steps of
#   SGD move the weight by 0.0
#   Float8WeightOnlyConfig: the same
. "$(dirname "$0")/environment.bash" torch==2.15.0 numpy==2.4.6 torchao==0.18.0
quietly python -W ignore - <<'EOF'
import torch
import torchao.quantization as quantization

torch.manual_seed(0)
for name in ("Int8WeightOnlyConfig", "Float8WeightOnlyConfig"):
    model = torch.nn.Sequential(torch.nn.Linear(64, 64))
    quantization.quantize_(model, getattr(quantization, name)())
    weight, bias = model[0].weight, model[0].bias
    model.requires_grad_(True)
    before = weight.dequantize().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        model(torch.randn(16, 64)).square().mean().backward()
        optimizer.step()
    moved = float((weight.dequantize() - before).abs().max())
    there = ["None" if p.grad is None else "there" for p in (weight, bias)]
    print(
        f"{name}: requires_grad {weight.requires_grad}, gradient of weight {there[0]}, of bias "
        f"{there[1]}; 20 steps of SGD move the weight by {moved}"
    )
    assert weight.requires_grad and there == ["None", "there"] and moved == 0.0
EOF
