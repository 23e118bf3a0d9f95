"""Files of frameworks that nothing here converts are answered with the route that each one has."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from commands import command
from unified_backend.formats.appearance import appearance

DATA = Path(__file__).parent.parent / "data" / "elsewhere"  # as jax.export and coremltools write them

PROTOTXT = """name: "LeNet"
layer {
  name: "data" type: "Input" top: "data"
  input_param { shape: { dim: 64 dim: 1 dim: 28 dim: 28 } }
}
layer {
  name: "conv1" type: "Convolution"
  bottom: "data"
  top: "conv1"
  convolution_param { num_output: 20 kernel_size: 5 }
}
"""


def message(*fields: tuple[int, bytes | int]) -> bytes:
    """A protobuf message of small numbers and short strings."""
    parts = []
    for number, value in fields:
        tag = number << 3 | (2 if isinstance(value, bytes) else 0)
        head = bytes([tag]) if tag < 0x80 else bytes([tag & 0x7F | 0x80, tag >> 7])
        parts.append(head + (bytes([len(value)]) + value if isinstance(value, bytes) else bytes([value])))
    return b"".join(parts)


# NetParameter of caffe.proto, with layers as they were until 2014 and as they are since; ModelProto of mind_ir.proto.
CAFFEMODEL = message((1, b"LeNet"), (100, message((1, b"conv1"), (2, b"Convolution"), (4, b"conv1"))))
OLD_CAFFEMODEL = message((1, b"LeNet"), (2, message((2, b"data"), (3, b"conv1"), (4, b"conv1"), (5, 4))))
MINDIR = message((1, b"0.1.1"), (2, b"MindSpore"), (3, b"2.4.0"), (7, message((2, b"main"))))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (DATA / "jax.bin", "jax2onnx.to_onnx"),
        (DATA / "jax.vhlo", "jax2onnx.to_onnx"),
        (DATA / "jax.mlir", "jax2onnx.to_onnx"),
        (DATA / "net.mlmodel", "a Core ML model"),
        (DATA / "prog.mlpackage" / "Data" / "com.apple.CoreML" / "model.mlmodel", "a Core ML model"),
        (DATA / "prog.mlpackage" / "Manifest.json", "a Core ML model"),
        (PROTOTXT.encode(), "mnnconvert -f CAFFE"),
        (CAFFEMODEL, "mnnconvert -f CAFFE"),
        (OLD_CAFFEMODEL, "mnnconvert -f CAFFE"),
        (MINDIR, "mindspore.export("),
    ],
)
def test_a_model_of_another_framework_is_answered_with_its_route(
    tmp_path: Path, content: Path | bytes, words: str
) -> None:
    file = tmp_path / "model"
    file.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    done = command(tmp_path, "inspect", file)
    assert done.returncode == 1
    assert words in done.stderr


def test_a_package_of_core_ml_is_told_from_a_folder_of_anything(tmp_path: Path) -> None:
    shutil.copytree(DATA / "prog.mlpackage", tmp_path / "model.mlpackage")
    done = command(tmp_path, "inspect", tmp_path / "model.mlpackage")
    assert done.returncode == 1
    assert "export the model that it was made from as ONNX" in done.stderr


def test_damaged_files_of_other_frameworks_are_still_described(tmp_path: Path) -> None:
    chance = random.Random(7)
    wholes = [path.read_bytes() for path in (DATA / "jax.bin", DATA / "net.mlmodel")]
    file = tmp_path / "model"
    for whole in (*wholes, CAFFEMODEL, MINDIR) * 50:
        damaged = bytearray(whole[: chance.randrange(1, len(whole))])
        damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        file.write_bytes(damaged)
        assert appearance(file)
