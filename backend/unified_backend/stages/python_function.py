"""A stage that is a Python function of the user's: NumPy in, NumPy out."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from unified_backend.errors import ConfigError, EngineError, RequestError
from unified_backend.stages import Rows
from unified_backend.stages.user import declared
from unified_backend.tensors import Array, Signature, TensorSpec

__all__ = ["PythonStage", "module_of", "python_stage"]

_EXAMPLE = '@stage(inputs={"scores": "FP32[-1,10]"}, outputs={"best": "INT64[-1]"})'


class PythonStage:
    """A decorated function; see `Stage`.

    A ValueError that it raises is the request's fault, anything else its own.

    Args:
        function: decorated by `user.stage`.
        file: name of its file, for messages.
    """

    def __init__(self, function: Any, file: str) -> None:
        signature = declared(function)
        assert signature is not None
        self.signature = signature
        self._function, self._file = function, file

    def run(self, feeds: Mapping[str, Array]) -> Rows:
        """What the function makes of a batch."""
        try:
            made = self._function(**{spec.name: feeds[spec.name] for spec in self.signature.inputs})
        except ValueError as error:
            raise RequestError(f"{self._file} refused the input", _reason(error, self._file), "Correct it") from None
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a user's code raises is told
            raise EngineError(f"{self._file} failed", _reason(error, self._file), "Correct that file") from None
        return Rows({spec.name: self._checked(spec, array) for spec, array in self._by_name(made)})

    def close(self) -> None:
        """Nothing is held."""

    def _by_name(self, made: Any) -> list[tuple[TensorSpec, Any]]:
        specs = self.signature.outputs
        if isinstance(made, Mapping):
            if missing := [spec.name for spec in specs if spec.name not in made]:
                raise self._wrong(f'it returned no "{missing[0]}"')
            return [(spec, made[spec.name]) for spec in specs]
        arrays = made if isinstance(made, tuple) else (made,)
        if len(arrays) != len(specs):
            raise self._wrong(f"it returned {len(arrays)} arrays, and declares {len(specs)} outputs")
        return list(zip(specs, arrays, strict=True))

    def _checked(self, spec: TensorSpec, given: Any) -> Array:
        try:
            array = np.asarray(given)
        except ValueError as error:
            raise self._wrong(f'"{spec.name}" is no array: {error}') from None
        if array.dtype != spec.numpy:
            if array.dtype.kind not in "SU" and not np.can_cast(array.dtype, spec.numpy, "same_kind"):
                raise self._wrong(f'"{spec.name}" is {array.dtype}, and declared as {spec.dtype}')
            array = array.astype(spec.numpy)
        shape = spec.shape or ()
        if array.ndim != len(shape) or any(
            isinstance(wanted, int) and wanted != size for wanted, size in zip(shape, array.shape, strict=True)
        ):
            raise self._wrong(f'"{spec.name}" has the shape {list(array.shape)}, and is declared as {spec.dims}')
        return np.ascontiguousarray(array)

    def _wrong(self, why: str) -> EngineError:
        return EngineError(f"{self._file} answered otherwise than it declares", why, "Correct that file")


def python_stage(path: Path, label: str) -> PythonStage:
    """The one stage in a Python file.

    Raises:
        ConfigError: the file does not run, or has not exactly one function that is declared a stage, or that one cannot
            be called as it declares.
    """
    module = module_of(path, label)
    found = [value for value in vars(module).values() if declared(value) and value.__module__ == module.__name__]
    if len(found) != 1:
        names = ", ".join(value.__name__ for value in found) or "none"
        raise ConfigError(
            f"{label}: {path.name} has {len(found)} stages",
            f"functions declared as such: {names}",
            f"Decorate one function: {_EXAMPLE}",
        )
    stage = PythonStage(found[0], path.name)
    _require_parameters(found[0], stage.signature, f"{label}: {path.name}")
    return stage


def _require_parameters(function: Any, signature: Signature, where: str) -> None:
    """
    Raises:
        ConfigError: the function cannot be called with what it declares as its inputs, or declares nothing on a side.
    """
    names = [spec.name for spec in signature.inputs]
    if not names or not signature.outputs:
        side = "outputs" if names else "inputs"
        raise ConfigError(f"{where}: {function.__name__} declares no {side}", "a stage has both", f"Write {_EXAMPLE}")
    try:
        inspect.signature(function).bind(**dict.fromkeys(names))
    except TypeError as error:
        raise ConfigError(
            f"{where}: {function.__name__} cannot be called with the inputs that it declares",
            f"they are {', '.join(names)}: {error} (line {function.__code__.co_firstlineno})",
            "Give the function a parameter for each of them, of its name",
        ) from None


def module_of(path: Path, label: str) -> ModuleType:
    """The user's file, run; nothing of it is kept where another import would find it.

    Raises:
        ConfigError: it does not run.
    """
    name = f"unified_stage_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # a file in the repository would be a new version
    sys.modules[name] = module  # decorators ask for the module of what they decorate
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a user's code raises is told
        raise ConfigError(
            f"{label}: {path.name} does not run", _reason(error, path.name), "Correct that file"
        ) from None
    finally:
        sys.dont_write_bytecode = writes
        del sys.modules[name]
    return module


def _reason(error: BaseException, file: str) -> str:
    """The error in one line, with the last line of the user's file that it came through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).name == file]
    where = f" ({file}:{frames[-1].lineno})" if frames else ""
    if isinstance(error, SyntaxError):
        where = f" ({file}:{error.lineno})"
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"
