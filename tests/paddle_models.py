"""Small Paddle models, made once by Paddle itself and kept in the user's cache directory.

A helper for tests, and the script that it runs with the toolchain's own Python: no test imports Paddle.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["path"]

SEED = 7


def path(name: str) -> Path:
    """The folder of a made model; do not write to it, others use it too.

    Args:
        name: `cnn`, `lstm`, `transformer`, and `cnn_old` as Paddle 2 saved it.
    """
    from made_models import folder_of, model  # not for the script

    return model(folder_of(Path(__file__), "paddle"), name)


def make(folder: Path, ending: str) -> None:
    """Write every model into a folder of its own, called after it and the ending."""
    import paddle
    from paddle import nn
    from paddle.static import InputSpec

    paddle.seed(SEED)

    class Cnn(nn.Layer):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2D(3, 8, 3, padding=1), nn.BatchNorm2D(8), nn.Hardswish())
            self.head = nn.Linear(8, 5)

        def forward(self, image):
            return nn.functional.softmax(self.head(self.body(image).mean([2, 3])))

    class Lstm(nn.Layer):
        def __init__(self):
            super().__init__()
            self.cells = nn.LSTM(6, 8)
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.cells(x)[0][:, -1])

    class Transformer(nn.Layer):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(50, 16)
            self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, activation="gelu")
            self.head = nn.Linear(16, 3)

        def forward(self, ids):
            hidden = self.layer(self.words(ids))
            return self.head(hidden.mean(1)), hidden

    models = {
        "cnn": (Cnn(), InputSpec([None, 3, 16, 16], "float32", "image")),
        "lstm": (Lstm(), InputSpec([None, 7, 6], "float32", "x")),
        "transformer": (Transformer(), InputSpec([None, 9], "int64", "ids")),
    }
    for name, (model, spec) in models.items():
        if ending and name != "cnn":
            continue  # Paddle 3 writes these in its new form only
        model.eval()
        paddle.jit.save(model, str(folder / f"{name}{ending}" / "inference"), input_spec=[spec])


if __name__ == "__main__":
    target = Path(sys.argv[1])
    if len(sys.argv) > 2:
        make(target, sys.argv[2])
    else:
        target.mkdir(parents=True)
        make(target, "")
        environment = {**os.environ, "FLAGS_enable_pir_api": "0"}
        subprocess.run([sys.executable, __file__, target, "_old"], env=environment, check=True)
