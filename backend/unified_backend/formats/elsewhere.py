"""Models of frameworks that nothing here converts, told apart by their structure, and the route that each one has."""

from __future__ import annotations

import re
import struct
from pathlib import Path

from unified_backend.formats.wire import LENGTH, VARINT, Bytes, fields, mapped, varint

__all__ = ["words"]

_HEAD = 64 * 1024  # bytes of a text that are searched for the words of a format
_MOST_FIELDS = 64  # of a message, until it is known for what it is
_MLIR = b"ML\xefR"  # https://mlir.llvm.org/docs/BytecodeFormat
_STABLEHLO = b"StableHLO_v"  # what produced the bytecode, as its first string
_CAFFE_TEXT = re.compile(rb"(?m)^\s*layers?\s*\{")
_CAFFE_LAYER = re.compile(rb"(?m)^\s*(bottom|top)\s*:\s*\"")
# Field of NetParameter in caffe.proto -> the fields of a layer there with its name and type, and the type's wire type.
_LAYERS = {2: (4, 5, VARINT), 100: (1, 2, LENGTH)}
# The oneof Type of Model in Apple's Model.proto; 502 is an ML program, 500, 303 and 403 are neural networks.
_COREML_TYPES = range(200, 3001)
_Fields = dict[int, tuple[int, int, int]]  # number -> wire type, begin and end
_NONE = (-1, 0, 0)

_CAFFE = (
    "part of a Caffe model: serve what MNN's converter makes of it, `mnnconvert -f CAFFE --modelFile net.caffemodel "
    "--prototxt net.prototxt --MNNModel model.mnn`"
)
_COREML = "a Core ML model, which nothing outside Apple's systems reads: export the model that it was made from as ONNX"
_MINDIR = (
    "a MindSpore model: export it where it is, with mindspore.export(network, inputs, file_name='model', "
    "file_format='ONNX')"
)
_TNN_TEXT = re.compile(rb'\A\s*"\d+ \d+ \d+(?: 420662477[02])? *,"')
_TNN_WEIGHTS = (b"\x02\x00\xbc\xfa", b"\x04\x00\xbc\xfa")
_NCNN_BINARY = struct.pack("<I", 7767517)

_OTHERS = "convert the model that it was made from to ONNX"
_TNN = f"part of a TNN model, whose library has no package for Python: {_OTHERS}"
_NCNN = "the graph of an ncnn model in its binary form: put the text here, `.param`, with its `.bin`"
_MACE = f"a MACE model, whose library has no package for Python: {_OTHERS}"
_JAX = (
    "a StableHLO program as JAX exports it: export the function as ONNX, with jax2onnx.to_onnx(function, inputs=[...])"
)


def words(path: Path) -> str | None:
    """A few words on a model of Caffe, Core ML, MindSpore, JAX, TNN, ncnn or MACE; None for anything else."""
    with mapped(path) as data:
        head = bytes(data[:_HEAD])
        if head.startswith(_MLIR) or (_MLIR in head and _STABLEHLO in head) or b"stablehlo." in head:
            return _JAX
        if _CAFFE_TEXT.search(head) and _CAFFE_LAYER.search(head):
            return _CAFFE
        if _TNN_TEXT.match(head) or head.startswith(_TNN_WEIGHTS):
            return _TNN
        if head.startswith(_NCNN_BINARY):
            return _NCNN
        if b"com.apple.CoreML" in head and b"itemInfoEntries" in head:
            return _COREML
        first = _first_fields(data)
        if _is_mindir(data, first):
            return _MINDIR
        if _is_coreml(data, first):
            return _COREML
        if _is_caffemodel(data, first):
            return _CAFFE
        if _is_mace(data, first):
            return _MACE
    return None


def _first_fields(data: Bytes, start: int = 0, end: int | None = None) -> _Fields:
    """Of a message's first fields the first of each number; empty if it is none."""
    found: _Fields = {}
    for count, (field, wire_type, begin, after) in enumerate(fields(data, start, end)):
        if not field or after > len(data):
            return {}
        found.setdefault(field, (wire_type, begin, after))
        if count >= _MOST_FIELDS:
            break
    return found


def _is_mindir(data: Bytes, first: _Fields) -> bool:
    """The producer's name in ModelProto of mind_ir.proto, where ONNX's has it too."""
    wire_type, begin, end = first.get(2, _NONE)
    return wire_type == LENGTH and data[begin:end] == b"MindSpore"


def _is_coreml(data: Bytes, first: _Fields) -> bool:
    """A small version, a description, and a type out of Apple's range."""
    version, begin, _ = first.get(1, _NONE)
    if version != VARINT or first.get(2, _NONE)[0] != LENGTH:
        return False
    return 1 <= varint(data, begin)[0] < 100 and any(field in _COREML_TYPES for field in first)


def _is_mace(data: Bytes, first: _Fields) -> bool:
    """Operators as in NetDef of mace.proto: with a name, a type that is a word, and a device by its number."""
    wire_type, begin, end = first.get(1, _NONE)
    if wire_type != LENGTH:
        return False
    operator = _first_fields(data, begin, end)
    kind, type_begin, type_end = operator.get(4, _NONE)
    named = operator.get(3, _NONE)[0] == LENGTH and operator.get(2, _NONE)[0] == LENGTH
    device = operator.get(5, (VARINT, 0, 0))[0] == VARINT
    return named and device and kind == LENGTH and bytes(data[type_begin:type_end]).isalnum()


def _is_caffemodel(data: Bytes, first: _Fields) -> bool:
    """Layers that have a name and a type."""
    for number, (name, kind, kind_type) in _LAYERS.items():
        wire_type, begin, end = first.get(number, _NONE)
        if wire_type == LENGTH:
            layer = _first_fields(data, begin, end)
            if layer.get(name, _NONE)[0] == LENGTH and layer.get(kind, _NONE)[0] == kind_type:
                return True
    return False
