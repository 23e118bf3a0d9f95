"""What `inspect` does with the graph of a model: a picture in a file, or the viewer Netron on this host."""

from __future__ import annotations

import contextlib
import logging
import signal
from pathlib import Path
from typing import Any

import typer

from unified_backend import logs
from unified_backend.cli.opened import opened, translated
from unified_backend.cli.source import found_in
from unified_backend.drawing.model_graph import draw
from unified_backend.engines.printed import natives_aside
from unified_backend.errors import Refused, one_line
from unified_backend.onnx_at_hand import onnx_at_hand
from unified_backend.settings import Settings

__all__ = ["drawn", "show_in_netron"]


def drawn(source: Path, settings: Settings, out: Path) -> dict[str, Any]:
    """Write the picture of a model's ONNX graph.

    Returns:
        the file, and how many nodes and boxes it has, as JSON values.

    Raises:
        Refused: there is no ONNX model of it, or the file cannot be written.
        SourceError: it is damaged.
    """
    if out.suffix.lower() != ".svg":
        raise Refused(f"{out} is no name of a picture", "what is written is SVG", "Name a file FILE.svg")
    natives_aside()
    logs.to_standard_error(logging.WARNING)
    found = found_in(source.absolute())
    path = found.path
    if found.format != "onnx":
        cache = opened()
        with translated(cache):
            path = onnx_at_hand(found, settings, cache, source)
    picture = draw(path, source.name)
    try:
        out.write_text(picture.svg, "utf-8")
    except OSError as error:
        raise Refused(f"{out} cannot be written", str(error.strerror), "Name a file elsewhere") from None
    return {"file": str(out), "nodes": picture.nodes, "boxes": picture.boxes}


def show_in_netron(model: Path) -> None:
    """Serve a model's file to the viewer on 127.0.0.1, until Ctrl-C.

    Raises:
        Refused: the package is not installed.
    """
    try:
        import netron
    except ImportError:
        raise Refused(
            "--netron needs the package netron",
            "it is not installed in this environment",
            "Install it with `pip install netron`, or write a picture with --graph FILE.svg",
        ) from None
    logging.getLogger("netron").setLevel(logging.WARNING)  # it would say the same in its own words
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        host, port = netron.serve(str(model), address=("127.0.0.1", None), browse=False)
        typer.echo(one_line(f"netron shows {model.name} at http://{host}:{port} until Ctrl-C"))
        netron.wait()
