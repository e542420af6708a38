"""A name of the Hugging Face hub -> a folder: from its cache, or fetched in one try."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from frostline.errors import ModelError, one_line
from frostline.models.timm_source import HUB_TIMEOUT_SECONDS

_WANTED = ("*.json", "*.txt", "*.model", "*.bpe", "*.tiktoken")
_WEIGHTS = (("*.safetensors",), ("pytorch_model*.bin",))


def hub_folder(name: str) -> Path:
    """The folder of the hub's cache with the model `name`.

    Raises:
        ModelError: it is not in the cache, and the hub cannot be reached or has no such model.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, snapshot_download

    try:
        cached = Path(snapshot_download(name, local_files_only=True))
        if (cached / "config.json").is_file():
            return cached
    except Exception:  # whatever the hub's client raises where it is not there
        pass
    try:
        # Asked directly, the hub's client does not retry: it would for 23 s (transformers 5.23).
        get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=HUB_TIMEOUT_SECONDS)
        return Path(snapshot_download(name, allow_patterns=_patterns(name)))
    except Exception as error:  # by which HTTP library the hub's client uses
        raise ModelError(
            f"hf:{name}: it is not in the hub's cache, and cannot be had from the hub: "
            f"{one_line(error, first=True)}. Check the name and the network, or give a folder that "
            f"holds the model: hf:FOLDER."
        ) from error


def _patterns(name: str) -> list[str]:
    """What to fetch: one set of weights, not each format of them."""
    from huggingface_hub import list_repo_files

    files: list[Any] = list(list_repo_files(name))
    is_safe = any(file.endswith(".safetensors") for file in files)
    return [*_WANTED, *_WEIGHTS[0 if is_safe else 1]]
