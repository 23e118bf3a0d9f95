"""`triton-unified cache`: look into the cache, keep it in order, and move entries between hosts."""

from __future__ import annotations

import typer

from unified_backend.cli.cache.info import info
from unified_backend.cli.cache.listing import ls, show

__all__ = ["app"]

app = typer.Typer(
    help="Look into the cache, keep it in order, and move entries between hosts.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

app.command()(info)
app.command()(ls)
app.command()(show)
