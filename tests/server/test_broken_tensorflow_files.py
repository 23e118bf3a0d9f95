"""Damaged files of TensorFlow's, each loaded by the real server: a sentence each, in time, and the server lives."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import real_models
from helpers import UNIFIED, Triton, doubling_onnx

WITHIN = 60.0  # seconds, of each load
NUMBER = 40


def damaged(content: bytes, number: int) -> bytes:
    """A file cut at random, or with some of its bytes changed."""
    chance = np.random.default_rng(number)
    if number % 3 == 0:
        return content[: chance.integers(0, len(content))]
    changed = bytearray(content)
    for position in chance.integers(0, len(content) if number % 3 == 1 else min(4096, len(content)), 1 + number):
        changed[position] ^= 1 << chance.integers(0, 8)
    return bytes(changed)


def broken_models() -> dict[str, dict[str, bytes | Path]]:
    """Name -> files of a model directory."""
    saved = real_models.path("basic-pitch", "saved_models/icassp_2022/nmp")
    parts = {
        f"1/nmp/{path.relative_to(saved).as_posix()}": path.read_bytes() for path in saved.rglob("*") if path.is_file()
    }
    lite = real_models.path("fer", "data/emotion_model_quantized.tflite").read_bytes()
    found: dict[str, dict[str, bytes | Path]] = {}
    for number in range(NUMBER):
        if number % 2:
            victim = sorted(parts)[number % len(parts)]
            found[f"saved{number}"] = {**parts, victim: damaged(parts[victim], number)}
        else:
            found[f"lite{number}"] = {"1/model.tflite": damaged(lite, number)}
    found["empty"] = {"1/model.tflite": b""}
    found["zip"] = {"1/model.tflite": b"PK\x03\x04" + bytes(500)}
    found["text"] = {"1/saved_model.pb": b"this is no model\n" * 40}
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_damaged_files_are_refused_or_served_and_the_server_lives(triton: Triton):
    models = broken_models()
    for name, files in models.items():
        triton.add_model(name, files, UNIFIED)

    def outcome(name: str) -> tuple[str, float, str]:
        began = time.monotonic()
        reply = triton.refusal_of(name)
        return name, time.monotonic() - began, reply

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(outcome, models))
    assert max(seconds for _, seconds, _ in outcomes) < WITHIN
    refused = {name: reply for name, _, reply in outcomes if reply}
    assert len(refused) > NUMBER // 3
    for name, reply in refused.items():
        assert f"TritonModelException: {name}/1: " in reply, reply
    # What a change of a weight's bits leaves whole is served, and says numbers; the server is there for the others.
    triton.add_model("sound", {"1/model.onnx": doubling_onnx()}, UNIFIED)
    triton.load("sound")
    answer = triton.infer("sound", {"X": np.ones((1, 4), np.float32)})["Y"]
    assert answer.tolist() == [[2.0, 2.0, 2.0, 2.0]]
    for name, _, reply in outcomes:
        if not reply:
            triton.unload(name)
