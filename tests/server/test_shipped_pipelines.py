"""The pipelines of `ensembles/` on their real models, as Triton ensembles and fused, in the real server."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import made_models
import numpy as np
import pytest
import skimage.data
import synthesised
import torch_real_models
import tritonclient.http as httpclient
from helpers import Triton, infer, start_server
from PIL import Image
from transports import TRANSPORTS
from tritonclient.utils import InferenceServerException
from unified_backend.ensembles.definition import read_definition
from unified_backend.ensembles.members import wired
from unified_backend.ensembles.writing import write_ensemble, write_fused
from unified_backend.loading import open_cache

ROOT = Path(__file__).resolve().parents[2]
SOUNDS = ROOT / "tests/data/sounds"
PIPELINES = ("classify", "ocr", "faces", "listen")
ASKS = {name: TRANSPORTS[name] for name in ("http", "grpc")}
FORMS = ("", "_fused")


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """A server with all of them in both forms, from a copy that has the classifier too."""
    folder = tmp_path_factory.mktemp("shipped")
    for name in ("ensembles", "model_repository"):
        shutil.copytree(ROOT / name, folder / name)
    (folder / "ensembles/classify/models").mkdir(exist_ok=True)
    shutil.copyfile(torch_real_models.path("efficientnet.onnx"), folder / "ensembles/classify/models/efficientnet.onnx")
    repository = folder / "served"
    # The toolchain converts the Keras file of faces; what is found here, the server's cache has.
    variables = made_models.toolchain_environment("tensorflow") | {"TRITON_UNIFIED_CACHE": str(folder / "cache")}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        with open_cache() as cache:
            for name in PIPELINES:
                found = wired(read_definition(folder / "ensembles" / name / f"{name}.yaml"), repository, cache)
                write_ensemble(found, repository, replace=False)
                fused = dataclasses.replace(found.definition, name=f"{name}_fused")
                write_fused(dataclasses.replace(found, definition=fused), repository, replace=False)
    with start_server(repository, variables) as server:
        yield server


def encoded(image: np.ndarray, form: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.fromarray(image).save(content, form)
    return content.getvalue()


def ask(transport, server, model: str, content: bytes) -> dict[str, np.ndarray]:
    name = "audio" if model.startswith("listen") else "image"
    return transport(server, model, {name: np.array([[content]], object)})


def over_own_http(server: Triton, model: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """With a client of its own, for those of HTTP are of one thread."""
    with httpclient.InferenceServerClient(server.url, network_timeout=240.0) as client:  # 64 pages wait in a row
        return infer(client, model, inputs)


def texts(array: np.ndarray) -> list[str]:
    return [text.decode() for text in array.reshape(-1)]


CHELSEA, COFFEE, ASTRONAUT = skimage.data.chelsea(), skimage.data.coffee(), skimage.data.astronaut()
PAGE = skimage.data.page()


@pytest.mark.parametrize("transport", ASKS.values(), ids=ASKS)
@pytest.mark.parametrize("form", FORMS)
def test_photographs_are_classified(shipped, transport, form):
    for image, label in ((CHELSEA, "tiger cat"), (COFFEE, "espresso")):
        found = ask(transport, shipped, f"classify{form}", encoded(image))
        labels, scores = texts(found["labels"]), found["scores"].reshape(-1)
        assert labels[0] == label
        assert len(labels) == 5
        assert (np.diff(scores) <= 0).all()
        assert 0.3 < scores[0] < 1


@pytest.mark.parametrize("transport", ASKS.values(), ids=ASKS)
@pytest.mark.parametrize("form", FORMS)
def test_a_page_is_read_as_the_package_of_the_models_reads_it(shipped, transport, form):
    answers = json.loads((ROOT / "tests/data/ocr/rapidocr.json").read_text("utf-8"))["answers"]
    found = ask(transport, shipped, f"ocr{form}", encoded(PAGE))
    assert texts(found["text"]) == [line["text"] for line in answers["page"]]
    assert (found["score"] > 0.5).all()
    assert found["boxes"].shape == (len(answers["page"]), 4, 2)
    nothing = ask(transport, shipped, f"ocr{form}", encoded(COFFEE))
    assert (nothing["text"].shape, nothing["boxes"].shape) == ((0, 1), (0, 4, 2))


@pytest.mark.parametrize("transport", ASKS.values(), ids=ASKS)
@pytest.mark.parametrize("form", FORMS)
def test_the_astronaut_is_one_happy_face(shipped, transport, form):
    for image, faces in ((ASTRONAUT, 1), (np.hstack([ASTRONAUT, ASTRONAUT]), 2), (COFFEE, 0)):
        found = ask(transport, shipped, f"faces{form}", encoded(image))
        assert texts(found["label"]) == ["happy"] * faces
        assert found["boxes"].shape == (faces, 4)


@pytest.mark.parametrize("transport", ASKS.values(), ids=ASKS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["wav", "flac", "mp3"])
def test_a_scale_is_heard_note_by_note(shipped, transport, form, kind):
    answers = json.loads((ROOT / "tests/data/listen/basic_pitch.json").read_text("utf-8"))[
        "start, end, pitch, amplitude"
    ]
    sound = synthesised.wav(synthesised.scale()) if kind == "wav" else (SOUNDS / f"scale.{kind}").read_bytes()
    found = ask(transport, shipped, f"listen{form}", sound)
    notes = np.hstack([found[name] for name in ("start", "end", "pitch", "amplitude")]).astype(float)
    wanted = np.array(answers["scale"], float)
    if kind != "wav":  # soft harmonics, which are heard as notes too, come and go
        notes, wanted = (rows[rows[:, 3] > 0.5] for rows in (notes, wanted))
    assert notes[:, 2].tolist() == wanted[:, 2].tolist()
    np.testing.assert_allclose(notes, wanted, atol=5e-2 if kind == "mp3" else 2e-2)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("model", PIPELINES)
def test_what_cannot_be_decoded_is_its_own_error(shipped, model, form):
    with pytest.raises(InferenceServerException, match=r"prepare\.py: encoded cannot be used") as caught:
        ask(ASKS["grpc"], shipped, f"{model}{form}", b"neither picture nor sound")
    assert "INVALID_ARGUMENT" in caught.value.status()


def test_samples_of_one_request(shipped):
    """A fused pipeline takes several images at once, and puts their items back one below the other."""
    images = np.array([[encoded(image)] for image in (ASTRONAUT, COFFEE, np.hstack([ASTRONAUT] * 2))], object)
    for transport in ASKS.values():
        assert texts(transport(shipped, "faces_fused", {"image": images})["label"]) == ["happy"] * 3
        assert texts(transport(shipped, "classify_fused", {"image": images[1:2]})["labels"])[0] == "espresso"


def pictures() -> dict[str, bytes]:
    """Of three sizes and two kinds."""
    kinds = {"astronaut": (ASTRONAUT, "JPEG"), "coffee": (COFFEE, "PNG")}
    return {
        f"{name} {side}": encoded(np.array(Image.fromarray(image).resize((side, side))), kind)
        for name, (image, kind) in kinds.items()
        for side in (200, 300, 512)
    }


def lines() -> dict[str, bytes]:
    """Parts of the page of several sizes, and what has no line."""
    parts = {
        "left": PAGE[:110, :130],
        "right": PAGE[:100, 190:300],
        "below": PAGE[90:, :110],
        "nothing": COFFEE[:90, :90],
    }
    return {
        name: encoded(part, kind)
        for (name, part), kind in zip(parts.items(), ("PNG", "JPEG", "PNG", "PNG"), strict=True)
    }


def sounds() -> dict[str, bytes]:
    """Of one window and of several, at two rates."""
    scale, chords = synthesised.scale(), synthesised.chords()
    return {
        "scale": synthesised.wav(scale),
        "chords": synthesised.wav(chords),
        "begin": synthesised.wav(scale[: len(scale) // 3]),
        "slow": synthesised.wav(chords[: len(chords) // 2], 16000),
        "compressed": (SOUNDS / "scale.mp3").read_bytes(),
    }


@pytest.mark.parametrize(
    ("model", "files", "requests"),
    [("classify", pictures, 128), ("faces", pictures, 128), ("ocr", lines, 64), ("listen", sounds, 64)],
    ids=["classify", "faces", "ocr", "listen"],
)
def test_64_clients_with_files_of_all_sizes_of_which_some_are_corrupt(shipped, model, files, requests):
    """Half of them ask the ensemble, half the fused model; half over HTTP, half over gRPC; 5 % send what is corrupt."""
    good = files()
    keys = list(good)
    models = [f"{model}{form}" for form in FORMS]
    expected = {(name, key): ask(ASKS["grpc"], shipped, name, good[key]) for name in models for key in keys}
    started = threading.Barrier(64)

    def one(number: int) -> bool:
        if number < 64:
            started.wait(60)
        name, transport = models[number % 2], ASKS["grpc"] if number // 2 % 2 else over_own_http
        if number % 40 in (7, 28):  # one of each form
            content = good[keys[0]][: 30 + number % 9]
            with pytest.raises(InferenceServerException, match=r"prepare\.py: encoded cannot be used"):
                ask(transport, shipped, name, content)
            return True
        key = keys[number // 4 % len(keys)]
        found = ask(transport, shipped, name, good[key])
        for output, array in expected[name, key].items():
            if array.dtype == object:
                assert texts(found[output]) == texts(array)
            else:
                np.testing.assert_allclose(found[output], array, atol=1e-3, rtol=1e-3)
        return True

    with ThreadPoolExecutor(64) as pool:
        assert all(pool.map(one, range(requests)))
