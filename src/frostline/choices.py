"""Words to choose from: each list once, for functions, settings and options of the command line."""

from __future__ import annotations

from typing import Final, Literal

AUTO_MONITOR = "auto"
"""What a recipe monitors where it names no metric: the task's first, with its noise."""

EXPORT_TOLERANCE: Final = 1e-5
"""How far an output of an exported file may differ, as a share of the largest, or of 1."""

BadImages = Literal["skip", "error"]
ExportFormat = Literal["safetensors", "pt2", "onnx", "torchscript"]
HeadPlace = Literal["classifier", "logits", "keep"]
FloatName = Literal["float32", "bfloat16", "float16"]
DecodingName = Literal["full", "jpeg-crop", "jpeg-4x", "jpeg-2x"]
PrefixPrecision = Literal["exact", "auto"] | float
StepPrecision = Literal["fp32", "bf16", "fp16"]
NormPolicy = Literal["hold", "adapt"]
OptimizerName = Literal["adamw", "adam", "sgd"]
Schedule = Literal["cosine", "constant"]
Snapshot = Literal["best", "last"]
TaskName = Literal["classification", "multilabel", "regression", "segmentation", "tokens"]
TaskChoice = Literal["auto", TaskName]
Storage = Literal["auto", FloatName, "int8"]
