"""What an address holds, whether it is intact, and what of it may go."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np

from frostline.errors import StoreError
from frostline.store.catalogue import Catalogue
from frostline.store.keeping import Damage, Stored, find_damage
from frostline.store.layout import MANIFEST, is_digest
from frostline.store.manifest import Manifest, parse_manifest
from frostline.store.objects import Found
from frostline.store.remote import Remote, is_seal
from frostline.store.row_index import RowIndex, row_keys

# What an upload that was cut short leaves may go after so long.
_LEFT_SECONDS: Final = 86_400.0


def remote_keys(remote: Remote) -> Iterator[Stored]:
    """Every key at an address; reads no feature."""
    for digest, found in _by_key(remote).items():
        damage, manifest = "", None
        try:
            manifest = _manifest(remote, digest)
        except StoreError as error:
            damage = str(error)
        yield Stored(
            digest=digest,
            path=Path(digest),
            parts=manifest.key.parts if manifest else {},
            values=manifest.values if manifest else (),
            note=manifest.note if manifest else {},
            rows=sum(segment.sealed.rows for segment in remote.segments(digest, found)),
            nbytes=sum(each.nbytes for each in found.values()),
            used_at=max(each.changed_at for each in found.values()),
            damage=damage,
        )


def remote_damage(remote: Remote) -> Iterator[Damage]:
    """Fetch every segment of every key, one at a time, and give what is not what was written."""
    for digest, found in _by_key(remote).items():
        where = f"{remote.objects.address}/{digest}"
        try:
            manifest = _manifest(remote, digest)
        except StoreError as error:
            yield Damage(where, "", b"", str(error))
            continue
        yield from _damage_of(remote, manifest, found, where)


def remove_remote(
    remote: Remote,
    stored: Sequence[Stored],
    *,
    max_bytes: float,
    keep: Collection[str],
    also: Collection[str],
) -> tuple[Stored, ...]:
    """Remove keys, least recently used first, until the address has at most `max_bytes`.

    Args:
        also: digests of keys that go even so.
    Raises:
        OutputError: as `Objects`.
    """
    total, gone = sum(entry.nbytes for entry in stored), []
    by_key = _by_key(remote)
    for entry in sorted(stored, key=lambda entry: entry.used_at):
        found = by_key.pop(entry.digest, {})
        if entry.digest in keep or not (total > max_bytes or entry.digest in also):
            _remove_leftovers(remote, entry.digest, found)
            continue
        # What says that a segment is whole goes first, so that nobody fetches a part of it.
        seals = [name for name in found if is_seal(name, entry.digest)]
        remote.objects.delete(seals)
        remote.objects.delete([name for name in found if name not in seals])
        total -= entry.nbytes
        gone.append(entry)
    return tuple(gone)


def _damage_of(
    remote: Remote, manifest: Manifest, found: dict[str, Found], where: str
) -> Iterator[Damage]:
    """What is wrong in a key; of a row that stands in another segment as well, nothing."""
    whole = {segment.name: segment for segment in remote.segments(where.rpartition("/")[2], found)}
    intact, broken = RowIndex(), list[Damage]()
    digest = manifest.key.digest
    for name in sorted(name.split("/")[1] for name in found if is_seal(name, digest)):
        with TemporaryDirectory() as place:
            folder = Path(place) / digest
            folder.mkdir()
            manifest.write(folder)
            if name not in whole or not remote.fetch_segment(folder, whole[name], digest):
                what = f"{name} is not what was stored, so none of its rows is read"
                yield Damage(where, "", b"", what)
                continue
            damages = [replace(damage, folder=where) for damage in find_damage(folder)]
            yield from (damage for damage in damages if not damage.row_id)
            flawed = [damage for damage in damages if damage.row_id]
            keys = Catalogue(folder, manifest).keys()
            bad = RowIndex()
            bad.add(row_keys([d.row_id for d in flawed]), np.zeros(len(flawed), dtype=np.int64))
            good = keys[~bad.has(keys)]
            intact.add(good, np.zeros(len(good), dtype=np.int64))
            broken += flawed
    here = intact.has(row_keys([damage.row_id for damage in broken]))
    yield from (damage for damage, is_here in zip(broken, here, strict=True) if not is_here)


def _remove_leftovers(remote: Remote, digest: str, found: dict[str, Found]) -> None:
    """Delete objects of segments that were never sealed, where nobody can be at it any more."""
    sealed = {name.rpartition("/")[0] for name in found if is_seal(name, digest)}
    old = time.time() - _LEFT_SECONDS
    remote.objects.delete(
        [
            name
            for name, each in found.items()
            if name.count("/") == 2
            and name.rpartition("/")[0] not in sealed
            and 0 < each.changed_at < old
        ]
    )


def _by_key(remote: Remote) -> dict[str, dict[str, Found]]:
    """All objects of each key, by digest."""
    keys: dict[str, dict[str, Found]] = {}
    for name, found in remote.objects.found("").items():
        digest, _, rest = name.partition("/")
        if rest and is_digest(digest):
            keys.setdefault(digest, {})[name] = found
    return keys


def _manifest(remote: Remote, digest: str) -> Manifest:
    """The manifest of a key.

    Raises:
        StoreError: there is none, or it is not what was written, or of another version.
    """
    where = f"{remote.objects.address}/{digest}"
    for raw in remote.objects.read([f"{digest}/{MANIFEST}"]).values():
        return parse_manifest(raw, digest, where)
    raise StoreError(f"{where} has no manifest, so its rows cannot be checked")
