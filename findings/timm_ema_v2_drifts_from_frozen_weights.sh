#!/usr/bin/env bash
# timm's ModelEmaV2 averages frozen weights too, by multiply and add, and their rounding does not
# cancel out: in float32 with its default decay a fifth of the frozen weights have moved after one
# update, and hundreds of times as far after a thousand. In half precision nothing moves. ModelEmaV3
# (lerp) leaves each bit in float32 and float16, but in bfloat16 a few weights run away.
# Seen with timm 1.0.31, torch 2.15.0, CPU, a frozen 256 x 256 linear layer, decay 0.9999 (share of
# weights moved and relative error after 1, 100 and 1000 updates):
#   ModelEmaV2 float32: 0.21 4e-08, 0.21 3e-06, 0.21 3e-05
#   ModelEmaV2 float16: 0.00 0e+00, 0.00 0e+00, 0.00 0e+00
#   ModelEmaV2 bfloat16: 0.00 0e+00, 0.00 0e+00, 0.00 0e+00
#   ModelEmaV3 float32: 0.00 0e+00, 0.00 0e+00, 0.00 0e+00
#   ModelEmaV3 float16: 0.00 0e+00, 0.00 0e+00, 0.00 0e+00
#   ModelEmaV3 bfloat16: 0.00 0e+00, 0.00 8e-05, 0.00 3e-04
. "$(dirname "$0")/environment.bash" torch==2.15.0 torchvision==0.29.2 numpy==2.4.6 timm==1.0.31
python -W ignore - <<'EOF'
import torch
from timm.utils import ModelEmaV2, ModelEmaV3


def drift(average, dtype):
    torch.manual_seed(0)
    model = torch.nn.Linear(256, 256).to(dtype).requires_grad_(False)
    ema, seen = average(model), []
    for update in range(1, 1001):
        ema.update(model)
        if update in (1, 100, 1000):
            copy, weight = ema.module.weight.float(), model.weight.float()
            share = float((copy != weight).float().mean())
            seen.append((share, float((copy - weight).norm() / weight.norm())))
    return seen


found = {}
for average in (ModelEmaV2, ModelEmaV3):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        found[average, dtype] = seen = drift(average, dtype)
        name = f"{average.__name__} {str(dtype).removeprefix('torch.')}"
        print(f"{name}: " + ", ".join(f"{share:.2f} {error:.0e}" for share, error in seen))
        if average is ModelEmaV3 and dtype is not torch.bfloat16:
            assert all(pair == (0.0, 0.0) for pair in seen), seen
single = found[ModelEmaV2, torch.float32]
assert single[0][0] > 0.1 and single[0][1] < 1e-6 and single[2][1] > 100 * single[0][1], single
assert found[ModelEmaV3, torch.bfloat16][2][1] > 1e-5, found
assert max(share for share, _ in found[ModelEmaV2, torch.float16]) < 0.01, found
EOF
