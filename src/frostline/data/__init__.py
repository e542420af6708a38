"""Data sets: image folders and tables read, split and audited; any data in replayable batches."""

from frostline.data.audit import Audit, audit, read_files
from frostline.data.batches import Batch, Batches, Order, epoch_order, make_batches
from frostline.data.dataset import ImageDataset
from frostline.data.findings import Finding
from frostline.data.folder import read_set, read_splits
from frostline.data.images import IMAGE_SUFFIXES, check_image, open_image
from frostline.data.loaders import as_pair
from frostline.data.ordered import count_threads, ordered_map
from frostline.data.samples import ImageSet, Sample, Splits, UnknownClass, in_order
from frostline.data.targets import class_targets
from frostline.data.views import Augment, view

__all__ = [
    "IMAGE_SUFFIXES",
    "Audit",
    "Augment",
    "Batch",
    "Batches",
    "Finding",
    "ImageDataset",
    "ImageSet",
    "Order",
    "Sample",
    "Splits",
    "UnknownClass",
    "as_pair",
    "audit",
    "check_image",
    "class_targets",
    "count_threads",
    "epoch_order",
    "in_order",
    "make_batches",
    "open_image",
    "ordered_map",
    "read_files",
    "read_set",
    "read_splits",
    "view",
]
