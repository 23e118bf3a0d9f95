"""A running Triton asked over either protocol: what it serves, what it counted, and one request."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

import numpy as np

from unified_backend.errors import MeasurementError
from unified_backend.tensors import Array

__all__ = ["Client"]

_SECONDS = 600.0  # for the longest request


class Client:
    """One connection; all it raises is MeasurementError, with the server's own words.

    Args:
        url: host:port of the protocol's endpoint.
        protocol: `grpc`, `http`, or `shm`, which is gRPC here.
    """

    def __init__(self, url: str, protocol: str) -> None:
        import tritonclient.grpc
        import tritonclient.http

        self._is_http = protocol == "http"
        self.url = url
        self._library: Any = tritonclient.http if self._is_http else tritonclient.grpc
        limits = {"network_timeout": _SECONDS, "connection_timeout": 10.0} if self._is_http else {}
        self._client: Any = self._library.InferenceServerClient(url, **limits)

    def version(self) -> str:
        """The server's."""
        return str(self._asked("get_server_metadata")["version"])

    def config(self, model: str) -> dict[str, Any]:
        """A model's, completed."""
        found = self._asked("get_model_config", model)
        config: dict[str, Any] = found.get("config", found)
        return config

    def statistics(self) -> dict[str, dict[str, Any]]:
        """Model -> what the server counted of its last version."""
        rows = self._asked("get_inference_statistics").get("model_stats") or []
        return {str(row["name"]): row for row in rows}

    def infer(self, model: str, feeds: Mapping[str, Array], types: Mapping[str, str]) -> None:
        """One request, whose answer is thrown away.

        Args:
            types: of the inputs, as Triton names them without `TYPE_`.
        """
        inputs = []
        for name, array in feeds.items():
            kind = {"STRING": "BYTES"}.get(types[name], types[name])
            one = self._library.InferInput(name, list(array.shape), kind)
            # tritonclient takes BF16 as the float32 that begins with the same bits
            values = (array.astype(np.uint32) << 16).view(np.float32) if kind == "BF16" else array
            one.set_data_from_numpy(values)
            inputs.append(one)
        self._call("infer", model, inputs, **({} if self._is_http else {"client_timeout": _SECONDS}))

    def _asked(self, what: str, *arguments: str) -> dict[str, Any]:
        found: dict[str, Any] = self._call(what, *arguments, **({} if self._is_http else {"as_json": True}))
        return found

    def _call(self, what: str, *arguments: Any, **options: Any) -> Any:
        from tritonclient.utils import InferenceServerException

        try:
            return getattr(self._client, what)(*arguments, **options)
        except Exception as error:  # noqa: BLE001 - its HTTP parser has errors of its own for what is no Triton
            said = error.message() if isinstance(error, InferenceServerException) else str(error)
            why = " ".join(str(said).split())[:600]
            raise MeasurementError(
                f"the server at {self.url} did not answer {what}", why or type(error).__name__, "See the server's log"
            ) from None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._client.close()
