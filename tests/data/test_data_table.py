from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from frostline.data import read_set, read_splits
from frostline.errors import DataError

MakeImage = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path, make_image: MakeImage) -> Path:
    for index in range(8):
        make_image(tmp_path / "photos" / f"{index}.png", index)
    make_image(tmp_path / "photos" / "a, b.png", 99)
    return tmp_path


def write(folder: Path, text: str, *, encoding: str = "utf-8") -> Path:
    path = folder / "labels.csv"
    path.write_bytes(text.encode(encoding))
    return path


ROWS = [f"photos/{index}.png,{'ant' if index % 2 else 'bee'}" for index in range(8)]
PAIRS = [row.split(",") for row in ROWS]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("\n".join(["file,label", *ROWS]), "utf-8"),
        ("\r\n".join(["file,label", *ROWS, ""]), "utf-8-sig"),
        ("\r".join(["file,label", *ROWS]), "utf-8"),
        ("\n".join(["File ; Label", *(row.replace(",", ";") for row in ROWS)]), "utf-8"),
        ("\n".join(["file\tlabel", *(row.replace(",", "\t") for row in ROWS)]), "utf-8"),
        ("\n".join(["n,label,file", *(f"1,{b},{a}" for a, b in PAIRS)]), "utf-8"),
        ("\n".join(["file,label", *(r.replace("/", "\\") for r in ROWS), "", ",,"]), "utf-8"),
        ("\n".join(['"file","label"', *(f'"{a}","{b}"' for a, b in PAIRS)]), "utf-8"),
    ],
)
def test_table_is_read_however_it_was_saved(folder: Path, text: str, encoding: str) -> None:
    splits = read_splits(write(folder, text, encoding=encoding), val_fraction=0.25)
    assert splits.train.classes == ("ant", "bee")
    assert splits.train.counts == {"ant": 3, "bee": 3}
    assert splits.val.counts == {"ant": 1, "bee": 1}
    assert splits.how == "25 % of each class held out (seed 0)"
    assert all(sample.path.exists() for sample in splits.train.samples)


def test_table_and_folder_split_alike_by_name(folder: Path) -> None:
    first = read_splits(write(folder, "\n".join(["file,label", *ROWS])))
    again = read_splits(write(folder, "\n".join(["file,label", *reversed(ROWS)])))
    assert first == again


def test_quoted_names_may_hold_commas_and_labels_may_be_numbers(folder: Path) -> None:
    path = write(folder, 'file,label\n"photos/a, b.png",10\nphotos/1.png,9\n')
    found = read_set(path, classes=["9", "10"])
    assert [(sample.path.name, sample.label) for sample in found.samples] == [
        ("1.png", 0),
        ("a, b.png", 1),
    ]


def test_absolute_paths_are_taken(folder: Path) -> None:
    path = write(folder, f"file,label\n{folder / 'photos' / '1.png'},x\n")
    assert read_set(path, classes=["x"]).samples[0].path == folder / "photos" / "1.png"


def test_split_column_divides(folder: Path) -> None:
    rows = [f"{row},{'train' if index < 4 else 'Valid'}" for index, row in enumerate(ROWS[:6])]
    path = write(folder, "\n".join(["file,label,split", *rows, ROWS[6] + ",test"]))
    splits = read_splits(path)
    assert (len(splits.train), len(splits.val)) == (4, 2)
    assert splits.test is not None
    assert len(splits.test) == 1
    assert splits.how == "the split column of labels.csv"
    assert len(read_set(path, classes=["ant", "bee"])) == 1


def test_test_rows_validate_where_no_row_is_val(folder: Path) -> None:
    rows = [f"{row},{'train' if index < 4 else 'test'}" for index, row in enumerate(ROWS)]
    splits = read_splits(write(folder, "\n".join(["file,label,split", *rows])))
    assert len(splits.val) == 4
    assert splits.test is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"labels.csv is empty\. The first line must be file,label"),
        ("file,label\n", "labels.csv lists no images"),
        ("file,lable\nx,y\n", r"no column label; it has file, lable \(did you mean lable\?\)"),
        ("photos/1.png,ant\n", "no column file and no column label"),
        ("file,label\nphotos/1.png\n", "line 2: no label. Fill it in or delete the line"),
        ("file,label\nphotos/1.png,a\n,b\n", "line 3: no file"),
        (
            "file,label,split\nphotos/1.png,a,holdout\n",
            "line 2: unknown split 'holdout'. Use train",
        ),
        ("file,label,split\nphotos/1.png,a,\n", "line 2: no split"),
        ("file,label,split\nphotos/1.png,a,train\n", "no row of it is val or test"),
        ("file,label,split\nphotos/1.png,a,val\n", "no row of it is train"),
        ('file,label\n"photos/1.png"x,a\n', r"line 2: not readable as CSV .*close every quote"),
        (
            "file,label\nphotos/1.png,a\n" + "".join(f"gone{n}.png,a\n" for n in range(7)),
            r"names 7 of 8 files that are not there: gone0.png, .*gone4.png and 2 more\. Paths",
        ),
    ],
)
def test_table_that_cannot_be_used_is_refused(folder: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_splits(write(folder, text))


def test_table_in_another_encoding_is_refused(folder: Path) -> None:
    path = write(folder, "file,label\nphotos/1.png,b\u00e4r\n", encoding="latin-1")
    with pytest.raises(DataError, match=r"is not UTF-8 text. Save it as CSV in UTF-8"):
        read_splits(path)


def test_unreadable_table_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(folder, "file,label\n")

    def locked(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", locked)
    with pytest.raises(DataError, match=r"cannot read .*labels.csv: Permission denied"):
        read_splits(path)


def test_training_rows_are_never_evaluated(folder: Path) -> None:
    path = write(folder, "file,label,split\nphotos/1.png,a,train\n")
    with pytest.raises(DataError, match=r"has train rows only. Evaluate on rows with split val"):
        read_set(path, classes=["a"])


# Tables of other people


def test_columns_are_named_in_any_capitals(folder: Path) -> None:
    rows = [f"{row},{'train' if index < 6 else 'val'}" for index, row in enumerate(ROWS)]
    path = write(folder, "\n".join(["Path,DX,Part", *rows]))
    splits = read_splits(path, file_column="path", label_column="dx", split_column="part")
    assert (len(splits.train), len(splits.val)) == (6, 2)
    assert splits.how == "the part column of labels.csv"
    assert len(read_set(path, classes=["ant", "bee"], file_column="path", label_column="dx")) == 8


def test_a_column_that_names_pictures_is_offered(folder: Path) -> None:
    path = write(folder, "lesion,image_id,dx\n1,0,ant\n1,1,bee\n")
    with pytest.raises(
        DataError, match=r"no column label.*file_column='image_id', label_column='N"
    ):
        read_splits(path)


def test_names_without_ending_are_looked_for_below(folder: Path) -> None:
    path = write(folder, "file,label\n" + "".join(f"{n},{'ab'[n % 2]}\n" for n in range(8)))
    splits = read_splits(path)
    assert {s.path.name for s in splits.val.samples} < {f"{n}.png" for n in range(8)}
    (said,) = splits.notes
    assert said.endswith(f"looked for below {folder}: 0 is photos/0.png.")
    whole = write(
        folder, "file,label\n" + "".join(f"photos/{n}.png,{'ab'[n % 2]}\n" for n in range(8))
    )
    assert read_splits(whole).val == splits.val


def test_a_name_that_fits_two_files_is_refused(folder: Path, make_image: MakeImage) -> None:
    make_image(folder / "more" / "0.png", 5)
    text = "file,label\n0,a\n1,b\n"
    with pytest.raises(DataError, match=r"names 0, which may be .*more/0.png or .*photos/0.png"):
        read_splits(write(folder, text))
    photos = folder / "photos.csv"  # of the name of their folder
    photos.write_text(text + "2,a\n3,b\n")
    assert len(read_set(photos, classes=["a", "b"])) == 4


@pytest.mark.parametrize("words", [("False", "True"), ("0", "1"), ("no", "yes")])
def test_is_valid_divides(folder: Path, words: tuple[str, str]) -> None:
    rows = [f"{row},{words[index > 5]}" for index, row in enumerate(ROWS)]
    splits = read_splits(write(folder, "\n".join(["file,label,is_valid", *rows])))
    assert (len(splits.train), len(splits.val)) == (6, 2)
    assert splits.how == "the is_valid column of labels.csv"


def test_columns_that_may_have_been_meant_are_named(folder: Path) -> None:
    rows = [f"{row},x,{index % 3},7" for index, row in enumerate(ROWS)]
    (said,) = read_splits(write(folder, "\n".join(["file,label,label2,fold,age", *rows]))).notes
    assert said.startswith("labels.csv: the columns label2, fold are not used.")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("file,label,label\nphotos/1.png,a,b\n", {}, "2 columns label. Give them different names"),
        ("file,label\nphotos/1.png,a\n", {"split_column": "part"}, "no column part; it has file"),
        ("file,label,is_valid\nphotos/1.png,a,maybe\n", {}, "unknown is_valid 'maybe'. Use true"),
    ],
)
def test_columns_that_cannot_be_used_are_refused(
    folder: Path, text: str, options: dict[str, str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_splits(write(folder, text), **options)  # type: ignore[arg-type]  # texts by name


def test_tab_separated_values_may_hold_commas(folder: Path) -> None:
    path = folder / "labels.tsv"
    path.write_text("file\tlabel\tnote, or, more\nphotos/1.png\tx\tred, blue\n")
    assert read_set(path, classes=["x"]).samples[0].path == folder / "photos" / "1.png"


def test_a_table_for_each_split_divides(folder: Path) -> None:
    (folder / "train.csv").write_text("\n".join(["file,label", *ROWS[:6]]))
    (folder / "val.tsv").write_text(
        "\n".join(["file\tlabel", *(r.replace(",", "\t") for r in ROWS[6:])])
    )
    (folder / "test.csv").write_text("file\nphotos/1.png\n")
    splits = read_splits(folder)
    assert (len(splits.train), len(splits.val), splits.test) == (6, 2, None)
    assert splits.how == "train.csv and val.tsv"
    assert splits.notes == ("test.csv has no column label: not used.",)
    assert len(read_set(folder, classes=["ant", "bee"])) == 2


def test_a_line_with_more_cells_than_the_first_is_refused(folder: Path) -> None:
    # Else the cell that shifts into a column is taken for its own.
    shifted = [*ROWS[:3], "photos/3.png,extra,ant", *ROWS[4:]]
    with pytest.raises(DataError, match="line 5: 3 fields, where the first line has 2"):
        read_splits(write(folder, "\n".join(["file,label", *shifted])))
