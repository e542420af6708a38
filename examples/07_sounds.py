"""Sounds through a network that was trained on pictures: WAV files as spectrograms.

    python examples/07_sounds.py SOUNDS [WEIGHTS]

SOUNDS holds train/CLASS/*.wav and val/CLASS/*.wav; WEIGHTS is a file of ImageNet weights for
torchvision's mobilenet_v2, without which they are downloaded. Each sound becomes one picture, time
from left to right and pitch from bottom to top, goes through the frozen network once, and a new
head learns the classes. docs/sounds.md says where to get recordings to try it on.
"""

import sys
import wave
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models import mobilenet_v2

import frostline as fl

SECONDS, SIDE = 1.0, 224  # of a sound; pixels of its picture
WINDOW, LOWEST, HIGHEST = 0.064, 50.0, 8000.0  # seconds; Hz
QUIETEST = -80.0  # dB below the loudest moment is black


class Recordings(fl.Samples):
    """WAV files in class folders, as pictures of their spectra."""

    def __init__(self, folder: Path, classes: list[str]) -> None:
        self.classes = classes
        self.files = sorted(folder.glob("*/*.wav"))
        self.targets = [classes.index(file.parent.name) for file in self.files]
        # A change of any of these is another picture, whose features are computed anew.
        self.transform = f"spectrogram {SECONDS} {SIDE} {WINDOW} {LOWEST} {HIGHEST} {QUIETEST}"

    def __len__(self) -> int:
        return len(self.files)

    def name(self, sample: int) -> str:
        return str(self.files[sample])

    def load(self, row: int) -> Tensor:
        return as_picture(*read_wav(self.files[row]))


def read_wav(path: Path) -> tuple[Tensor, int]:
    """The sound as one channel, float32 `(samples,)` in -1 to 1, and its samples per second."""
    with wave.open(str(path)) as file:
        rate, channels, width = file.getframerate(), file.getnchannels(), file.getsampwidth()
        raw = np.frombuffer(file.readframes(file.getnframes()), np.uint8).reshape(-1, width)
    # The upper bytes of 32-bit numbers, whatever the width; 8 bits are stored without a sign.
    full = np.zeros((len(raw), 4), np.uint8)
    full[:, 4 - width :] = raw ^ 128 if width == 1 else raw
    numbers = full.view("<i4").reshape(-1, channels).mean(axis=1) / 2**31
    return torch.from_numpy(numbers.astype(np.float32)), rate


def as_picture(sound: Tensor, rate: int) -> Tensor:
    """float32 `(3, SIDE, SIDE)`, normalised as pictures are."""
    sound = torch.nn.functional.pad(sound, (0, round(SECONDS * rate)))[: round(SECONDS * rate)]
    size = round(WINDOW * rate)  # in seconds, so that a spectrum has the same pitches at any rate
    spectra = torch.stft(
        sound, size, hop_length=size // 8, window=torch.hann_window(size), return_complex=True
    )
    # Rows as far apart as the ear hears them: on the mel scale, the highest pitch on top.
    low, high = (1127 * np.log1p(hz / 700) for hz in (LOWEST, HIGHEST))
    pitches = 700 * np.expm1(np.linspace(high, low, SIDE) / 1127)
    rows = torch.from_numpy(np.minimum(pitches * WINDOW, len(spectra) - 1)).round().long()
    level = 20 * spectra.abs().clamp(min=1e-10).log10()[rows]
    shade = ((level - level.max()) / -QUIETEST + 1).clamp(min=0)
    grey = torch.nn.functional.interpolate(shade[None, None], (SIDE, SIDE), mode="bilinear")[0]
    usual = fl.Preprocessing()
    mean, std = (torch.tensor(part)[:, None, None] for part in (usual.mean, usual.std))
    return (grey - mean) / std


def main() -> None:
    folder, *weights = map(Path, sys.argv[1:])
    classes = sorted(path.name for path in (folder / "train").iterdir() if path.is_dir())
    train, val = (Recordings(folder / part, classes) for part in ("train", "val"))

    model = mobilenet_v2(weights=None if weights else "DEFAULT")
    if weights:
        model.load_state_dict(load_file(weights[0]), strict=False)  # a new head comes anyway
    model.classifier = torch.nn.Linear(model.last_channel, len(classes))
    fl.train_only(model, "classifier")

    run = fl.fit(model, train, val, classes=classes, features=folder / "features", epochs=30)
    print(run)
    for table in run.best.validation.tables():
        print(table)


if __name__ == "__main__":
    main()
