"""Which of nvImageCodec's decoders are loaded: on the CPU not those that look for libraries of the GPU in vain."""

from __future__ import annotations

import atexit
import functools
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

__all__ = ["without_gpu_decoders"]

_VARIABLE = "NVIMGCODEC_EXTENSIONS_PATH"
_OF_THE_GPU = ("libnvjpeg_", "libnvjpeg2k_", "libnvtiff_")


@functools.cache
def without_gpu_decoders() -> None:
    """From now on, have nvImageCodec load the CPU's decoders alone: for each other it prints errors at every pipeline.

    For processes that use no GPU: once the decoders are loaded there are no others. Does nothing where the user has
    chosen a folder.
    """
    spec = importlib.util.find_spec("nvidia.nvimgcodec")
    if spec is None or not spec.submodule_search_locations or _VARIABLE in os.environ:
        return
    folder = Path(tempfile.mkdtemp(prefix="unified-decoders-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for library in (Path(spec.submodule_search_locations[0]) / "extensions").glob("*.so*"):
        if not library.name.startswith(_OF_THE_GPU):
            (folder / library.name).symlink_to(library)
    os.environ[_VARIABLE] = str(folder)
