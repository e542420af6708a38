"""Small networks as prefixes: graphs of aten operators that read the networks' own tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torchvision
from torch import Tensor, nn
from torch.fx import Graph, GraphModule


class Shim(nn.Module):
    """The model with one flat list of tensors in, and one out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, flat: list[Tensor]) -> list[Tensor]:
        out = self.model(*flat)
        return list(out) if isinstance(out, tuple) else [out]


def prefix_of(model: nn.Module, *example: Tensor) -> GraphModule:
    """The whole of `model` in eval mode as a prefix."""
    batch = [{0: torch.export.Dim.AUTO} for _ in example]
    shim = Shim(model.eval())
    program = torch.export.export(shim, (list(example),), dynamic_shapes=(batch,), strict=False)
    module = program.module(check_guards=False)
    graph = Graph()
    outputs = graph.graph_copy(module.graph, {})
    graph.output(tuple(outputs))
    return GraphModule(module, graph)


class Words(nn.Module):
    """A transformer on token ids, masked with the lowest float32 as BERT's own code does."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.place = nn.Embedding(50, 32), nn.Embedding(16, 32)
        self.norm, self.qkv, self.out = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        places = torch.arange(ids.shape[1])
        x = self.norm(self.word(ids) + self.place(places) * (places / 16).unsqueeze(1))
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        hidden = (1.0 - mask.to(torch.float32)) * torch.finfo(torch.float32).min
        scores = q @ k.transpose(1, 2) / 32**0.5 + hidden.unsqueeze(1)
        padding = (mask == 0).unsqueeze(1)
        weights = scores.masked_fill(padding, torch.finfo(torch.float32).min).softmax(-1)
        return self.out(weights @ v), ids.argmax(dim=1)


def images(count: int = 4, side: int = 64) -> tuple[Tensor, ...]:
    return (torch.randn(count, 3, side, side),)


def sentences(count: int = 4) -> tuple[Tensor, ...]:
    mask = torch.ones(count, 12, dtype=torch.long)
    mask[::2, 8:] = 0
    return torch.randint(0, 50, (count, 12)), mask


def alive(model: nn.Module) -> nn.Module:
    """With statistics and weights as after training: none is 0 or 1."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.1)
    return model


def _vit() -> nn.Module:
    vit = torchvision.models.VisionTransformer(32, 8, 2, 2, 32, 64)
    vit.heads = nn.Identity()  # it starts at 0
    return vit


def _swin() -> nn.Module:
    return torchvision.models.SwinTransformer([4, 4], 24, [2, 2], [2, 4], [4, 4])


def _small() -> nn.Module:
    layers = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Flatten())


Network = tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, ...]]]
Known = tuple[nn.Module, GraphModule, tuple[Tensor, ...]]
NETWORKS: dict[str, Network] = {
    "alexnet": (torchvision.models.alexnet, images),
    "resnet18": (torchvision.models.resnet18, images),
    "mobilenet_v3": (torchvision.models.mobilenet_v3_small, lambda: images(side=32)),
    "vit": (_vit, lambda: images(side=32)),
    "swin": (_swin, lambda: images(side=32)),
    "words": (Words, sentences),
    "small": (_small, lambda: images(side=12)),
}


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all a model holds."""
    held = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in held}


def relative(output: Tensor, reference: Tensor) -> float:
    return float((output - reference).norm() / reference.norm())
