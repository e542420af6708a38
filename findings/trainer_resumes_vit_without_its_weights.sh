#!/usr/bin/env bash
# Trainer saves a ViT under older names of its parameters, which from_pretrained translates. As it
# resumes it loads the file without that: a warning of missing keys, and all layers are what the
# script began with. `load_best_model_at_end` reads the best checkpoint in the same way.
# Seen with transformers 5.23.0, torch 2.15.0 and accelerate 1.15.0:
#   resumed at the end of the run: layers as saved False, as at the start True; head as saved True
. "$(dirname "$0")/environment.bash" transformers==5.23.0 torch==2.15.0 accelerate==1.15.0 \
    numpy==2.4.6 torchvision
quietly python -W ignore - <<'EOF'
import torch
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
config = ViTConfig(image_size=16, patch_size=8, intermediate_size=48, num_labels=2, **small)
data = [{"pixel_values": torch.randn(3, 16, 16), "labels": i % 2} for i in range(16)]


def model():
    torch.manual_seed(0)
    return ViTForImageClassification(config)


def trained(resume):
    made, options = model(), {"report_to": "none", "disable_tqdm": True, "use_cpu": True}
    args = TrainingArguments("run", num_train_epochs=1, save_strategy="epoch", **options)
    Trainer(made, args, train_dataset=data).train(resume_from_checkpoint=resume)
    return made.state_dict()


trained(None)
resumed = trained(True)  # no step is left
saved = ViTForImageClassification.from_pretrained("run/checkpoint-2").state_dict()
begun = model().state_dict()
layer = "vit.layers.0.mlp.fc1.weight"
found = [
    torch.equal(resumed[layer], saved[layer]),
    torch.equal(resumed[layer], begun[layer]),
    torch.equal(resumed["classifier.weight"], saved["classifier.weight"]),
]
text = "layers as saved {}, as at the start {}; head as saved {}"
print("resumed at the end of the run:", text.format(*found))
assert found == [False, True, True], found
EOF
