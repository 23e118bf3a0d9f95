"""A Triton's metrics page, fetched and read: Prometheus' text format, each sample under its name and labels."""

from __future__ import annotations

import dataclasses
import http.client
import math
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from unified_backend.errors import Refused, ServerError

__all__ = ["Labels", "Page", "fetch", "metrics_url"]

Labels = Mapping[str, str]

_SECONDS = 5.0  # for an answer; a server that loads a model answers within milliseconds
_MOST = 64 * 2**20  # bytes; a page of a thousand models has about 3 MB
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy would not know this host's ports
# https://prometheus.io/docs/instrumenting/exposition_formats/: name, labels, value; a time may follow.
_SAMPLE = re.compile(r"([A-Za-z_:][\w:]*)\s*(?:\{(.*)\})?\s+(\S+)(?:\s+-?\d+)?\s*")
_LABEL = re.compile(r'([A-Za-z_]\w*)\s*=\s*"((?:[^"\\]|\\.)*)"')
_ESCAPES = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}
_TRITONS = re.compile(r"^(?:# (?:HELP|TYPE) )?nv_", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Page:
    """What a server said at one moment.

    Attributes:
        moment: when, on a clock that only goes forward, in seconds.
        samples: family -> its samples, as labels and value.
    """

    moment: float
    samples: Mapping[str, list[tuple[Labels, float]]]

    def of(self, family: str) -> list[tuple[Labels, float]]:
        """The samples of a family; none if it is not on the page."""
        return self.samples.get(family, [])


def metrics_url(text: str) -> str:
    """A URL as a person may shorten it, whole: `host:8002` is `http://host:8002/metrics`.

    Raises:
        Refused: it is none.
    """
    try:
        parts = urlsplit(text if "//" in text else f"http://{text}")
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not text.isprintable() or " " in text:
        raise Refused(f'"{text}" is no URL of a metrics page', "it has no host, or is not of HTTP", "Write host:8002")
    return parts._replace(path=parts.path.rstrip("/") or "/metrics").geturl()


def fetch(url: str) -> Page:
    """The metrics page of a Triton server.

    Raises:
        ServerError: nobody answers, or it is no Triton's page.
    """
    try:
        with _DIRECT.open(url, timeout=_SECONDS) as response:
            text = response.read(_MOST).decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        raise _not_tritons(url, f"it answers {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        why = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        raise ServerError(
            f"no metrics at {url}",
            why,
            "Start the server, or name its metrics page with --url; `triton-unified serve` prints it when it is ready",
        ) from None
    if not _TRITONS.search(text):
        raise _not_tritons(url, "it has no metric of Triton's (nv_...)")
    samples: dict[str, list[tuple[Labels, float]]] = {}
    for family, labels, value in _parsed(text):
        samples.setdefault(family, []).append((labels, value))
    return Page(time.monotonic(), samples)


def _not_tritons(url: str, why: str) -> ServerError:
    return ServerError(
        f"{url} is no metrics page of a Triton server", why, "Name that page with --url; its port is 8002 unless set"
    )


def _parsed(text: str) -> Iterator[tuple[str, Labels, float]]:
    """The samples of a page; lines that are none are passed over, as Prometheus' comments are."""
    for line in text.splitlines():
        match = None if line.startswith("#") else _SAMPLE.fullmatch(line)
        if match is None:
            continue
        try:
            value = float(match[3])
        except ValueError:
            continue
        if math.isnan(value):  # how a gauge says that it does not know
            continue
        yield match[1], {name: _unescaped(given) for name, given in _LABEL.findall(match[2] or "")}, value


def _unescaped(text: str) -> str:
    return re.sub(r"\\.", lambda match: _ESCAPES.get(match[0], match[0]), text)
