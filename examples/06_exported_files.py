"""Predict with a file that `frostline export` wrote, without Frostline.

    python 06_exported_files.py model.onnx picture.jpg ...

ONNX needs onnxruntime, numpy and Pillow; the others need torch, and safetensors the model's own
library too. Open a .pt2 or a .torchscript file only if you trust it: it may bring code.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageOps

Loaded = tuple[dict[str, str], Callable[[np.ndarray], Any]]


def load_onnx(path: str) -> Loaded:
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    about = session.get_modelmeta().custom_metadata_map
    return about, lambda images: session.run(None, {"images": images})[0]


def load_pt2(path: str) -> Loaded:
    import torch

    extra = {"frostline.json": ""}
    model = torch.export.load(path, extra_files=extra).module()
    return json.loads(extra["frostline.json"]), lambda images: model(torch.from_numpy(images))


def load_torchscript(path: str) -> Loaded:
    import torch

    model = torch.jit.load(path, _extra_files=(extra := {"frostline.json": ""}))
    return json.loads(extra["frostline.json"]), lambda images: model(torch.from_numpy(images))


def load_safetensors(path: str) -> Loaded:
    """Of a model with a new linear layer in the place of its classifier, which is the default."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file

    with safe_open(path, "pt") as content:
        about = content.metadata()
    source, _, name = about["model"].partition(":")
    if source == "timm":
        from timm import create_model as build
    else:
        from torchvision.models import get_model as build
    model = build(name, num_classes=len(json.loads(about["classes"])))
    model.load_state_dict(load_file(path))
    model.eval()
    return about, lambda images: model(torch.from_numpy(images))


def prepared(path: str, how: dict[str, Any]) -> np.ndarray:
    """float32 `(1, channels, height, width)`: resized, cropped in the centre, scaled."""
    picture = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    (width, height), (tall, wide), size = picture.size, how["crop"], how["resize"]
    if isinstance(size, int):
        shorter = min(width, height)
        size = [size * height // shorter, size * width // shorter]
    picture = picture.resize(size[::-1], Image.Resampling[how["interpolation"].upper()])
    left, top = round((size[1] - wide) / 2), round((size[0] - tall) / 2)
    picture = picture.crop((left, top, left + wide, top + tall))
    picture = picture.convert("L" if len(how["mean"]) == 1 else "RGB")
    values = np.atleast_3d(np.asarray(picture, np.float32)) / 255
    values = (values - np.float32(how["mean"])) / np.float32(how["std"])
    return np.ascontiguousarray(values.transpose(2, 0, 1)[None])


if __name__ == "__main__":
    load = {
        "onnx": load_onnx,
        "pt2": load_pt2,
        "torchscript": load_torchscript,
        "safetensors": load_safetensors,
    }
    about, logits_of = load[sys.argv[1].rpartition(".")[2]](sys.argv[1])
    classes, how = json.loads(about["classes"]), json.loads(about["preprocessing"])
    for path in sys.argv[2:]:
        logits = np.asarray(logits_of(prepared(path, how)).tolist()[0])
        shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        print(path, classes[shares.argmax()], f"{shares.max():.3f}")
