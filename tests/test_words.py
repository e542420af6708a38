"""A tag for each word: read from files, tokenised, trained on, judged and predicted."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import frostline as fl
from frostline.data import audit_texts, inputs_of, looks_like_words, read_texts, text_samples
from frostline.deltas import read_delta
from frostline.models import load_model
from frostline.records import RunFolder
from small_world import Answer, call
from text_world import write_bert, write_tokenizer

SENTENCES = (
    ("good film", "B-UP O"),
    ("the very bad plot", "O B-DOWN I-DOWN O"),
    ("a dull . film", "O B-DOWN O O"),
    ("very fine plot .", "B-UP I-UP O O"),
    ("bad .", "B-DOWN O"),
    ("the plot", "O O"),
    ("a very fine film", "O B-UP I-UP O"),
    ("very dull .", "B-DOWN I-DOWN O"),
)


def lines(sentences: Any = SENTENCES, *, middle: str = "", gap: str = " ") -> str:
    parts = []
    for words, tags in sentences:
        pairs = zip(words.split(), tags.split(), strict=True)
        parts.append("\n".join(gap.join(filter(None, (w, middle, t))) for w, t in pairs) + "\n\n")
    return "".join(parts)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


# Reading.


@pytest.mark.parametrize("kind", ["conll", "tsv", "jsonl", "parquet", "datasets", "lists"])
def test_sentences_are_read_the_same_from_each_form(kind: str, tmp_path: Path) -> None:
    words, tags = ([part.split() for part in column] for column in zip(*SENTENCES, strict=True))
    names = sorted({tag for own in tags for tag in own})
    data: Any = tmp_path / f"all.{kind}"
    if kind == "conll":
        write(data, f"-DOCSTART- -X- O\n\n{lines(middle='NN')}".replace("\n", "\r\n"))
    elif kind == "tsv":
        write(data, lines(gap="\t"))
    elif kind == "jsonl":
        rows = ({"tokens": w, "pos_tags": w, "tags": t} for w, t in zip(words, tags, strict=True))
        write(data, "\n".join(map(json.dumps, rows)))
    elif kind == "lists":
        data = (words, tags)
    else:
        datasets: Any = pytest.importorskip("datasets")
        places = [[names.index(tag) for tag in own] for own in tags]
        labels = datasets.List(datasets.ClassLabel(names=names))
        features = datasets.Features({"tokens": datasets.List(datasets.Value("string"))})
        features["ner_tags"] = labels
        made = datasets.Dataset.from_dict({"tokens": words, "ner_tags": places}, features)
        if kind == "parquet":
            made.to_parquet(str(data))
        data = data if kind == "parquet" else made
    found = read_texts(data, words=True, val_fraction=0.3)
    both = {
        tuple(w): t
        for part in (found.train, found.val)
        for w, t in zip(part.texts, part.tags, strict=True)
    }
    assert both == {tuple(w): tuple(t) for w, t in zip(words, tags, strict=True)}
    assert found.classes == tuple(names)
    assert {tag for own in found.train.tags for tag in own} == set(names)


def test_a_comment_is_none_of_the_words_and_a_hash_may_be_one(tmp_path: Path) -> None:
    text = "# sent_id = 1\n# id-1\n# O\n#film B\ngood B\n\n#nothing else at all\n\n\xa0 O\nbad B\n"
    found = read_texts(write(tmp_path / "a.txt", text), words=True, val_fraction=0.5)
    both = sorted((*found.train.texts, *found.val.texts))
    assert both == [("#", "#film", "good"), ("\xa0", "bad")]
    named = {found.train.name(0), found.val.name(0)}
    assert named == {"a.txt line 3", "a.txt line 9"}


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.conll", "good B\nfilm\n", r"a\.conll, line 2: the word 'film' has no tag"),
        (
            "a.conll",
            "good N B\nfilm B\n",
            r"a\.conll, line 2: the word 'film' has 2 columns, where",
        ),
        ("a.conll", "good\nfilm\n", r"a\.conll has a single column: words without tags\."),
        ("a.conll", "good\tB\n\tB\n", r"a\.conll, line 2: a word that is empty"),
        ("a.conll", "-DOCSTART- O\n\n", r"a\.conll holds no words\."),
        ("a.jsonl", '{"tokens": ["a", "b"], "tags": ["O"]}', r"line 1 has 2 words and 1 tags\."),
        ("a.jsonl", '{"tokens": ["a"], "tags": [null]}', r"line 1: the word 'a' has no tag\."),
        (
            "a.jsonl",
            '{"tokens": "a", "tags": "O"}',
            r"no column of lists that is called like words",
        ),
        (
            "a.jsonl",
            '{"tokens": ["a"]}',
            r"no column of lists that is called like tags; it has tok",
        ),
        ("a.csv", "tokens,tags\n", r"a\.csv is a file, neither a folder nor a table"),
    ],
)
def test_sentences_that_cannot_be_read_are_refused_in_one_line(
    tmp_path: Path, name: str, text: str, told: str
) -> None:
    with pytest.raises(fl.DataError, match=told) as caught:
        read_texts(write(tmp_path / name, text), words=True)
    assert "\n" not in str(caught.value)


def test_what_is_odd_about_the_sentences_is_found(tmp_path: Path) -> None:
    rows = [{"words": w.split(), "tags": t.split()} for w, t in SENTENCES]
    train = [*rows, {"words": [], "tags": []}, {"words": ["odd"], "tags": ["B-ODD"]}]
    write(tmp_path / "d/train.jsonl", "\n".join(map(json.dumps, train)))
    write(tmp_path / "d/dev.jsonl", "\n".join(map(json.dumps, rows[:2])))
    splits = read_texts(tmp_path / "d", words=True)
    found = {one.code: one.message for one in audit_texts(splits)}
    assert found["empty-text"].endswith("empty and left out: train.jsonl line 9.")
    assert "train.jsonl line 1 = dev.jsonl line 1" in found["train-val-overlap"]
    assert "B-ODD (1)" in found["few-words"]
    assert "B-ODD" in found["class-not-in-val"]
    alone = read_texts(([["a", "b"], ["c"]], [["O", "O"], ["O"]]), words=True, val_fraction=0.5)
    with pytest.raises(fl.DataError, match=r"found the tag 'O' alone\. Give words of each"):
        audit_texts(alone)


# Samples.


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("words")
    torch.manual_seed(0)
    write_bert(found / "bert")
    write(found / "d/train.conll", lines(SENTENCES * 3))
    write(found / "d/dev.conll", lines(SENTENCES[:3]))
    return found


def test_the_first_piece_of_a_word_has_its_tag_and_no_other_token(root: Path) -> None:
    prepared = load_model(f"hf:{root / 'bert'}", weights="none", classes=3, tokens=True).of_texts
    given = (["very", "good.film", "plot"], ["bad"])
    samples = fl.TextSamples([fl.Words(w) for w in given], [[1, 2, 1], [2]], prepared)
    assert samples.targets[0].tolist() == [-100, 1, 2, -100, -100, 1, -100]  # good . film
    assert samples.targets[1].tolist() == [-100, 2, -100]
    assert samples.lengths == [7, 3]
    assert inputs_of(samples, [0, 1])["input_ids"].shape == (2, 7)
    cut = fl.TextSamples(samples.texts, [[1, 2, 1], [2]], replace(prepared, max_length=4))
    assert cut.targets[0].tolist() == [-100, 1, 2, -100]
    assert cut.truncation() == (
        "1 of 2 texts is longer than 4 tokens and was cut: the words behind have no tag."
    )
    pair = fl.TextSamples([("good", "film")], None, prepared)
    words = fl.TextSamples([fl.Words(("good", "film"))], None, prepared)
    assert pair.ids([0]) != words.ids([0])  # other tokens, so other features
    with pytest.raises(fl.DataError, match=r"^text 1 has 1 words and 2 tags\. Give a tag for each"):
        fl.TextSamples(samples.texts, [[1, 2, 1], [2, 2]], prepared)


def test_words_of_a_tokenizer_of_bytes_begin_as_within_a_text(tmp_path: Path) -> None:
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    made = ByteLevelBPETokenizer()
    made.train_from_iterator(["a good film"] * 9, vocab_size=300, min_frequency=1)
    PreTrainedTokenizerFast(tokenizer_object=made._tokenizer).save_pretrained(tmp_path)
    prepare = fl.TextPreprocessing(str(tmp_path))
    whole, words = prepare([" good film"]), prepare([fl.Words(["good", "film"])])
    assert words.values["input_ids"].tolist() == whole.values["input_ids"].tolist()
    assert words.words is not None
    assert words.words.tolist() == [0, 1]


def test_a_tokenizer_that_cannot_tell_words_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import PreTrainedTokenizerFast

    prepare = fl.TextPreprocessing(str(write_tokenizer(tmp_path)))
    monkeypatch.setattr(PreTrainedTokenizerFast, "is_fast", property(lambda _: False))
    with pytest.raises(fl.ConfigError, match=r"is one in Python alone, which does not say which"):
        prepare([fl.Words(["good"])])


# Runs.

FEW = ("--epochs", 1, "--features", "off")


def trained(root: Path, out: Path, *options: object) -> Answer:
    return call(
        *("train", root / "d", "--model", f"hf:{root / 'bert'}", "--out", out, "--batch-size", 4),
        *("--epochs", 6, "--lr", 0.1, "--device", "cpu", *options),
    )


@pytest.fixture(scope="module")
def run(root: Path) -> Path:
    """Trained on stored hidden states."""
    answer = trained(root, root / "run", "--features", root / "store", "--precision", "exact")
    assert answer.status == 0, answer.err
    assert "tokens, since train.conll is a CoNLL file" in answer.err
    assert "tags: B-DOWN, B-UP, I-DOWN, I-UP, O" in answer.out
    return root / "run"


def test_stored_hidden_states_train_as_the_plain_loop_does(
    root: Path, run: Path, tmp_path: Path
) -> None:
    assert any((root / "store").rglob("*.npy"))
    assert trained(root, tmp_path / "plain", "--features", "off").status == 0
    plain, stored = (_best(p) for p in (tmp_path / "plain", run))
    assert plain.keys() == stored.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(stored[name], tensor, rtol=1e-4, atol=1e-5)


def _best(folder: Path) -> dict[str, torch.Tensor]:
    return dict(read_delta(RunFolder(folder).best).tensors)


def test_a_run_is_judged_by_words_and_spans(run: Path, root: Path, tmp_path: Path) -> None:
    table = tmp_path / "rows.csv"
    found = call("evaluate", run, root / "d", "--csv", table, "--json").json
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    assert {row["file"]: row["true_tags"] for row in rows} == {
        "dev.conll line 1": "B-UP|O",
        "dev.conll line 4": "O|B-DOWN|I-DOWN|O",
        "dev.conll line 9": "O|B-DOWN|O|O",
    }
    pairs = [
        pair
        for row in rows
        for pair in zip(row["true_tags"].split("|"), row["predicted_tags"].split("|"), strict=True)
    ]
    assert found["token_accuracy"] == pytest.approx(sum(a == b for a, b in pairs) / 10)
    assert found["span_f1"] > 0.5
    wrong = write(tmp_path / "wrong.conll", "good B-UPP\nfilm O\n")
    told = call("evaluate", run, wrong).message
    long = write(tmp_path / "long.conll", "good B-UP\n" * 40)
    assert "1 texts is longer than 32 tokens and was cut" in call("evaluate", run, long).err
    assert "wrong.conll line 1: the word 'good' has the tag 'B-UPP' (nearest: B-UP" in told


def test_predict_gives_a_tag_for_each_word_of_anything_in_words(run: Path, tmp_path: Path) -> None:
    typed = call("predict", run, "a very fine. film", "--json").json[0]
    assert typed["words"] == ["a", "very", "fine.", "film"]
    assert len(typed["tags"]) == 4
    files = {
        "a.conll": "a\nvery\nfine.\nfilm\n\n",
        "a.csv": "id,text\n1,a very fine. film\n2,\n",
        "a.tsv": "text\tn\na very fine. film\t1\n",
        "a.jsonl": '{"tokens": ["a", "very", "fine.", "film"]}\n{"tokens": []}\n',
    }
    for name, text in files.items():
        out = call("predict", run, write(tmp_path / name, text), "--csv").out
        first, *others = csv.DictReader(io.StringIO(out))
        assert first["tags"].split("|") == typed["tags"]
        assert all(row["error"] == "no text" for row in others)
    (cut,) = fl.open_run(run).predict([["good"] * 40])
    assert cut.answer["tags"][29:] == [cut.answer["tags"][0], *[None] * 10]  # type: ignore[index]
    shown = call("predict", run, "good " * 40)
    assert ("good/" in shown.out, "10 words have no tag" in shown.err) == (True, True)


def test_a_run_that_begins_with_another_keeps_what_it_knows_of_each_tag(
    run: Path, tmp_path: Path
) -> None:
    more = lines([*SENTENCES, ("good", "A-NEW"), ("bad", "A-NEW")])
    write(tmp_path / "d/train.conll", more)
    write(tmp_path / "d/dev.conll", lines(SENTENCES[:3]))
    call("train", tmp_path / "d", "--from", run, "--out", tmp_path / "run", *FEW)
    before, begun = _best(run), fl.open_run(tmp_path / "run").began_with
    assert begun is not None
    assert begun.classes == ("A-NEW", "B-DOWN", "B-UP", "I-DOWN", "I-UP", "O")
    assert torch.equal(begun.tensors["classifier.weight"][1:], before["classifier.weight"])


def test_python_learns_from_words_as_the_command_line_does(root: Path) -> None:
    splits = read_texts(root / "d", words=True)
    model = load_model(f"hf:{root / 'bert'}", weights="none", classes=5, tokens=True)
    train, val = (
        text_samples(p, model.of_texts, splits.classes) for p in (splits.train, splits.val)
    )
    fl.train_only(model.model, "classifier")
    found = fl.fit(model.model, train, val, task="tokens", epochs=1, device="cpu", features="off")
    assert {kind.name for kind in found.best.validation.per_kind} == {"UP", "DOWN"}  # type: ignore[attr-defined]


def test_only_words_with_tags_are_taken_for_such(root: Path, tmp_path: Path) -> None:
    assert looks_like_words(root / "d") == "train.conll is a CoNLL file"
    lists = write(tmp_path / "a.jsonl", '{"tokens": ["a"], "ner_tags": ["O"]}')
    assert looks_like_words(lists).startswith("a.jsonl has a column of lists of words")
    texts = write(tmp_path / "b.jsonl", '{"text": "a", "labels": ["x", "y"]}')
    assert looks_like_words(texts) == ""
    assert looks_like_words(tmp_path / "none") == ""
    assert looks_like_words(write(tmp_path / "c.txt", lines())) == "c.txt is a CoNLL file"
    assert looks_like_words(write(tmp_path / "d.txt", "a few\nwords of plain text\n")) == ""
