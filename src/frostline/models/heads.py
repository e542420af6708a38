"""A new head on a network: in place of its classifier, or stacked on its logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, final

from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from frostline.choices import HeadPlace
from frostline.errors import ConfigError, ModelError, a_type
from frostline.freezing.modes import is_held
from frostline.models._built import seeded
from frostline.models.classifiers import (
    ADDED,
    LogitLayer,
    decoder,
    find_classifier,
    logit_layer,
    model_width,
    widths,
)
from frostline.models.pooled import Pooled
from frostline.wording import option


@dataclass(frozen=True, slots=True)
class Headed:
    """A model that ends in as many logits as there are classes.

    Attributes:
        model: the given model, changed in place, or a `Stacked` around it.
        head: dotted path of the module that makes the logits, or is put to; of one of torchvision's
            segmenters the whole decoder.
    """

    model: nn.Module
    head: str


@final
class Stacked(nn.Module):
    """`head(backbone(x))`: a head on a whole network's output.

    Without a hidden width, a linear head on ImageNet logits makes one linear map with the layer
    before it: it can say no more than a replaced classifier could, from fewer numbers.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        """Logits `(batch, classes)`; the backbone takes the arguments as they are."""
        logits: Tensor = self.head(logits_of(self.backbone(*inputs, **named)))
        return logits


def put_head(
    model: nn.Module,
    *,
    classes: int,
    hidden: Sequence[int] = (),
    on: HeadPlace = "classifier",
    seed: int | None = None,
    dropout: float | None = None,
    clamped: bool = True,
) -> Headed:
    """Give `model` an output of `classes` logits.

    Args:
        hidden: widths of the head's hidden layers, with ReLU between.
        clamped: as for `replace_classifier`.
        on: replace the `classifier`, stack a head on the `logits`, or `keep` the classifier.
        seed: the new layers' values depend on it alone; None draws from torch's generator.
        dropout: probability behind each hidden layer; None puts none there.

    Raises:
        ConfigError: a width is no positive whole number, `keep` has hidden widths, or `on` is
            unknown.
        ModelError: no classifier is found, it cannot be replaced, or it is kept and has another
            number of outputs.
    """
    check_head(classes=classes, hidden=hidden, on=on)
    with seeded(seed):
        if isinstance(model, Pooled) and on != "keep":  # which has no logits to stack a head on
            model.head = _like(model, build_head(model.features, classes, hidden))
            return Headed(model, "head")
        if on == "logits":
            return Headed(
                stack_head(model, classes=classes, hidden=hidden, dropout=dropout), "head"
            )
        if on == "classifier":
            made = replace_classifier(
                model, classes=classes, hidden=hidden, dropout=dropout, clamped=clamped
            )
            return Headed(model, decoder(model) or made)
    return Headed(model, _kept(model, classes))


def check_head(*, classes: int, hidden: Sequence[int], on: HeadPlace) -> None:
    """Refuse a head that cannot be, before a model is built for it.

    Raises:
        ConfigError: as `put_head`.
    """
    if on not in ("classifier", "logits", "keep"):
        raise ConfigError(f"a head cannot be put on {on!r}. Use classifier, logits or keep.")
    if on == "keep" and hidden:
        raise ConfigError(
            f"the classifier is kept, so it gets no hidden layers {tuple(hidden)}. "
            f"Use {option('on', 'classifier')} or {option('on', 'logits')} for these, or leave "
            "them out."
        )
    _check_widths([("classes", classes), *(("hidden width", width) for width in hidden)])


def replace_classifier(
    model: nn.Module,
    *,
    classes: int,
    hidden: Sequence[int] = (),
    path: str | None = None,
    dropout: float | None = None,
    clamped: bool = True,
) -> str:
    """Put a new head where the classifier was, and return its dotted path, which is the same.

    The head is `Linear(in, classes)`, a `Conv2d` of the same kernel where that was one, or a
    `Sequential` if there are hidden widths; on the old layer's device, in its dtype and mode, and
    trainable. Every other name stays. Counts of classes that timm and transformers keep are
    updated. Of LR-ASPP both layers are replaced, and the path is that of what holds them.

    Args:
        path: of the layer to replace, where `find_classifier` would not find it.
        clamped: whether a ReLU behind it, as SqueezeNet's, may stay: classes are told apart all the
            same, but no other output could be below 0.

    Raises:
        ConfigError: a width is no positive whole number.
        ModelError: no classifier or more than one is found, or it shares its tensors.
    """
    found = find_classifier(model) if path is None else (path,)
    if found == ADDED:
        for each in ADDED:
            replace_classifier(model, classes=classes, hidden=hidden, path=each, dropout=dropout)
        return decoder(model)
    place = _the_only(model, found)
    old = logit_layer(model, place)
    _check_not_shared(model, place)
    kernel = max(old.kernel_size) if isinstance(old, nn.Conv2d) else None
    new = build_head(widths(old)[0], classes, hidden, kernel=kernel, dropout=dropout)
    new.to(device=old.weight.device, dtype=old.weight.dtype).train(old.training)
    model.set_submodule(place, new)
    if not clamped:
        _take_relus_behind(model, place)
    _update_counts(model, place, classes)
    return place


def _take_relus_behind(model: nn.Module, place: str) -> None:
    """Leave the numbers as the layer at `place` makes them; other names stay."""
    above, _, last = place.rpartition(".")
    around = model.get_submodule(above)
    if isinstance(around, nn.Sequential):
        names = list(around._modules)
        for name in names[names.index(last) + 1 :]:
            if isinstance(around._modules[name], nn.ReLU):
                around._modules[name] = nn.Identity()


def stack_head(
    model: nn.Module,
    *,
    classes: int,
    hidden: Sequence[int] = (),
    features: int | None = None,
    dropout: float | None = None,
) -> Stacked:
    """Put a new head on the whole model's output; its own parts are untouched.

    Args:
        features: width of the model's output; None takes its classifier's.

    Raises:
        ConfigError: a width is no positive whole number.
        ModelError: `features` is None and no classifier tells it.
    """
    width = model_width(model) if features is None else features
    head = build_head(width, classes, hidden, dropout=dropout)
    stacked = Stacked(model, _like(model, head))
    # Not by train(), which would set the modes of the model's parts.
    stacked.training = model.training
    return stacked


def _like(model: nn.Module, head: nn.Module) -> nn.Module:
    """`head` on the device, in the dtype and in the mode of `model`."""
    like = next((value for value in model.parameters() if value.is_floating_point()), None)
    if like is not None:
        head.to(device=like.device, dtype=like.dtype)
    return head.train(model.training)


def build_head(
    features: int,
    classes: int,
    hidden: Sequence[int] = (),
    *,
    kernel: int | None = None,
    dropout: float | None = None,
) -> nn.Module:
    """`Linear(features, classes)`, or `Sequential(Linear, ReLU, ..., Linear)` with hidden widths.

    Args:
        kernel: of a `Conv2d` that is first instead of `Linear`, for maps `(batch, features, height,
            width)`, which keep their size; those behind it are 1x1.
        dropout: probability behind each hidden layer's ReLU, which has one place with it, so that
            names stay; None puts none there.

    Raises:
        ConfigError: a width is no positive whole number.
    """
    named = [("features", features), *(("hidden width", width) for width in hidden)]
    _check_widths([*named, ("classes", classes)])

    def make(number: int, pair: tuple[int, int]) -> LogitLayer:
        if kernel is None:
            return nn.Linear(*pair)
        size = 1 if number else kernel
        return nn.Conv2d(*pair, kernel_size=size, padding=size // 2)

    layers = [make(*each) for each in enumerate(pairwise((features, *hidden, classes)))]
    last = layers[-1]
    # Small logits at the start, as torchvision gives its own classifiers: SqueezeNet puts a ReLU
    # on its logits, and with torch's larger default some classes start dead.
    nn.init.normal_(last.weight, std=0.01)
    if last.bias is not None:
        nn.init.zeros_(last.bias)
    below = [part for layer in layers[:-1] for part in (layer, _activation(dropout))]
    return nn.Sequential(*below, last) if hidden else last


def _activation(dropout: float | None) -> nn.Module:
    return nn.ReLU() if dropout is None else nn.Sequential(nn.ReLU(), nn.Dropout(dropout))


def set_dropout(model: nn.Module, p: float) -> int:
    """Give all dropout that is not frozen this probability; how many layers that are."""
    live = [m for m in model.modules() if isinstance(m, _DropoutNd) and not is_held(m)]
    for module in live:
        module.p = p
    return len(live)


def logits_of(output: object) -> Tensor:
    """The logits in a model's output: the tensor itself, its `logits` or the first of a tuple.

    Of what torchvision's models for segmentation return, `out`.

    Raises:
        ModelError: there is no tensor in any of these places.
    """
    found = output
    if isinstance(output, Mapping):
        found = output.get("logits", output.get("out"))  # as torchvision's segmenters have it
    elif not isinstance(output, Tensor):
        found = getattr(output, "logits", None)
        if found is None and isinstance(output, tuple | list) and output:
            found = output[0]
    if isinstance(found, Tensor):
        return found
    raise ModelError(
        f"the model returned {_described(output)}, in which there are no logits. "
        "Let it return a tensor, a tuple that starts with it, or something with .logits."
    )


def _check_widths(named: Sequence[tuple[str, object]]) -> None:
    for name, width in named:
        if not isinstance(width, int) or isinstance(width, bool) or width < 1:
            raise ConfigError(f"{name} is {width!r}; it must be a whole number from 1 upwards.")


def _kept(model: nn.Module, classes: int) -> str:
    path = find_classifier(model)[0]
    width = widths(logit_layer(model, path))[1]
    if width != classes:
        raise ModelError(
            f"{path} of {type(model).__name__} makes {width} logits, and there are {classes} "
            f"classes, so it cannot be kept. Replace it ({option('on', 'classifier')})."
        )
    return path


def _the_only(model: nn.Module, paths: tuple[str, ...]) -> str:
    if len(paths) > 1:
        raise ModelError(
            f"{type(model).__name__} has {len(paths)} classifiers ({', '.join(paths)}), whose "
            "outputs it combines; replacing one would break that. Stack a head on their common "
            f"output ({option('on', 'logits')})."
        )
    return paths[0]


def _check_not_shared(model: nn.Module, path: str) -> None:
    layer = model.get_submodule(path)
    modules = model.named_modules(remove_duplicate=False)
    elsewhere = [name for name, module in modules if module is layer and name != path]
    own = {id(parameter) for parameter in layer.parameters()}
    tied = [
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if id(parameter) in own and not name.startswith(f"{path}.")
    ]
    if elsewhere or tied:
        raise ModelError(
            f"{path} of {type(model).__name__} is shared with {(elsewhere or tied)[0]}: replacing "
            f"it would untie them. Stack a head on the logits ({option('on', 'logits')})."
        )


def _update_counts(model: nn.Module, path: str, classes: int) -> None:
    """Other libraries' own records of how many classes there are, where they keep one."""
    parts = path.split(".")
    for depth in range(len(parts)):
        module = model.get_submodule(".".join(parts[:depth]))
        for holder in (module, getattr(module, "config", None)):
            for attribute in ("num_classes", "num_labels"):
                if isinstance(getattr(holder, attribute, None), int):
                    setattr(holder, attribute, classes)


def _described(output: object) -> str:
    if isinstance(output, Mapping):
        return f"{a_type(output)} with the keys {', '.join(map(str, output)) or '(none)'}"
    if isinstance(output, tuple | list):
        return f"{a_type(output)} of {', '.join(type(x).__name__ for x in output) or '0'}"
    return a_type(output)
