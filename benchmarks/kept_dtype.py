"""What does it cost to keep frozen weights in bfloat16? Bytes, outputs and time, beside float32.

    python benchmarks/kept_dtype.py [--repeats 9] [--json FILE]

SqueezeNet 1.1 and MobileNetV2 with their ImageNet weights on the 153 photos of hymenoptera's
`val/`, ResNet-18 with random ones on noise. The output is the logits, MobileNetV2's the pooled
features. `same largest` is the share of photos of which the largest output is the same one. A step
is forward and backward of 16 pictures with the first convolution trainable, so that a gradient
passes through every frozen weight; both sides take turns.
"""

from __future__ import annotations

import copy

import torch
from memory_models import STEMS
from shared import DATA, median, options, report, seconds, table, threads
from torch import Tensor, nn

import frostline as fl
from frostline.data import ImageDataset, read_splits
from frostline.models import load_model

WEIGHTS = {
    "squeezenet1_1": str(DATA / "weights" / "squeezenet1_1.pth"),
    "mobilenet_v2": str(DATA / "weights" / "mobilenet_v2.features.safetensors"),
    "resnet18": "none",
}
DTYPES = ("bfloat16", "float16")
HEADINGS = ("network", "kept in", "weights MB", "float32", "weight error", "output error")


def main() -> None:
    chosen = options(__doc__, networks=tuple(WEIGHTS))
    threads()
    result: dict[str, dict[str, object]] = {}
    rows = [(*HEADINGS, "same largest", "step time")]
    for name in chosen.networks:
        model, photos = network(name)
        for dtype in DTYPES:
            found = one(name, model, photos, dtype, chosen.repeats)
            result[f"{name} {dtype}"] = found
            sizes = (f"{found[key] / 1e6:.2f}" for key in ("nbytes", "former_nbytes"))
            errors = (f"{found[key]:.2%}" for key in ("weight_error", "output_error"))
            rest = f"{found['same_largest']:.1%}", f"{found['time_ratio']:.2f}"
            rows.append((name, dtype, *sizes, *errors, *rest))
    table(rows)
    report({"networks": result}, chosen.json)


def network(name: str) -> tuple[nn.Module, Tensor]:
    """The network, and what it is judged on."""
    torch.manual_seed(0)
    classes = 1000 if name == "squeezenet1_1" else 2
    on = "keep" if name == "squeezenet1_1" else "classifier"
    loaded = load_model(name, weights=WEIGHTS[name], classes=classes, on=on)
    if name == "resnet18":
        return loaded.model, torch.randn(64, 3, 224, 224)
    if name == "mobilenet_v2":
        loaded.model.classifier = nn.Identity()
    val = ImageDataset(read_splits(DATA / "hymenoptera").val, loaded.preprocessing)
    return loaded.model, torch.stack([val[place][0] for place in range(len(val))])


def one(name: str, model: nn.Module, photos: Tensor, dtype: str, repeats: int) -> dict[str, float]:
    wide, narrow = copy.deepcopy(model), copy.deepcopy(model)
    stem = "features.0" if name == "squeezenet1_1" else STEMS[name]
    fl.train_only(wide, stem)
    kept = fl.freeze(narrow, f"~{stem}", dtype=dtype, example=photos).kept
    assert kept is not None
    assert kept.output_error is not None
    with torch.no_grad():
        same = wide.eval()(photos).argmax(1) == narrow.eval()(photos).argmax(1)
    ratios = []
    for turn in range(repeats):
        sides = (wide, narrow) if turn % 2 else (narrow, wide)
        times = {side: seconds(lambda side=side: step(side, photos[:16])) for side in sides}
        ratios.append(times[narrow] / times[wide])
    return {
        "nbytes": kept.nbytes,
        "former_nbytes": kept.former_nbytes,
        "weight_error": kept.weight_error,
        "output_error": kept.output_error,
        "same_largest": float(same.double().mean()),
        "time_ratio": median(ratios[1:]),
    }


def step(model: nn.Module, pictures: Tensor) -> None:
    model.zero_grad()
    model(pictures).square().mean().backward()


if __name__ == "__main__":
    main()
