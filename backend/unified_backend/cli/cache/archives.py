"""`triton-unified cache export` and `import`: entries carried in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unified_backend.cache import Cache
from unified_backend.cache.archive import pack, unpack
from unified_backend.cache.catalogue import Catalogue
from unified_backend.cache.store import Stored
from unified_backend.cli.cache.transfer import conclude
from unified_backend.cli.opened import opened, translated
from unified_backend.cli.shown import AsJson, tracked
from unified_backend.errors import CacheError

__all__ = ["export", "import_"]


def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The archive to write: NAME.tar or NAME.tar.zst.")],
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL]...", help="NAME or NAME/VERSION, as `ls` lists them.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write entries into one file, for a host that shares no store with this one: those of the models, or all.

    Example:

    triton-unified cache export engines.tar.zst detector reader/2
    """
    cache = opened()
    entries = _chosen(cache, models)
    try:
        sent = list(tracked("exporting", pack(cache.store, entries, file.absolute()), len(entries)))
    except OSError as error:
        raise CacheError(
            f"{file} was not written", error.strerror or str(error), "Make room there, or name another file"
        ) from None
    conclude({"file": str(file)}, sent, as_json)


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An archive that `cache export` wrote.")],
    as_json: AsJson = False,
) -> None:
    """Put the entries of an archive into the cache; each is checked first, its signature too where a key is set.

    Exits with 1 if something in it was refused; what was not is imported.

    Example:

    triton-unified cache import engines.tar.zst
    """
    cache = opened()
    with translated(cache):
        sent = list(tracked("importing", unpack(cache, file)))
    conclude({"file": str(file)}, sent, as_json)


def _chosen(cache: Cache, models: list[str] | None) -> list[Stored]:
    catalogue = Catalogue.of(cache.store)
    if not models:
        return list(catalogue.entries.values())
    found = {entry.digest: entry for name in models for entry in catalogue.of_model(name)}
    return list(found.values())
