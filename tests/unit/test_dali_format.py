"""Serialised pipelines and `@autoserialize` files: recognised by content, read without DALI, and damage told."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from onnx import TensorProto, helper
from unified_backend.cache import FileMemo
from unified_backend.errors import ConfigError, SourceError
from unified_backend.formats import FORMATS, find_source
from unified_backend.formats.dali_file import Port, is_pipeline, ports
from unified_backend.settings import Settings
from unified_backend.stages.expression import parse
from unified_backend.stages.image import ImageStage
from unified_backend.tensors import TensorSpec

PYTHON = """
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.plugin.triton import autoserialize


@autoserialize
@pipeline_def(batch_size=1, num_threads=1, device_id=None, output_dtype=[types.FLOAT, None], output_ndim=[3, None])
def scale():
    files = fn.external_source(name="files", dtype=types.UINT8, ndim=1)
    gain = fn.external_source(name="gain", dtype=types.FLOAT16, ndim=0)
    loose = fn.external_source(name="loose")
    image = fn.decoders.image(files, output_type=types.RGB)
    return fn.cast(image * gain, dtype=types.FLOAT), loose
"""


@pytest.fixture(scope="module")
def data() -> bytes:
    space: dict[str, object] = {"__name__": "scale"}
    exec(compile(PYTHON, "scale.py", "exec"), space)
    return bytes(space["scale"]().serialize())  # type: ignore[operator]


def test_sources_and_outputs_are_read_in_order_with_what_is_not_said(data: bytes) -> None:
    inputs, outputs = ports(data)
    assert inputs == (Port("files", "UINT8", 1), Port("gain", "FP16", 0), Port("loose", None, None))
    assert [(port.dtype, port.rank) for port in outputs] == [("FP32", 3), (None, None)]
    assert outputs[1].name == "loose"


def test_either_file_is_found_under_any_name_and_the_pipeline_wins(data: bytes, tmp_path: Path) -> None:
    memo = FileMemo(tmp_path / "memo")
    for name, content, suffix in (("a", data, "weights.bin"), ("b", PYTHON.encode(), "anything.py")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / suffix).write_bytes(content)
        (folder / "notes.py").write_text("# @autoserialize is spoken of here, and nothing is decorated\n")
        found = find_source("m/1", folder, memo)
        assert (found.format, found.path.name) == ("dali", suffix)
    both = tmp_path / "both"
    both.mkdir()
    (both / "model.dali").write_bytes(data)
    (both / "dali.py").write_text(PYTHON)
    assert find_source("m/1", both, memo).path.name == "model.dali"


def test_other_models_are_no_pipelines(data: bytes, tmp_path: Path) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", [x], [y])
    assert not is_pipeline(helper.make_model(graph).SerializeToString())
    assert not any(
        map(is_pipeline, (b"", b"\x08", b"\x08\x02\x10", bytes(100), b"GIF89a", b"\x08\x02\x10\x04*\xff\xff"))
    )
    assert is_pipeline(data)
    (tmp_path / "model.dali").write_bytes(data)
    assert [name for name, form in FORMATS.items() if form.detect(tmp_path / "model.dali")] == ["dali"]


def test_a_cut_file_and_a_source_without_a_type_are_told(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.dali"
    for size in (300, len(data) // 2, len(data) - 40):
        path.write_bytes(data[:size])
        with pytest.raises(SourceError, match="is damaged"):
            FORMATS["dali"].describe(path, Settings(), "m/1")
    path.write_bytes(data)
    with pytest.raises(SourceError, match=r"external source loose.*dtype=types"):
        FORMATS["dali"].describe(path, Settings(), "m/1")


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (PYTHON.replace("@autoserialize\n", ""), "the DALI pipeline scale without `@autoserialize`"),
        (PYTHON.replace("@autoserialize\n@pipeline_def", "#"), "Python without a function under `@autoserialize`"),
        ("x = " + "-" * 200_000 + "1\n", "Python that does not parse"),
        ("x = 1\n", "Python without a function under `@autoserialize`"),
        (PYTHON.replace("@autoserialize\n", "").replace("def scale():", "def scale("), "does not parse: .*line 7"),
        (PYTHON.replace("def scale():", "def scale("), r"does not run: SyntaxError: .*dali\.py:8"),
        ("import nowhere\n" + PYTHON, r"does not run: ModuleNotFoundError: .*nowhere.*dali\.py:1"),
        (PYTHON.replace("types.FLOAT16", "types.FLOAT15"), r"scale: AttributeError.*FLOAT15.*dali\.py:10"),
    ],
)
def test_what_is_wrong_with_a_dali_py_is_told(tmp_path: Path, program: str, words: str) -> None:
    (tmp_path / "dali.py").write_text(program)
    with pytest.raises((SourceError, ConfigError), match=f"dali.py.*{words}"):
        FORMATS["dali"].describe(find_source("m/1", tmp_path, FileMemo(tmp_path / "memo")).path, Settings(), "m/1")


def test_without_dali_every_use_says_what_to_install(
    data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)  # Python's own way of having no such module
    (tmp_path / "dali.py").write_text(PYTHON)
    target = TensorSpec("x", "FP32", (None, 3, 224, 224))
    with pytest.raises(ConfigError, match=r"DALI is not installed.*pip install"):
        ImageStage(parse("imagenet")[0], target, "image", True, 1, 1, None, "m/1")
    with pytest.raises(ConfigError, match=r"DALI is not installed.*pip install"):
        FORMATS["dali"].describe(tmp_path / "dali.py", Settings(), "m/1")
