"""Stages around a model's engine, in the real server: raw files in, labels out, and a bad file its own error."""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from helpers import UNIFIED, Triton
from PIL import Image
from transports import over_grpc, over_http
from tritonclient.utils import InferenceServerException

# The mean of each channel, so that what an image is of can be told from the answer.
MEANS = """<ir_version: 9, opset_import: ["":17]> g (float[N,3,16,16] x) => (float[N,3] y)
{ m = GlobalAveragePool (x)  y = Flatten (m) }"""
COLORS = {"red": (250, 20, 20), "green": (20, 250, 20), "blue": (20, 20, 250)}
LABELS = "red\ngreen\nblue\n"
POSTPROCESS = b"""
import numpy as np
from unified_backend.stages.user import stage

@stage(inputs={"y": "FP32[-1,3]"}, outputs={"brightest": "STRING[-1,1]", "value": "FP32[-1,1]"})
def brightest(y):
    if (y.max(1) < 0.2).any():
        raise ValueError("the image is dark")
    best = y.argmax(1)[:, None]
    return np.array(["red", "green", "blue"], object)[best], np.take_along_axis(y, best, 1)
"""
PREPROCESS = b"""
from nvidia.dali import fn, pipeline_def, types

@pipeline_def(output_dtype=types.FLOAT, output_ndim=3)
def preprocess():
    files = fn.external_source(name="photo", dtype=types.UINT8, ndim=1)
    small = fn.resize(fn.decoders.image(files, output_type=types.RGB), size=[16, 16])
    return fn.crop_mirror_normalize(small, dtype=types.FLOAT, mean=0.0, std=255.0, output_layout="CHW")
"""


def config(**parameters: str) -> str:
    rows = (f'parameters {{ key: "{name}" value {{ string_value: "{text}" }} }}' for name, text in parameters.items())
    return UNIFIED + "\n".join(rows) + "\n"


@pytest.fixture
def serving(triton: Triton) -> Callable:
    """Serve the model with more files and a config."""

    def serve(text: str, **files: bytes | str):
        model = onnx.parser.parse_model(MEANS).SerializeToString()
        contents = {name.replace("__", "."): content for name, content in files.items()}
        rest = {
            f"1/{name}": content.encode() if isinstance(content, str) else content for name, content in contents.items()
        }
        return triton.serving("stages", {"1/means.onnx": model, **rest}, config=text)

    return serve


def picture(color: str, size: tuple[int, int] = (40, 30), form: str = "JPEG") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", size, COLORS[color]).save(content, form)
    return content.getvalue()


def ask(triton: Triton, model: str, *contents: bytes, transport=over_grpc, name="image") -> dict[str, np.ndarray]:
    return transport(triton, model, {name: np.array([[content] for content in contents], object)})


def names(array: np.ndarray) -> list[str]:
    return [one.decode() for one in array.reshape(-1)]


def test_files_go_in_and_labels_come_out(triton, serving):
    with serving(
        config(preprocess="image(16)", postprocess="softmax | topk(2, labels.txt)"), labels__txt=LABELS
    ) as model:
        for transport in (over_grpc, over_http):
            found = ask(triton, model, picture("green"), picture("blue", (300, 90), "PNG"), transport=transport)
            assert [row[0] for row in found["labels"].tolist()] == [b"green", b"blue"]
            assert found["indices"][:, 0].tolist() == [1, 2]
            np.testing.assert_allclose(
                found["scores"][:, 0], np.exp(0.98) / (np.exp(0.98) + 2 * np.exp(0.08)), atol=0.02
            )
        served = triton.client.get_model_config(model)
        assert [(one["name"], one["data_type"], one["dims"]) for one in served["input"]] == [
            ("image", "TYPE_STRING", [1])
        ]


def test_a_bad_file_fails_its_own_request_and_says_which(triton, serving):
    with serving(config(preprocess="image(16)", postprocess="argmax(labels=labels.txt)"), labels__txt=LABELS) as model:
        with pytest.raises(
            InferenceServerException, match=r"sample 1 of 3: .*cannot be used: the file is (damaged|cut short)"
        ) as caught:
            ask(triton, model, picture("red"), picture("red", (400, 300))[:-900], picture("blue"))
        assert "INVALID_ARGUMENT" in caught.value.status()
        colors = list(COLORS)

        def one(number: int) -> bool:
            if number % 20 == 3:
                with pytest.raises(InferenceServerException, match="cannot be used"):
                    ask(triton, model, b"no picture")
                return True
            color = colors[number % 3]
            found = ask(triton, model, picture(color, (20 + number, 90 - number % 50), ("JPEG", "PNG")[number % 2]))
            return names(found["label"]) == [color]

        with ThreadPoolExecutor(64) as pool:
            assert all(pool.map(one, range(320)))


def test_decoded_images_where_the_config_has_uint8(triton, serving):
    text = config(preprocess="image(16)") + 'input { name: "pixels" data_type: TYPE_UINT8 dims: [ -1, -1, 3 ] }\n'
    with serving(text) as model:
        pixels = np.full((2, 20, 31, 3), COLORS["green"], np.uint8)
        found = over_grpc(triton, model, {"pixels": pixels})["y"]
    np.testing.assert_allclose(found, np.tile(np.float32(COLORS["green"]) / 255, (2, 1)), atol=1e-5)


def test_a_model_without_a_batch_dimension_takes_one_image(triton):
    model = onnx.parser.parse_model(MEANS.replace("[N,3", "[1,3")).SerializeToString()
    text = config(preprocess="image(16, shapes=true)")
    with triton.serving("single", {"1/means.onnx": model}, config=text) as served:
        assert [one["dims"] for one in triton.config(served)["input"]] == [[1, 1]]
        found = ask(triton, served, picture("blue"))
        assert (found["y"].argmax(), found["x_shape"].tolist()) == (2, [[30, 40]])
        with pytest.raises(InferenceServerException, match=r"\[1,1\]"):
            ask(triton, served, picture("red"), picture("blue"))
        with pytest.raises(InferenceServerException, match="the image cannot be used"):
            ask(triton, served, b"no picture")


def test_what_the_stage_says_beside_its_result(triton, serving):
    with serving(config(preprocess="image(16, shapes=true)")) as model:
        found = ask(triton, model, picture("red", (40, 30)), picture("blue", (70, 20)))
    assert found["x_shape"].tolist() == [[30, 40], [20, 70]]
    assert found["y"].argmax(1).tolist() == [0, 2]


def test_the_user_s_own_stages(triton, serving):
    with serving(UNIFIED, preprocess__py=PREPROCESS, postprocess__py=POSTPROCESS) as model:
        found = ask(triton, model, picture("red"), picture("blue", (300, 90), "PNG"), name="photo")
        assert names(found["brightest"]) == ["red", "blue"]
        np.testing.assert_allclose(found["value"][:, 0], 250 / 255, atol=0.02)
        with pytest.raises(InferenceServerException, match=r"ValueError: the image is dark \(postprocess.py:8\)"):
            dark = io.BytesIO()
            Image.new("RGB", (9, 9)).save(dark, "PNG")
            ask(triton, model, dark.getvalue(), name="photo")


@pytest.mark.parametrize(
    ("parameters", "why"),
    [
        ({"preprocess": "imagent"}, "Did you mean imagenet?"),
        ({"preprocess": "image(16, sise=3)"}, 'gives image the option "sise"'),
        ({"preprocess": "image(size=20)"}, "the input .*x.* is"),
        ({"preprocess": "image(16) | image(16)"}, "there is one before the engine"),
        ({"preprocess": "mine.py"}, "there is no such file: the version folder holds means.onnx"),
        ({"preprocess": "image(16", "postprocess": "softmax"}, "it must be stages such as"),
        ({"postprocess": "topk(5)"}, "k is 5, and y has 3 classes"),
        ({"postprocess": "topk(2, labels=/etc/passwd)"}, "it must be stages such as"),
        ({"postprocess": "topk(2, labels='../../config.pbtxt')"}, "there is no such file"),
        ({"postprocess": "softmax | post.py"}, "there is no such file"),
        ({"preprocess": "audio(16000)"}, "sounds are FP32"),
    ],
)
def test_what_does_not_fit_is_refused_at_load(serving, parameters, why):
    with pytest.raises(InferenceServerException, match=why), serving(config(**parameters)):
        pass
