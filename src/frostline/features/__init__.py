"""Features: the frozen part computed once per sample, stored, and read in batches."""

from frostline.features.computing import Computing as Computing
from frostline.features.computing import computing as computing
from frostline.features.computing import difference_by_place as difference_by_place
from frostline.features.computing import difference_by_size as difference_by_size
from frostline.features.computing import in_passes_of as in_passes_of
from frostline.features.decisions import Decisions as Decisions
from frostline.features.extraction import FeatureBatches as FeatureBatches
from frostline.features.extraction import FeatureData as FeatureData
from frostline.features.extraction import Storage as Storage
from frostline.features.extraction import extract as extract
from frostline.features.live import LiveLastBatches as LiveLastBatches
from frostline.features.live import PrefixedBatches as PrefixedBatches
