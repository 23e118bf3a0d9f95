"""INT8 from calibration data: what it costs in accuracy, what stays in FP32, and what is refused."""

from __future__ import annotations

import itertools
import json
import platform
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from commands import printed
from digits import Digits, digits, network
from onnx import TensorProto, helper, numpy_helper
from unified_backend.cache import Cache
from unified_backend.errors import ConfigError, VerificationError
from unified_backend.forms import quantised as quantising
from unified_backend.forms import worst_layers
from unified_backend.forms.quantised import scheme_of
from unified_backend.gpus import Gpu
from unified_backend.loading import Loaded, describe, load
from unified_backend.settings import Settings


@pytest.fixture(scope="session")
def data() -> Digits:
    return digits()


@pytest.fixture(scope="session")
def model(data: Digits) -> bytes:
    return network(data)


@pytest.fixture
def cache(tmp_path):
    with Cache(tmp_path / "cache") as cache:
        yield cache


@pytest.fixture
def loaded(tmp_path: Path, cache: Cache, model: bytes) -> Callable[..., Loaded]:
    """Load the network as a server does, with what lies in its folder `calibration`."""

    def made(content: bytes = model, **parameters: str) -> Loaded:
        folder = tmp_path / "repository/net/1"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.onnx").write_bytes(content)
        given = {name: {"string_value": text} for name, text in ({"precision": "int8"} | parameters).items()}
        return load(describe("net/1", folder, {"name": "net", "parameters": given}, cache), cache)

    return made


@pytest.fixture
def calibration(tmp_path: Path) -> Path:
    folder = tmp_path / "repository/net/calibration"
    folder.mkdir(parents=True)
    return folder


def fill(folder: Path, data: Digits, files: int = 16, rows: int = 4) -> None:
    for number in range(files):
        np.savez(folder / f"{number:02}.npz", image=data.images[number * rows : (number + 1) * rows])


def accuracy(model: Loaded, data: Digits) -> float:
    scores = model.runner.run({"image": data.test_images}, ["scores"])[0]
    return float((scores.argmax(1) == data.test_labels).mean())


def graph_of(model: Loaded) -> onnx.GraphProto:
    return onnx.load(model.described.canonical.path).graph


def operators(model: Loaded) -> set[tuple[str, str]]:
    return {(node.domain, node.op_type) for node in graph_of(model).node}


@pytest.mark.parametrize("method", ["min-max", "entropy", "percentile"])
def test_int8_names_the_same_digits(loaded, calibration, data, method):
    fill(calibration, data)
    full, lowered = loaded(precision="fp32"), loaded(calibration_method=method)
    assert accuracy(full, data) > 0.97
    assert accuracy(lowered, data) > accuracy(full, data) - 0.01
    assert {domain for domain, _ in operators(lowered)} == {""}  # a portable graph
    assert ("", "QuantizeLinear") in operators(lowered)
    quantised_weights = [one for one in graph_of(lowered).initializer if one.data_type == TensorProto.INT8]
    assert sum(np.prod(one.dims) for one in quantised_weights) > 20_000
    note = next(note for note in lowered.described.report.notes if note.startswith("precision int8"))
    assert "3 nodes, 0 kept in FP32" in note
    assert "the same class for" in note
    assert lowered.runner.run({"image": data.test_images[:1]}, ["scores"])[0].shape == (1, 10)


def test_a_second_load_quantises_nothing_and_answers_alike(loaded, calibration, data):
    fill(calibration, data)
    first = loaded()
    second = loaded()
    assert first.described.report.lookups["precision"] == "made"
    assert second.described.report.lookups["precision"] == "hit"
    answers = [one.runner.run({"image": data.test_images[:9]}, ["scores"])[0] for one in (first, second)]
    np.testing.assert_array_equal(*answers)


def test_the_table_of_ranges_serves_other_exclusions(loaded, calibration, data):
    fill(calibration, data)
    loaded()
    other = loaded(exclude="conv_f*")
    assert other.described.report.lookups["calibration"] == "hit"
    assert other.described.report.lookups["precision"] == "made"
    [first] = [node for node in graph_of(other).node if node.name == "conv_first"]
    assert first.input[0] == "image"  # as it came
    (calibration / "17.npz").write_bytes((calibration / "00.npz").read_bytes())
    assert loaded().described.report.lookups["calibration"] == "made"


def test_layers_are_excluded_by_operator_and_output_too(loaded, calibration, data):
    fill(calibration, data)
    kept = loaded(exclude="Conv")
    assert any("1 nodes, 2 kept in FP32" in note for note in kept.described.report.notes)
    with pytest.raises(ConfigError, match="every layer is excluded"):
        loaded(exclude="Conv,g")  # the output of the matrix product


def requests(data: Digits) -> dict[str, str]:
    tensor = {"name": "image", "datatype": "FP32", "shape": [2, 1, 8, 8], "data": data.images[:2].ravel().tolist()}
    rows = [{"image": {"content": one.ravel().tolist(), "shape": [1, 8, 8]}} for one in data.images[2:6]]
    return {"request.json": json.dumps({"inputs": [tensor]}), "rows.json": json.dumps({"data": rows})}


def test_arrays_and_requests_are_calibration_data(loaded, calibration, data):
    np.save(calibration / "images.npy", data.images[:32])
    for name, text in requests(data).items():
        (calibration / name).write_text(text)
    assert accuracy(loaded(), data) > 0.97


def test_another_folder_can_be_named(loaded, calibration, data):
    fill(calibration, data)
    calibration.rename(calibration.with_name("seen"))
    assert accuracy(loaded(calibration="seen"), data) > 0.97
    with pytest.raises(ConfigError, match=r"the folder elsewhere is not there.*\.npz"):
        loaded(calibration="elsewhere")


def test_one_batch_is_enough_to_try_and_warned_of(loaded, calibration, data, caplog):
    np.savez(calibration / "one.npz", image=data.images[:1])
    with pytest.raises(VerificationError, match="INT8"):
        loaded(tolerance="0.0001")
    assert loaded(tolerance="0.9").described.canonical.precision == "int8"
    assert "rows=1 advised=some tens, 8 at least" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (None, None, "there is no calibration data.*beside the version folders"),
        ("", None, "the folder calibration holds no file"),
        ("a.npz", {"picture": np.zeros((1, 1, 8, 8))}, "a.npz has no array named image.*it holds picture"),
        (
            "a.npz",
            {"image": np.zeros((1, 1, 9, 9), np.float32)},
            r"a.npz does not fit.*\[1, 1, 9, 9\].*\[-1, 1, 8, 8\]",
        ),
        ("a.npz", {"image": np.array([["a"]])}, "a.npz does not fit the model"),
        (
            "a.npz",
            {"image": np.full((2, 1, 8, 8), np.nan, np.float32)},
            "a.npz.*128 of the 128 values of image are",
        ),
        ("a.npz", b"no archive", "a.npz cannot be read"),
        ("a.npy", b"no array", "a.npy cannot be used"),
        ("a.json", b"{}", "a.json cannot be used.*it has no 'data'"),
        ("a.json", b"[1", "a.json cannot be used"),
        ("a.json", b'{"data": [{"image": [0], "mask": [1]}]}', "a.json.*has no input mask; its inputs are image"),
        (
            "a.json",
            b'{"inputs": [{"name": "image", "datatype": "INT8", "shape": [1, 1, 8, 8], "data": []}]}',
            "a.json.*image is INT8, and the model takes FP32",
        ),
        ("a.jpg", b"\xff\xd8\xff", "a.jpg cannot be used.*no stage"),
    ],
)
def test_data_that_cannot_be_used_is_told(tmp_path, loaded, data, name, content, message):
    folder = tmp_path / "repository/net/calibration"
    if name is not None:
        folder.mkdir(parents=True)
    if isinstance(content, dict):
        np.savez(folder / name, **content)
    elif content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"(?s)^net/1: .*{message}"):
        loaded()


def test_objects_in_data_are_not_unpickled(loaded, calibration):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("it was unpickled",))

    np.savez(calibration / "a.npz", image=np.array([Trap()], object))
    with pytest.raises(ConfigError, match=r"a\.npz cannot be read.*Python objects"):
        loaded()


def sensitive(data: Digits) -> bytes:
    """The digits' network, deeper, and with values after its last convolution whose range eight bits do not hold."""
    model = onnx.load_from_string(network(data))
    graph = model.graph
    weights = {one.name: one for one in graph.initializer}
    scales = np.ones((64, 1, 1, 1), np.float32)
    scales[::2] = 1e4
    second = numpy_helper.to_array(weights["second"]) * scales
    matrix = (numpy_helper.to_array(weights["matrix"]).reshape(64, 16, 10) / scales.reshape(64, 1, 1)).reshape(-1, 10)
    for name, value in (("second", second), ("matrix", matrix)):
        weights[name].CopyFrom(numpy_helper.from_array(value.astype(np.float32), name))
    same = np.eye(24, dtype=np.float32).reshape(24, 24, 1, 1)
    graph.initializer.append(numpy_helper.from_array(same, "same"))
    nodes = list(graph.node)
    at = next(number for number, node in enumerate(nodes) if node.name == "conv_second")
    names = ["c", *(f"same_{number}" for number in range(6))]
    more = [helper.make_node("Conv", [one, "same"], [other], other) for one, other in itertools.pairwise(names)]
    nodes[at].input[0] = names[-1]
    nodes[at:at] = more
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    return bytes(model.SerializeToString())


def test_the_worst_layers_stay_in_fp32_and_are_named(loaded, calibration, data):
    fill(calibration, data)
    lowered = loaded(sensitive(data))
    note = next(note for note in lowered.described.report.notes if note.startswith("precision int8"))
    assert "7 nodes, 2 kept in FP32" in note
    assert accuracy(lowered, data) > 0.97
    inputs = {node.name: node.input for node in graph_of(lowered).node}
    assert (inputs["conv_second"][1], inputs["matrix_product"][1]) == ("second", "matrix")  # as they came
    assert "0 kept" in next(note for note in loaded().described.report.notes if note.startswith("precision int8"))


def test_what_does_not_hold_is_refused_and_auto_goes_on_without(loaded, calibration, data, monkeypatch):
    monkeypatch.setattr(worst_layers, "MOST_KEPT", 0.0)
    fill(calibration, data)
    with pytest.raises(VerificationError, match=r"(?s)net/1.*INT8 differs from FP32.*exclude") as told:
        loaded(sensitive(data))
    assert "scores" in str(told.value)
    full = loaded(sensitive(data), precision="auto")
    assert full.described.canonical.precision is None
    assert any("precision int8 is not taken" in note for note in full.described.report.notes)
    assert accuracy(full, data) > 0.97
    again = loaded(sensitive(data), precision="auto")
    assert again.described.report.lookups["precision"] == "hit"  # it is not tried at each load


def test_auto_takes_int8_on_a_cpu_where_there_is_data_for_it(loaded, tmp_path, data):
    assert loaded(precision="auto").described.canonical.precision is None
    folder = tmp_path / "repository/net/calibration"
    folder.mkdir()
    fill(folder, data)
    assert loaded(precision="auto").described.canonical.precision == "int8"


def test_a_model_that_comes_quantised_is_kept(loaded, calibration, data, tmp_path):
    fill(calibration, data)
    first = loaded()
    content = first.described.canonical.path.read_bytes()
    again = loaded(content)
    assert any("quantised as it came" in note for note in again.described.report.notes)
    images = data.test_images[:50]
    answers = [one.runner.run({"image": images}, ["scores"])[0] for one in (first, again)]
    np.testing.assert_allclose(*answers, atol=1e-5)
    with pytest.raises(ConfigError, match="not quantised to fp8: it comes quantised"):
        loaded(content, precision="fp8")


def perceptron() -> bytes:
    generator = np.random.default_rng(0)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("MatMul", ["b", "v"], ["y"]),
        ],
        "perceptron",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 8])],
        [
            numpy_helper.from_array(generator.standard_normal(shape).astype(np.float32), name)
            for name, shape in (("w", (32, 64)), ("v", (64, 8)))
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def test_dynamic_quantisation_needs_no_data_and_takes_no_convolutions(loaded):
    lowered = loaded(perceptron(), calibration_method="dynamic")
    assert {name for _, name in operators(lowered)} >= {"DynamicQuantizeLinear", "MatMulInteger"}
    with pytest.raises(ConfigError, match="convolutions"):
        loaded(calibration_method="dynamic")


def test_fp8_names_the_same_digits_in_onnx_s_own_types(loaded, calibration, data):
    fill(calibration, data)
    lowered = loaded(precision="fp8")
    assert accuracy(lowered, data) > 0.97
    assert {domain for domain, _ in operators(lowered)} == {""}
    weights = {one.name: one for one in graph_of(lowered).initializer if one.data_type == TensorProto.FLOAT8E4M3FN}
    assert sum(np.prod(one.dims) for one in weights.values()) > 20_000
    assert any("3 nodes, 0 kept in FP32" in note for note in lowered.described.report.notes)
    excluded = loaded(precision="fp8", exclude="Conv")
    assert any("1 nodes, 2 kept in FP32" in note for note in excluded.described.report.notes)


def test_fp8_leaves_the_worst_layers_in_fp32_or_is_refused(loaded, calibration, data):
    fill(calibration, data)
    with pytest.raises(ConfigError, match="no layer can be quantised to fp8"):
        loaded(precision="fp8", exclude="Conv,MatMul")
    with pytest.raises(VerificationError, match=r"(?s)FP8 differs from FP32.*layers that cost most cosine"):
        loaded(precision="fp8", tolerance="0.0001")


@pytest.mark.parametrize(("precision", "kind"), [("int8", "INT8"), ("fp8", "FP8")])
def test_tensorrt_builds_an_engine_of_it(tmp_path, model, calibration, data, precision, kind):
    """For a GPU that is not here; the types are those that the engine's inspector tells."""
    fill(calibration, data)
    folder = tmp_path / "repository/net/1"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(model)
    parameter = f'parameters {{ key: "precision" value {{ string_value: "{precision}" }} }}'
    (folder.parent / "config.pbtxt").write_text(f'backend: "unified"\nmax_batch_size: 8\n{parameter}\n')
    [built] = printed(tmp_path, "build", tmp_path / "repository", "--for", "sm89")["models"]
    assert built["status"] == "built"
    [plan] = tmp_path.glob("cache/entries/**/model.plan")
    types = printed(tmp_path, "inspect", plan.parent)["facts"]["types"]
    assert types[kind] >= 3


def test_gpus_get_signed_values_with_zero_points_of_zero():
    gpu = Gpu(0, "NVIDIA H100", (9, 0))
    assert scheme_of(Settings(gpu=gpu)) == "s8s8"
    assert (scheme_of(Settings()) == "s8s8") is (platform.machine() == "aarch64")


def test_a_quantiser_that_dies_is_told(loaded, calibration, data, monkeypatch):
    fill(calibration, data)
    worker = Path(quantising.__file__).parent.parent / "graph/dying_quantiser.py"
    worker.write_text("import os, signal\ndef work(*_):\n    os.kill(os.getpid(), signal.SIGSEGV)\n")
    try:
        monkeypatch.setattr(quantising, "_WORKER", "unified_backend.graph.dying_quantiser")
        with pytest.raises(ConfigError, match=r"net/1: the model cannot be quantised.*SIGSEGV"):
            loaded()
    finally:
        worker.unlink()


def convolution(opset: int) -> bytes:
    """[N, 3, 8, 8] -> [N, 4], its weights in Constant nodes, as PaddlePaddle's exporter writes them."""
    generator = np.random.default_rng(3)

    def constant(name: str, *shape: int) -> onnx.NodeProto:
        value = numpy_helper.from_array(generator.standard_normal(shape).astype(np.float32), name)
        return helper.make_node("Constant", [], [name], value=value)

    nodes = [
        constant("w", 16, 3, 3, 3),
        helper.make_node("Conv", ["x", "w"], ["a"], "conv"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("GlobalAveragePool", ["b"], ["c"]),
        helper.make_node("Flatten", ["c"], ["d"]),
        constant("v", 16, 4),
        helper.make_node("MatMul", ["d", "v"], ["y"], "product"),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", ["N", 3, 8, 8]), ("y", ["N", 4])))
    graph = helper.make_graph(nodes, "convolution", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7).SerializeToString()


@pytest.mark.parametrize("opset", [9, 11, 13])
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_weights_in_constants_and_old_opsets_are_quantised_too(loaded, calibration, opset, precision):
    generator = np.random.default_rng(4)
    for number in range(8):
        np.savez(calibration / f"{number}.npz", x=generator.standard_normal((2, 3, 8, 8)).astype(np.float32))
    lowered = loaded(convolution(opset), precision=precision, tolerance="0.2")  # noise has no classes to agree on
    kinds = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}
    shapes = [tuple(one.dims) for one in graph_of(lowered).initializer if one.data_type == kinds[precision]]
    assert {(16, 3, 3, 3), (16, 4)} <= set(shapes)
    assert any("2 nodes, 0 kept in FP32" in note for note in lowered.described.report.notes)


def test_dynamic_quantisation_counts_what_it_did(loaded):
    generator = np.random.default_rng(0)
    w = numpy_helper.from_array(generator.standard_normal((8, 8)).astype(np.float32), "w")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 8, 8]) for name in ("x", "y")]

    def made(*nodes: onnx.NodeProto) -> bytes:
        graph = helper.make_graph([*nodes], "attention", ends[:1], ends[1:], [w])
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()

    with pytest.raises(ConfigError, match=r"nothing to quantise.*of 1 layers none multiplies by weights"):
        loaded(made(helper.make_node("MatMul", ["x", "x"], ["y"], "alone")), calibration_method="dynamic")
    first = helper.make_node("MatMul", ["x", "w"], ["h"], "weighted")
    second = helper.make_node("MatMul", ["h", "x"], ["y"], "alone")
    both = loaded(made(first, second), calibration_method="dynamic", tolerance="0.5")
    kept = "1 nodes, 1 kept in FP32 (alone: it multiplies by no weights)"
    assert any(kept in note for note in both.described.report.notes)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ([np.zeros((0, 1, 8, 8), np.float32)], "00.npz cannot be used: it has no rows"),
        ([np.zeros((2, 1, 8, 8), np.float32)] * 2, "all values of image are 0, which tells no range"),
        ([np.full((2, 1, 8, 8), 7, np.float32)] * 2, "all values of image are 7"),
    ],
)
def test_data_that_tells_nothing_is_refused(loaded, calibration, arrays, message):
    for number, array in enumerate(arrays):
        np.savez(calibration / f"{number:02}.npz", image=array)
    with pytest.raises(ConfigError, match=message):
        loaded()


def test_a_batch_that_the_model_does_not_answer_is_named(loaded, calibration):
    ends = [
        helper.make_tensor_value_info(name, kind, ["N", *rest])
        for name, kind, rest in (("id", TensorProto.INT64, []), ("y", TensorProto.FLOAT, [4]))
    ]
    nodes = [helper.make_node("Gather", ["table", "id"], ["e"]), helper.make_node("MatMul", ["e", "w"], ["y"])]
    generator = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(generator.standard_normal(shape).astype(np.float32), name)
        for name, shape in (("table", (10, 8)), ("w", (8, 4)))
    ]
    graph = helper.make_graph(nodes, "words", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    np.savez(calibration / "good.npz", id=np.arange(10))
    np.savez(calibration / "wild.npz", id=np.array([3, 98]))
    with pytest.raises(
        ConfigError, match=r"wild\.npz cannot be used: the model does not answer it.*out of data bounds"
    ):
        loaded(model)
    (calibration / "wild.npz").unlink()
    assert loaded(model).described.canonical.precision == "int8"


def test_little_data_and_a_failure_that_is_accepted_are_in_every_load_s_note(loaded, calibration, data):
    fill(calibration, data, files=2)
    for origin in ("made", "hit"):
        lowered = loaded(tolerance="0.0001", verify="warn")
        assert lowered.described.report.lookups["precision"] == origin
        [note] = [note for note in lowered.described.report.notes if note.startswith("precision int8")]
        assert "that fails, and verify is warn" in note
        assert "compared on what it was calibrated on" in note
    assert lowered.runner.run({"image": data.test_images[:1]}, ["scores"])[0].shape == (1, 10)


def test_a_model_that_comes_quantised_needs_no_data(loaded, calibration, data):
    fill(calibration, data)
    content = loaded().described.canonical.path.read_bytes()
    for path in calibration.iterdir():
        path.unlink()
    calibration.rmdir()
    assert any("quantised as it came" in note for note in loaded(content).described.report.notes)
