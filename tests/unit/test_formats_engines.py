"""Files of MNN and OpenVINO, described without either, whole and damaged."""

from __future__ import annotations

import random
import shutil
import sys
from pathlib import Path

import engine_files
import pytest
from commands import command, printed
from unified_backend.errors import SourceError
from unified_backend.formats import FORMATS
from unified_backend.formats.appearance import appearance
from unified_backend.settings import Settings


def described(form: str, path: Path):
    return FORMATS[form].describe(path, Settings(), "net/1")


def copied(folder: Path, path: Path, name: str = "model.xml") -> Path:
    """Both files of an IR in a folder where they may be changed."""
    for suffix in (".xml", ".bin"):
        shutil.copy(path.with_suffix(suffix), (folder / name).with_suffix(suffix))
    return folder / name


def test_an_mnn_file_under_any_name_tells_inputs_outputs_and_operators(tmp_path):
    shutil.copy(engine_files.mnn(engine_files.DET), tmp_path / "anything")
    shown = printed(tmp_path, "inspect", tmp_path / "anything")
    assert shown["format"] == "mnn"
    assert shown["inputs"] == [{"name": "x", "dtype": "FP32", "shape": [1, 3, -1, -1], "tensor": "x"}]
    assert [row["name"] for row in shown["outputs"]] == ["sigmoid_0.tmp_0"]
    assert shown["facts"]["made from"] == "ONNX"
    assert shown["facts"]["operators"]["Convolution"] == 48


def test_an_ir_tells_inputs_outputs_types_and_open_dimensions(tmp_path):
    shown = printed(tmp_path, "inspect", engine_files.ir(engine_files.MAGIKA, fp16=True))
    assert shown["format"] == "openvino"
    assert shown["inputs"] == [{"name": "bytes", "dtype": "INT32", "shape": [-1, 2048], "tensor": "bytes"}]
    assert shown["outputs"] == [{"name": "target_label", "dtype": "FP32", "shape": [-1, 214], "tensor": "target_label"}]
    assert set(shown["files"]) == {"model.xml", "model.bin"}
    assert shown["facts"]["IR version"] == "11"
    assert shown["facts"]["constants"]["f16"] > 0


def test_describing_imports_no_engine(tmp_path):
    before = set(sys.modules)
    described("mnn", engine_files.mnn(engine_files.CLS))
    described("openvino", engine_files.ir(engine_files.CLS))
    assert not {"MNN", "openvino"} & (set(sys.modules) - before)


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.5])
def test_an_mnn_file_cut_short_is_refused_with_the_reason(tmp_path, share):
    whole = engine_files.mnn(engine_files.CLS).read_bytes()
    cut = tmp_path / "cut.mnn"
    cut.write_bytes(whole[: int(len(whole) * share)])
    done = command(tmp_path, "inspect", cut)
    assert done.returncode == 1 or share == 0.5  # what is read for a description may lie before the cut
    assert "Traceback" not in done.stderr
    assert done.returncode == 0 or "cut.mnn is a damaged MNN file" in done.stderr.replace("\n", " ")


def test_flipped_bytes_of_either_format_never_end_in_a_traceback(tmp_path):
    chance = random.Random(5)
    model = copied(tmp_path, engine_files.ir(engine_files.CLS))
    files = {"mnn": engine_files.mnn(engine_files.CLS).read_bytes(), "openvino": model.read_bytes()}
    for form, whole in files.items():
        path = model if form == "openvino" else tmp_path / "flipped.mnn"
        for _ in range(60):
            damaged = bytearray(whole)
            for _ in range(3):
                damaged[chance.randrange(min(len(damaged), 30_000))] = chance.randrange(256)
            path.write_bytes(damaged)
            try:
                if FORMATS[form].detect(path):
                    FORMATS[form].companions(path)
                    described(form, path)
            except SourceError as error:
                assert path.name in error.what or error.what.startswith("net/1: ")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('element_type="f32" />', 'element_type="bf16" />', 'its element type is "bf16"'),
        ('version="11"', 'version="7"', "of IR version 7"),
        ("</net>", "", "it is no whole XML"),
        ('element_type="f32" shape="8, 3, 3, 3"', 'element_type="f64" shape="8, 3, 3, 3"', "bytes are stated"),
        ('<?xml version="1.0"?>', '<?xml version="1.0"?><!DOCTYPE net [<!ENTITY a "b">]>', "none"),
    ],
)
def test_a_damaged_ir_is_refused_with_the_reason(tmp_path, old, new, words):
    model = copied(tmp_path, engine_files.ir(engine_files.CLS))
    text = model.read_text()
    assert old in text
    model.write_text(text.replace(old, new, 1))
    if words == "none":  # a document type could declare entities: it is not even looked into
        assert not FORMATS["openvino"].detect(model)
        return
    with pytest.raises(SourceError) as refused:
        described("openvino", model)
    assert words in str(refused.value)


def test_an_ir_without_all_of_its_weights_is_refused_by_their_file_s_name(tmp_path):
    model = copied(tmp_path, engine_files.ir(engine_files.CLS))
    weights = model.with_suffix(".bin")
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(SourceError, match=r"model\.bin is cut short: model\.xml places weights up to byte \d+"):
        described("openvino", model)
    weights.unlink()
    done = command(tmp_path, "inspect", model)
    assert done.returncode == 1
    assert '"model.bin" is not in the folder beside it' in done.stderr.replace("\n", " ")


TNN = '"1 45 1 4206624772 ,"\n"input 1 3 224 224 ,"\n" input conv ,"\n" output ,"\n'
MACE_OPERATOR = b"\x0a\x01x\x12\x01y\x1a\x05conv1\x22\x06Conv2D\x28\x00"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (TNN.encode(), "part of a TNN model"),
        (b"\x04\x00\xbc\xfa" + bytes(20), "part of a TNN model"),
        (b"\x0a" + bytes([len(MACE_OPERATOR)]) + MACE_OPERATOR, "a MACE model"),
    ],
)
def test_formats_of_engines_without_a_package_are_told_apart(tmp_path, content, words):
    (tmp_path / "model").write_bytes(content)
    assert words in appearance(tmp_path / "model")
    assert "to ONNX" in appearance(tmp_path / "model")
