"""Features: the frozen part computed once per sample, stored, and read in batches."""

from frostline.features.computing import (
    Computing,
    computing,
    difference_by_place,
    difference_by_size,
    first_rows,
    in_passes_of,
)
from frostline.features.decisions import Decisions
from frostline.features.extraction import (
    FeatureBatches,
    FeatureData,
    Storage,
    extract,
    extract_source,
    first_samples,
)
from frostline.features.live import LiveLastBatches, PrefixedBatches
from frostline.features.sources import Source, collate, source_of

__all__ = [
    "Computing",
    "Decisions",
    "FeatureBatches",
    "FeatureData",
    "LiveLastBatches",
    "PrefixedBatches",
    "Source",
    "Storage",
    "collate",
    "computing",
    "difference_by_place",
    "difference_by_size",
    "extract",
    "extract_source",
    "first_rows",
    "first_samples",
    "in_passes_of",
    "source_of",
]
