#!/usr/bin/env bash
# What four bits for the weights of a frozen encoder (all-MiniLM-L6-v2) save and cost on a CPU, by
# torchao's IntxWeightOnlyConfig, the int4 weights that run there. One expects about half of the memory
# of int8, and, where each weight tensor is off by a tenth, embeddings off by a tenth or two. Each
# four-bit number is kept in a byte of its own and there are more scales, so all of it is larger than
# int8; and the embeddings of six blocks are off by 0.27.
# Seen with torchao 0.18.0, transformers 5.23.0, torch 2.15.0, CPU:
#   int8 58.7 MB, error 0.03; int4 in groups of 32 60.2 MB, error 0.27
. "$(dirname "$0")/environment.bash" torch==2.15.0 numpy==2.4.6 transformers==5.23.0 torchao==0.18.0
install_minilm
quietly python -W ignore - <<'EOF'
import copy
import torch
import torchao.quantization as quantization
from transformers import AutoModel, AutoTokenizer

sentences = ["The train leaves at noon.", "She planted an apple tree.", "A slow film.", "It may rain."]
tokens = AutoTokenizer.from_pretrained("minilm")(sentences, padding=True, return_tensors="pt")
mask = tokens["attention_mask"].unsqueeze(-1).float()


@torch.no_grad()
def embed(encoder):
    return (encoder(**tokens).last_hidden_state.float() * mask).sum(1) / mask.sum(1)


def kept(encoder):
    """Bytes of all plain tensors that the parameters are made of."""
    parts = []
    for parameter in encoder.parameters():
        value = parameter.data
        names = value.__tensor_flatten__()[0] if hasattr(value, "__tensor_flatten__") else []
        parts += [getattr(value, name) for name in names] or [value]
    return sum(part.nbytes for part in parts)


encoder = AutoModel.from_pretrained("minilm").eval().requires_grad_(False)
exact = embed(encoder)
seen = {}
for words, config in (
    ("int8", quantization.Int8WeightOnlyConfig()),
    ("int4 in groups of 32", quantization.IntxWeightOnlyConfig(
        weight_dtype=torch.int4, granularity=quantization.PerGroup(32)
    )),
):
    small = copy.deepcopy(encoder)
    quantization.quantize_(small, config)
    error = float((embed(small) - exact).norm() / exact.norm())
    seen[words] = kept(small) / 1e6, error
print("; ".join(f"{words} {size:.1f} MB, error {error:.2f}" for words, (size, error) in seen.items()))
(eight, of_eight), (four, of_four) = seen.values()
assert four > eight and of_eight < 0.06 and 0.2 < of_four < 0.45, seen
EOF
