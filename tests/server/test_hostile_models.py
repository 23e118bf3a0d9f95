"""ONNX models that are valid and unusual: each is served, with no config, as ONNX Runtime answers it."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from helpers import SHM, Triton
from models import answers_of, newest_opset, parsed, session, with_external_data
from onnx import TensorProto, helper
from transports import Ask, over_grpc, over_http
from tritonclient.utils import InferenceServerException

BATCHED, UNBATCHED = 32, 0


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).random(shape, np.float32)


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, what it is asked, and the max_batch_size that it is served with."""

    model: onnx.ModelProto
    inputs: Mapping[str, np.ndarray]
    max_batch_size: int


def listed_initializers() -> onnx.ModelProto:
    """IR version 3, where every initializer is an input too."""
    model = parsed("g (float[N, 4] X, float[4] W) => (float[N, 4] Y) <float[4] W = {1, 2, 3, 4}> { Y = Add (X, W) }")
    model.ir_version = 3
    model.opset_import[0].version = 7
    return model


def strangely_named() -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in ("a/b:0 ä 世", "out put/1:é"))
    graph = helper.make_graph([helper.make_node("Neg", [x.name], [y.name])], "g", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def sparse_initializer() -> onnx.ModelProto:
    values = helper.make_tensor("W", TensorProto.FLOAT, [2], [3, 5])
    indices = helper.make_tensor("W_indices", TensorProto.INT64, [2, 2], [0, 1, 2, 0])
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size]) for name, size in (("X", 3), ("Y", 2)))
    graph = helper.make_graph([helper.make_node("MatMul", ["X", "W"], ["Y"])], "g", [x], [y])
    graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [3, 2]))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def zipped_map() -> onnx.ModelProto:
    """A scikit-learn classifier's shape: labels beside a sequence of maps."""
    nodes = [helper.make_node("ArgMax", ["X"], ["label"], axis=1, keepdims=0)]
    nodes += [helper.make_node("ZipMap", ["X"], ["scores"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2])]
    x = helper.make_tensor_value_info("X", TensorProto.FLOAT, ["N", 3])
    label = helper.make_tensor_value_info("label", TensorProto.INT64, ["N"])
    of_maps = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    scores = helper.make_value_info("scores", helper.make_sequence_type_proto(of_maps))
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(helper.make_graph(nodes, "g", [x], [label, scores]), opset_imports=opsets, ir_version=9)


def negated(dimensions: str, opset: int = 17, ir_version: int = 9) -> onnx.ModelProto:
    return parsed(f"g (float[{dimensions}] X) => (float[{dimensions}] Y) {{ Y = Neg (X) }}", opset, ir_version)


IF = """
g (bool flag, float[3] X) => (float[3] Y) {
  Y = If (flag) <
    then_branch = yes () => (float[3] a) { a = Add (X, X) },
    else_branch = no () => (float[3] b) { b = Neg (X) }
  >
}
"""
LOOP = """
g (int64 count, bool go, float[3] X) => (float[3] Y) {
  Y = Loop (count, go, X) <
    body = one (int64 i, bool was, float[3] before) => (bool goes, float[3] after) {
      goes = Identity (was)
      after = Add (before, before)
    }
  >
}
"""
FUNCTION = """
g (float[N, 4] X) => (float[N, 4] Y) { half = local.twice (X) Y = local.twice (half) }
<domain: "local", opset_import: ["" : 17]> twice (x) => (y) { y = Add (x, x) }
"""
FIXED_INSIDE = """
g (float[N, 4] X) => (float[M, 4] Y) <int64[3] s = {1, 2, 2}, int64[2] t = {1, 4}> {
  pairs = Reshape (X, s)
  Y = Reshape (pairs, t)
}
"""
ROW_SIZES = """
g (float[N, K] X) => (float[N, K] Y, int64[N] size) {
  Y = Neg (X)
  columns = Shape <start = 1> (X)
  rows = Shape <end = 1> (X)
  size = Expand (columns, rows)
}
"""
TIME_FIRST = "g (float[T, N, 2] X) => (float[T, N, 2] Y) <int64 axis = {0}> { Y = CumSum (X, axis) }"
MIXED = "g (float[N, 4] X) => (float[N, 4] Y) { Y = Softmax <axis = 0> (X) }"
UNUSED = "g (float[N, 4] X, float[N, 2] ignored) => (float[N, 4] Y) { Y = Neg (X) }"
PASSED_ON = "g (float[N, 4] X) => (float[N, 4] X, float[N, 4] Y) { Y = Neg (X) }"
TWICE = "g (float[N, 4] X) => (float[N, 4] A, float[N, 4] B) { h = Neg (X) A = Identity (h) B = Identity (h) }"
RANK_BY_VALUE = "g (float[N, 4] X, int64[K] shape) => (float[] Y) { Y = Reshape (X, shape) }"
RANK_IN_RUN = "g (float[N, 4] X) => (float[] Y) { s = Shape (X) Y = Reshape (X, s) }"
RANK_OF_INPUT = "g (float[] X) => (float[] Y) { Y = Neg (X) }"
TOTAL = "g (float[N, 4] X) => (float Y) { Y = ReduceSum <keepdims = 0> (X) }"
SEQUENCE = "g (float[N, 4] X) => (seq(float[N, 1]) S, float[N, 4] Y) { Y = Neg (X) S = SplitToSequence <axis = 1> (X) }"
SCALARS = "g (float a, string b) => (float c, string d) { c = Neg (a) d = Identity (b) }"
HALF = "g (bfloat16 a) => (bfloat16 c) { c = Identity (a) }"
TEXT_AND_HALF = "g (string[N] a, bfloat16[N] b) => (string[N] c, bfloat16[N] d) { c = Identity (a) d = Identity (b) }"
CONSTANT = "g () => (float[2] Y) { Y = Constant <value = float[2] {1, 2}> () }"

CASES: dict[str, Callable[[], Case]] = {
    "initializers listed as inputs": lambda: Case(listed_initializers(), {"X": floats(3, 4)}, BATCHED),
    "opset 7": lambda: Case(negated("N, 4", opset=7), {"X": floats(3, 4)}, BATCHED),
    "opset 8": lambda: Case(negated("N, 4", opset=8), {"X": floats(3, 4)}, BATCHED),
    "opset 9": lambda: Case(negated("N, 4", opset=9), {"X": floats(3, 4)}, BATCHED),
    "newest opset": lambda: Case(negated("N, 4", newest_opset(), 13), {"X": floats(3, 4)}, BATCHED),
    "only If": lambda: Case(parsed(IF), {"flag": np.array(False), "X": floats(3)}, UNBATCHED),
    "only Loop": lambda: Case(parsed(LOOP), {"count": np.array(3), "go": np.array(True), "X": floats(3)}, UNBATCHED),
    "scalar from a batch": lambda: Case(parsed(TOTAL), {"X": floats(3, 4)}, UNBATCHED),
    "one value a sample": lambda: Case(negated("N"), {"X": floats(3)}, BATCHED),
    "no batch": lambda: Case(negated("5"), {"X": floats(5)}, UNBATCHED),
    "batch of 1 only": lambda: Case(negated("1, 4"), {"X": floats(1, 4)}, UNBATCHED),
    "batch second": lambda: Case(parsed(TIME_FIRST), {"X": floats(4, 3, 2)}, UNBATCHED),
    "samples mixed over the batch": lambda: Case(parsed(MIXED), {"X": floats(3, 4)}, UNBATCHED),
    "batch fixed inside": lambda: Case(parsed(FIXED_INSIDE), {"X": floats(1, 4)}, UNBATCHED),
    "strange names": lambda: Case(strangely_named(), {"a/b:0 ä 世": floats(3, 4)}, BATCHED),
    "functions": lambda: Case(parsed(FUNCTION, domains={"local": 1}), {"X": floats(3, 4)}, BATCHED),
    "sparse initializer": lambda: Case(sparse_initializer(), {"X": floats(3, 3)}, BATCHED),
    "unused input": lambda: Case(parsed(UNUSED), {"X": floats(3, 4), "ignored": floats(3, 2)}, BATCHED),
    "input that is an output": lambda: Case(parsed(PASSED_ON), {"X": floats(3, 4)}, BATCHED),
    "one tensor twice": lambda: Case(parsed(TWICE), {"X": floats(3, 4)}, BATCHED),
    "rank by the value of an input": lambda: Case(
        parsed(RANK_BY_VALUE, check=False), {"X": floats(3, 4), "shape": np.array([2, 3, 2])}, UNBATCHED
    ),
    "rank found in a run": lambda: Case(parsed(RANK_IN_RUN, check=False), {"X": floats(3, 4)}, BATCHED),
    "rank of an input unknown": lambda: Case(parsed(RANK_OF_INPUT, check=False), {"X": floats(3)}, UNBATCHED),
    "rows of nothing": lambda: Case(parsed(ROW_SIZES), {"X": floats(3, 0)}, BATCHED),
    "nothing in any row": lambda: Case(negated("5, K"), {"X": floats(5, 0)}, UNBATCHED),
    "sequence left out": lambda: Case(parsed(SEQUENCE), {"X": floats(3, 4)}, BATCHED),
    "map left out": lambda: Case(zipped_map(), {"X": floats(3, 3)}, BATCHED),
    "no input": lambda: Case(parsed(CONSTANT), {}, UNBATCHED),
}


def loaded(triton: Triton, name: str, files: Mapping[str, bytes | Path], config: str | None = None) -> str:
    directory = f"{name.replace(' ', '_')}.unified"
    triton.add_model(directory, files, config)
    triton.load(directory)
    return directory


def travelling(array: np.ndarray, max_batch_size: int) -> np.ndarray:
    """As Triton carries it: what has no dimension, or none but the batch's, gets one of 1."""
    return array if array.ndim > bool(max_batch_size) else array.reshape(*array.shape, 1)


@pytest.fixture(scope="module")
def scalars(triton: Triton) -> str:
    """A model of nothing but scalars."""
    return loaded(triton, "scalars", {"1/weights": parsed(SCALARS).SerializeToString()})


@pytest.mark.parametrize("name", CASES)
def test_unusual_model_is_served_as_onnxruntime_answers(triton: Triton, name: str) -> None:
    case = CASES[name]()
    serialized = case.model.SerializeToString()
    directory = loaded(triton, name, {"1/weights": serialized})
    size = triton.client.get_model_config(directory)["max_batch_size"]
    inputs = {name: travelling(array, size) for name, array in case.inputs.items()}
    answers = [over_http(triton, directory, inputs), over_grpc(triton, directory, inputs)]
    triton.client.unload_model(directory)
    every = answers_of(session(serialized), case.inputs)
    expected = {output: travelling(array, size) for output, array in every.items() if isinstance(array, np.ndarray)}
    assert size == case.max_batch_size
    for answer in answers:
        assert answer.keys() == expected.keys()
        for output, array in expected.items():
            np.testing.assert_array_equal(answer[output], array, strict=True)


@pytest.mark.parametrize("ask", [over_http, over_grpc])
def test_scalar_number_and_text_travel_as_one_element(triton: Triton, scalars: str, ask: Ask) -> None:
    answer = ask(triton, scalars, {"a": np.array([2.5], np.float32), "b": np.array(["käse".encode()], object)})
    assert {name: array.tolist() for name, array in answer.items()} == {"c": [-2.5], "d": ["käse".encode()]}


def test_bfloat16_scalar_travels_as_one_element(triton: Triton) -> None:
    directory = loaded(triton, "half scalar", {"1/weights": parsed(HALF).SerializeToString()})
    half = np.array([1.5], ml_dtypes.bfloat16)
    np.testing.assert_array_equal(over_http(triton, directory, {"a": half})["c"], half, strict=True)
    triton.client.unload_model(directory)


def test_text_beside_bfloat16_is_refused_at_load(triton: Triton) -> None:
    with pytest.raises(InferenceServerException, match="does not take strings together with bfloat16"):
        loaded(triton, "text and half", {"1/weights": parsed(TEXT_AND_HALF).SerializeToString()})


def test_ir_version_newer_than_the_engine_reads_is_served(triton: Triton) -> None:
    model = negated("N, 4", ir_version=onnx.IR_VERSION)
    directory = loaded(triton, "newest IR", {"1/weights": model.SerializeToString()})
    x = floats(3, 4)
    np.testing.assert_array_equal(over_http(triton, directory, {"X": x})["Y"], -x)
    triton.client.unload_model(directory)


@pytest.mark.parametrize("file", ["weights", "model of ours (2).ä", "model.onnx", "model.onnx/model.onnx", "a/b/c"])
def test_file_may_have_any_name_and_lie_in_a_folder(triton: Triton, file: str) -> None:
    directory = f"file_{len(file)}_{file.count('/')}"
    triton.add_model(directory, {f"1/{file}": negated("N, 4").SerializeToString()}, 'backend: "unified"')
    triton.load(directory)
    x = floats(3, 4)
    np.testing.assert_array_equal(over_http(triton, directory, {"X": x})["Y"], -x)
    triton.client.unload_model(directory)


@pytest.mark.parametrize("location", ["weights.data", "tensors/of the/größe.bin"])
def test_external_data_is_found_beside_the_model_and_below(triton: Triton, tmp_path: Path, location: str) -> None:
    body = "g (float[N, 4] X) => (float[N, 4] Y) <float[4] W = {1, 2, 3, 4}> { Y = Add (X, W) }"
    with_external_data(parsed(body), tmp_path / "version", location)
    directory = loaded(triton, f"external {location.count('/')}", {"1": tmp_path / "version"})
    x = floats(3, 4)
    expected = x + np.array([1, 2, 3, 4], np.float32)
    np.testing.assert_array_equal(over_http(triton, directory, {"X": x})["Y"], expected)
    triton.client.unload_model(directory)


def test_config_may_choose_a_file_by_a_name_that_is_not_ascii(triton: Triton) -> None:
    config = 'parameters { key: "source" value { string_value: "zwölf" } }  # größer als elf'
    files = {"1/zwölf": negated("N, 4"), "1/elf": negated("N, 3")}
    directory = loaded(triton, "chosen", {name: model.SerializeToString() for name, model in files.items()}, config)
    x = floats(3, 4)
    np.testing.assert_array_equal(over_http(triton, directory, {"X": x})["Y"], -x)
    triton.client.unload_model(directory)


def test_error_about_a_file_whose_name_is_not_ascii_names_it(triton: Triton) -> None:
    with pytest.raises(InferenceServerException, match=r"the folder holds größe \(text\)"):
        loaded(triton, "named", {"1/größe": b"hello there\n"})


def test_batch_of_no_sample_is_refused_and_the_model_lives_on(triton: Triton) -> None:
    directory = loaded(triton, "empty batch", {"1/weights": negated("N, 4").SerializeToString()})
    with pytest.raises(InferenceServerException, match="input byte size mismatch"):
        over_http(triton, directory, {"X": floats(0, 4)})
    x = floats(3, 4)
    np.testing.assert_array_equal(over_http(triton, directory, {"X": x})["Y"], -x)
    triton.client.unload_model(directory)


@pytest.mark.slow
def test_model_above_protobufs_two_gigabytes_is_served(triton: Triton) -> None:
    rows, width = 550_000, 1000
    version = triton.repository / "large.unified/1"
    write_embedding(version, rows, width)
    before = set(SHM.iterdir())
    try:
        triton.load("large.unified")
        asked = np.array([[0], [99], [rows - 1]])
        answer = over_http(triton, "large.unified", {"ids": asked})["vectors"]
        triton.unload("large.unified")
    finally:
        shutil.rmtree(version)
        for entry in (triton.repository.parent / "cache/engine").glob("*/*"):
            if used_by(entry) > 1 << 31:
                shutil.rmtree(entry)
    np.testing.assert_array_equal(answer, np.broadcast_to(asked[:, :, None], (3, 1, width)).astype(np.float32))
    left = [path for path in set(SHM.iterdir()) - before if allocated(path) > 64 << 20]  # others are other servers'
    assert left == []


def write_embedding(folder: Path, rows: int, width: int) -> None:
    """Row `i` of the table holds `i`, for the rows asked for; the others are holes in the file."""
    folder.mkdir(parents=True)
    with (folder / "table").open("wb") as table:
        for row in (99, rows - 1):
            table.seek(row * width * 4)
            table.write(np.full(width, row, np.float32).tobytes())
    model = parsed("g (int64[N, T] ids) => (float[N, T, W] vectors) { vectors = Gather (table, ids) }", check=False)
    weights = model.graph.initializer.add(name="table", data_type=TensorProto.FLOAT, dims=[rows, width])
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="table")
    (folder / "weights").write_bytes(model.SerializeToString())


def allocated(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0  # of a server that ended


def used_by(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*"))
