"""transformers' Trainer by a plan, and then on features that are computed once.

    python examples/09_trainer.py

First the head is trained, then one block more, by a callback. Then the head alone, with the frozen
part computed once: the Trainer gets the suffix for its model and the features for its data. Nothing
is downloaded: a small network stands in for a pretrained one.
"""

import tempfile

import torch
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

import frostline as fl
from frostline.transformers import Freeze


def main():
    train, held_out = squares(200, seed=1), squares(50, seed=2)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=f"{folder}/run",
            num_train_epochs=5,
            per_device_train_batch_size=25,
            learning_rate=3e-3,
            eval_strategy="epoch",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        by_plan(args, train, held_out)
        on_features(args, train, held_out, f"{folder}/features")


def by_plan(args, train, held_out):
    head = fl.Phase(name="head", train="classifier", epochs=3)
    block = fl.Phase(name="last block", train="vit.layers.1 | classifier", epochs=2)
    freeze = Freeze(fl.Plan([head, block]))
    Trainer(network(), args, train_dataset=train, eval_dataset=held_out, callbacks=[freeze]).train()
    for end in freeze.ends:
        print(end)


def on_features(args, train, held_out, store):
    model = network()
    frozen = fl.train_only(model, "classifier")
    example = {name: torch.stack([item[name] for item in train[:4]]) for name in train[0]}
    cut = fl.cut(model, example)
    train, held_out = fl.extract(cut, train, store), fl.extract(cut, held_out, store)
    Trainer(cut.suffix, args, train_dataset=train, eval_dataset=held_out).train()
    print(f"on {train.computed} stored rows: {frozen.verify()}")


def network():
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=32,
        patch_size=8,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        num_labels=2,
    )
    return ViTForImageClassification(config)


def squares(count, *, seed):
    """Noise, with a bright square in every second picture."""
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.randn(count, 3, 32, 32, generator=generator)
    pictures[1::2, :, 8:24, 8:24] += 1.0
    return [{"pixel_values": x, "labels": torch.tensor(i % 2)} for i, x in enumerate(pictures)]


if __name__ == "__main__":
    main()
