"""Tables of texts: which columns, which lines, which split; and what their audit finds."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import pytest

import frostline as fl
from frostline.data import audit_texts, cut_texts, read_text_set, read_texts, text_samples
from frostline.data.text_columns import TextColumns
from frostline.errors import DataError
from text_world import write_tokenizer

ROWS = [("good film", "pos"), ("bad film", "neg"), ("fine plot", "pos"), ("dull plot", "neg")]


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def write_rows(path: Path, rows: list[tuple[Any, ...]], names: tuple[str, ...] = ()) -> Path:
    """As the path's ending says."""
    if path.suffix == ".jsonl":
        return write(path, *(json.dumps(dict(zip(names, row, strict=True))) for row in rows))
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        columns = zip(*rows, strict=True)
        parquet.write_table(pyarrow.table(dict(zip(names, map(list, columns), strict=True))), path)
        return path
    gap = "\t" if path.suffix == ".tsv" else ","
    return write(path, *(gap.join(map(str, row)) for row in ([names] if names else []) + rows))


@pytest.fixture
def encoder(tmp_path: Path) -> fl.TextPreprocessing:
    return fl.TextPreprocessing(str(write_tokenizer(tmp_path / "tokenizer")), max_length=6)


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_a_table_is_read_the_same_in_each_format(tmp_path: Path, ending: str) -> None:
    path = write_rows(tmp_path / f"all.{ending}", ROWS * 3, ("review", "sentiment"))
    splits = read_texts(path, seed=1)
    assert splits.classes == ("neg", "pos")
    assert splits.columns == TextColumns("review", "sentiment")
    found = [*zip(splits.train.texts, splits.train.labels, strict=True)]
    found += zip(splits.val.texts, splits.val.labels, strict=True)
    assert sorted(found) == sorted(ROWS * 3)
    assert splits.val.counts(splits.classes) == {"neg": 1, "pos": 1}


@pytest.mark.parametrize(("train", "val"), [("csv", "jsonl"), ("jsonl", "csv"), ("tsv", "csv")])
def test_parts_of_several_formats_are_one_data_set(tmp_path: Path, train: str, val: str) -> None:
    names = ("review", "sentiment")
    write_rows(tmp_path / f"train.{train}", ROWS * 3, names)
    write_rows(tmp_path / f"val.{val}", ROWS, names)
    write_rows(tmp_path / "probe.csv", ROWS, names)
    splits = read_texts(tmp_path)
    assert (len(splits.train), len(splits.val)) == (12, 4)
    assert "probe.csv: not used, as no name says train, val or test." in splits.notes


def test_a_label_that_was_asked_for_needs_no_note_of_others(tmp_path: Path) -> None:
    rows = [(text, label, "1") for text, label in ROWS * 2]
    path = write_rows(tmp_path / "all.csv", rows, ("text", "sentiment", "score"))
    assert "score is not used, as sentiment is the label" in " ".join(read_texts(path).notes)
    assert read_texts(path, label="sentiment").notes == ()


def test_files_without_a_header_are_read_by_their_look(tmp_path: Path) -> None:
    for name in ("train", "dev", "test"):
        write_rows(tmp_path / f"{name}.tsv", ROWS * 2)
    splits = read_texts(tmp_path)
    assert [len(part) for part in splits.sets.values()] == [8, 8, 8]
    assert splits.how == "train.tsv and dev.tsv, test.tsv kept apart"
    assert splits.notes == (
        "train.tsv has no header line: column 0 is taken for the text, column 1 for the label, "
        "counted from 0.",
    )
    assert splits.test is not None
    assert splits.test.name(1) == "test.tsv line 2"


def test_columns_of_a_table_without_a_header_are_said_by_number(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.csv", [(i, f"{i} words", i % 2) for i in range(8)])
    with pytest.raises(DataError, match=r"cannot be told.*by number from 0: text='0', label='1'"):
        read_texts(write_rows(tmp_path / "b.csv", [(f"{i} words", i) for i in range(8)]))
    splits = read_texts(path, text="1", label="2")
    assert "3 words" in (*splits.train.texts, *splits.val.texts)


def test_pairs_are_found_by_their_names_or_as_said(tmp_path: Path) -> None:
    names = ("premise", "hypothesis", "other", "label")
    path = write_rows(tmp_path / "a.csv", [("a", "b", "c", i % 2) for i in range(4)], names)
    assert read_texts(path).train.texts[0] == ("a", "b")
    assert read_texts(path, text="other+premise").train.texts[0] == ("c", "a")


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ('a "b"\t1\n"c\t0\nd\t1\n"e"f\t0\ng\t1\n', {'a "b"', '"c', "d", '"e"f', "g"}),
        ('text\tlabel\n"a ""b"""\t1\n"a\tb"\t0\n"a ""b"""\t1\n"a\tb"\t0\n', {'a "b"', "a\tb"}),
    ],
)
def test_quotes_are_characters_unless_the_file_quotes(
    tmp_path: Path, content: str, texts: set[str]
) -> None:
    path = tmp_path / "all.tsv"
    path.write_text(content)
    assert {*read_text_set(path).texts} == texts


@pytest.mark.parametrize("ending", ["tsv", "jsonl"])
def test_separators_of_unicode_do_not_end_a_line(tmp_path: Path, ending: str) -> None:
    odd = '"a\u2028b\x85c\u2029d' if ending == "tsv" else "a\u2028b\x85c\u2029d"
    lines = {
        "tsv": ["text\tlabel", f"{odd}\t1", "f\t0"],
        "jsonl": [f'{{"text": "{text}", "label": 1}}' for text in (odd, "f")],
    }
    path = tmp_path / f"all.{ending}"
    path.write_bytes("".join(f"{line}\r\n" for line in lines[ending]).encode())
    assert read_text_set(path).texts == (odd, "f")


@pytest.mark.parametrize("labels", [(0, 1), (False, True), (0.0, 1.0)])
def test_a_label_of_zero_is_a_label(tmp_path: Path, labels: tuple[Any, ...]) -> None:
    rows = [(f"{n} words", labels[n % 2]) for n in range(4)]
    for name in ("train", "dev"):
        write_rows(tmp_path / f"{name}.jsonl", rows, ("text", "label"))
    write(tmp_path / "test.jsonl", *('{"text": "a", "label": null}' for _ in "ab"))
    splits = read_texts(tmp_path)
    assert (len(splits.val), splits.how) == (4, "train.jsonl and dev.jsonl")
    assert splits.notes == ("test.jsonl has no labels: not used.",)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_marks_are_read(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "all.csv"
    path.write_text("text,label\n" + "é,1\nü,0\n" * 2, encoding=encoding)
    assert {*read_texts(path).train.texts} == {"é", "ü"}


def test_a_split_column_divides(tmp_path: Path) -> None:
    rows = [(*row, split) for row in ROWS for split in ("train", "dev", "test")]
    path = write_rows(tmp_path / "all.csv", rows, ("text", "label", "split"))
    splits = read_texts(path)
    assert [len(part) for part in splits.sets.values()] == [4, 4, 4]
    assert splits.how == "the split column of all.csv"
    assert read_text_set(path, columns=splits.columns).lines == (4, 7, 10, 13)


def test_a_dataset_s_labels_have_their_names() -> None:
    datasets: Any = pytest.importorskip("datasets")
    names = datasets.ClassLabel(names=["neg", "pos"])
    features = datasets.Features({"sentence": datasets.Value("string"), "label": names})
    rows = {"sentence": ["a", "b", "c", "d"], "label": [0, 1, 0, 1]}
    data = datasets.Dataset.from_dict(rows, features=features)
    divided = datasets.DatasetDict(train=data, validation=data)
    assert read_texts(divided).val.labels == ("neg", "pos", "neg", "pos")


def test_lists_are_read_like_a_table() -> None:
    splits = read_texts((["a", "b"] * 5, [1, 0] * 5))
    assert (splits.classes, len(splits.val)) == (("0", "1"), 2)
    pairs = read_texts(([("a", "b"), ("c", "d")] * 5, ["x", "y"] * 5))
    assert ("a", "b") in pairs.train.texts
    with pytest.raises(DataError, match="got 1 texts and 2 labels"):
        read_texts((["a"], [1, 2]))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("words,label\na,1\nb,0\n", r"no column that is called like a text; it has words, label\."),
        ("text,truth\na,1\nb,0\n", r"no column that is called like a label; it has text, truth\."),
        ("text,label\na,1\nb\n", r"line 3: 1 fields, where the first line has 2"),
        ('text,label\n"a,1\n', r"line 2: not readable as CSV"),
        ("text,label\na,1\nb,\n", r"a\.csv line 3 has no label"),
        ("text,label\na,\nb,1\nc,0\n", r"a\.csv line 2 has no label"),
        ("", r"a\.csv is empty"),
        ("text,label\n", r"holds no texts"),
        (b"text,label\na,1\ncaf\xe9,0\n", r"line 3: byte 0xe9 is not UTF-8.*Save the file as"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_in_one_line(
    tmp_path: Path, content: str | bytes, said: str
) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=said) as refusal:
        read_texts(path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (['{"text": "a", "label": 1}', '{"text": "b", "label": "x"}'], "labels of two kinds"),
        (['{"text": ["a"], "label": 1}'], "line 1: the text is a list"),
        (['{"text": "a"'], "line 1: not readable as JSON"),
        (['"a"'], "line 1: not an object"),
    ],
)
def test_lines_of_json_that_cannot_be_read_are_refused(
    tmp_path: Path, lines: list[str], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        read_texts(write(tmp_path / "a.jsonl", *lines))


def test_a_wrong_column_is_refused_with_the_nearest(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.csv", ROWS, ("review", "label"))
    with pytest.raises(DataError, match=r"no column reviw; .* \(did you mean review\?\)"):
        read_texts(path, text="reviw")


def test_what_is_odd_about_the_texts_is_found(tmp_path: Path) -> None:
    rows = [*ROWS * 2, ("good film", "neg"), (" ", "pos"), ("one", "Pos")]
    write_rows(tmp_path / "train.csv", rows, ("text", "label"))
    write_rows(tmp_path / "dev.csv", [ROWS[0], ("new", "neg")], ("text", "label"))
    found = {one.code: one.message for one in audit_texts(read_texts(tmp_path))}
    assert found["empty-text"] == "1 text is empty and left out: train.csv line 11."
    assert found["label-conflict"].startswith("1 text is in the train split under different labels")
    assert "train.csv line 3 = train.csv line 7" in found["double-text"]
    assert "train.csv line 2 = dev.csv line 2" in found["train-val-overlap"]
    assert "'Pos' and 'pos' differ in capitals only" in found["layout"]
    assert "Pos (1)" in found["few-texts"]
    with pytest.raises(DataError, match=r"1 text is empty: train\.csv line 11"):
        audit_texts(read_texts(tmp_path), bad_texts="error")


def test_a_label_that_training_lacks_is_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.csv", ROWS, ("text", "label"))
    write_rows(tmp_path / "dev.csv", [("a", "odd")], ("text", "label"))
    with pytest.raises(DataError, match=r"the val split has the label 'odd' \(1 text\), which"):
        audit_texts(read_texts(tmp_path))
    with pytest.raises(DataError, match="there is nothing to tell apart"):
        audit_texts(read_texts((["a", "b", "c"], ["x"] * 3)))


def test_long_texts_are_cut_and_counted(encoder: fl.TextPreprocessing) -> None:
    long = " ".join(["good"] * 100_000)
    samples = fl.TextSamples(["a film", long, "bad"], [0, 1, 0], encoder)
    assert list(samples.lengths) == [4, 6, 3]
    (found,) = cut_texts({"train": samples})
    assert found.message == "train: 1 of 3 texts is longer than 6 tokens and was cut."


def test_a_text_without_tokens_is_named(tmp_path: Path) -> None:
    bare = fl.TextPreprocessing(str(write_tokenizer(tmp_path, ends=False)))
    samples = fl.TextSamples(["good", ""], [0, 1], bare)
    with pytest.raises(DataError, match=r"text 1 has no tokens.*so have 1 of 2"):
        samples.load(0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_is_filled_up_on_the_tokenizer_s_side(
    encoder: fl.TextPreprocessing, side: Any
) -> None:
    from dataclasses import replace

    samples = fl.TextSamples(["a film", "bad"], [0, 1], replace(encoder, padding_side=side))
    batch = samples.collate([samples.load(0), samples.load(1)])
    mask = batch["attention_mask"].tolist()
    assert mask == [[1, 1, 1, 1], [0, 1, 1, 1] if side == "left" else [1, 1, 1, 0]]


def test_features_of_a_text_are_found_by_its_words_and_its_tokenizer(
    encoder: fl.TextPreprocessing,
) -> None:
    first = fl.TextSamples(["a film", "bad"], [0, 1], encoder)
    other = fl.TextSamples(["bad"], [1], encoder)
    assert first.ids([1]) == other.ids([0]) != first.ids([0])
    pair = fl.TextSamples([("a", "film")], [1], encoder)
    assert pair.ids([0]) != fl.TextSamples([("a f", "ilm")], [1], encoder).ids([0])
    assert len(pair.load(0)["input_ids"]) == 5


@pytest.mark.parametrize("package", ["tokenizers", "transformers"])
def test_features_are_not_shared_by_versions_of_what_makes_the_ids(
    encoder: fl.TextPreprocessing, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fl.TextSamples(["a"], [0], encoder).transform
    real = importlib.metadata.version
    given = {package: "0"}
    monkeypatch.setattr(importlib.metadata, "version", lambda name: given.get(name) or real(name))
    assert fl.TextSamples(["a"], [0], encoder).transform != before


def test_numbers_are_labels_of_a_regression(encoder: fl.TextPreprocessing, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.csv", [("a", 1.5), ("b", 2), ("c", 0.5)], ("text", "score"))
    splits = read_texts(path, classify=False)
    both = [text_samples(part, encoder) for part in splits.sets.values()]
    assert sorted(t for part in both for t in part.targets) == [0.5, 1.5, 2.0]
    bad = write_rows(tmp_path / "b.csv", [("a", 1.5), ("b", "nan"), ("c", 1)], ("text", "score"))
    with pytest.raises(DataError, match=r"b\.csv line 3 has the label 'nan', which is no number"):
        text_samples(read_text_set(bad), encoder)


def test_a_tokenizer_that_changed_is_refused(encoder: fl.TextPreprocessing) -> None:
    from dataclasses import replace

    with pytest.raises(fl.ConfigError, match=r"the tokenizer in .* is another one than it was"):
        fl.TextSamples(["a"], [0], replace(encoder, digest="0" * 32)).load(0)
