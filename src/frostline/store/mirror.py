"""A key's local folder and the address it stands for: fetched before it is read, pushed after."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, final

from frostline.errors import OutputError, StoreError
from frostline.store.layout import segment_folders
from frostline.store.manifest import Manifest, settle
from frostline.store.objects import KEPT, AddressError
from frostline.store.remote import Remote
from frostline.store.removal import StoreBudget
from frostline.store.row_index import Keys
from frostline.store.sealing import waits
from frostline.store.segments import Segment, stored_or_kept
from frostline.store.writing import Writer, turn, use_key

# The local folder is one machine's, whenever that was started: its locks hold.
_HOME: Final = "local"


@final
@dataclass(frozen=True, slots=True)
class Mirror:
    """One key's folder, and what an address holds of it."""

    remote: Remote
    folder: Path
    manifest: Manifest
    budget: StoreBudget

    def is_empty(self) -> bool:
        """Whether the address has no row of the key."""
        return not self.remote.has_rows(self.folder.name)

    def fetch(self, wanted: Keys) -> bool:
        """Bring what the address has of these rows; whether anything came.

        Raises:
            StoreError: the address cannot be read, or the budget does not allow it.
        """
        here = {path.name for path in segment_folders(self.folder)}
        there = self.remote.segments(self.folder.name, without=here)
        if not there:
            return False
        with self._held():
            return self.remote.fetch(
                self.folder, self.manifest, there, wanted, self.budget.make_room
            )

    def push(self) -> None:
        """Bring complete rows that nobody is adding to to the address, if it never had them.

        Raises:
            StoreError: the address holds the key with other values.
            OutputError: it cannot be written; the rows are kept in the folder.
        """
        if not waits(self.folder):
            return
        with self._held():
            with turn(self.folder):
                Segment.seal_free(self.folder, self.manifest, _HOME)
            try:
                self.remote.push(self.folder, self.manifest)
            except AddressError as error:
                raise OutputError(f"{error} {KEPT}") from error

    def push_leftovers(self) -> None:
        """Push what a killed process could not, where that can be done now."""
        with suppress(StoreError, OutputError):  # else whoever writes next will say why not
            self.push()

    def writer(self) -> Writer:
        """A writer of the folder, of which rows are pushed while it goes on."""
        opened = partial(Writer, self.folder, self.manifest, self.budget)
        return opened(home=_HOME, when_full=self.push_leftovers)

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Keep the folder, with its manifest, from being removed."""
        with stored_or_kept(self.folder), use_key(self.folder):
            with turn(self.folder):
                if settle(self.folder, self.manifest) is None:
                    self.manifest.write(self.folder)
            yield
