"""Freeze AlexNet, train a new head on two classes: the tutorial everyone starts from, done right.

    python examples/01_freeze_alexnet.py PHOTOS                      # downloads ImageNet weights
    python examples/01_freeze_alexnet.py PHOTOS --weights alexnet.pth
    python examples/01_freeze_alexnet.py PHOTOS --weights none       # a dry run

PHOTOS is a folder of class folders, or of train/ and val/ with class folders in each.
"""

import argparse

import torch
from torch import nn

import frostline as fl
from frostline.data import ImageDataset, audit, make_batches, read_splits
from frostline.models import load_model


def main() -> None:
    options = read_options()
    torch.manual_seed(0)

    # The photos: what is broken, double or missing is said before any training.
    data = audit(read_splits(options.photos), bad_images="skip")
    for finding in data.findings:
        print(f"{finding.level}: {finding.message}")
    classes = data.splits.train.classes

    # The network: AlexNet as published, a head 1000-100-2 on its logits. The head has a
    # nonlinearity between its layers, without which two linear layers collapse into one.
    loaded = load_model(
        "alexnet", weights=options.weights, classes=len(classes), hidden=[100], on="logits"
    )
    model = loaded.model
    print(loaded.weights)

    # Freeze by name. A typo is an error that names the nearest names, not a silent no-op.
    frozen = fl.freeze(model, "backbone")
    for name, parameter in model.named_parameters():
        print(f"{name:<34} {'trainable' if parameter.requires_grad else 'frozen'}")
    print(frozen)

    # The preprocessing that belongs to the weights, not a guess.
    train = make_batches(
        ImageDataset(data.splits.train, loaded.preprocessing), batch_size=32, shuffle=True, seed=0
    )
    val = make_batches(
        ImageDataset(data.splits.val, loaded.preprocessing), batch_size=32, shuffle=False, seed=0
    )

    # Only what is trainable goes to Adam; logits, not probabilities, go to cross-entropy.
    optimizer = torch.optim.Adam(fl.param_groups(model, lr=1e-3, weight_decay=0.0))
    criterion = nn.CrossEntropyLoss()

    for epoch in range(options.epochs):
        loss = train_epoch(model, train, criterion, optimizer, epoch=epoch)
        accuracy = validate(model, val)
        print(f"epoch {epoch + 1}: training loss {loss:.4f}, validation accuracy {accuracy:.3f}")

    print(frozen.verify())


def train_epoch(model, batches, criterion, optimizer, *, epoch):
    """One pass; gives the mean loss. AlexNet's two dropouts stay off: they are frozen with it."""
    model.train()
    total = 0.0
    for batch in batches.epoch(epoch):
        optimizer.zero_grad()
        loss = criterion(model(batch.inputs), batch.targets)
        loss.backward()
        optimizer.step()
        total += loss.item() * len(batch.targets)
    return total / batches.samples


def validate(model, batches):
    """Accuracy on data that is never trained on, in eval mode, without gradients."""
    model.eval()
    correct = 0
    with torch.no_grad():
        for batch in batches.epoch(0):
            correct += (model(batch.inputs).argmax(dim=1) == batch.targets).sum().item()
    return correct / batches.samples


def read_options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos")
    parser.add_argument("--weights", default="DEFAULT", help="DEFAULT, none, or a file")
    parser.add_argument("--epochs", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
