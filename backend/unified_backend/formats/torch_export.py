"""PyTorch's exported programs (`.pt2`): a graph with its shapes in JSON, and the weights beside it in one zip."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unified_backend.errors import SourceError
from unified_backend.formats.description import Description, as_asked
from unified_backend.formats.torch_archive import TorchArchive, kind_of, opened
from unified_backend.settings import Settings
from unified_backend.tensors import TensorSpec

__all__ = ["TorchExport"]

# ScalarType in torch/_export/serde/schema.py, by number.
_TYPES = {
    **{1: "UINT8", 2: "INT8", 3: "INT16", 4: "INT32", 5: "INT64", 6: "FP16", 7: "FP32", 8: "FP64", 12: "BOOL"},
    **{13: "BF16", 28: "UINT16"},
}
_OLD = "serialized_exported_program.json"  # until PyTorch 2.7
_LISTED = 8


class TorchExport:
    """The torch.export format: one zip file."""

    name = "torch-export"

    def detect(self, path: Path) -> bool:
        """Whether the file is a zip with an exported program in it.

        Raises:
            SourceError: it begins as one of PyTorch's and ends too early, or holds compiled code and no program.
        """
        kind = kind_of(path)
        if kind == "aotinductor":
            raise SourceError(
                f"{path.name} is an AOTInductor package",
                "it holds machine code for the machine that it was compiled on, and no graph",
                "Serve the program it was made from: torch.export.save(program, 'model.pt2')",
            )
        return kind == self.name

    def companions(self, path: Path) -> list[str]:
        """None."""
        return []

    def describe(self, path: Path, settings: Settings, label: str) -> Description:
        """What the program says: its inputs with their types and open dimensions.

        Raises:
            SourceError: it is damaged, or takes what cannot be served.
            ConfigError: a parameter names what the model has not got.
        """
        with opened(path) as archive:
            program = _program(archive, settings.signature, label)
        try:
            described = _described(program, label)
        except (KeyError, TypeError, AttributeError) as error:
            raise SourceError(
                f"{path.name} is an exported program that cannot be read",
                f"{type(error).__name__}: {error}",
                "Save it again with torch.export.save of a current PyTorch",
            ) from None
        return as_asked(described, settings, label)


def _program(archive: TorchArchive, wanted: str | None, label: str) -> dict[str, Any]:
    """The program's JSON; of several in one archive the one that is called `model`, or that the settings name."""
    if archive.has(_OLD):
        return dict(json.loads(archive.read(_OLD)))
    there = [match[1] for name in archive.names if (match := re.fullmatch(r"models/(.+)\.json", name))]
    key = wanted or ("model" if "model" in there else there[0])
    if key not in there or (wanted is None and key != "model" and len(there) > 1):
        raise SourceError(
            f"{label}: the archive holds {len(there)} programs",
            f"{', '.join(there[:_LISTED])}, and none was chosen",
            f'Choose one: parameters {{ key: "signature" value {{ string_value: "{there[0]}" }} }}',
        )
    return {**json.loads(archive.read(f"models/{key}.json")), "name": key}


def _described(program: Mapping[str, Any], label: str) -> Description:
    graph, signature = program["graph_module"]["graph"], program["graph_module"]["signature"]
    values = graph["tensor_values"]
    user = [spec["user_input"]["arg"] for spec in signature["input_specs"] if "user_input" in spec]
    inputs, constants = [], []
    for argument in user:
        if "as_tensor" in argument:
            name = argument["as_tensor"]["name"]
            inputs.append(TensorSpec(name, _type(values[name], name, label), _shape(values[name])))
        else:
            constants.append(next(iter(argument.values())))
    if not inputs:
        raise SourceError(f"{label}: the program takes no tensor", "nothing can be asked of it", "Export another one")
    operators = Counter(str(node["target"]).removeprefix("torch.ops.") for node in graph["nodes"])
    facts = {
        "torch": program.get("torch_version"),
        "schema": ".".join(str(part) for part in (program.get("schema_version") or {}).values()),
        "inputs": {spec.name: str([-1 if size is None else size for size in spec.shape or ()]) for spec in inputs},
        "outputs": sum("user_output" in spec for spec in signature["output_specs"]),
        "constraints": {
            name: f"{limits.get('min_val')} to {limits.get('max_val') or 'any'}"
            for name, limits in (program.get("range_constraints") or {}).items()
        },
        "operators": dict(operators.most_common()),
    }
    job = {"program": program.get("name")}
    return Description(tuple(inputs), (), {}, job, facts, numbered=True)


def _type(value: Mapping[str, Any], name: str, label: str) -> str:
    dtype = _TYPES.get(value["dtype"])
    if dtype is None:
        raise SourceError(
            f"{label}: the input {name} cannot be served",
            f"its type is number {value['dtype']} of PyTorch's, which Triton has not got",
            "Export the model with inputs of usual types",
        )
    return dtype


def _shape(value: Mapping[str, Any]) -> tuple[int | None, ...]:
    return tuple(size.get("as_int") if isinstance(size.get("as_int"), int) else None for size in value["sizes"])
