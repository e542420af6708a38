"""Tiny models of texts with their tokenizers, as folders that transformers saves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WORDS = ("good", "bad", "film", "a", "the", "very", "plot", "fine", "dull", ".")


def write_tokenizer(folder: Path, *, padding_side: str = "right", ends: bool = True) -> Path:
    """A tokenizer of ten words; with `ends` it puts [CLS] and [SEP] around a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS)
    made = Tokenizer(models.WordLevel({n: i for i, n in enumerate(names)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    if ends:
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
    PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        padding_side=padding_side,
        model_max_length=32,
    ).save_pretrained(folder)
    return folder


def write_bert(folder: Path, *, head: str = "BertModel", **config: Any) -> Path:
    """A BERT of two layers 16 wide, with random weights; `head` is the class that is saved."""
    import transformers

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    made = transformers.BertConfig(
        vocab_size=4 + len(WORDS),
        num_hidden_layers=2,
        max_position_embeddings=32,
        **sizes,
        **config,
    )
    getattr(transformers, head)(made).save_pretrained(folder)
    return write_tokenizer(folder)


def write_sentence_encoder(folder: Path, *after: str, pooling: str = "mean_tokens") -> Path:
    """The BERT with a `modules.json`; `after` names the parts behind the pooling."""
    write_bert(folder)
    parts = ["Transformer", "Pooling", *after]
    paths = ["", *(f"{place}_{kind}" for place, kind in enumerate(parts[1:], 1))]
    modules = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.{kind}"}
        for place, (kind, path) in enumerate(zip(parts, paths, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    for path in paths[1:]:
        (folder / path).mkdir(exist_ok=True)
    chosen = {f"pooling_mode_{pooling}": True, "pooling_mode_cls_token": pooling == "cls_token"}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(chosen))
    return folder
