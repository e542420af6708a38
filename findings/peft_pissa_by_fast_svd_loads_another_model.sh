#!/usr/bin/env bash
# PEFT's PiSSA takes the main part of each frozen weight into the adapter and leaves the rest in the base.
# The file holds the adapter alone; whoever loads it onto the base has PEFT split the weights again. With
# `pissa_niter_4`, the form that PEFT's own example begins with, the split is drawn at random, and one
# expects two draws to differ by a per cent or so, after four rounds of iteration. The adapter then stands
# on another base: sentence embeddings of all-MiniLM-L6-v2 are off by more than a quarter, with 16 rounds
# by a seventh, and nothing says so. It is right only where torch's generator stands at `from_pretrained` as
# it stood at `get_peft_model`, so where both calls come right behind the same seed.
# "pissa" (exact SVD) and OLoRA load as they were.
# Seen with peft 0.21.2, transformers 5.23.0, torch 2.15.0, CPU, rank 8 on queries and values, saved
# without a step of training (relative distance to the embeddings before saving, mean of 16 sentences):
#   pissa_niter_4: 0.00 with the same seed, 0.27 with another
#   pissa_niter_16: 0.00 with the same seed, 0.15 with another
#   pissa: 0.00 with the same seed, 0.00 with another
#   olora: 0.00 with the same seed, 0.00 with another
. "$(dirname "$0")/environment.bash" torch==2.15.0 numpy==2.4.6 transformers==5.23.0 peft==0.21.2
install_minilm
write_sentences
cat >finding.py <<'PYTHON'
import peft
import torch
from sentences import TEXTS
from transformers import AutoModel, AutoTokenizer

torch.set_num_threads(1)
tokens = AutoTokenizer.from_pretrained("minilm")(TEXTS, padding=True, return_tensors="pt")
mask = tokens["attention_mask"][..., None]


@torch.no_grad()
def embeddings(model):
    return (model.eval()(**tokens).last_hidden_state * mask).sum(1) / mask.sum(1)


def base():
    return AutoModel.from_pretrained("minilm")


def distance(a, b):
    return ((a - b).norm(dim=1) / b.norm(dim=1)).mean().item()


off = {}
for init in ("pissa_niter_4", "pissa_niter_16", "pissa", "olora"):
    config = peft.LoraConfig(r=8, target_modules=["query", "value"], init_lora_weights=init)
    model = base()
    torch.manual_seed(0)
    model = peft.get_peft_model(model, config)
    before = embeddings(model)
    assert distance(before, embeddings(base())) < 1e-5  # the split itself changes nothing
    model.save_pretrained(init)
    for seed in (0, 1):
        model = base()
        torch.manual_seed(seed)
        loaded = peft.PeftModel.from_pretrained(model, init)
        off[init, seed] = distance(embeddings(loaded), before)
    print(f"{init}: {off[init, 0]:.2f} with the same seed, {off[init, 1]:.2f} with another")
assert off["pissa_niter_4", 1] > 0.2 and off["pissa_niter_16", 1] > 0.1
assert all(
    value < 1e-4 for (init, seed), value in off.items() if seed == 0 or init in ("pissa", "olora")
)
PYTHON
quietly python finding.py
