"""What is done to every exported model in its toolchain: repairs, public names, the checker, onnxsim."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from unified_backend.conversion.interface import publish
from unified_backend.conversion.repair import repair, unknown_operators
from unified_backend.errors import ConversionError
from unified_backend.graph.saving import LARGE, MODEL, save
from unified_backend.graph.simplifying import simplified
from unified_backend.tensors import TensorSpec
from unified_backend.toolchains.workers.messages import first_line

__all__ = ["finish", "simplify"]


def finish(
    path: Path,
    inputs: Mapping[str, TensorSpec],
    outputs: Mapping[str, TensorSpec],
    ranks: Mapping[str, int],
    domains: Collection[str] = (),
) -> list[str]:
    """Repair a model that an exporter wrote, give it its public names, and write it in its place.

    Args:
        inputs: name in the exporter's graph -> what it is to the public, in order.
        outputs: likewise.
        ranks: of the outputs, as seen in a run.
        domains: of operators that the user knows.

    Returns:
        what was done, a line each.

    Raises:
        ConversionError: it has operators that ONNX does not.
    """
    import onnx

    model = onnx.load(path)
    repairs = repair(model)
    if unknown := unknown_operators(model, domains):
        names = ", ".join(f"{operator} ({count})" for operator, count in sorted(unknown.items()))
        raise ConversionError(f"{names}: no ONNX operators", "the exporter wrote them all the same", "Try another")
    publish(model, inputs, outputs, ranks)
    external = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > LARGE
    for file in path.parent.iterdir():
        file.unlink()
    save(model, path.parent, {} if external else None)
    del model  # a message keeps the memory of its values until it is gone
    return [*repairs, *simplify(path.parent, external)]


def simplify(folder: Path, external: bool) -> list[str]:
    """Write the model simplified in place of what it was; what was done, or why it stays as it was.

    Args:
        external: its large tensors stay in a file beside it.
    """
    import onnx

    path = folder / MODEL
    before = len(onnx.load(path, load_external_data=False).graph.node)
    trial = folder / "simplified"
    trial.mkdir()
    try:
        model = simplified(path)
        save(model, trial, {} if external else None)
        onnx.checker.check_model(str(trial / path.name), full_check=True)  # with the types and shapes of all tensors
    except Exception as error:  # noqa: BLE001 - onnxsim raises whatever its own code trips over
        return [f"not simplified: {first_line(error)}"]
    if len(model.graph.node) >= before:
        return []
    for file in trial.iterdir():
        file.replace(folder / file.name)
    return [f"simplified: {before} nodes before, {len(model.graph.node)} after"]
