"""`frostline features ls|verify|prune DIR`: what a feature store holds, and keeping it small."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from frostline.cli import _options as options
from frostline.errors import CorruptFeatures, StoreError
from frostline.units import format_bytes

if TYPE_CHECKING:
    from frostline.store import FeatureStore, Stored

features = typer.Typer(
    help="List, check or prune stored features.", no_args_is_help=True, rich_markup_mode=None
)

Folder = Annotated[
    str | None,
    typer.Argument(
        help="A feature store, or its address as s3://bucket/prefix; by default the one in your "
        "cache folder.",
        metavar="DIR",
    ),
]
_DAY_SECONDS = 86_400.0


@features.command("ls")
def list_features(folder: Folder = None, *, json: options.Json = False) -> None:
    """List what is stored, most recently used first."""
    from frostline.cli._terminal import output, print_json, say
    from frostline.store import stored_table

    store = _store(folder)
    stored = store.ls()
    if json:
        print_json({"store": store.where, "keys": [_document(entry) for entry in stored]})
        return
    page = output()
    say(page, f"{store.where}")
    page.print(stored_table(stored))


@features.command("verify")
def verify_features(folder: Folder = None, *, json: options.Json = False) -> None:
    """Read every row and compare it with its checksum; exit status 3 if one does not match."""
    from frostline.cli._terminal import show

    store = _store(folder)
    damages = [str(damage) for damage in store.verify()]
    rows = sum(entry.rows for entry in store.ls())
    line = f"Verified: {rows} rows in {store.where} are what was written"
    document = {"verified": not damages, "rows": rows, "damages": damages}
    show(document, ["\n".join(damages) or line], as_json=json)
    if damages:
        raise CorruptFeatures(
            f"{len(damages)} of {rows} rows or files in {store.where} are not what was written. "
            "The next run computes them again; or remove them: frostline features prune --damaged"
        )


@features.command("prune")
def prune_features(
    folder: Folder = None,
    *,
    max_size: Annotated[
        str | None, typer.Option(help="Remove the least recently used beyond this, as 10GB.")
    ] = None,
    older_than: Annotated[
        float | None, typer.Option(help="Remove what was not used for so many days.", min=0)
    ] = None,
    damaged: Annotated[bool, typer.Option("--damaged", help="Remove what is damaged.")] = False,
    json: options.Json = False,
) -> None:
    """Remove stored features; what a running process uses stays."""
    from frostline.cli._terminal import show

    if max_size is None and older_than is None and not damaged:
        raise typer.BadParameter("say what to remove: --max-size, --older-than or --damaged.")
    limit = None if max_size is None else options.size_in_bytes(max_size, "--max-size")
    seconds = None if older_than is None else older_than * _DAY_SECONDS
    store = _store(folder)
    gone = store.prune(max_bytes=limit, older_than_seconds=seconds, damaged=damaged)
    document = {"store": store.where, "removed": [_document(entry) for entry in gone]}
    size = format_bytes(sum(entry.nbytes for entry in gone))
    show(document, [f"Removed {len(gone)} keys, {size}, from {store.where}"], as_json=json)


def _store(folder: str | None) -> FeatureStore:
    from frostline.session import default_store
    from frostline.store import FeatureStore, is_address

    where = folder or default_store()
    store = FeatureStore(where)
    if not is_address(where) and not store.root.is_dir():
        raise StoreError(
            f"there is no feature store at {where}. Give the folder that was named with --features."
        )
    return store


def _document(entry: Stored) -> dict[str, object]:
    return {
        "key": entry.digest,
        "parts": dict(entry.parts),
        "rows": entry.rows,
        "bytes": entry.nbytes,
        "used_at": entry.used_at,
        "note": dict(entry.note),
        "damage": entry.damage,
    }
