"""Features: the frozen part computed once per sample, stored, and read in batches."""

from frostline.features.agreeing import computing_of_first as computing_of_first
from frostline.features.agreeing import cut_by_all as cut_by_all
from frostline.features.agreeing import of_first as of_first
from frostline.features.agreeing import padding_of_first as padding_of_first
from frostline.features.batches import LiveLastBatches as LiveLastBatches
from frostline.features.batches import PrefixedBatches as PrefixedBatches
from frostline.features.computing import Computing as Computing
from frostline.features.computing import Decisions as Decisions
from frostline.features.computing import computing as computing
from frostline.features.computing import difference_by_place as difference_by_place
from frostline.features.computing import differences as differences
from frostline.features.computing import in_form as in_form
from frostline.features.computing import in_passes_of as in_passes_of
from frostline.features.decoding import probable_decoding as probable_decoding
from frostline.features.decoding import with_decoding as with_decoding
from frostline.features.extraction import extract as extract
from frostline.features.feature_data import FeatureBatches as FeatureBatches
from frostline.features.feature_data import FeatureData as FeatureData
from frostline.features.padding import Padding as Padding
from frostline.features.padding import PaddingMatters as PaddingMatters
from frostline.features.padding import padding_of as padding_of
