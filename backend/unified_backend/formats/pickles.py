"""What is in a pickle, read without running it: the names that it would import, and the tensors of an archive."""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Mapping
from typing import Any

__all__ = ["Tensor", "imports", "tensors"]

_STRINGS = frozenset(
    {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "SHORT_BINSTRING", "BINSTRING", "STRING"}
)
_PUTS = frozenset({"BINPUT", "LONG_BINPUT", "PUT"})
_GETS = frozenset({"BINGET", "LONG_BINGET", "GET"})
_EXTENSIONS = frozenset({"EXT1", "EXT2", "EXT4"})
_UNKNOWN = "a name that it works out itself"

Tensor = tuple[str, tuple[int, ...]]
"""Name of the storage's class (`FloatStorage`), and the shape."""


def imports(data: bytes) -> list[str]:
    """Every `module name` that unpickling would import, in order, each once.

    Raises:
        ValueError: it is no pickle, or ends too early.
    """
    found: list[str] = []
    pushed: list[str | None] = []
    memo: dict[int, str | None] = {}
    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name in _STRINGS:
            pushed.append(str(argument))
        elif name == "MEMOIZE":
            memo[len(memo)] = pushed[-1] if pushed else None
        elif name in _PUTS:
            memo[int(str(argument))] = pushed[-1] if pushed else None
        elif name in _GETS:
            pushed.append(memo.get(int(str(argument))))
        else:
            if name in ("GLOBAL", "INST"):
                found.append(str(argument))
            elif name == "STACK_GLOBAL":
                parts = pushed[-2:]
                found.append(" ".join(map(str, parts)) if len(parts) == 2 and None not in parts else _UNKNOWN)
            elif name in _EXTENSIONS:
                found.append(_UNKNOWN)
            pushed.append(None)
    return list(dict.fromkeys(found))


def tensors(data: bytes) -> Any:
    """The object that PyTorch pickled, with a `Tensor` in place of each tensor.

    Nothing is imported: what the pickle names is one of a few stand-ins here, or an error.

    Raises:
        ValueError: it names anything else, or is damaged.
    """
    try:
        return _Reader(io.BytesIO(data)).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError, KeyError, TypeError) as error:
        raise ValueError(str(error) or type(error).__name__) from None


def _rebuilt(storage: str, _offset: int, size: tuple[int, ...], *_: Any) -> Tensor:
    return storage, tuple(int(each) for each in size)


def _tagged(value: Any, _type: str) -> Any:
    return value


class _Reader(pickle.Unpickler):
    """Knows the names that TorchScript writes into `traced_inputs.pkl`, and no other."""

    _KNOWN: Mapping[str, Any] = {
        "torch._utils _rebuild_tensor_v2": _rebuilt,
        "torch.jit._pickle restore_type_tag": _tagged,
        "collections OrderedDict": dict,
    }

    def find_class(self, module: str, name: str) -> Any:
        if known := self._KNOWN.get(f"{module} {name}"):
            return known
        if module == "torch" and name.endswith("Storage"):
            return name
        raise pickle.UnpicklingError(f"it names {module}.{name}")

    def persistent_load(self, pid: Any) -> str:
        return str(pid[1])
