"""TensorFlow Lite files: run by LiteRT, and made ready for tf2onnx, which reads one graph without sparse tensors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from unified_backend.conversion.tflite_file import prepared
from unified_backend.errors import ConversionError, UnifiedError
from unified_backend.tensors import Array, TensorSpec
from unified_backend.toolchains.workers.messages import first_line
from unified_backend.toolchains.workers.tensorflow_sources import Frozen, Opened, triton_dtype

__all__ = ["open_lite"]

_MISSING = re.compile("custom op|builtin opcode|TensorFlow op")


def open_lite(job: Mapping[str, Any], folder: Path) -> Opened:
    """The file, or one of its signatures, in LiteRT's interpreter.

    An input whose first dimension is open in the job is resized to what it is fed.

    Raises:
        ConversionError: the file is damaged, has no such signature, or operators that LiteRT has not got.
    """
    from ai_edge_litert.interpreter import Interpreter

    path = Path(job["path"])
    with _damage_told(path):
        file = prepared(path, job.get("signature"), folder)
        # The file as it is, unless the signature's graph is not its first: then the prepared one.
        interpreter = Interpreter(model_path=str(file.path if file.moved else path), num_threads=2)
        # Where sizes are open, the file's own are no more than a guess, which need not run.
        if not any(size < 0 for row in interpreter.get_input_details() for size in row["shape_signature"][1:]):
            interpreter.allocate_tensors()
    inner = {public: file.names.get(name, name) if file.moved else name for public, name in job["inner"].items()}
    inputs = _details(interpreter.get_input_details(), [row["name"] for row in job["inputs"]], inner)
    outputs = _details(interpreter.get_output_details(), job["outputs"], inner)

    shapes = {name: tuple(row["shape"]) for name, row in inputs.items()}

    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        for name, row in inputs.items():
            if shapes[name] != feeds[name].shape:
                interpreter.resize_tensor_input(row["index"], feeds[name].shape)
                shapes[name] = feeds[name].shape
        interpreter.allocate_tensors()
        for name, row in inputs.items():
            interpreter.set_tensor(row["index"], feeds[name])
        interpreter.invoke()
        return {name: np.asarray(interpreter.get_tensor(row["index"])) for name, row in outputs.items()}

    def freeze(_large: bool) -> Frozen:
        names = {public: file.names[name] for public, name in job["inner"].items()}
        return Frozen(
            None,
            {row["name"]: names[row["name"]] for row in job["inputs"]},
            {name: names[name] for name in job["outputs"]},
            lite=file.path,
        )

    return Opened(_specs(inputs), _specs(outputs), run, freeze, path.stat().st_size, notes=file.notes)


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    """
    Raises:
        ConversionError: for all that LiteRT and the reader of the schema raise, but of operators that are not there.
    """
    try:
        yield
    except UnifiedError:
        raise
    except Exception as error:
        reason = first_line(error)
        if _MISSING.search(reason):
            raise ConversionError(
                f"LiteRT does not run {path.name}", reason, "Convert the model again, with built-in operators only"
            ) from error
        raise ConversionError(
            f"LiteRT does not take {path.name}",
            f"it is damaged, or was made by something else than TensorFlow's converter: {reason}",
            "Copy it again completely, or convert it again",
        ) from error


def _details(rows: list[Any], names: list[str], inner: Mapping[str, str]) -> dict[str, Any]:
    """Public name -> what the interpreter says of the tensor."""
    by_name = {row["name"]: row for row in rows}
    return {name: by_name[inner[name]] for name in names}


def _specs(side: Mapping[str, Any]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            name,
            triton_dtype(name, np.dtype(row["dtype"])) if row["dtype"] is not np.bytes_ else "STRING",
            tuple(None if size < 0 else int(size) for size in row["shape_signature"]),
        )
        for name, row in side.items()
    )
