#!/usr/bin/env bash
# Features of a frozen network are written to Parquet, by pandas or pyarrow as they come, with snappy. One
# expects the size of the raw numbers, or a little less. It is half as much again: pyarrow makes a dictionary
# of each column, and as no two features are alike, the file holds all numbers and a place for each. A column
# gives this up at 1 MB of dictionary, a quarter of a million numbers, which a frame with a column for each
# output never reaches, nor does a column of vectors of a few hundred rows to a row group. polars, and
# pyarrow with `use_dictionary=False`, do not do it.
# Seen with pyarrow 26.0.1, pandas 3.1.1, polars 2.1.0, embeddings of 2000 first lines of the standard
# library's docstrings by all-MiniLM-L6-v2 in float32 (size of the file over size of the numbers):
#   pandas, a column for each output: snappy 1.41, zstd 1.34
#   pyarrow, a column of vectors, 500 rows to a row group: 1.56; use_dictionary=False 1.00
#   polars: 0.93
. "$(dirname "$0")/environment.bash" torch==2.15.0 numpy==2.4.6 transformers==5.23.0 pyarrow==26.0.1 \
    pandas==3.1.1 polars==2.1.0
install_minilm
write_docstrings
cat >finding.py <<'PYTHON'
from pathlib import Path

import pandas
import polars
import pyarrow
import pyarrow.parquet
import torch
from docstrings import TEXTS
from transformers import AutoModel, AutoTokenizer

torch.set_num_threads(1)
tokenizer, model = AutoTokenizer.from_pretrained("minilm"), AutoModel.from_pretrained("minilm").eval()


@torch.no_grad()
def embeddings(texts):
    tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    mask = tokens["attention_mask"][..., None]
    return (model(**tokens).last_hidden_state * mask).sum(1) / mask.sum(1)


features = torch.cat([embeddings(TEXTS[start : start + 50]) for start in range(0, 2000, 50)]).numpy()
file = Path("features.parquet")


def size():
    return file.stat().st_size / features.nbytes


frame = pandas.DataFrame(features, columns=[f"f{i}" for i in range(384)])
frame.to_parquet(file)
snappy = size()
frame.to_parquet(file, compression="zstd")
zstd = size()
print(f"pandas, a column for each output: snappy {snappy:.2f}, zstd {zstd:.2f}")
vectors = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(features.ravel()), 384)
table = pyarrow.table({"features": vectors})
pyarrow.parquet.write_table(table, file, row_group_size=500)
groups = size()
pyarrow.parquet.write_table(table, file, row_group_size=500, use_dictionary=False)
plain = size()
print(
    f"pyarrow, a column of vectors, 500 rows to a row group: {groups:.2f}; "
    f"use_dictionary=False {plain:.2f}"
)
polars.DataFrame({"features": features}).write_parquet(file)
print(f"polars: {size():.2f}")
assert snappy > 1.3 and zstd > 1.2 and groups > 1.4 and plain < 1.01 and size() < 1
PYTHON
quietly python finding.py
