"""What of forty networks cannot be guessed? Their cuts, errors of forms, equal bits, saved bytes.

    python benchmarks/networks.py [--networks resnet18 ...] [--json FILE] [--markdown PAGE]
                                  [--minilm FOLDER] [--photos FOLDER] [--timeout 300]

Networks of torchvision, timm and transformers, with pretrained weights where a package or the data
have them and random ones (seed 0) elsewhere; texts of four blocks. Each is frozen twice: all but
the head, and all but the last stage and the head. For either:

- where the frost line runs, what crosses it and its float32 bytes a sample, or why there is none;
- `forms`: the error of the features in each form against plain float32, over 32 photos of
  hymenoptera or sentences of SST-2, 8 for random weights: mean and worst sample, and of all
  together, which is what `precision=` goes by; for random weights fewer forms, below the last
  stage the one that `auto` begins with;
- `rows`, of the first selection: whether one sample has the same bits at every place of a batch, in
  batches of 1, 2, 7 and 32, and beside others, on one thread and on two; the largest difference,
  relative to the largest value, if not;
- `decodings`, for pretrained weights: the error of each decoding on crops of large photographs, as
  in `decoding.py`.
- `saved`: bytes kept for the backward of a step of 32 samples, by PyTorch and by `fl.lean`.

Each network has a process of its own, ended after `--timeout` seconds. With `--json` a run goes on
where another stopped: what the file has of a network is kept, unless it is named by `--networks`.
`--markdown` writes the tables into a page, between its marks; alone it measures nothing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any, get_args

import decoding
import torch
from network_list import LISTED, Inputs, Listed, Network
from networks_page import FAILED, write_page
from shared import apart, machine_name
from torch import Tensor, nn

import frostline as fl
from frostline.backward import saved_bytes
from frostline.calling import call_with
from frostline.choices import DecodingName, FloatName
from frostline.data import some_rows
from frostline.devices import on_threads
from frostline.errors import CutError, one_line
from frostline.estimates.skeleton import skeleton
from frostline.features.computing import Computing, in_form
from frostline.models import logits_of
from frostline.tuning import PLAIN, Form, relative_error
from frostline.tuning.search import candidates

Figures = dict[str, Any]

BATCH, EXAMPLE = 32, 3
RANDOM_SAMPLES = 8
SIZES = (1, 2, 7, 32)
SOME = 7
PRELOAD = ("network_list", "frostline.estimates.skeleton", "torchvision", "timm", "transformers")
PACKAGES = ("torch", "torchvision", "timm", "transformers", "efficientnet_lite_pytorch", "pillow")


def main() -> None:
    chosen = _options()
    result: Figures = {"versions": {name: version(name) for name in PACKAGES}, "networks": {}}
    if chosen.json and chosen.json.exists():
        result = json.loads(chosen.json.read_text()) | {"versions": result["versions"]}
    result["listed"] = list(LISTED)
    if chosen.networks or not chosen.markdown:
        _measure_all(chosen, result)
    if chosen.markdown:
        write_page(chosen.markdown, result)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--markdown", type=Path, help="write the tables into this page")
    parser.add_argument("--networks", nargs="+", choices=LISTED, help="these, measured anew")
    parser.add_argument("--minilm", type=Path, default=Path("minilm"), help="its folder")
    parser.add_argument("--photos", type=Path, help="large ones; else out of Debian's packages")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for a network")
    return parser.parse_args()


def _measure_all(chosen: argparse.Namespace, result: Figures) -> None:
    """Into `result`, and after each network into the file."""
    names = chosen.networks or [name for name in LISTED if name not in result["networks"]]
    with tempfile.TemporaryDirectory() as folder:
        crops = Path(folder) / "crops"
        if any(LISTED[name].weights == "ImageNet" for name in names):
            found = decoding.photographs(
                chosen.photos or decoding.fetched(Path(folder) / "packages")
            )
            decoding.cropped(found, crops, len(found))
        for name in names:
            of_one = (name, chosen.minilm, crops if crops.exists() else None)
            found = apart(measured, of_one, chosen.timeout, preload=PRELOAD)
            result["networks"][name] = found | {"machine": machine_name()}
            print(name, found.get(FAILED, ""), flush=True)
            result["networks"] = {
                n: result["networks"][n] for n in LISTED if n in result["networks"]
            }
            if chosen.json:
                chosen.json.write_text(json.dumps(result, indent=1) + "\n")


def measured(name: str, minilm: Path, crops: Path | None) -> Figures:
    """All figures of one network."""
    start = time.process_time()
    listed = LISTED[name]
    torch.set_num_threads(1)
    network = listed.build(minilm)
    inputs = network.inputs(BATCH)
    found: Figures = {
        "package": listed.package,
        "weights": listed.weights,
        "parameters": sum(p.numel() for p in network.model.parameters()),
    }
    for what, selector in {"head": network.head, "last": listed.last}.items():
        fl.train_only(network.model, selector)
        found[what] = _of_selection(network, listed, inputs, crops, is_head=what == "head")
    found["saved"] = {"last": saved(network, inputs)}
    fl.train_only(network.model, "stage:0")
    found["saved"]["first"] = saved(network, inputs)
    return found | {"cpu_seconds": time.process_time() - start}


def _of_selection(
    network: Network, listed: Listed, inputs: Inputs, crops: Path | None, *, is_head: bool
) -> Figures:
    model = network.model
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    found: Figures = {"trained": _first_paths(trained)}
    start = time.process_time()
    try:
        made = fl.cut(model, some_rows(inputs, slice(EXAMPLE)))
    except CutError as error:
        return found | {"refused": one_line(error)}
    found |= {"cut_cpu_seconds": time.process_time() - start, "line": _line(made)}
    if not made.prefix.has_graph:
        return found
    every = _applicable(made)
    if listed.weights == "random":
        tried = _few(every) if is_head else [_first_tried(every)]
        found["forms"] = forms(made, tried, some_rows(inputs, slice(RANDOM_SAMPLES)))
    else:
        found["forms"] = forms(made, every, inputs)
    if is_head:
        found["rows"] = {
            f"{form}, {threads} threads": rows(_computing(made, form), inputs, threads)
            for form, threads in ((PLAIN, 1), (PLAIN, 2), (Form(channels_last=True), 2))
            if form in (PLAIN, *every)
        }
    if is_head and crops and listed.weights != "random" and network.preprocessing:
        found["decodings"] = decodings(made, network, sorted(crops.iterdir()))
    return found


def _first_paths(names: Sequence[str]) -> list[str]:
    """Modules of trainable parameters, the first two segments of each path."""
    return list(dict.fromkeys(".".join(name.split(".")[:-1][:3]) or name for name in names))


def _line(made: fl.Cut) -> Figures:
    return {
        "why": made.why,
        "crosses": [str(value) for value in made.frontier.values],
        "shapes": [value.shape for value in made.frontier.values],
        "nbytes": made.frontier.nbytes,
        "below": made.share,
        "error": made.error,
    }


def _computing(made: fl.Cut, form: Form) -> Computing:
    return in_form(made, form, batch_size=BATCH, device=torch.device("cpu"))


def _applicable(made: fl.Cut) -> list[Form]:
    """All forms that change something of a prefix, `candidates` and the same in each dtype."""
    graph = made.prefix.graph
    assert graph is not None
    found = candidates(graph, torch.device("cpu"), tolerance=1.0)
    shapes = dict.fromkeys([PLAIN, *(replace(form, dtype="float32") for form in found)])
    every = [replace(form, dtype=dtype) for dtype, form in product(get_args(FloatName), shapes)]
    return [form for form in every if form != PLAIN]


def _few(every: Sequence[Form]) -> list[Form]:
    """One rewriting at a time, and what `auto` begins with."""
    one = [form for form in every if len(str(form).split()) - (form.dtype == "float32") < 2]
    return list(dict.fromkeys([*one, _first_tried(every)]))


def _first_tried(every: Sequence[Form]) -> Form:
    """All at once in bfloat16."""
    return max((form for form in every if form.dtype == "bfloat16"), key=lambda f: len(str(f)))


def forms(made: fl.Cut, tried: Sequence[Form], inputs: Inputs) -> Figures:
    """Errors of each form: of a sample's worst value, mean and worst, and of all samples."""
    plain = _computing(made, PLAIN)(inputs)
    found: Figures = {}
    for form in tried:
        try:
            values = _computing(made, form)(inputs)
            found[str(form)] = errors(values, plain) | {"all": relative_error(values, plain)}
        except Exception as error:  # as the search for a form takes it
            found[str(form)] = {"refused": one_line(error, first=True)}
    return found


def errors(values: Sequence[Tensor], reference: Sequence[Tensor]) -> dict[str, float]:
    """Mean and worst of the samples."""
    each = [
        relative_error([value[n] for value in values], [value[n] for value in reference])
        for n in range(len(reference[0]))
    ]
    return {"mean": sum(each) / len(each), "worst": max(each)}


def rows(compute: Computing, inputs: Inputs, threads: int) -> Figures:
    """How far one sample's values differ within and between batches of so many copies of it.

    Such a batch has the sample at every place at once; one batch has others beside it.
    """
    with on_threads(threads):
        copies = {
            size: compute(some_rows(inputs, torch.zeros(size, dtype=torch.long))) for size in SIZES
        }
        among_others = compute(some_rows(inputs, slice(SOME)))
    first = {size: [value[:1] for value in values] for size, values in copies.items()}
    found = {f"batch of {size}": _difference(first[size], first[SIZES[-1]]) for size in SIZES[:-1]}
    found |= {f"places of {size}": _difference(copies[size], first[size]) for size in SIZES[1:]}
    others = _difference([value[:1] for value in among_others], first[SOME])
    return found | {"among others": others}


def _difference(values: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """The largest, relative to the largest value; 0 for the same bits."""
    pairs = [(a, b.expand_as(a)) for a, b in zip(values, reference, strict=True)]
    return max(
        float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-300))
        if not torch.equal(a, b)
        else 0.0
        for a, b in pairs
    )


def decodings(made: fl.Cut, network: Network, files: list[Path]) -> Figures:
    """Errors of each way to decode, in float32, against decoding in full."""
    compute, prepare = _computing(made, PLAIN), network.preprocessing
    assert prepare is not None
    values = {
        way: compute(
            network.of_pictures(
                torch.stack([decoding.by_frostline(way, file, prepare) for file in files])
            )
        )
        for way in get_args(DecodingName)
    }
    full = values.pop("full")
    return {"pictures": len(files)} | {way: errors(one, full) for way, one in values.items()}


def saved(network: Network, inputs: Inputs) -> Figures:
    """Bytes kept for the backward of a step of `BATCH` samples, on tensors without numbers."""
    fake, batch, mode = skeleton(network.model, some_rows(inputs, slice(EXAMPLE)), BATCH)
    fake.train()
    given = batch.values() if isinstance(batch, dict) else [batch]
    besides = [*fake.parameters(), *fake.buffers(), *given]

    def loss() -> Tensor:
        logits = logits_of(call_with(fake, batch))
        return nn.functional.cross_entropy(logits, torch.zeros(BATCH, dtype=torch.long))

    trained = [name for name, p in fake.named_parameters() if p.requires_grad]
    with mode, torch.enable_grad():
        plain = saved_bytes(loss, besides=besides)
        with fl.lean(fake):
            loss()  # from the second forward on it knows what is cheap beside the rest
            lean = saved_bytes(loss, besides=besides)
    return {"trained": _first_paths(trained), "batch": BATCH, "plain": plain, "lean": lean}


if __name__ == "__main__":
    main()
