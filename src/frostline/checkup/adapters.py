"""Whether PEFT's adapters are what the freeze around them takes them for.

Its layers are known by the names of their classes, to spare the import.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

from torch import nn

from frostline.checkup.findings import Finding, enumerated, error, warning
from frostline.checkup.live import random_layers
from frostline.checkup.subject import Subject, check
from frostline.freezing.modes import modes_kept

_SECOND = ("lora_B", "lora_embedding_B")  # LoRA's second factor, which starts at zero


@final
@dataclass(frozen=True, slots=True)
class Adapter:
    """What one adapter adds to one layer.

    Attributes:
        name: as PEFT calls the adapter.
        path: of the layer that PEFT put around the adapted one.
        layer: that layer.
        parameters: the adapter's own, by their names in the layer.
    """

    name: str
    path: str
    layer: Any
    parameters: Mapping[str, nn.Parameter]

    @property
    def is_active(self) -> bool:
        """Whether the layer computes with it."""
        return self.name in self.layer.active_adapters and not self.layer.disable_adapters

    @property
    def trains(self) -> bool:
        """Whether any of it wants a gradient."""
        return any(parameter.requires_grad for parameter in self.parameters.values())

    @property
    def full_names(self) -> tuple[str, ...]:
        """Of its parameters, in the model."""
        return tuple(f"{self.path}.{name}" for name in self.parameters)

    def __str__(self) -> str:
        return f"{self.path} ({self.name})"


def adapters(root: nn.Module) -> Iterator[Adapter]:
    """Every adapter of every layer below `root`."""
    for path, layer in root.named_modules():
        if not _is_a(layer, "BaseTunerLayer"):
            continue
        kinds: Any = layer.adapter_layer_names
        found: dict[str, dict[str, nn.Parameter]] = {}
        for name, parameter in layer.named_parameters():
            kind, _, rest = name.partition(".")
            if kind in kinds:
                found.setdefault(rest.partition(".")[0], {})[name] = parameter
        for name, parameters in found.items():
            yield Adapter(name, path, layer, parameters)


def switched_by_peft(root: nn.Module) -> set[nn.Parameter]:
    """The parameters whose gradients PEFT switches: adapters, and copies in `modules_to_save`."""
    copies = (wrapper.modules_to_save for _, wrapper in _copying(root))
    own = [p for adapter in adapters(root) for p in adapter.parameters.values()]
    return {*own, *(p for copy in copies for p in copy.parameters())}


@check("merged-adapter")
def merged_adapter(subject: Subject) -> Iterator[Finding]:
    found = tuple(a.path for a in adapters(subject.root) if a.layer.merged and a.trains)
    if names := tuple(dict.fromkeys(found)):
        yield error(
            enumerated(names, "layer", "with a trainable adapter merged into the weight"),
            "a merged layer computes with its weight alone, so that its adapter gets no gradient; "
            "and taken out again it leaves rounding in the frozen weight",
            "model.unmerge_adapter()  # then load the base's weights anew, and freeze; merge when "
            "training is over",
            names,
        )


@check("original-trainable")
def original_trainable(subject: Subject) -> Iterator[Finding]:
    names = tuple(
        f"{path}.original_module.{name}"
        for path, wrapper in _copying(subject.root)
        if _uses_copy(wrapper)
        for name, parameter in wrapper.original_module.named_parameters()
        if parameter.requires_grad
    )
    if names:
        yield warning(
            enumerated(names, "trainable parameter", "behind a copy in modules_to_save"),
            "PEFT computes with the copy and trains that; the original gets no gradient, and goes "
            "into the optimizer and the delta for nothing",
            "fl.freeze(model, '**.original_module')",
            names,
        )


@check("idle-adapter")
def idle_adapter(subject: Subject) -> Iterator[Finding]:
    idle = [a for a in adapters(subject.root) if a.is_active and not a.trains and _is_zero(a)]
    if idle and subject.trainable:
        own = tuple(name for adapter in idle for name in adapter.full_names)
        wanted = " | ".join(dict.fromkeys(f"**.lora_*.{adapter.name}" for adapter in idle))
        yield warning(
            enumerated([*map(str, idle)], "adapter", "frozen before training"),
            "its second factor is zero, so that it changes nothing and takes its time all the "
            "same; whoever freezes a layer freezes the adapters in it",
            f"fl.thaw(model, {(' | '.join(own) if len(own) < 4 else wanted)!r})",
            own,
        )


@check("adapter-dropout")
def adapter_dropout(subject: Subject) -> Iterator[Finding]:
    with modes_kept(subject.root):
        subject.root.train()
        names = tuple(
            name
            for adapter in adapters(subject.root)
            # A layer that is frozen as a whole is in a frozen part, which another check looks at.
            if adapter.is_active and not adapter.trains and _trains(adapter.layer)
            for name in _dropouts(adapter)
        )
    if names:
        yield warning(
            enumerated(names, "dropout", "of a frozen adapter that draws after model.train()"),
            "the layer around it trains another adapter and follows the model's mode, so that the "
            "frozen one gives other numbers in each pass",
            f"model.get_submodule({names[0]!r}).p = 0.0"
            if len(names) == 1
            else "Set p = 0.0 on each of them, or load the adapter with lora_dropout=0.",
            names,
        )


def _copying(root: nn.Module) -> Iterator[tuple[str, Any]]:
    """PEFT's wrappers with an original layer and copies of it that train."""
    return ((path, m) for path, m in root.named_modules() if _is_a(m, "ModulesToSaveWrapper"))


def _is_a(module: nn.Module, kind: str) -> bool:
    return any(base.__name__ == kind for base in type(module).__mro__)


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _uses_copy(wrapper: Any) -> bool:
    copies = set(wrapper.modules_to_save.keys())
    return not wrapper.disable_adapters and not copies.isdisjoint(wrapper.active_adapters)


def _is_zero(adapter: Adapter) -> bool:
    second = [p for name, p in adapter.parameters.items() if name.startswith(_SECOND)]
    return bool(second) and not any(bool(p.any()) for p in second)


def _dropouts(adapter: Adapter) -> Iterator[str]:
    layers: Any = getattr(adapter.layer, "lora_dropout", {})  # other kinds of adapters have none
    if adapter.name in layers:
        yield from random_layers(
            f"{adapter.path}.lora_dropout.{adapter.name}", layers[adapter.name]
        )
