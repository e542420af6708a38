"""Lightning, under whichever of its two names is installed."""

from __future__ import annotations

try:
    from lightning.pytorch import Callback as Callback
    from lightning.pytorch import LightningModule as LightningModule
    from lightning.pytorch import Trainer as Trainer
except ModuleNotFoundError:
    try:
        from pytorch_lightning import Callback as Callback  # type: ignore[assignment]
        from pytorch_lightning import LightningModule as LightningModule  # type: ignore[assignment]
        from pytorch_lightning import Trainer as Trainer  # type: ignore[assignment]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "frostline.lightning needs Lightning, which is not installed: pip install "
            '"frostline[lightning]".'
        ) from error
