"""PaddlePaddle's inference models: a program (JSON since Paddle 3, protobuf before), and the parameters beside it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from unified_backend.errors import SourceError
from unified_backend.formats.description import Description, as_asked
from unified_backend.formats.paddle_program import is_program, program_of
from unified_backend.settings import Settings
from unified_backend.tensors import TensorSpec

__all__ = ["Paddle"]

_PARAMETERS = ".pdiparams"
_MOST_PROGRAM = 256 * 2**20  # bytes
_HEAD = 4096
_BEGIN = re.compile(rb'\s*\{\s*"base_code"\s*:\s*\{[^}]*"magic"\s*:\s*"pir"')
# Type in PIR -> Triton's.
_TYPES = {
    **{"t_f32": "FP32", "t_f64": "FP64", "t_f16": "FP16", "t_bf16": "BF16", "t_bool": "BOOL"},
    **{"t_i8": "INT8", "t_ui8": "UINT8", "t_i16": "INT16", "t_i32": "INT32", "t_i64": "INT64"},
}
# DataType in framework.proto, by number; by name in PIR.
_NUMBERS = {
    **{0: "t_bool", 1: "t_i16", 2: "t_i32", 3: "t_i64", 4: "t_f16", 5: "t_f32", 6: "t_f64", 20: "t_ui8", 21: "t_i8"},
    **{22: "t_bf16"},
}


class Paddle:
    """The PaddlePaddle format: two files."""

    name = "paddle"

    def detect(self, path: Path) -> bool:
        """Whether the file is a program of Paddle's, in JSON or in protobuf.

        Raises:
            SourceError: it begins as one in JSON and ends too early.
        """
        with path.open("rb") as file:
            head = file.read(_HEAD)
            file.seek(max(0, path.stat().st_size - 16))
            tail = file.read()
        if not _BEGIN.match(head):
            return is_program(path)
        if not tail.rstrip().endswith(b"}"):
            raise SourceError(f"{path.name} is a truncated Paddle program", "its JSON ends early", "Copy it again")
        return True

    def companions(self, path: Path) -> list[str]:
        """The file of parameters: of the program's name, or the only one there; none if the program has no parameter.

        Raises:
            SourceError: there are several, none of which has the program's name.
        """
        files = [file.name for file in sorted(path.parent.iterdir()) if file.name.endswith(_PARAMETERS)]
        own = path.with_suffix(_PARAMETERS).name
        if own in files or len(files) == 1:
            return [own if own in files else files[0]]
        if not files:
            raise SourceError(
                f"{path.name} lacks its parameters", f"the folder holds no {_PARAMETERS} file", f"Put {own} beside it"
            )
        raise SourceError(
            f"{path.name} does not tell its parameters", f"the folder holds {', '.join(files)}", f"Call them {own}"
        )

    def describe(self, path: Path, settings: Settings, label: str) -> Description:
        """What the program says of its inputs and outputs.

        Raises:
            SourceError: it is damaged, or takes what cannot be served.
            ConfigError: a parameter names what the model has not got.
        """
        if path.stat().st_size > _MOST_PROGRAM:
            raise SourceError(f"{path.name} is no program", "it is larger than any", "Save the model again")
        try:
            with path.open("rb") as file:
                text = _BEGIN.match(file.read(_HEAD))
            read = _of_json(path) if text else program_of(path)
            sides = [
                tuple(TensorSpec(name, _type(name, kind, label), shape) for name, kind, shape in side)
                for side in (read["inputs"], read["outputs"])
            ]
        except (KeyError, TypeError, IndexError, AttributeError, ValueError, RecursionError) as error:
            raise SourceError(
                f"{path.name} is a Paddle program that cannot be read",
                f"{type(error).__name__}: {error}",
                "Copy it again, completely, or save it again with paddle.jit.save",
            ) from None
        if not sides[0] or not sides[1]:
            raise SourceError(
                f"{label}: the program feeds and fetches nothing", "it is one for training", "Save it for inference"
            )
        operators = Counter(read["operators"])
        facts = {"form": "PIR" if text else "ProgramDesc", "operators": dict(operators.most_common())}
        job = {"weights": self.companions(path)[0], "pir": bool(text)}
        return as_asked(Description(sides[0], sides[1], {}, job, facts), settings, label)


def _type(name: str, kind: str | int, label: str) -> str:
    dtype = _TYPES.get(_NUMBERS.get(kind, "") if isinstance(kind, int) else kind)
    if dtype is None:
        raise SourceError(
            f"{label}: {name} cannot be served", f"Triton has no type for Paddle's {kind}", "Save it with usual types"
        )
    return dtype


def _of_json(path: Path) -> dict[str, Any]:
    """Inputs and outputs of a program in PIR: names, types, shapes; and its operators."""
    program = json.loads(path.read_bytes())["program"]
    operators = list(_operators(program))
    found: dict[str, Any] = {"inputs": [], "outputs": [], "operators": [str(each["#"]) for each in operators]}
    for each in operators:
        kind = str(each["#"]).rpartition(".")[2]
        if kind in ("data", "fetch"):
            name = {entry["N"]: entry["AT"]["D"] for entry in each["A"]}["name"]
            (dtype, sizes, *_) = each["O"][0]["TT"]["D"]
            shape = tuple(size if size >= 0 else None for size in sizes)
            side = "inputs" if kind == "data" else "outputs"
            found[side].append((str(name), str(dtype["#"]).rpartition(".")[2], shape))
    return found


def _operators(program: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for region in program["regions"]:
        for block in region["blocks"]:
            yield from (each for each in block["ops"] if each["#"] != "p")
