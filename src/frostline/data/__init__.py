"""Data sets: image folders and tables read, split and audited; any data in replayable batches."""

from frostline.data.audit import Audit, audit, read_files
from frostline.data.batches import Batch, Batches, epoch_order, make_batches
from frostline.data.dataset import ImageDataset
from frostline.data.findings import Finding
from frostline.data.folder import read_set, read_splits
from frostline.data.images import IMAGE_SUFFIXES, check_image, open_image
from frostline.data.samples import ImageSet, Sample, Splits, UnknownClass
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
    "Sample",
    "Splits",
    "UnknownClass",
    "audit",
    "check_image",
    "epoch_order",
    "make_batches",
    "open_image",
    "read_files",
    "read_set",
    "read_splits",
    "view",
]
