"""What is no model fails to load within seconds, with words a user can act on, and harms nothing else."""

from __future__ import annotations

import io
import resource
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import UNIFIED, Triton, add_model, doubles, doubling_onnx, start_server
from models import parsed, with_external_data

GOOD = doubling_onnx()


def zipped() -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("model.onnx", GOOD)
    return archive.getvalue()


def weighty(elements: int = 4096) -> onnx.ModelProto:
    """Y = X * w, [N, elements]."""
    model = parsed(f"g (float[N,{elements}] X, float[{elements}] w) => (float[N,{elements}] Y) {{ Y = Mul (X, w) }}")
    del model.graph.input[1]
    weights = np.random.default_rng(0).random(elements, np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    return model


def unknown_opset() -> bytes:
    """A model of an opset that is still to come."""
    model = parsed("g (float[N] X) => (float[N] Y) { Y = Neg (X) }")
    model.opset_import[0].version = onnx.defs.onnx_opset_version() + 1
    return model.SerializeToString()


def unknown_operator() -> bytes:
    model = parsed("g (float[N] X) => (float[N] Y) { Y = Neg (X) }")
    model.graph.node[0].op_type = "Frobnicate"
    return model.SerializeToString()


def foreign_operator() -> bytes:
    domains = {"com.example": 1}
    return parsed("g (float[N] X) => (float[N] Y) { Y = com.example.Frob (X) }", domains=domains).SerializeToString()


def dangling_input() -> bytes:
    model = parsed("g (float[N] X) => (float[N] Y) { Y = Neg (X) }")
    model.graph.node[0].input[0] = "nowhere"
    return model.SerializeToString()


def no_tensor_output() -> bytes:
    model = parsed("g (float[N] X) => (seq(float[N]) Y) { Y = SequenceConstruct (X) }")
    return model.SerializeToString()


def damaged() -> bytes:
    """The right outline, and a graph whose bytes are no graph."""
    content = weighty().SerializeToString()
    start = content.index(b"Mul") - 8
    return content[:start] + b"\xff" * 16 + content[start + 16 :]


# Content of the one file in the version folder, and what the message says: the reason, and the next step.
NO_MODEL = "Put one model there; this version serves: "
BAD = {
    "empty": (b"", ["no model found", "weights (empty)", NO_MODEL]),
    "random_bytes": (np.random.default_rng(0).bytes(5000), ["no model found", "unknown, 5000 bytes", NO_MODEL]),
    "text": (b"to be done\n", ["no model found", "weights (text)", NO_MODEL]),
    "web_page": (b"<!DOCTYPE html><html><body>404</body></html>", ["an HTML page: the download failed", NO_MODEL]),
    "lfs_pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 102530333\n",
        ["a Git LFS pointer", "run `git lfs pull`"],
    ),
    "zip": (zipped(), ["a zip archive", NO_MODEL]),
    "pickle": (b"\x80\x04\x95\x10" + bytes(40), ["a Python pickle; it is never loaded", NO_MODEL]),
    "truncated": (
        weighty().SerializeToString()[:9000],
        ["weights is a truncated ONNX file", "the file ends after 9000", "Copy it again"],
    ),
    "damaged": (damaged(), ["weights is a damaged ONNX file", "does not parse", "Export it again"]),
    "unknown_operator": (unknown_operator(), ["refuses the model", "Frobnicate", '"custom_op_library"']),
    "foreign_operator": (foreign_operator(), ["refuses the model", "com.example", '"custom_op_library"']),
    "unknown_opset": (unknown_opset(), ["refuses the model", "opset", "Export with an older opset"]),
    "dangling_input": (dangling_input(), ["refuses the model", "nowhere", "onnx.checker.check_model"]),
    "no_tensor_output": (no_tensor_output(), ["no output can be served", "output Y", "tensor outputs"]),
}


@pytest.fixture(scope="module")
def bystander(triton: Triton) -> Iterator[str]:
    """A good model that is served meanwhile."""
    with triton.serving("bystander", {"1/m.onnx": GOOD}) as model:
        yield model


@pytest.fixture(autouse=True)
def bystander_unharmed(triton: Triton, bystander: str) -> Iterator[None]:
    yield
    assert triton.client.is_server_ready()
    assert doubles(triton.url, bystander, shape=(1, 4))


@pytest.mark.parametrize("name", BAD)
def test_file_that_is_no_model_is_refused_with_reason_and_next_step(triton: Triton, name: str) -> None:
    content, parts = BAD[name]
    message = triton.refusal(name, {"1/weights": content})
    for part in parts:
        assert part in message


def test_version_folder_without_a_file_is_refused(triton: Triton, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    message = triton.refusal("nothing", {"1": tmp_path / "empty"})
    assert "no model found: the folder holds no file" in message
    assert NO_MODEL in message


def test_missing_external_data_is_named(triton: Triton, tmp_path: Path) -> None:
    model = with_external_data(weighty(), tmp_path, "tensors/w.bin")
    message = triton.refusal("incomplete", {"1/m.onnx": model})
    assert 'm.onnx lacks a file that belongs to it: "tensors/w.bin"' in message
    assert "Copy it there" in message


@pytest.mark.parametrize("location", ["../../bystander/1/m.onnx", "/etc/hostname"])
def test_external_data_outside_the_model_is_refused(triton: Triton, location: str) -> None:
    model = weighty()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    message = triton.refusal("outside", {"1/m.onnx": model.SerializeToString()})
    assert f'm.onnx names a file outside its folder: the location is "{location}"' in message
    assert "Save the model again with its data beside it" in message


def test_truncated_external_data_is_refused(triton: Triton, tmp_path: Path) -> None:
    model = with_external_data(weighty(), tmp_path, "w.bin")
    message = triton.refusal("short", {"1/m.onnx": model, "1/w.bin": bytes(100)})
    assert "refuses the model" in message
    assert "External initializer: w" in message
    assert "file_length: 100" in message


def test_model_is_served_where_no_cache_can_be_written(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_bytes(b"")
    cache = blocker / "cache"
    add_model(tmp_path / "models", "doubling", {"1/m.onnx": GOOD}, UNIFIED)
    with start_server(tmp_path / "models", {"TRITON_UNIFIED_CACHE": str(cache), "TMPDIR": str(tmp_path)}) as server:
        assert doubles(server.url, shape=(1, 4))
        assert f"cache not written folder={cache} reason=" in server.log_text()
    assert not list(tmp_path.glob("triton-unified-*"))


def test_full_disk_is_named_and_stops_no_load(tmp_path: Path) -> None:
    """To a writer a limit on the size of files is what a full disk is, and nobody needs a privilege to set it."""
    add_model(tmp_path / "models", "doubling", {"1/m.onnx": GOOD}, UNIFIED)
    with start_server(tmp_path / "models", model_control_mode="explicit") as server:
        server.load("doubling")
        resource.prlimit(server.running.pid, resource.RLIMIT_FSIZE, (4 << 20, 4 << 20))
        with server.serving("weighty", {"1/m.onnx": weighty(2 << 20).SerializeToString()}) as name:  # 8 MiB of weights
            assert server.config(name)["input"]
        assert f"engine not kept model={name}/1" in server.log_text()
        assert "Failed to write external initializers" in server.log_text()
        assert not list((tmp_path / "cache/making").iterdir())
        server.load("doubling", {"backend": "unified", "max_batch_size": 2})
        assert doubles(server.url, shape=(1, 4))
