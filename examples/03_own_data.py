"""Train on data of your own kind: here the rows of a .npy file, with names and classes.

    python examples/03_own_data.py MEASUREMENTS

MEASUREMENTS is a folder of three files: rows.npy (numbers, a row for each sample), classes.npy
(a whole number for each) and names.txt (a line for each). `fl.fit` and `fl.extract` take any
`fl.Samples`: how many there are, their targets, and how to load one.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

import frostline as fl


class Measurements(fl.Samples):
    """Rows of a file that is never read as a whole, however large it is."""

    def __init__(self, folder: Path, part: slice) -> None:
        self.rows = np.load(folder / "rows.npy", mmap_mode="r")[part]
        self.targets = np.load(folder / "classes.npy")[part]
        self.names = (folder / "names.txt").read_text().splitlines()[part]

    def __len__(self) -> int:
        return len(self.rows)

    def load(self, row: int) -> torch.Tensor:
        return torch.from_numpy(np.array(self.rows[row]))

    def name(self, sample: int) -> str:
        return self.names[sample]


def main() -> None:
    folder = Path(sys.argv[1])
    train, val = Measurements(folder, slice(0, None, 2)), Measurements(folder, slice(1, None, 2))
    width, classes = train.rows.shape[1], int(train.targets.max()) + 1

    # A network that somebody trained; its encoder stays as it is, a new head learns the classes.
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("encoder", nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, 32)))
    model.add_module("head", nn.Linear(32, classes))
    fl.freeze(model, "encoder")

    # Each row goes through the encoder once, here and in every later run.
    store = fl.FeatureStore(folder / "features")
    cut = fl.cut(model, torch.stack([train.load(row) for row in range(4)]))
    print(f"{fl.extract(cut, train, store).computed} rows computed")
    run = fl.fit(model, train, val, features=folder / "features", epochs=5, lr=0.01)
    print("\n".join(run.says))
    print(f"best epoch: {run.best.epoch}; {run.proof}")


if __name__ == "__main__":
    main()
