#!/usr/bin/env bash
# A folder that holds a model and no tokenizer, as model.save_pretrained leaves it: one expects
# AutoTokenizer to raise. It builds a tokenizer of the special tokens alone, and
# says nothing: with BERT each word becomes [UNK], with RoBERTa all words are dropped, with GPT-2 a text
# has no tokens at all. A frozen encoder then gives the same features for all texts of one length, or
# for all texts, and a head on them learns how often each class occurs.
# Seen with transformers 5.23.0:
#   BertConfig 5 tokens, RobertaConfig 5 tokens, GPT2Config 1 tokens; texts of one length alike: True
. "$(dirname "$0")/environment.bash" transformers==5.23.0 tokenizers==0.23.3
export HF_HUB_OFFLINE=1
quietly python -W ignore - <<'EOF'
import transformers

texts = ["a fine film .", "a dull mess ."]
sizes, alike = [], []
for kind in ("BertConfig", "RobertaConfig", "GPT2Config"):
    getattr(transformers, kind)().save_pretrained(kind)
    tokenizer = transformers.AutoTokenizer.from_pretrained(kind)
    ids = tokenizer(texts)["input_ids"]
    sizes.append((kind, len(tokenizer)))
    alike.append(ids[0] == ids[1])
print(", ".join(f"{kind} {size} tokens" for kind, size in sizes), end="; ")
print(f"texts of one length alike: {all(alike)}")
assert [size for _, size in sizes] == [5, 5, 1] and all(alike), (sizes, alike)
EOF
