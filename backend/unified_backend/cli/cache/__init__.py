"""`triton-unified cache`: look into the cache, keep it in order, and move entries between hosts."""

from __future__ import annotations

import typer

from unified_backend.cli.cache.archives import export, import_
from unified_backend.cli.cache.explain import explain
from unified_backend.cli.cache.info import info
from unified_backend.cli.cache.listing import ls, show
from unified_backend.cli.cache.removal import gc, rm
from unified_backend.cli.cache.transfer import pull, push
from unified_backend.cli.cache.verify import verify

__all__ = ["app"]

app = typer.Typer(
    help="Look into the cache, keep it in order, and move entries between hosts.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

app.command()(info)
app.command()(ls)
app.command()(show)
app.command()(explain)
app.command()(verify)
app.command()(gc)
app.command()(rm)
app.command()(push)
app.command()(pull)
app.command()(export)
app.command("import")(import_)
