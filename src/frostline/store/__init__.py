"""Feature rows on disk: found by content, safe in a crash, shared by processes.

The format stands in README.md beside this file.
"""

from frostline.store.keeping import Damage as Damage
from frostline.store.keeping import Stored as Stored
from frostline.store.keeping import stored_table as stored_table
from frostline.store.keys import FeatureKey as FeatureKey
from frostline.store.keys import ValueSpec as ValueSpec
from frostline.store.keys import dtype_name as dtype_name
from frostline.store.objects import is_address as is_address
from frostline.store.reading import PADS as PADS
from frostline.store.reading import Pads as Pads
from frostline.store.reading import StoredRows as StoredRows
from frostline.store.records import storage_error as storage_error
from frostline.store.sharing import SharedParts as SharedParts
from frostline.store.stores import Features as Features
from frostline.store.stores import FeatureStore as FeatureStore
from frostline.store.stores import user_cache as user_cache
from frostline.store.writing import Writer as Writer
