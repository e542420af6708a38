#!/usr/bin/env bash
# RWKV's forward in evaluation divides weights of its later layers in place, also frozen ones, by
# powers of two, and a forward in training multiplies them back; whether it did stands in an
# attribute. What is saved after an evaluation holds the divided weights and nothing that says so:
# loaded again, they are divided once more.
# Seen with transformers 5.23.0 and torch 2.15.0:
#   a forward in evaluation moved 12 frozen tensors, one in training moved them back
#   loaded again: as saved before the evaluation equal: True, after it off by 0.44
. "$(dirname "$0")/environment.bash" transformers==5.23.0 torch==2.15.0 numpy==2.4.6
quietly python -W ignore - <<'EOF'
import torch
from transformers import RwkvConfig, RwkvForCausalLM

torch.manual_seed(0)
sizes = {"hidden_size": 64, "attention_hidden_size": 64, "num_hidden_layers": 12}
model = RwkvForCausalLM(RwkvConfig(vocab_size=500, use_cache=False, **sizes))
model.requires_grad_(False)
tokens = torch.randint(0, 500, (2, 8))
before = {name: tensor.clone() for name, tensor in model.state_dict().items()}


def moved():
    return [name for name, now in model.state_dict().items() if not torch.equal(now, before[name])]


def loaded(folder):
    with torch.no_grad():
        return RwkvForCausalLM.from_pretrained(folder).eval()(input_ids=tokens).logits


with torch.no_grad():
    model.save_pretrained("before")
    expected = model.eval()(input_ids=tokens).logits
    in_evaluation = moved()
    model.save_pretrained("after")
    model.train()(input_ids=tokens)
    in_training = moved()
off = (loaded("after") - expected).abs().max() / expected.abs().max()
same = torch.equal(loaded("before"), expected)
print(
    f"a forward in evaluation moved {len(in_evaluation)} frozen tensors, one in training moved "
    f"them back: {not in_training}"
)
print(f"loaded again: as saved before the evaluation equal: {same}, after it off by {off:.2f}")
assert len(in_evaluation) == 12 and not in_training and same and off > 0.1, (in_evaluation, off)
EOF
