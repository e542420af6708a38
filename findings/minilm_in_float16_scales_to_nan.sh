#!/usr/bin/env bash
# Sentence embeddings of a frozen all-MiniLM-L6-v2 are stored in float16, which moves them by 0.0003, and
# a pipeline of scikit-learn, StandardScaler and LogisticRegression, is to learn on them. One expects the
# results of float32. But three of the 384 outputs of this model are dead: their weights in the last norm
# have decayed to 1e-9 and 1e-33. In float16 one of them is 0 nearly always and 6e-8 in two sentences of
# 1500; StandardScaler keeps float16 and divides by a spread of 2e-9, which in float16 is 0. Each
# sentence then has a NaN, with a warning by numpy alone, and the classifier refuses the data. With a few
# hundred sentences all may go well (all 0, and no spread). In float32 the dead outputs are scaled up
# to one, 1e33 times, and a whitening PCA scales them too: three directions of nothing.
# Seen with scikit-learn 1.9.1, sentence-transformers 6.2.0, transformers 5.24.0, torch 2.15.0, 2000 first
# lines of the standard library's docstrings, `encode` as it comes:
#   outputs with a spread below 1e-8: [127, 223, 319], all others above 0.02
#   float32: 0 of 500 other sentences with NaN; float16: 500 (scaled by 1500), 0 (scaled by 100)
#   LogisticRegression on float16: ValueError: Input X contains NaN.
. "$(dirname "$0")/environment.bash" torch==2.15.0 numpy==2.4.6 scikit-learn==1.9.1 \
    sentence-transformers==6.2.0 transformers==5.24.0
install_minilm
write_docstrings
cat >finding.py <<'PYTHON'
import warnings

import numpy
import torch
from docstrings import TEXTS
from sentence_transformers import SentenceTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

torch.set_num_threads(1)
warnings.simplefilter("ignore", RuntimeWarning)
model = SentenceTransformer("minilm", device="cpu")
exact = model.encode(TEXTS, batch_size=64, show_progress_bar=False)
assert exact.shape == (2000, 384)
spread = exact.astype(numpy.float64).std(0)
dead = numpy.flatnonzero(spread < 1e-8).tolist()
print(f"outputs with a spread below 1e-8: {dead}, all others above {numpy.sort(spread)[len(dead)]:.2f}")


def spoiled(dtype, count):
    scaler = StandardScaler().fit(exact[:count].astype(dtype))
    return int(numpy.isnan(scaler.transform(exact[1500:].astype(dtype))).any(1).sum())


single, half, few = spoiled("float32", 1500), spoiled("float16", 1500), spoiled("float16", 100)
print(
    f"float32: {single} of 500 other sentences with NaN; "
    f"float16: {half} (scaled by 1500), {few} (scaled by 100)"
)
labels = numpy.arange(1500) % 2
pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=20))
try:
    pipeline.fit(exact[:1500].astype(numpy.float16), labels)
    raised = "nothing"
except ValueError as error:
    raised = str(error).splitlines()[0]
print(f"LogisticRegression on float16: ValueError: {raised}")
assert len(dead) == 3 and (single, half) == (0, 500) and "NaN" in raised
PYTHON
quietly python finding.py
