"""One request over each of Triton's transports, and many at once."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from helpers import Triton, triton_type, wait_until
from tritonclient.utils import InferenceServerException, shared_memory, triton_to_np_dtype

__all__ = ["TRANSPORTS", "Ask", "answered_together", "at_once", "over_grpc", "over_http", "over_shared_memory"]

Arrays = Mapping[str, np.ndarray]
Ask = Callable[..., dict[str, np.ndarray]]

_OUTPUT_BYTES = 16 << 20  # of each output's shared memory; pages that nobody writes take nothing


def over_http(
    triton: Triton, model: str, inputs: Arrays, outputs: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """Output name -> array; the outputs named, or all."""
    asked = None if outputs is None else [httpclient.InferRequestedOutput(name) for name in outputs]
    result = triton.client.infer(model, _inputs(httpclient, inputs), outputs=asked)
    rows = result.get_response().get("outputs", [])
    return {row["name"]: result.as_numpy(row["name"]) for row in rows}


def over_grpc(
    triton: Triton, model: str, inputs: Arrays, outputs: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """Output name -> array; the outputs named, or all."""
    with grpcclient.InferenceServerClient(triton.grpc_url) as client:
        return _arrays(client.infer(model, _inputs(grpcclient, inputs), outputs=_asked(outputs)))


def over_shared_memory(triton: Triton, model: str, inputs: Arrays) -> dict[str, np.ndarray]:
    """Output name -> array; inputs and outputs, numbers all of them, lie in system shared memory."""
    outputs = [output["name"] for output in triton.client.get_model_metadata(model)["outputs"]]
    with ExitStack() as cleanup:
        asked = _inputs(httpclient, inputs)
        for tensor, array in zip(asked, inputs.values(), strict=True):
            name, handle = _region(triton, array.nbytes, cleanup)
            shared_memory.set_shared_memory_region(handle, [array])
            tensor.set_shared_memory(name, array.nbytes)
        wanted, handles = [], {}
        for output in outputs:
            name, handles[output] = _region(triton, _OUTPUT_BYTES, cleanup)
            wanted.append(httpclient.InferRequestedOutput(output))
            wanted[-1].set_shared_memory(name, _OUTPUT_BYTES)
        rows = triton.client.infer(model, asked, outputs=wanted).get_response()["outputs"]
        return {row["name"]: _copied(handles[row["name"]], row) for row in rows}


TRANSPORTS: dict[str, Ask] = {
    "http": over_http,
    "grpc": over_grpc,
    "shared memory": over_shared_memory,
}


def at_once(
    triton: Triton, model: str, requests: Sequence[Arrays], wanted: Sequence[Sequence[str] | None] | None = None
) -> list[dict[str, np.ndarray] | InferenceServerException]:
    """What each request was answered, error or arrays; all are sent before the first answer is waited for.

    Args:
        wanted: for each request the outputs it asks for, None for all of them.
    """
    with grpcclient.InferenceServerClient(triton.grpc_url) as client:
        prepared = [_inputs(grpcclient, inputs) for inputs in requests]
        calls = [_Call() for _ in requests]
        under_way = [
            client.async_infer(model, tensors, call, outputs=_asked(names))
            for tensors, call, names in zip(prepared, calls, wanted or [None] * len(calls), strict=True)
        ]
        assert len(under_way) == len(calls)
        return [call.answer() for call in calls]


def answered_together(
    triton: Triton,
    model: str,
    requests: Sequence[Arrays],
    wanted: Sequence[Sequence[str] | None] | None = None,
) -> list[dict[str, np.ndarray] | InferenceServerException]:
    """`at_once`; AssertionError unless the dynamic batcher put several requests into one execution.

    Args:
        wanted: for each request the outputs it asks for, None for all of them.
    """
    samples = sum(len(next(iter(inputs.values()))) for inputs in requests)
    before = _executions(triton, model)
    answers = at_once(triton, model, requests, wanted)
    # Triton counts a request after it has sent the answer.
    wait_until(lambda: _executions(triton, model)[0] - before[0] >= samples, 10, f"{model} to count its requests")
    after = _executions(triton, model)
    assert after[0] - before[0] == samples
    assert after[1] - before[1] < len(requests), "every request was executed by itself"
    return answers


def _executions(triton: Triton, model: str) -> tuple[int, int]:
    """Samples that a model has answered, and calls of `execute` that it took."""
    [statistics] = triton.client.get_inference_statistics(model)["model_stats"]
    return statistics["inference_count"], statistics["execution_count"]


class _Call:
    """Takes tritonclient's callback and holds what it brought."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self._result: Any = None
        self._error: InferenceServerException | None = None

    def __call__(self, result: Any, error: InferenceServerException | None) -> None:
        self._result, self._error = result, error
        self._done.set()

    def answer(self) -> dict[str, np.ndarray] | InferenceServerException:
        assert self._done.wait(60), "no answer within 60 s"
        return self._error or _arrays(self._result)


def _asked(outputs: Sequence[str] | None) -> list[Any] | None:
    return None if outputs is None else [grpcclient.InferRequestedOutput(name) for name in outputs]


def _inputs(client: Any, inputs: Arrays) -> list[Any]:
    tensors = []
    for name, array in inputs.items():
        tensor = client.InferInput(name, list(array.shape), triton_type(array))
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    return tensors


def _arrays(result: Any) -> dict[str, np.ndarray]:
    outputs = result.get_response().outputs
    return {output.name: result.as_numpy(output.name) for output in outputs}


def _region(triton: Triton, size: int, cleanup: ExitStack) -> tuple[str, Any]:
    """A region of system shared memory, and the name by which the server knows it until `cleanup`."""
    name = f"unified_test_{secrets.token_hex(8)}"
    handle = shared_memory.create_shared_memory_region(name, f"/{name}", size)
    cleanup.callback(shared_memory.destroy_shared_memory_region, handle)
    triton.client.register_system_shared_memory(name, f"/{name}", size)
    cleanup.callback(triton.client.unregister_system_shared_memory, name)
    return name, handle


def _copied(handle: Any, row: Mapping[str, Any]) -> np.ndarray:
    return shared_memory.get_contents_as_numpy(handle, triton_to_np_dtype(row["datatype"]), row["shape"]).copy()
