"""Simplifies an ONNX model without leaving ONNX: folds constants, removes what has no effect, fuses normalisations.

`python -m unified_backend.graph.simplifying` is a process that does it; it reads one JSON object and prints one, see
`engines.apart`. onnxsim's native code may crash, and it is slow to import: it never runs where models are served.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unified_backend.graph.operators import census, foreign
from unified_backend.graph.saving import LARGE, MODEL, save

if TYPE_CHECKING:
    import onnx

__all__ = ["simplified", "simplify"]

_MOST_WORDS = 300  # of what a library says


def simplified(path: Path) -> onnx.ModelProto:
    """A model without what a converter wrote only because it did not know better, by onnxsim.

    What depends on constants alone is computed: shapes put together node by node (basic-pitch: 237 nodes before, 177
    after), pads of nothing (a face detector: 209 and 167), normalisations folded into convolutions, and transposes
    that undo each other. Of 0.8.1 and onnxslim 0.1.98 it left fewer nodes on every model measured, constants not
    counted (297 and 326, 383 and 393, 179 and 179 of PP-OCR's; 180 and 241 of basic-pitch), in half the time.

    Args:
        path: the ONNX file, its external data beside it.

    Raises:
        Exception: of any type; onnxsim's own, or of what it calls.
    """
    import onnxsim

    model: onnx.ModelProto = onnxsim.simplify(str(path))[0]
    return model


def simplify(source: Path, folder: Path) -> dict[str, Any]:
    """Write a model simplified into a folder, unless it has no fewer nodes then.

    Its inputs and outputs are those of the source, as they were declared.

    Args:
        source: the ONNX file, its external data beside it.
        folder: empty; gets `model.onnx`, and `model.onnx.data` where the source has external data or the weights are
            large.

    Returns:
        `before`, `after`: nodes; `why`: the reason if nothing is to be kept of what was written ("" if nothing is
        gained), or None.

    Raises:
        MemoryError: it takes more than it may.
    """
    import onnx

    given = onnx.load(source, load_external_data=False)
    before = census(given)
    try:
        model = simplified(source)
        del model.graph.input[:], model.graph.output[:]
        model.graph.input.extend(given.graph.input)
        model.graph.output.extend(given.graph.output)
        after = census(model)
        counts = {"before": before.total(), "after": after.total()}
        if added := foreign(after) - foreign(before):
            return {**counts, "why": f"onnxsim wrote operators that are none of ONNX's: {', '.join(sorted(added))}"}
        if after.total() >= before.total():
            return {**counts, "why": ""}
        size = source.stat().st_size
        beside = any(tensor.external_data for tensor in given.graph.initializer)
        save(model, folder, {} if beside or size > LARGE else None)
        onnx.checker.check_model(str(folder / MODEL), full_check=True)  # with the types and shapes of all tensors
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - onnxsim raises whatever its own code trips over
        words = " ".join(str(error).split())[:_MOST_WORDS] or type(error).__name__
        return {"before": before.total(), "after": before.total(), "why": f"onnxsim failed: {words}"}
    return {**counts, "why": None}


def _work(job: Mapping[str, Any]) -> dict[str, Any]:
    return simplify(Path(job["path"]), Path(job["folder"]))


if __name__ == "__main__":
    from unified_backend.engines.apart import answer_apart  # not for the toolchains, where `simplified` runs

    answer_apart(_work)
