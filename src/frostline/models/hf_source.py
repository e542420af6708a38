"""Models of transformers and sentence-transformers, from a folder or the hub's cache."""

from __future__ import annotations

import importlib.util
import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from frostline.errors import ModelError, WeightsError, nearest, one_line
from frostline.models._built import LoadedModel
from frostline.models.hub_folders import hub_folder
from frostline.models.pooled import Pooled
from frostline.models.sentence_folders import SentenceParts, sentence_parts
from frostline.models.spec import ModelSpec, WeightsChoice
from frostline.models.transforms import from_hf
from frostline.models.weights import WeightsReport
from frostline.preprocessing import (
    Preprocessing,
    TextPreprocessing,
    load_tokenizer,
    tokenizer_digest,
)
from frostline.units import some_of
from frostline.wording import option

HfTask = Literal["sequence", "tokens", "image"]

_AUTO: dict[HfTask, str] = {
    "sequence": "AutoModelForSequenceClassification",
    "tokens": "AutoModelForTokenClassification",
    "image": "AutoModelForImageClassification",
}
_MOST_TOKENS = 512  # where a model names no limit of its own
_TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def build_hf(spec: ModelSpec, weights: WeightsChoice, *, tokens: bool = False) -> LoadedModel:
    """A model by its `config.json`; see `Source`.

    What the checkpoint has a classifier for is built with it; an encoder of texts without one, or
    a sentence encoder, becomes `Pooled`. Weights are read as safetensors, or by torch's
    `weights_only`: nothing is unpickled, and no code of the folder is run.

    Args:
        tokens: logits for each token, not for each text.

    Raises:
        ModelError: transformers is not installed, there is no such folder, or it is none of a
            model that takes texts or pictures.
        WeightsError: the weights cannot be read, or do not fit.
    """
    _check_installed(spec)
    if weights.name not in ("DEFAULT", "none"):
        raise WeightsError(
            f"{spec} has no weights {weights.name!r}: a folder holds one set of them. Use "
            f"{option('weights', 'DEFAULT')}, none or a file."
        )
    root = _local(spec.name) or hub_folder(spec.name)
    parts = sentence_parts(root)
    folder = root / parts.transformer if parts else root
    config = _config(spec, folder)
    task = _task(spec, config, tokens=tokens)
    loading = None if weights.kind == "none" else folder
    with _quiet():
        if task is None:
            parts = parts or SentenceParts()
            model, report = _pooled(spec, config, root, loading, parts)
        else:
            model, report = _auto(spec, _AUTO[task], config, loading)
    if task == "image":
        return LoadedModel(model, _of_pictures(folder), report, spec, _class_names(config))
    preprocessing = _of_texts(spec, folder, config, model, parts)
    if tokens:  # where the targets of shorter texts are filled up
        preprocessing = replace(preprocessing, padding_side="right")
    classes = _class_names(config) if report.loaded and task else None
    return LoadedModel(model, preprocessing, report, spec, classes)


def reads_texts(model: str) -> bool:
    """Whether this is a model of transformers that takes texts.

    Raises:
        ModelError: as `build_hf`.
    """
    spec = ModelSpec.parse(model)
    if spec.source != "hf":
        return False
    _check_installed(spec)
    root = _local(spec.name) or hub_folder(spec.name)
    parts = sentence_parts(root)
    if parts:
        return True
    return _task(spec, _config(spec, root), tokens=False) != "image"


def _check_installed(spec: ModelSpec) -> None:
    if importlib.util.find_spec("transformers") is None:
        raise ModelError(
            f"{spec} needs the package transformers, which is not installed: "
            'pip install "frostline[hf]".'
        )


def _local(name: str) -> Path | None:
    """The folder of that name; None where it can only be one of the hub.

    Raises:
        ModelError: it is a path, and no folder is there.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path.resolve()
    is_path = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if not is_path and not path.exists():
        return None
    around = path.parent if path.parent.is_dir() else Path()
    close = nearest(path.name, [entry.name for entry in around.iterdir() if entry.is_dir()])
    found = "it is a file" if path.exists() else f"there is no folder {path}"
    near = f" Nearest: {', '.join(close)}." if close else ""
    raise ModelError(
        f"hf:{name}: {found}.{near} Give a folder that holds a config.json and its weights."
    )


def _config(spec: ModelSpec, folder: Path) -> Any:
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        inside = [entry.name for entry in sorted(folder.iterdir())]
        raise ModelError(
            f"{spec}: there is no config.json in {folder}; it holds "
            f"{some_of(inside, most=5) or 'nothing'}. Give the folder that a model was saved to."
        )
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # of any kind, by what the file holds
        raise ModelError(
            f"{spec}: transformers cannot read {folder / 'config.json'}: "
            f"{one_line(error, first=True)}. Update transformers, or write a function that builds "
            "the model and name it file.py:function."
        ) from error
    if getattr(config, "use_cache", False):
        config.use_cache = False  # made in each forward, read by none: there is no generation
    return config


def _task(spec: ModelSpec, config: Any, *, tokens: bool) -> HfTask | None:
    """What to build; None for an encoder of texts that lacks a classifier."""
    from transformers.models.auto import modeling_auto as known

    kind, named = config.model_type, " ".join(config.architectures or ())
    if tokens and kind in known.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES:
        return "tokens"
    if kind in known.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        return "image"
    if "ForSequenceClassification" in named or "CausalLM" in named or "LMHead" in named:
        if kind in known.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
            return "sequence"
    elif not tokens and _encoder(config)[1] is not None:
        return None
    raise ModelError(
        f"{spec}: a model of the kind {kind!r} is not known here as one that classifies "
        f"{'tokens' if tokens else 'texts or pictures'}. Write a function that builds it and "
        "name it file.py:function."
    )


def _encoder(config: Any) -> tuple[str, Any]:
    """The automatic class, and the class, of an encoder that takes token ids; None without one."""
    import transformers

    # First, as it has the encoder alone of models that have a decoder too.
    for name in ("AutoModelForTextEncoding", "AutoModel"):
        kinds: Any = getattr(transformers, name)._model_mapping
        made = kinds.get(type(config), None)
        if isinstance(made, type) and getattr(made, "main_input_name", "") == "input_ids":
            is_encoder = name != "AutoModel" or not config.is_encoder_decoder
            return name, made if is_encoder else None
    return "", None


def _auto(
    spec: ModelSpec, name: str, config: Any, folder: Path | None, **named: Any
) -> tuple[nn.Module, WeightsReport]:
    """A model of the automatic class `name`, with its weights where there is a folder."""
    import transformers

    made: Any = getattr(transformers, name)
    try:
        if folder is None:
            model: nn.Module = made.from_config(config, dtype="float32", **named)
            return model, WeightsReport.none()
        model, found = made.from_pretrained(
            folder,
            config=config,
            dtype="auto",
            local_files_only=True,
            output_loading_info=True,
            **named,
        )
    except Exception as error:  # of any kind, by what the files hold
        said = one_line(error, first=True)
        if folder is None:
            raise ModelError(f"{spec}: transformers cannot build it: {said}.") from error
        raise WeightsError(
            f"{spec}: the weights cannot be loaded: {said}. Give a folder with a "
            f"model.safetensors, or use {option('weights', 'none')} for a dry run."
        ) from error
    missing, other = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    loaded = len(model.state_dict()) - len(missing)
    if not loaded:
        raise WeightsError(
            f"{spec}: none of the weights in {folder} fit {type(model).__name__}, which has "
            f"{some_of(missing, most=3)}; there are {some_of(other, most=3)}. Give the folder of "
            "one model."
        )
    return model, WeightsReport(f"{spec.name}", loaded, tuple(missing), tuple(other))


def _pooled(
    spec: ModelSpec, config: Any, root: Path, folder: Path | None, parts: SentenceParts
) -> tuple[nn.Module, WeightsReport]:
    """An encoder whose tokens' states are pooled, as its folder says."""
    name, kind = _encoder(config)
    named = {}
    if "add_pooling_layer" in _parameters(kind):
        named = {"add_pooling_layer": False}  # of its first token's state, which nothing reads
    backbone, report = _auto(spec, name, config, folder, **named)
    width = getattr(config, "hidden_size", None) or config.d_model
    made = Pooled(
        backbone,
        width=int(width),
        poolings=parts.poolings,
        projections=parts.projections(root, with_weights=folder is not None),
    )
    first = next(backbone.parameters())
    made.projections.to(first.dtype)
    return made.train(backbone.training), report


def _parameters(made: type) -> Mapping[str, Any]:
    return inspect.signature(made).parameters


def _class_names(config: Any) -> tuple[str, ...] | None:
    """The names that the checkpoint gives its logits, unless they are numbers."""
    names = [str(config.id2label[place]) for place in sorted(config.id2label or {})]
    is_named = names != [f"LABEL_{place}" for place in range(len(names))]
    return tuple(names) if names and is_named else None


def _of_texts(
    spec: ModelSpec, folder: Path, config: Any, model: nn.Module, parts: SentenceParts | None
) -> TextPreprocessing:
    try:
        tokenizer = load_tokenizer(folder)
    except Exception as error:  # of any kind, by what the files hold
        raise ModelError(
            f"{spec}: there is no tokenizer that can be read in {folder}: "
            f"{one_line(error, first=True)}. Save it beside the model: "
            "tokenizer.save_pretrained(folder)."
        ) from error
    forward = model.backbone if isinstance(model, Pooled) else model
    takes = _parameters(type(forward).forward)  # type: ignore[arg-type]  # a function to mypy
    inputs = tuple(n for n in _TEXT_INPUTS if n in takes and n in tokenizer.model_input_names)
    padding = tokenizer.pad_token_id
    if padding is None:  # of one that generates; what is masked is read by no token
        padding = tokenizer.eos_token_id or 0
    if not isinstance(model, Pooled) and getattr(config, "pad_token_id", None) is None:
        own: Any = model.config  # a copy
        own.pad_token_id = padding  # by which a classifier finds the last token
    return TextPreprocessing(
        tokenizer=str(folder),
        digest=tokenizer_digest(folder),
        inputs=tuple(dict.fromkeys(("input_ids", "attention_mask", *inputs))),
        max_length=_max_length(config, tokenizer, parts),
        padding_side="left" if tokenizer.padding_side == "left" else "right",
        padding_id=padding,
        lower_case=parts is not None and parts.lower_case,
    )


def _max_length(config: Any, tokenizer: Any, parts: SentenceParts | None) -> int:
    """The least that model, tokenizer and sentence encoder allow for."""
    positions = getattr(config, "max_position_embeddings", None) or _MOST_TOKENS
    if config.model_type in _POSITIONS_AFTER_PADDING:
        positions -= (config.pad_token_id or 0) + 1
    limits = (positions, tokenizer.model_max_length, parts.max_length if parts else None)
    return int(min(limit for limit in limits if limit and limit > 0))


# These count positions from behind the padding's id.
_POSITIONS_AFTER_PADDING = {
    *("camembert", "ibert", "longformer", "mpnet", "roberta", "roberta-prelayernorm"),
    *("data2vec-text", "xlm-roberta", "xlm-roberta-xl", "xmod"),
}


def _of_pictures(folder: Path) -> Preprocessing:
    file = folder / "preprocessor_config.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Preprocessing()
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{file} cannot be read: {one_line(error)}. Copy it from where the model is from."
        ) from error
    return from_hf(found)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bars and its table of what was loaded, which `WeightsReport` has."""
    from transformers.utils import logging as their_logging

    logging: Any = their_logging  # without types
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
