"""Feature rows on disk: found by content, safe in a crash, shared by processes.

The format stands in README.md beside this file.
"""

from frostline.store.features import Features
from frostline.store.keeping import Damage, Stored, stored_table
from frostline.store.keys import FeatureKey, ValueSpec
from frostline.store.numbers import storage_error
from frostline.store.reading import Rows
from frostline.store.stores import FeatureStore
from frostline.store.writing import Writer

__all__ = [
    "Damage",
    "FeatureKey",
    "FeatureStore",
    "Features",
    "Rows",
    "Stored",
    "ValueSpec",
    "Writer",
    "storage_error",
    "stored_table",
]
