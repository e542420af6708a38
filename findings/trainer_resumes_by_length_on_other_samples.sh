#!/usr/bin/env bash
# transformers' Trainer skips the batches that were done when it resumes in the middle of an epoch, and
# ends at the bits of a run that was never stopped. One expects the same of batches of like length
# (`train_sampling_strategy="group_by_length"`), which are as much a matter of seeds. From the second
# epoch on it draws another order: of 64 samples 15 are trained on twice in the epoch and 15 never,
# without a word. With persistent workers (`dataloader_persistent_workers=True`) a run that is resumed
# in its first epoch goes through the later ones in another order. Seen with transformers 5.24.0,
# accelerate 1.15.0, torch 2.15.0, a small BERT of which the head trains, 64 samples, batches of 8:
#   weights after a resume at step 12 of 16: by default the same; by length off by 1e-05, 15 twice, 15 never
. "$(dirname "$0")/environment.bash" \
    torch==2.15.0 numpy==2.4.6 transformers==5.24.0 accelerate==1.15.0
export HF_HUB_OFFLINE=1
quietly python -W ignore - <<'EOF'
import copy
import shutil

import torch
import transformers
from transformers import BertConfig, BertForSequenceClassification, PrinterCallback
from transformers import Trainer, TrainingArguments

transformers.logging.set_verbosity_error()
torch.manual_seed(0)
SAMPLES, BATCH, STEPS = 64, 8, 8  # steps of an epoch
small = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
base = BertForSequenceClassification(BertConfig(vocab_size=200, **small))
base.bert.requires_grad_(False)
lengths = torch.randint(3, 40, (SAMPLES,)).tolist()
# The first token is the sample's number.
texts = [[i + 5, *torch.randint(5, 200, (n,)).tolist()] for i, n in enumerate(lengths)]
rows = [{"input_ids": text, "labels": i % 2} for i, text in enumerate(texts)]
steps = []


def collate(items):
    steps.append([item["input_ids"][0] - 5 for item in items])
    ids = [torch.tensor(item["input_ids"]) for item in items]
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    labels = torch.tensor([item["labels"] for item in items])
    return {"input_ids": padded, "attention_mask": (padded > 0).long(), "labels": labels}


def run(folder, resume=None, **how):
    """The weights in the end, and the samples of each step that this process loaded."""
    transformers.set_seed(0)
    steps.clear()
    model = copy.deepcopy(base)
    arguments = TrainingArguments(
        folder, per_device_train_batch_size=BATCH, num_train_epochs=2, report_to=[], use_cpu=True,
        disable_tqdm=True, save_strategy="steps", save_steps=3, logging_steps=1000, **how,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=rows, data_collator=collate)
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=resume)
    return model.state_dict(), list(steps)


def resumed(at, **how):
    """How far the weights end from those of the run that is whole, and both runs' samples."""
    for folder in ("whole", "again"):
        shutil.rmtree(folder, ignore_errors=True)
    weights, seen = run("whole", **how)
    again, rest = run("again", f"whole/checkpoint-{at}", **how)
    return max(float((weights[n] - again[n]).abs().max()) for n in weights), seen, rest


away, _, _ = resumed(12)
first, _, _ = resumed(3, train_sampling_strategy="group_by_length")
grouped, seen, rest = resumed(12, train_sampling_strategy="group_by_length")
workers, _, _ = resumed(3, dataloader_num_workers=2, dataloader_persistent_workers=True)
done, later = set(sum(seen[STEPS:12], [])), set(sum(rest[-4:], []))
twice, never = len(done & later), SAMPLES - len(done | later)
print(f"at step 12 of 16: by default {away:.0e}; by length {grouped:.0e}, {twice} samples twice, "
      f"{never} never; at step 3 by length {first:.0e}, with persistent workers {workers:.0e}")  # fmt: skip
assert away == first == 0
assert grouped > 0 and twice == never > 0
assert workers > 0
EOF
