"""Results as `bench` saves them, with numbers made up by a rule: does a report draw what it is given?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from unified_backend.measuring.perf_analyzer import Reading
from unified_backend.measuring.result import PointResult

__all__ = ["point", "result", "variant"]


def variant(engine: str = "onnxruntime", precision: str = "fp32", instances: int = 1, **changed: Any) -> dict[str, Any]:
    """One thing that was served."""
    number = len(engine) + 2 * len(precision) + sum(map(ord, precision)) % 5 + 2 * instances
    error = {"fp32": 3e-7, "fp16": 4e-3}.get(precision, 0.0)
    check = {"output": "probabilities", "max_abs": error / 2, "max_rel": error, "cosine": 1 - error / 10}
    check |= {"tolerance": 2e-2 if precision == "fp16" else 1e-3, "compared_with": "TensorFlow 2.21", "passed": True}
    return {
        "id": f"{engine} {precision} x{instances}",
        "model": "classifier",
        "asked_engine": engine,
        "engine": engine,
        "precision": precision,
        "computes_in": "as it came",
        "instances": instances,
        "threads": 2,
        "max_batch_size": 32,
        "load_seconds": 0.7 + number / 3,
        "memory_bytes": 90_000_000 + 17_654_321 * number,
        "verified": [check | {"batch": 1}, check | {"batch": 3, "max_rel": 1.7 * error}],
        "notes": [],
    } | changed


def point(of: dict[str, Any], batch: int, concurrency: int, **changed: Any) -> dict[str, Any]:
    """One variant under one load, in three rounds."""
    speed = 20 + (of["memory_bytes"] or 0) / 4e6
    throughput = speed * batch**0.4 * concurrency / (concurrency + of["load_seconds"] / 4)
    p50 = 1000 * batch * concurrency / throughput
    shares = {"client send": 0.01, "network": 0.06, "input": 0.03, "output": 0.02, "client receive": 0.004}
    shares |= {"preprocess": 0.04, "postprocess": 0.015}
    shares["queue"] = 0.85 * (concurrency - 1) / (concurrency + 1)
    shares["infer"] = 1 - sum(shares.values())
    parts = {name: share * p50 * 1.02 for name, share in shares.items()}

    rounds = [
        Reading(share * throughput, share * p50, share * 1.6 * p50, share * 1.2 * p50, share * 1.3 * p50, parts)
        for share in (0.94, 1.0, 1.1)
    ]
    return PointResult(of["id"], batch, concurrency, rounds).to_json() | changed


def result(
    variants: Sequence[dict[str, Any]],
    batches: Sequence[int] = (1,),
    concurrencies: Sequence[int] = (1,),
    **changed: Any,
) -> dict[str, Any]:
    """A whole benchmark of these variants."""
    models = list(dict.fromkeys(one["model"] for one in variants))
    return {
        "schema": 1,
        "made": "2026-11-27T16:40:00+00:00",
        "seconds": 181.2,
        "estimate_seconds": 170.0,
        "subject": {"name": models[0], "kind": "model", "models": models},
        "command": "triton-unified bench classifier --engines onnxruntime,openvino --report report.html",
        "machine": {"cpu": "A processor", "cores": 2, "memory_bytes": 8_000_000_000, "gpu": [], "system": "Linux 6.1"},
        "versions": {"triton": "2.51.0", "triton-unified-backend": "1.0.0", "onnxruntime": "1.23.0"},
        "inputs": "zeros",
        "variants": list(variants),
        "points": [point(one, batch, load) for one in variants for batch in batches for load in concurrencies],
        "skipped": [{"what": "tensorrt", "why": "this host has no NVIDIA driver"}],
        "advice": ["one thread and two instances give 1.06x of two threads and one instance: `instances: 2`"],
    } | changed
