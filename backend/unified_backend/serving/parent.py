"""Nothing goes on loading for a server that is gone."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["ending_with_the_server"]

_LOOK_SECONDS = 0.5


@contextmanager
def ending_with_the_server() -> Iterator[None]:
    """End this process, and the conversions and builds that end with it, if the server ends while the block runs.

    Triton's stub looks after its server by itself, but not while Python code loads a model: one whose server was
    killed goes on for as long as the conversion takes. What it was making is not kept.
    """
    server, done = os.getppid(), threading.Event()

    def watch() -> None:
        while not done.wait(_LOOK_SECONDS):
            if os.getppid() != server:
                os._exit(1)

    thread = threading.Thread(target=watch, name="unified-server-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
