"""Configs that Triton's Model Analyzer makes of a model load: it sets fields, and writes out all that Triton completed.

What `model-analyzer profile` 1.58 was seen to send and to write is the completed config as the server gave it, with
`max_batch_size`, `instance_group` and `dynamic_batching` set, and whatever else its `model_config_parameters` name: any
field of model_config.proto.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from helpers import Triton
from models import parsed
from unified_backend.pbtxt import to_pbtxt

FLAT = parsed("g (float[N,4] X) => (float[N,4] Y) { Y = Add (X, X) }").SerializeToString()
X = np.arange(8, dtype=np.float32).reshape(2, 4)

VARIANTS: dict[str, dict[str, Any]] = {
    "search": {
        "max_batch_size": 4,
        "instance_group": [{"count": 2, "kind": "KIND_CPU"}],
        "dynamic_batching": {},
    },
    "dynamic batching": {
        "max_batch_size": 8,
        "dynamic_batching": {
            "preferred_batch_size": [4, 8],
            "max_queue_delay_microseconds": "200",
            "priority_levels": "2",
            "default_priority_level": "1",
            "default_queue_policy": {"timeout_action": "DELAY", "default_timeout_microseconds": "900000"},
            "priority_queue_policy": {"2": {"max_queue_size": 16}},
        },
    },
    "everything else": {
        "instance_group": [
            {
                "name": "cores",
                "kind": "KIND_CPU",
                "count": 1,
                "rate_limiter": {"resources": [{"name": "R1", "count": 1}], "priority": 2},
                "host_policy": "cpu",
            }
        ],
        "version_policy": {"latest": {"num_versions": 1}},
        "optimization": {
            "priority": "PRIORITY_MAX",
            "input_pinned_memory": {"enable": True},
            "output_pinned_memory": {"enable": True},
            "gather_kernel_buffer_threshold": 0,
            "eager_batching": True,
        },
        "parameters": {"engine": {"string_value": "openvino"}, "intra_op_thread_count": {"string_value": "1"}},
        "model_warmup": [
            {
                "name": "zeros",
                "batch_size": 2,
                "inputs": {"X": {"data_type": "TYPE_FP32", "dims": ["4"], "zero_data": True}},
                "count": 2,
            }
        ],
        "metric_tags": {"team": "vision"},
        "response_cache": {"enable": False},
        "model_transaction_policy": {"decoupled": False},
        "cc_model_filenames": {},
        "model_operations": {},
    },
}


@pytest.fixture(scope="module")
def model(triton: Triton) -> Iterator[tuple[str, dict[str, Any]]]:
    """A model's name, and its config as the server completed it."""
    with triton.serving("analyzed", {"1/m.onnx": FLAT}) as name:
        yield name, triton.config(name)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_every_field_is_accepted_in_a_load_request(
    triton: Triton, model: tuple[str, dict[str, Any]], changes: dict[str, Any]
) -> None:
    """As with `--triton-launch-mode=remote`: the config goes with the request."""
    name, completed = model
    triton.load(name, completed | changes)
    served = triton.config(name)
    for field, value in changes.items():
        assert agrees(served.get(field), value), f"{field} is {served.get(field)}, and {value} was asked for"
    np.testing.assert_array_equal(triton.infer(name, {"X": X})["Y"], 2 * X)


def test_every_field_is_accepted_in_a_file(triton: Triton, model: tuple[str, dict[str, Any]]) -> None:
    """As in its other modes: each variant is a folder, with its whole config written out."""
    changes = VARIANTS["dynamic batching"] | VARIANTS["everything else"]
    with triton.serving("analyzed_config", {"1/m.onnx": FLAT}, to_pbtxt({**model[1], **changes, "name": ""})) as name:
        served = triton.config(name)
        assert all(agrees(served.get(field), value) for field, value in changes.items())
        np.testing.assert_array_equal(triton.infer(name, {"X": X})["Y"], 2 * X)


def agrees(served: Any, asked: Any) -> bool:
    """Whether a field has what was asked for; the server adds defaults, and writes numbers as it likes."""
    if isinstance(asked, dict):
        return all(agrees((served or {}).get(name), value) for name, value in asked.items())
    if isinstance(asked, list):
        return len(served or []) == len(asked) and all(map(agrees, served, asked))
    return asked is None or json.dumps(served).strip('"') == json.dumps(asked).strip('"')
