"""A model repository that holds every model once a backend, with configurations that differ in the backend alone."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from onnx import TensorProto

from measuring.models import Model, model_file

__all__ = ["BASELINES", "UNIFIED", "served_name", "write_repository"]

UNIFIED = "unified"
# Python-backend models, each a model.py in `baselines/`.
BASELINES = ("naive", "concat", "constant")

_SCRIPTS = Path(__file__).resolve().parent.parent / "baselines"
_TRITON_TYPES: dict[int, str] = {TensorProto.FLOAT: "TYPE_FP32", TensorProto.INT64: "TYPE_INT64"}
_CONFIG = """\
backend: "{backend}"
max_batch_size: {model.max_batch_size}
input [ {{ name: "input" data_type: {element} dims: {input_shape} }} ]
output [ {{ name: "output" data_type: TYPE_FP32 dims: {output_shape} }} ]
dynamic_batching {{ }}
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
parameters {{ key: "intra_op_thread_count" value {{ string_value: "{threads}" }} }}
"""
_FILE = 'parameters {{ key: "file" value {{ string_value: "{file}" }} }}\n'


def served_name(model: Model, backend: str) -> str:
    """The name that `model` has on the server when `backend` serves it."""
    return f"{model.name}_{backend}"


def write_repository(root: Path, grid: Iterable[tuple[Model, str]], threads: int) -> None:
    """Write each (model, backend) of `grid` below `root`.

    Args:
        threads: inside one operator of ONNX Runtime, for every backend.
    """
    for model, backend in grid:
        version = root / served_name(model, backend) / "1"
        version.mkdir(parents=True)
        config = _CONFIG.format(
            backend=UNIFIED if backend == UNIFIED else "python",
            model=model,
            element=_TRITON_TYPES[model.element],
            input_shape=list(model.input_shape),
            output_shape=list(model.output_shape),
            threads=threads,
        )
        if backend == UNIFIED:
            shutil.copyfile(model_file(model), version / "model.onnx")
        else:
            shutil.copyfile(_SCRIPTS / f"{backend}.py", version / "model.py")
            config += _FILE.format(file=model_file(model))
        (version.parent / "config.pbtxt").write_text(config)
