"""An encoder of texts with a head on one vector for each text: its tokens' states, pooled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from frostline.errors import ModelError
from frostline.units import some_of

Pooling = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)


@final
class Pooled(nn.Module):
    """`head(vector(backbone(tokens)))`: logits for each text.

    The vector is pooled from the last hidden states as the encoder's makers do, over the tokens
    that are none of the padding's, so what a text gets does not depend on the batch it is in.

    Args:
        backbone: gives `last_hidden_state`, `(batch, tokens, width)`.
        width: of the backbone's states.
        poolings: their vectors stand one behind the other.
        projections: what follows the pooling, in this order; `nn.Identity` normalises to length 1.
        head: `nn.Identity` where there is none yet.

    Source: the modules of sentence-transformers (Reimers and Gurevych, 2019).
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        width: int,
        poolings: Sequence[Pooling] = ("mean",),
        projections: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.poolings = tuple(poolings)
        self.backbone = backbone
        self.projections = nn.ModuleList(projections)
        out = (getattr(p, "out_features", None) for p in reversed(projections))
        self.features = next(filter(None, out), width * len(self.poolings))
        self.head: nn.Module = nn.Identity()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **named: Any) -> Tensor:
        """Logits `(batch, classes)`."""
        output = self.backbone(input_ids=input_ids, attention_mask=attention_mask, **named)
        states: Tensor = output.last_hidden_state
        vector = torch.cat([pooled(states, attention_mask, how) for how in self.poolings], dim=1)
        for projection in self.projections:
            vector = projection(vector)
        logits: Tensor = self.head(vector)
        return logits


@final
class Normalized(nn.Module):
    """Each vector divided by its length."""

    def forward(self, vector: Tensor) -> Tensor:
        return normalize(vector, dim=1)


@final
class Projection(nn.Module):
    """A linear layer and its activation, as a sentence encoder may have behind its pooling."""

    def __init__(self, linear: nn.Linear, activation: nn.Module) -> None:
        super().__init__()
        self.linear, self.activation = linear, activation
        self.out_features = linear.out_features

    def forward(self, vector: Tensor) -> Tensor:
        projected: Tensor = self.activation(self.linear(vector))
        return projected


def pooled(states: Tensor, mask: Tensor, how: Pooling) -> Tensor:
    """One vector for each text, `(batch, width)`, from `(batch, tokens, width)`.

    Args:
        mask: 1 for tokens of the text and 0 for padding, `(batch, tokens)`.
    """
    kept = mask.unsqueeze(2).to(states.dtype)
    if how == "max":
        return states.masked_fill(kept == 0, torch.finfo(states.dtype).min).amax(dim=1)
    if how in ("cls", "lasttoken"):
        # The first or the last one that is no padding: that may stand on either side.
        places = torch.arange(mask.shape[1], device=mask.device)
        ranked = mask * (places.flip(0) + 1 if how == "cls" else places + 1)
        index = ranked.argmax(dim=1).view(-1, 1, 1).expand(-1, 1, states.shape[2])
        return states.gather(1, index).squeeze(1)
    if how == "weightedmean":
        kept = kept * mask.cumsum(dim=1).unsqueeze(2).to(states.dtype)
    count = kept.sum(dim=1).clamp(min=1)
    return (states * kept).sum(dim=1) / (count.sqrt() if how == "mean_sqrt_len_tokens" else count)


def known_pooling(name: str, where: str) -> Pooling:
    """The pooling of that name.

    Raises:
        ModelError: there is none; names those that there are.
    """
    for pooling in POOLINGS:
        if name in (pooling, f"{pooling}_tokens", f"{pooling}_token"):
            return pooling
    raise ModelError(
        f"{where} pools by {name!r}, which is not known here ({some_of(POOLINGS, most=9)}). Write "
        "a function that returns the model and name it file.py:function."
    )
