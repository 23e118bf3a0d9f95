"""Put ensembles/classify's network in place: EfficientNet-Lite0 with its real weights, exported from PyTorch.

Installs the toolchain `torch` (1 GB, a minute) where it is missing; quick when the model is there.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "ensembles/classify/models/efficientnet.onnx"


def main() -> None:
    """Export it, or copy what was exported before."""
    if MODEL.exists():
        return
    sys.path.insert(0, str(ROOT / "tests"))
    import torch_real_models  # what it exports, the tests use too

    MODEL.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(torch_real_models.path("efficientnet.onnx"), MODEL)
    print(f"make_classifier: {MODEL.relative_to(ROOT)} ({MODEL.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
