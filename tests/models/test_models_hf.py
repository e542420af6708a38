"""Models of transformers: folders with and without a classifier, sentence encoders, mistakes."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.errors import ModelError, WeightsError
from frostline.models import build, load_model, put_head
from frostline.models.pooled import POOLINGS, Pooled, pooled
from frostline.models.spec import ModelSpec
from text_world import write_bert, write_sentence_encoder, write_tokenizer

transformers: Any = pytest.importorskip("transformers")

TEXTS = ["a good film", "the very very dull plot ."]


@pytest.fixture(autouse=True)
def _loading_ended() -> Iterator[None]:
    """transformers loads in threads that it does not wait for (5.23)."""
    yield
    for thread in threading.enumerate():
        if thread.name.startswith("ThreadPoolExecutor"):
            thread.join()


def load(folder: Path, **named: Any) -> Any:
    return load_model(f"hf:{folder}", weights="DEFAULT", classes=3, **named)


def batch_of(loaded: Any, texts: list[Any]) -> dict[str, torch.Tensor]:
    samples = fl.TextSamples(texts, None, loaded.of_texts)
    return samples.collate([samples.load(row) for row in range(len(texts))])


def test_an_encoder_without_a_classifier_gets_a_head_on_the_mean_of_its_tokens(
    tmp_path: Path,
) -> None:
    loaded = load(write_bert(tmp_path))
    assert (loaded.head, type(loaded.model), loaded.classes) == ("head", Pooled, None)
    theirs = transformers.AutoModel.from_pretrained(tmp_path)
    for text in TEXTS:  # alone, each without padding
        states = theirs(**batch_of(loaded, [text])).last_hidden_state
        expected = loaded.model.head(states.mean(dim=1))
        assert torch.allclose(loaded.model(**batch_of(loaded, TEXTS))[TEXTS.index(text)], expected)


def test_a_checkpoint_s_own_classifier_is_replaced_and_all_else_stays(tmp_path: Path) -> None:
    loaded = load(write_bert(tmp_path, head="BertForSequenceClassification"))
    assert loaded.head == "classifier"
    assert loaded.model(**batch_of(loaded, TEXTS)).logits.shape == (2, 3)
    kept = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).state_dict()
    same = [name for name, v in loaded.model.state_dict().items() if torch.equal(v, kept[name])]
    assert len(same) == len(kept) - 2


def test_a_kept_classifier_has_the_names_of_its_checkpoint(tmp_path: Path) -> None:
    names = {0: "bad", 1: "fine", 2: "good"}
    folder = write_bert(tmp_path, head="BertForSequenceClassification", id2label=names)
    assert load(folder, on="keep").classes == ("bad", "fine", "good")
    with pytest.raises(ModelError, match=r"the encoder has no classifier.*on='classifier'"):
        load(write_bert(tmp_path), on="keep")


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("how", POOLINGS)
def test_what_is_pooled_does_not_depend_on_padding(how: Any, side: str) -> None:
    states, mask = torch.randn(1, 3, 4), torch.ones(1, 3, dtype=torch.int64)
    pad = (2, 0) if side == "left" else (0, 2)
    longer = nn.functional.pad(states, (0, 0, *pad), value=7.0)
    assert torch.allclose(
        pooled(longer, nn.functional.pad(mask, pad), how), pooled(states, mask, how)
    )


def test_a_sentence_encoder_is_pooled_as_its_folder_says(tmp_path: Path) -> None:
    folder = write_sentence_encoder(tmp_path, "Dense", "Normalize", pooling="cls_token")
    config = {"in_features": 16, "out_features": 8, "activation_function": "torch.nn.Tanh"}
    dense = nn.Linear(16, 8)
    (folder / "2_Dense" / "config.json").write_text(json.dumps(config))
    weights = {f"linear.{name}": value for name, value in dense.state_dict().items()}
    torch.save(weights, folder / "2_Dense" / "pytorch_model.bin")
    loaded = load(folder)
    assert loaded.model.head.in_features == 8
    batch = batch_of(loaded, TEXTS)
    first = loaded.model.backbone(**batch).last_hidden_state[:, 0]
    expected = nn.functional.normalize(dense(first).tanh(), dim=1)
    assert torch.allclose(loaded.model(**batch), loaded.model.head(expected))


@pytest.mark.parametrize(
    ("config", "poolings"),
    [
        (
            {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
            ("cls", "mean"),
        ),
        ({"pooling_mode": ["mean", "cls"], "pooling_mode_max_tokens": True}, ("mean", "cls")),
    ],
)
def test_several_poolings_stand_in_the_order_of_their_makers(
    config: Any, poolings: Any, tmp_path: Path
) -> None:
    folder = write_sentence_encoder(tmp_path)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    assert load(folder).model.poolings == poolings


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_a_sentence_encoder_reads_lower_case_where_its_folder_says(
    name: str, tmp_path: Path
) -> None:
    folder = write_sentence_encoder(tmp_path)
    before = load(folder).of_texts
    config = {"do_lower_case": True, "max_seq_length": 8}
    (folder / f"sentence_{name}_config.json").write_text(json.dumps(config))
    after = load(folder).of_texts
    assert (after.max_length, str(after) == str(replace(before, max_length=8))) == (8, False)
    assert after(["A Good [SEP]"]).values["input_ids"].tolist() == [2, 7, 4, 3, 3]
    assert before(["A Good"]).values["input_ids"].tolist() == [2, 1, 1, 3]


def test_the_dtype_of_the_checkpoint_is_kept_or_the_one_asked_for(tmp_path: Path) -> None:
    theirs = transformers.AutoModel.from_pretrained(write_bert(tmp_path)).to(torch.bfloat16)
    theirs.save_pretrained(tmp_path)
    dtypes = [
        {p.dtype for p in load(tmp_path, **asked).model.parameters()}
        for asked in ({}, {"dtype": "float32"})
    ]
    assert dtypes == [{torch.bfloat16}, {torch.float32}]


def test_without_weights_a_seed_decides_all_values(tmp_path: Path) -> None:
    folder = write_bert(tmp_path)
    made = [load_model(f"hf:{folder}", weights="none", classes=2, seed=1).model for _ in "ab"]
    pairs = zip(made[0].parameters(), made[1].parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_tokens_get_logits_each_where_that_is_asked(tmp_path: Path) -> None:
    loaded = load(write_bert(tmp_path, head="BertForTokenClassification"), tokens=True)
    assert loaded.model(**batch_of(loaded, TEXTS)).logits.shape == (2, 8, 3)


def test_pictures_are_prepared_as_the_folder_says(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    config = transformers.ViTConfig(image_size=32, patch_size=8, num_hidden_layers=1, **sizes)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    found = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(found))
    loaded = load(tmp_path)
    assert loaded.head == "classifier"
    assert (loaded.of_pictures.crop, loaded.of_pictures.std) == ((32, 32), (0.25,) * 3)
    with pytest.raises(ModelError, match="reads pictures, and the data are texts"):
        _ = loaded.of_texts


def test_a_name_that_is_not_in_the_cache_fails_in_one_line_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    start = time.perf_counter()
    with pytest.raises(ModelError, match=r"hf:nobody/nothing: .* give a folder .*: hf:FOLDER\.$"):
        load_model("hf:nobody/nothing", weights="DEFAULT", classes=2)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, r"there is no config\.json in .*; it holds nothing"),
        ({"config.json": "{"}, r"transformers cannot read .*config\.json"),
        ({"config.json": '{"model_type": "whisper"}'}, "the kind 'whisper' is not known here"),
    ],
)
def test_a_folder_that_holds_no_model_of_texts_is_refused(
    tmp_path: Path, files: dict[str, str], said: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ModelError, match=said):
        load(tmp_path)


def test_a_misspelt_folder_is_refused_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "minilm").mkdir()
    with pytest.raises(ModelError, match=r"there is no folder .*minilmm\. Nearest: minilm\."):
        load(tmp_path / "minilmm")


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    folder = write_bert(tmp_path)
    from safetensors.torch import save_file

    save_file({"other.weight": torch.ones(2)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match=r"none of the weights in .* fit BertModel"):
        load(folder)


def test_a_pickle_that_runs_code_is_not_unpickled(tmp_path: Path) -> None:
    folder = write_bert(tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save({"weights": Path("x"), "module": nn.Linear(2, 2)}, folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"the weights cannot be loaded: .*model\.safetensors"):
        load(folder)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = write_bert(tmp_path)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match="there is no tokenizer that can be read"):
        load(folder)


def test_a_model_that_generates_is_padded_though_its_tokenizer_has_no_padding(
    tmp_path: Path,
) -> None:
    config = transformers.GPT2Config(vocab_size=14, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    write_tokenizer(tmp_path, ends=False)
    loaded = build(ModelSpec.parse(f"hf:{tmp_path}"), weights="DEFAULT")
    assert not loaded.model.config.use_cache
    assert loaded.model(**batch_of(loaded, TEXTS)).logits.shape == (2, 2)


def test_of_a_model_with_a_decoder_the_encoder_alone_is_built(tmp_path: Path) -> None:
    config = transformers.T5Config(
        vocab_size=14, d_model=16, d_ff=32, d_kv=8, num_heads=2, num_layers=1
    )
    transformers.T5EncoderModel(config).save_pretrained(write_tokenizer(tmp_path))
    loaded = load(tmp_path)
    assert loaded.model(**batch_of(loaded, TEXTS)).shape == (2, 3)


def test_a_new_head_on_a_frozen_encoder_needs_no_pass_of_it_again(tmp_path: Path) -> None:
    loaded = load(write_sentence_encoder(tmp_path / "encoder", "Normalize"))
    texts = [*TEXTS, "bad film", "a a a a a", "fine plot .", "the film"]
    data = fl.TextSamples(texts, [0, 1, 2] * 2, loaded.of_texts)
    computed = []
    for seed in range(2):
        put_head(loaded.model, classes=3, seed=seed)
        fl.train_only(loaded.model, loaded.head)
        run = fl.fit(loaded.model, data, data, epochs=1, features=tmp_path / "features")
        computed.append(run.computed)
    assert computed == [6, 0]
