"""Features: the frozen part computed once per sample, stored, and read in batches."""

from frostline.features.computing import Computing, computing
from frostline.features.decisions import Decisions
from frostline.features.extraction import (
    FeatureBatches,
    FeatureData,
    Storage,
    extract,
    first_samples,
)
from frostline.features.live import PrefixedBatches
from frostline.features.sources import Source, collate, source_of

__all__ = [
    "Computing",
    "Decisions",
    "FeatureBatches",
    "FeatureData",
    "PrefixedBatches",
    "Source",
    "Storage",
    "collate",
    "computing",
    "extract",
    "first_samples",
    "source_of",
]
