"""PyTorch's sources opened in PyTorch: how each is run, and the ways to export it, the likeliest first."""

from __future__ import annotations

import dataclasses
import linecache
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unified_backend.errors import ConversionError
from unified_backend.tensors import Array, Signature, TensorSpec
from unified_backend.toolchains.workers.messages import first_line
from unified_backend.toolchains.workers.torch_tensors import leaves, tensor_from, to_array, triton_dtype

__all__ = ["OPENERS", "Asked", "Opened"]


@dataclasses.dataclass(frozen=True)
class Asked:
    """What an exporter is asked for.

    Attributes:
        arguments: tensors that the model takes, in order, at a batch size that is not 1.
        signature: public names, types, and shapes with None for open dimensions.
        options: of `torch.onnx.export`, by their own names.
        path: of the file to write.
    """

    arguments: tuple[Any, ...]
    signature: Signature
    opset: int
    options: Mapping[str, Any]
    path: Path


@dataclasses.dataclass(frozen=True)
class Opened:
    """A source in PyTorch.

    Attributes:
        inputs: public names, types and shapes.
        outputs: (); known after a run.
        run: PyTorch's answers to feeds under public names.
        exporters: name -> writes ONNX; it raises whatever it trips over.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    run: Callable[[Mapping[str, Array]], dict[str, Array]]
    exporters: Mapping[str, Callable[[Asked], None]]
    words: tuple[str, ...] = ()


def _open_script(job: Mapping[str, Any], specs: tuple[TensorSpec, ...]) -> Opened:
    """A TorchScript module; each run starts from the file where it may change its state."""
    import torch

    def loaded() -> Any:
        return torch.jit.load(job["path"], map_location="cpu").eval()

    module = _called(loaded)
    inner = {spec.name: job["inner"].get(spec.name, spec.name) for spec in specs}
    constants = "".join(f", {name}={value!r}" for name, value in job["arguments"].items())
    method = job["method"]

    def answer(arguments: Sequence[Any]) -> Any:
        fresh = loaded() if job["stateful"] else module
        given = dict(zip((inner[spec.name] for spec in specs), arguments, strict=True))
        return getattr(fresh, method)(**given, **job["arguments"])

    ways: dict[str, str] = {}

    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        found = leaves(answer([tensor_from(feeds[spec.name], spec) for spec in specs]), job.get("names") or {})
        ways.update({name: way for name, (way, _) in found.items()})
        return _arrays(found)

    def flat(names: Sequence[str]) -> Any:
        """The module with its answer taken apart: what exporters make of structures differs."""
        given = ", ".join(f"{inner[spec.name]}=x{number}" for number, spec in enumerate(specs))
        head = ", ".join(f"x{number}: torch.Tensor" for number in range(len(specs)))
        lines = [f"    o = self.m.{method}({given}{constants})"]
        for number, name in enumerate(names):
            lines += [f"    y{number} = {ways[name]}", f"    assert y{number} is not None"]
        lines.append(f"    return {', '.join(f'y{number}' for number in range(len(names)))}")
        fresh = loaded()
        return torch.jit.script(_module(f"def forward(self, {head}):\n" + "\n".join(lines) + "\n", fresh)).eval()

    def legacy(asked: Asked) -> None:
        _export_legacy(flat([spec.name for spec in asked.signature.outputs]), asked)

    def converted(asked: Asked) -> None:
        from torch._export.converter import TS2EPConverter

        wrapped = flat([spec.name for spec in asked.signature.outputs])
        program = TS2EPConverter(wrapped, asked.arguments).convert()
        _export_program(_opened_up(program.module(), asked), asked)

    return Opened(specs, (), run, {"torch.onnx.export (TorchScript)": legacy, "torch.export of TorchScript": converted})


def _open_program(job: Mapping[str, Any], specs: tuple[TensorSpec, ...]) -> Opened:
    """An exported program."""
    import torch

    program = _called(lambda: torch.export.load(job["path"]))
    module = program.module()

    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        given = [tensor_from(feeds[spec.name], spec) for spec in specs]
        return _arrays(leaves(_with_arguments(program, module, given), job.get("names") or {}))

    def export(asked: Asked) -> None:
        _export_program(program, asked)

    return Opened(specs, (), run, {"torch.onnx.export": export})


OPENERS: dict[str, Callable[[Mapping[str, Any], tuple[TensorSpec, ...]], Opened]] = {
    "torchscript": _open_script,
    "torch-export": _open_program,
}


def _called(load: Callable[[], Any]) -> Any:
    try:
        return load()
    except Exception as error:
        raise ConversionError(
            "PyTorch cannot load the model", first_line(error), "Copy it again, or save it again"
        ) from error


def _arrays(found: Mapping[str, tuple[str, Any]]) -> dict[str, Array]:
    for name, (_, tensor) in found.items():
        triton_dtype(name, tensor)
    return {name: to_array(tensor) for name, (_, tensor) in found.items()}


def _module(source: str, inner: Any) -> Any:
    """A module with a generated `forward`; TorchScript's compiler reads its source."""
    import torch

    name = f"<generated {id(inner)}>"
    text = "class Flat(torch.nn.Module):\n" + "".join(f"  {line}\n" for line in source.splitlines())
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    space: dict[str, Any] = {"torch": torch, "__name__": "generated"}
    exec(compile(text, name, "exec"), space)  # identifiers and literals only: see `formats.torchscript_code`
    module = space["Flat"]()
    module.m = inner
    return module


def _with_arguments(program: Any, module: Any, tensors: Sequence[Any]) -> Any:
    """The program's answer; what it takes as keywords, and constants in its place, go where they were."""
    import torch
    from torch.utils._pytree import tree_flatten, tree_unflatten

    example, spec = tree_flatten(program.example_inputs or (tuple(tensors), {}))
    waiting = iter(tensors)
    given = [next(waiting) if isinstance(each, torch.Tensor) else each for each in example]
    arguments, keywords = tree_unflatten(given, spec)
    return module(*arguments, **keywords)


def _export_legacy(module: Any, asked: Asked) -> None:
    import torch

    names = [spec.name for spec in asked.signature.inputs]
    axes = {
        spec.name: {axis: f"{spec.name}_{axis}" for axis, size in enumerate(spec.shape or ()) if size is None}
        for spec in asked.signature.inputs
    }
    outputs = [spec.name for spec in asked.signature.outputs]
    torch.onnx.export(
        module,
        asked.arguments,
        str(asked.path),
        **{
            "dynamic_axes": {name: found for name, found in axes.items() if found},
            **asked.options,
            "dynamo": False,
            "opset_version": asked.opset,
            "input_names": names,
            "output_names": outputs,
        },
    )


def _opened_up(module: Any, asked: Asked) -> Any:
    """The module exported with the open dimensions of the signature."""
    import torch

    auto = torch.export.Dim.AUTO
    shapes = tuple(
        {axis: auto for axis, size in enumerate(spec.shape or ()) if size is None} or None
        for spec in asked.signature.inputs
    )
    return torch.export.export(module, asked.arguments, dynamic_shapes=shapes)


def _export_program(program: Any, asked: Asked) -> None:
    import torch

    from unified_backend.toolchains.workers.torch_decompositions import decompositions

    program = program.run_decompositions(decompositions())
    torch.onnx.export(
        program,
        (),
        str(asked.path),
        **{
            "external_data": False,
            **asked.options,
            "dynamo": True,
            "opset_version": asked.opset,
            "input_names": [spec.name for spec in asked.signature.inputs],
            "output_names": [spec.name for spec in asked.signature.outputs],
            "verbose": False,
        },
    )
