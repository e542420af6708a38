#!/usr/bin/env bash
# A checkpoint that `every_n_train_steps` makes at the last step of an epoch resumes with the next
# epoch, but that one is never counted as begun. One that is saved within it then resumes at its first
# batch again: of 8 steps 9 are made, though the loader can be resumed.
# Seen with lightning 2.6.6 and torch 2.15.0:
#   one restart, at step 4: 8 steps; a second one, at step 5: 9 steps
. "$(dirname "$0")/environment.bash" torch==2.15.0 lightning==2.6.6 numpy==2.4.6
cat >restarts.py <<'EOF'
import warnings
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

warnings.simplefilter("ignore")


class Loader:
    """Four batches, of which a checkpoint keeps how many were given out."""

    given = 0

    def __len__(self):
        return 4

    def __iter__(self):
        for number in range(self.given % 4, 4):
            self.given = number + 1
            yield torch.ones(2, 1)

    def state_dict(self):
        return {"given": self.given}

    def load_state_dict(self, state):
        self.given = state["given"]


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, _):
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Stop(Exception):
    pass


class StopAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            raise Stop


def steps(*stops):
    """Of two epochs of four steps, stopped before these steps and resumed from the last file."""
    folder = Path(f"saved{len(stops)}")
    last = None
    for stop in (*stops, None):
        saving = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)
        trainer = Trainer(
            max_epochs=2,
            accelerator="cpu",
            callbacks=[saving, StopAt(stop)],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        try:
            trainer.fit(Module(), Loader(), ckpt_path=last)
        except Stop:
            last = folder / f"step={stop}.ckpt"
    return trainer.global_step


once, twice = steps(4), steps(4, 5)
print(f"one restart, at step 4: {once} steps; a second one, at step 5: {twice} steps")
assert (once, twice) == (8, 9)
EOF
quietly python restarts.py
