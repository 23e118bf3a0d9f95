"""A hundred broken models on the real server: a sentence each, in time, nothing of them runs, and the server lives."""

from __future__ import annotations

import io
import struct
import time
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import made_models
import numpy as np
import pytest
import real_models
import tensorflow_models
from helpers import UNIFIED, Triton, doubling_onnx, start_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

WITHIN = 60.0  # seconds, of each load
DAMAGED = 72  # sound models that were cut, or had bits changed
EXECUTED = "executed"  # file that the code in some of the models writes, wherever it runs

Files = dict[str, bytes]


def sources() -> list[tuple[str, Files]]:
    """A sound model of each kind: what it is, and its files."""
    singles = {
        "graph.pb": tensorflow_models.path("frozen.pb"),
        "graph.pbtxt": tensorflow_models.path("frozen.pbtxt"),
        "net.h5": tensorflow_models.path("classifier.h5"),
        "net.keras": tensorflow_models.path("classifier.keras"),
        "lite.tflite": real_models.path("fer", "data/emotion_model_quantized.tflite"),
        "quantised.tflite": tensorflow_models.path("int8.tflite"),
    }
    folders = {
        "pitch": real_models.path("basic-pitch", "saved_models/icassp_2022/nmp"),
        "lstm": tensorflow_models.path("lstm"),
        "checkpoint": tensorflow_models.path("checkpoint"),
    }
    return [
        *((name, {name: path.read_bytes()}) for name, path in singles.items()),
        *((name, files_of(path, f"{name}/")) for name, path in folders.items()),
    ]


def files_of(folder: Path, prefix: str = "") -> Files:
    return {
        f"{prefix}{path.relative_to(folder).as_posix()}": path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def damaged(content: bytes, way: int, chance: np.random.Generator) -> bytes:
    """A file cut at random, or with some of its bits changed: one, many, or a few in its head."""
    if way % 4 == 0:
        return content[: chance.integers(0, len(content))]
    changed = bytearray(content)
    within, count = {1: (len(content), 1), 2: (len(content), 40), 3: (min(512, len(content)), 8)}[way % 4]
    for position in chance.integers(0, within, count):
        changed[position] ^= 1 << chance.integers(0, 8)
    return bytes(changed)


def damaged_models() -> dict[str, Files]:
    found: dict[str, Files] = {}
    kinds = sources()
    for number in range(DAMAGED):
        chance = np.random.default_rng(number)
        kind, files = kinds[number % len(kinds)]
        victim = sorted(files)[chance.integers(0, len(files))]
        name = f"damaged-{number}-{kind.partition('.')[0]}"
        found[name] = {**files, victim: damaged(files[victim], number // len(kinds), chance)}
    return found


def archive(members: Files) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in members.items():
            made.writestr(name, content)
    return target.getvalue()


def keras_with(members: Files) -> bytes:
    """A `.keras` file that is sound but for these members."""
    with zipfile.ZipFile(tensorflow_models.path("classifier.keras")) as sound:
        own = {name: sound.read(name) for name in sound.namelist()}
    return archive({**own, **members})


def evil_pickle() -> bytes:
    """Written by hand: to load it would call open(EXECUTED, "w")."""
    return b"cbuiltins\nopen\n(V" + EXECUTED.encode() + b"\nVw\ntR."


def broken_models() -> dict[str, Files]:
    """What was never a model, lacks a part, or must not be loaded."""
    claims = bytearray(tensorflow_models.path("classifier.keras").read_bytes())
    struct.pack_into("<L", claims, claims.rindex(b"PK\x05\x06") + 12, 0xFFFFFFF0)
    saved = files_of(tensorflow_models.path("lstm"), "lstm/")
    checkpoint = files_of(tensorflow_models.path("checkpoint"), "checkpoint/")
    return {
        "empty-lite": {"model.tflite": b""},
        "empty-saved": {"saved_model.pb": b""},
        "empty-hdf5": {"model.h5": b""},
        "empty-keras": {"model.keras": b""},
        "nothing": {},
        "picture": {"model.tflite": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(200)},
        "page": {"model.h5": b"<!DOCTYPE html><html><body>404 Not Found</body></html>"},
        "pointer": {
            "model.keras": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 12345\n"
        },
        "text": {"saved_model.pb": b"this is no model\n" * 40},
        "noise-pb": {"graph.pb": np.random.default_rng(1).bytes(5000)},
        "noise-lite": {"model.tflite": b"\x1c\0\0\0TFL3" + np.random.default_rng(2).bytes(5000)},
        "noise-hdf5": {"model.hdf5": b"\x89HDF\r\n\x1a\n" + np.random.default_rng(3).bytes(5000)},
        "zip": {"model.keras": archive({"readme.txt": b"no model"})},
        "bomb": {"model.keras": keras_with({"assets/zeros.bin": bytes(300_000_000)})},
        "bomb-config": {"model.keras": keras_with({"config.json": b" " * 300_000_000})},
        "claims": {"model.keras": bytes(claims)},
        "climbs": {"model.keras": keras_with({"assets/../../../escaped": b"x"})},
        "deep": {"model.keras": keras_with({"config.json": b'{"class_name": ' * 5000})},
        "lambda-hdf5": {"model.h5": tensorflow_models.path("lambda.h5").read_bytes()},
        "lambda-keras": {"model.keras": tensorflow_models.path("lambda.keras").read_bytes()},
        "weights": {"model.h5": tensorflow_models.path("only.weights.h5").read_bytes()},
        "weights-2": {"model.h5": tensorflow_models.path("keras_2_weights.h5").read_bytes()},
        "pickle": {"model.pkl": evil_pickle()},
        "no-variables": {name: data for name, data in saved.items() if "variables" not in name},
        "no-data": {name: data for name, data in checkpoint.items() if ".data-" not in name},
        "no-graph": {name: data for name, data in checkpoint.items() if not name.endswith(".meta")},
    }


def a_link(version: Path) -> None:
    (version / "passwd").symlink_to("/etc/passwd")


def variables_elsewhere(version: Path) -> None:
    """A SavedModel whose variables are a link to somebody else's folder."""
    own = tensorflow_models.path("lstm")
    (version / "saved_model.pb").write_bytes((own / "saved_model.pb").read_bytes())
    (version / "variables").symlink_to(own / "variables")


# Name -> what makes a model with links out of its version folder.
LINKS: dict[str, Callable[[Path], None]] = {"link": a_link, "link-inside": variables_elsewhere}


def add(server: Triton, models: dict[str, Files]) -> None:
    for name, files in models.items():
        model = server.add_model(name, {f"1/{path}": content for path, content in files.items()}, UNIFIED)
        (model / "1").mkdir(exist_ok=True)


def outcomes(server: Triton, names: Sequence[str]) -> dict[str, tuple[float, str]]:
    """Name -> seconds, and the server's reason, "" if the model loads; two at a time."""

    def outcome(name: str) -> tuple[float, str]:
        began = time.monotonic()
        reason = server.refusal_of(name)
        return time.monotonic() - began, reason

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(names, pool.map(outcome, names), strict=True))


def assert_told(found: dict[str, tuple[float, str]]) -> None:
    """Each refusal names the model and is a sentence that came in time."""
    for name, (seconds, reason) in found.items():
        assert seconds < WITHIN, name
        if reason:
            assert f"TritonModelException: {name}/1: " in reason, reason
            assert "Traceback" not in reason


def assert_nothing_ran(server: Triton) -> None:
    """Code in a file would have written into the folder that it ran in."""
    working = Path(f"/proc/{server.running.pid}/cwd").resolve()
    for folder in (working, server.repository.parent):
        assert not list(folder.rglob(EXECUTED)), folder
    assert not Path(EXECUTED).exists()


def assert_lives(server: Triton) -> None:
    with server.serving("sound", {"1/model.onnx": doubling_onnx()}) as model:
        answer = server.infer(model, {"X": np.ones((1, 4), np.float32)})["Y"]
    assert answer.tolist() == [[2.0, 2.0, 2.0, 2.0]]


def test_a_hundred_broken_models_are_refused_or_served_and_the_server_lives(tmp_path: Path):
    """Read by the engines that take the files as they are; no toolchain is there."""
    (tmp_path / "models").mkdir()
    never = broken_models()
    models = {**damaged_models(), **never}
    assert len(models) + len(LINKS) == 100
    with start_server(tmp_path / "models", model_control_mode="explicit") as server:
        add(server, models)
        add(server, {name: {} for name in LINKS})
        for name, make in LINKS.items():
            make(server.repository / name / "1")
        found = outcomes(server, [*models, *LINKS])
        assert_told(found)
        served = {name for name, (_, reason) in found.items() if not reason}
        # What a change of a weight's bits leaves whole is served, and says numbers. All the rest is refused.
        assert not served & {*never, *LINKS}
        assert len(served) < DAMAGED // 2
        assert_nothing_ran(server)
        assert_lives(server)


def test_broken_models_that_reach_tensorflow_are_refused_too_and_leave_nothing(tmp_path: Path):
    """Converted by the toolchain: TensorFlow and Keras meet the damage, in a process of their own."""
    (tmp_path / "models").mkdir()
    damage, never = damaged_models(), broken_models()
    chosen = [name for name in damage if name.split("-")[2] in ("net", "lstm", "graph")][::3]
    kept = ("lambda-hdf5", "lambda-keras", "no-variables", "deep")
    models = {**{name: damage[name] for name in chosen}, **{name: never[name] for name in kept}}
    with start_server(
        tmp_path / "models", made_models.toolchain_environment("tensorflow"), model_control_mode="explicit"
    ) as server:
        add(server, models)
        found = outcomes(server, list(models))
        assert_told(found)
        assert all(found[name][1] for name in kept)
        assert "converting model=" in server.log_text()
        assert_nothing_ran(server)
        assert_lives(server)
        # The worker's own files lie in the folder that it works in, which goes when it fails.
        assert not [path for path in (tmp_path / "cache").rglob("*") if path.name in ("worker.log", "source.h5")]
