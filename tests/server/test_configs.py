"""What a user's config.pbtxt becomes: hints are completed, wishes are respected, contradictions are named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.http as httpclient
from helpers import UNIFIED, Triton, add_model, start_server
from models import parsed
from tritonclient.utils import InferenceServerException

IMAGE = parsed(
    "g (float[N,3,H,W] image) => (float[N,3] scores, float[N,3,H,W] copy)"
    "{ pooled = GlobalAveragePool (image)  scores = Flatten (pooled)  copy = Identity (image) }"
).SerializeToString()
FLAT = parsed("g (float[N,4] X) => (float[N,4] Y) { Y = Add (X, X) }").SerializeToString()
# The first dimension is no batch: the answer is one sum over it.
SUM = parsed("g (float[N,4] X) => (float[1,4] Y) { Y = ReduceSum <axes = [0]> (X) }", opset=11).SerializeToString()
FIXED = parsed("g (float[2,4] X) => (float[2,4] Y) { Y = Add (X, X) }").SerializeToString()


def image(batch: int = 1, height: int = 8, width: int = 8) -> np.ndarray:
    return np.random.default_rng(0).random((batch, 3, height, width), np.float32)


def tensors(config: dict[str, Any], side: str) -> dict[str, tuple[str, list[int]]]:
    """Name -> data type and dims."""
    return {tensor["name"]: (tensor["data_type"], [int(size) for size in tensor["dims"]]) for tensor in config[side]}


@pytest.mark.parametrize(("name", "config"), [("whole", UNIFIED), ("whole.unified", None)], ids=["line", "no config"])
def test_config_is_completed_from_the_model_alone(triton: Triton, name: str, config: str | None) -> None:
    with triton.serving(name, {"1/any.name": IMAGE}, config) as model:
        completed = triton.config(model)
        assert completed["max_batch_size"] == 32
        assert tensors(completed, "input") == {"image": ("TYPE_FP32", [3, -1, -1])}
        assert tensors(completed, "output") == {
            "scores": ("TYPE_FP32", [3]),
            "copy": ("TYPE_FP32", [3, -1, -1]),
        }
        assert completed["dynamic_batching"]["max_queue_delay_microseconds"] == 0
        answer = triton.infer(model, {"image": image(2)})
    np.testing.assert_array_equal(answer["copy"], image(2))


def test_names_alone_are_enough_and_outputs_not_named_are_not_served(triton: Triton) -> None:
    config = UNIFIED + 'input { name: "image" } output { name: "copy" }'
    with triton.serving("names", {"1/m.onnx": IMAGE}, config) as model:
        completed = triton.config(model)
        assert tensors(completed, "input") == {"image": ("TYPE_FP32", [3, -1, -1])}
        assert tensors(completed, "output") == {"copy": ("TYPE_FP32", [3, -1, -1])}
        assert triton.infer(model, {"image": image()}).keys() == {"copy"}
        with pytest.raises(InferenceServerException, match="scores"):
            triton.infer(model, {"image": image()}, outputs=[httpclient.InferRequestedOutput("scores")])


def test_narrower_dims_are_kept_and_enforced(triton: Triton) -> None:
    config = UNIFIED + 'input { name: "image" dims: [ 3, 16, 24 ] }'
    with triton.serving("narrow", {"1/m.onnx": IMAGE}, config) as model:
        assert tensors(triton.config(model), "input") == {"image": ("TYPE_FP32", [3, 16, 24])}
        assert triton.infer(model, {"image": image(2, 16, 24)})["scores"].shape == (2, 3)
        with pytest.raises(InferenceServerException, match=r"\[-1,3,16,24\]"):
            triton.infer(model, {"image": image(2, 16, 16)})


def test_own_max_batch_size_is_kept_and_enforced(triton: Triton) -> None:
    with triton.serving("five", {"1/m.onnx": FLAT}, UNIFIED + "max_batch_size: 5") as model:
        assert triton.config(model)["max_batch_size"] == 5
        x = np.ones((5, 4), np.float32)
        np.testing.assert_array_equal(triton.infer(model, {"X": x})["Y"], x * 2)
        with pytest.raises(InferenceServerException, match="must be <= 5"):
            triton.infer(model, {"X": np.ones((6, 4), np.float32)})


def test_written_zero_means_no_batching(triton: Triton) -> None:
    with triton.serving("zero", {"1/m.onnx": FLAT}, UNIFIED + "max_batch_size: 0\n") as model:
        completed = triton.config(model)
        assert completed["max_batch_size"] == 0
        assert "dynamic_batching" not in completed
        assert tensors(completed, "input") == {"X": ("TYPE_FP32", [-1, 4])}
        x = np.ones((40, 4), np.float32)
        np.testing.assert_array_equal(triton.infer(model, {"X": x})["Y"], x * 2)


@pytest.mark.parametrize(("content", "answer"), [(SUM, [2] * 4), (FIXED, [2] * 8)], ids=["sum", "fixed"])
def test_model_that_cannot_be_batched_is_served_without(triton: Triton, content: bytes, answer: list[float]) -> None:
    with triton.serving("unbatchable", {"1/m.onnx": content}) as model:
        completed = triton.config(model)
        assert completed["max_batch_size"] == 0
        assert "dynamic_batching" not in completed
        assert triton.infer(model, {"X": np.ones((2, 4), np.float32)})["Y"].ravel().tolist() == answer


def test_own_dynamic_batching_is_kept(triton: Triton) -> None:
    config = (
        UNIFIED
        + "max_batch_size: 4 dynamic_batching { preferred_batch_size: [ 2, 4 ] max_queue_delay_microseconds: 70 }"
    )
    with triton.serving("own_batching", {"1/m.onnx": FLAT}, config) as model:
        kept = triton.config(model)["dynamic_batching"]
        assert kept["preferred_batch_size"] == [2, 4]
        assert kept["max_queue_delay_microseconds"] == 70


def test_sequence_batching_is_kept_and_serves_sequences(triton: Triton) -> None:
    config = UNIFIED + "max_batch_size: 4\nsequence_batching { max_sequence_idle_microseconds: 9000000 }"
    with triton.serving("sequences", {"1/m.onnx": FLAT}, config) as model:
        completed = triton.config(model)
        assert completed["sequence_batching"]["max_sequence_idle_microseconds"] == 9000000
        assert completed["max_batch_size"] == 4
        assert "dynamic_batching" not in completed
        x = np.ones((1, 4), np.float32)
        for start, end in ((True, False), (False, True)):
            answer = triton.infer(model, {"X": x}, sequence_id=7, sequence_start=start, sequence_end=end)
            np.testing.assert_array_equal(answer["Y"], x * 2)


def test_reshape_of_inputs_and_outputs_is_kept(triton: Triton) -> None:
    reshaped = "dims: [ 2, 2 ] reshape { shape: [ 4 ] }"
    config = UNIFIED + f'input {{ name: "X" {reshaped} }} output {{ name: "Y" {reshaped} }}'
    with triton.serving("reshaped", {"1/m.onnx": FLAT}, config) as model:
        assert tensors(triton.config(model), "input") == {"X": ("TYPE_FP32", [2, 2])}
        x = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
        np.testing.assert_array_equal(triton.infer(model, {"X": x})["Y"], x * 2)


def test_labels_answer_a_classification_request(triton: Triton) -> None:
    config = UNIFIED + 'output { name: "scores" label_filename: "colours.txt" }'
    files = {"1/m.onnx": IMAGE, "colours.txt": b"red\ngreen\nblue\n"}
    with triton.serving("labelled", files, config) as model:
        asked = [httpclient.InferRequestedOutput("scores", class_count=2)]
        pixels = np.stack([np.full((4, 4), value, np.float32) for value in (0.25, 0.5, 2)])[None]
        [[best, second]] = triton.infer(model, {"image": pixels}, outputs=asked)["scores"]
    assert [best.decode().split(":")[1:], second.decode().split(":")[1:]] == [["2", "blue"], ["1", "green"]]


CONTRADICTIONS = {
    "dtype": (
        FLAT,
        'input { name: "X" data_type: TYPE_INT8 }',
        ['input "X"', "TYPE_INT8 in config.pbtxt", "TYPE_FP32 in the model", "Write `data_type: TYPE_FP32`"],
    ),
    "output_dtype": (
        FLAT,
        'output { name: "Y" data_type: TYPE_FP16 }',
        ['output "Y"', "TYPE_FP16", "TYPE_FP32", "Write `data_type: TYPE_FP32`"],
    ),
    "dims": (
        FLAT,
        'input { name: "X" dims: [ 5 ] }',
        ['input "X"', "[5] in config.pbtxt", "[4] in the model", "Write `dims: [4]`"],
    ),
    "rank": (
        IMAGE,
        'max_batch_size: 8 input { name: "image" dims: [ 3, 224 ] }',
        ['input "image"', "[3, 224] in config.pbtxt", "[3, -1, -1] in the model", "ranks differ", "Write `dims: [3"],
    ),
    "output_dims": (
        IMAGE,
        'output { name: "scores" dims: [ 1000 ] }',
        ['output "scores"', "[1000] in config.pbtxt", "[3] in the model", "Write `dims: [3]`"],
    ),
    "reshape": (
        FLAT,
        'input { name: "X" dims: [ 5, 1 ] reshape { shape: [ 5 ] } }',
        ['input "X"', "[5]", "[4]", "Write"],
    ),
    "unknown_input": (
        IMAGE,
        'input { name: "img" data_type: TYPE_FP32 dims: [ 3, 8, 8 ] }',
        ['input "img" is not in the model', "inputs are image", 'input [ { name: "image" } ]'],
    ),
    "unknown_output": (
        IMAGE,
        'output { name: "logits" }',
        ['output "logits" is not in the model', "outputs are scores, copy", 'output [ { name: "scores" } ]'],
    ),
    "batch_of_a_fixed_shape": (
        FIXED,
        "max_batch_size: 8",
        ["max_batch_size is 8", "cannot be batched", "input X has a first dimension fixed at 2", "`max_batch_size: 0`"],
    ),
    "batch_of_a_sum": (
        SUM,
        "max_batch_size: 8",
        ["max_batch_size is 8", "cannot be batched", "output Y", "`max_batch_size: 0`"],
    ),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_contradiction_names_the_field_both_values_and_the_line_to_write(triton: Triton, name: str) -> None:
    content, config, parts = CONTRADICTIONS[name]
    message = triton.refusal(name, {"1/m.onnx": content}, UNIFIED + config)
    for part in parts:
        assert part in message


def parameter(name: str, value: str) -> str:
    return f'{UNIFIED}parameters {{ key: "{name}" value {{ string_value: "{value}" }} }}\n'


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("engine", "tensorrtx", "auto, tensorrt, tensorrt_rtx"),
        ("graph_optimization", "best", "none, basic, extended, all"),
        ("batching", "yes", "auto, loop, concatenate"),
        ("warm_up", "1,x", "batch sizes such as"),
        ("intra_op_thread_count", "-1", "whole number of 0 or more"),
        ("execution_mode", "2", "sequential, 0, parallel, 1"),
        ("enable_mem_arena", "maybe", "1, true, yes, 0, false, no"),
    ],
)
def test_value_that_a_parameter_cannot_have_is_refused(triton: Triton, name: str, value: str, allowed: str) -> None:
    message = triton.refusal(f"bad_{name}", {"1/m.onnx": FLAT}, parameter(name, value))
    assert f'parameter "{name}" is "{value}"' in message
    assert allowed in message
    assert f'parameters {{ key: "{name}" value {{ string_value: "..." }} }}' in message


def test_unknown_parameter_is_ignored_with_the_name_that_was_meant(triton: Triton) -> None:
    with triton.serving("misspelt", {"1/m.onnx": FLAT}, parameter("intra_op_thread_counts", "1")) as model:
        assert triton.infer(model, {"X": np.ones((1, 4), np.float32)})["Y"][0, 0] == 2
        warnings = lines(triton, model, "unknown parameter")
    assert warnings
    for warning in warnings:
        assert 'parameter="intra_op_thread_counts", did you mean intra_op_thread_count?' in warning.replace("\\", "")


def test_intra_op_thread_count_is_honoured(triton: Triton) -> None:
    threads = {}
    for count in (1, 4):
        with triton.serving("threads", {"1/m.onnx": FLAT}, parameter("intra_op_thread_count", str(count))) as model:
            [line] = lines(triton, model, "loaded")
            assert f" threads={count} " in line
            threads[count] = stub(triton, model).num_threads()
    assert threads[4] - threads[1] == 3


def test_several_models_in_a_version_need_a_choice_and_source_makes_it(triton: Triton) -> None:
    files = {"1/double.onnx": FLAT, "1/more/image.onnx": IMAGE}
    message = triton.refusal("several", files)
    assert "2 models found" in message
    assert "double.onnx, more/image.onnx" in message
    assert 'parameters { key: "source" value { string_value: "double.onnx" } }' in message
    for choice, inputs in (
        (parameter("source", "double.onnx"), {"X"}),
        (parameter("source", "more"), {"image"}),
        (UNIFIED + 'default_model_filename: "double.onnx"', {"X"}),
    ):
        with triton.serving("chosen", files, choice) as model:
            assert tensors(triton.config(model), "input").keys() == inputs


@pytest.mark.parametrize("choice", ["gone.onnx", "../2/double.onnx"])
def test_source_that_is_not_there_is_refused_with_what_is(triton: Triton, choice: str) -> None:
    files = {"1/double.onnx": FLAT, "2/double.onnx": FLAT}
    message = triton.refusal("gone", files, parameter("source", choice) + "version_policy { specific { versions: 1 } }")
    assert f'source "{choice}" not found' in message
    assert "double.onnx" in message.partition("holds")[2]
    assert "parameter `source`" in message


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """A server that completes no config."""
    repository = tmp_path_factory.mktemp("strict") / "models"
    repository.mkdir()
    arguments = ("--disable-auto-complete-config",)
    with start_server(repository, model_control_mode="explicit", arguments=arguments) as server:
        yield server


def test_incomplete_config_without_completion_is_refused_with_the_text_to_paste(strict: Triton) -> None:
    pasted = UNIFIED + "max_batch_size: 8\n"
    for side in ("input", "output"):
        message = strict.refusal("incomplete", {"1/m.onnx": IMAGE}, pasted)
        assert f"has {side} {{}}" in message
        assert "auto-complete disabled" in message
        pasted += message.partition("Write: ")[2].partition(".\n")[0] + "\n"
    with strict.serving("pasted", {"1/m.onnx": IMAGE}, pasted) as model:
        assert tensors(strict.config(model), "output").keys() == {"scores", "copy"}
        np.testing.assert_array_equal(strict.infer(model, {"image": image(3)})["copy"], image(3))


def test_completed_config_is_complete_without_completion(triton: Triton, strict: Triton) -> None:
    with triton.serving("whole", {"1/m.onnx": IMAGE}) as model:
        completed = triton.config(model)
    add_model(strict.repository, model, {"1/m.onnx": IMAGE})
    strict.load(model, completed)
    assert json.dumps(strict.config(model)) == json.dumps(completed)
    np.testing.assert_array_equal(strict.infer(model, {"image": image()})["copy"], image())


def lines(triton: Triton, model: str, start: str) -> list[str]:
    """What the backend logged about a model in lines that begin with `start`."""
    return [line for line in triton.log_text().splitlines() if start in line and f"model={model}/" in line]


def stub(triton: Triton, model: str) -> psutil.Process:
    """The process that holds the one instance of a model."""
    [process] = (
        child
        for child in psutil.Process(triton.running.pid).children(recursive=True)
        if "stub" in child.name() and any(model in Path(part).parts for part in child.cmdline())
    )
    return process
