"""Objects in S3, GCS, Azure or a folder, through obstore; what goes wrong there is one error with a short reason."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from unified_backend.errors import CacheError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

__all__ = ["Objects", "RemoteError"]

_SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl", "file")
# A store that does not answer a small question, or sends nothing more of a large object, for as long as this is as good
# as down: a load goes on without it. No second try after that, only after what fails at once.
_ENDPOINTS = (
    "AWS_ENDPOINT",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "GOOGLE_BASE_URL",
    "AZURE_STORAGE_ENDPOINT",
    "AZURE_ENDPOINT",
)
_CONNECT = {"connect_timeout": timedelta(seconds=3)}
_SMALL = {**_CONNECT, "timeout": timedelta(seconds=5)}
_DOWNLOAD = {**_CONNECT, "timeout": timedelta(seconds=120), "read_timeout": timedelta(seconds=10)}
_UPLOAD = {**_CONNECT, "timeout": timedelta(seconds=120)}
_RETRIES = {"max_retries": 2, "retry_timeout": timedelta(seconds=4)}
_PART_BYTES = 16 << 20
_PARTS_AT_ONCE = 4


class RemoteError(Exception):
    """The store did not do what was asked; the message is one clause, without URLs, headers or credentials."""

    def __init__(self, reason: str, forbidden: bool = False) -> None:
        super().__init__(reason)
        self.forbidden = forbidden


class Objects:
    """A store at a URL, by key.

    Args:
        url: `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`, `file:///folder`, or the path of a
            folder. Credentials, and Azure's account, come from each cloud's usual environment variables, instance
            metadata or identity.

    Attributes:
        url: where it is, without credentials.
        folder: the folder that it is, if it is one.

    Raises:
        CacheError: the URL is not one of these, or the package obstore is missing.
    """

    def __init__(self, url: str) -> None:
        self.url = _without_secrets(url)
        self._given = url
        self.folder = _folder(url)
        _check(url)

    @cached_property
    def _small(self) -> ObjectStore:
        return _open(self._given, _SMALL)

    @cached_property
    def _download(self) -> ObjectStore:
        return _open(self._given, _DOWNLOAD)

    @cached_property
    def _upload(self) -> ObjectStore:
        return _open(self._given, _UPLOAD)

    def get(self, path: str) -> bytes | None:
        """A small object's bytes, or None if there is none."""
        import obstore

        with _translated():
            try:
                return bytes(obstore.get(self._small, path).bytes())
            except FileNotFoundError:
                return None

    def get_range(self, path: str, start: int, length: int) -> memoryview:
        """Part of a large object.

        Raises:
            RemoteError: also if there is no such object.
        """
        import obstore

        with _translated():
            return memoryview(obstore.get_range(self._download, path, start=start, length=length))

    def size(self, path: str) -> int | None:
        """Bytes of an object, or None if there is none."""
        import obstore

        with _translated():
            try:
                return int(obstore.head(self._small, path)["size"])
            except FileNotFoundError:
                return None

    def create(self, path: str, data: bytes) -> bool:
        """Write a small object unless there is one already; True if it was written. One of many callers wins."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        with _translated():
            try:
                obstore.put(self._small, path, data, mode="create")
            except (AlreadyExistsError, PreconditionError):
                return False
            return True

    def put(self, path: str, data: bytes) -> None:
        """Write a small object over whatever is there."""
        import obstore

        with _translated():
            obstore.put(self._small, path, data)

    def upload(self, path: str, file: Path) -> None:
        """Write a file's bytes, in parts at once if it is large."""
        import obstore

        with _translated():
            obstore.put(self._upload, path, file, chunk_size=_PART_BYTES, max_concurrency=_PARTS_AT_ONCE)

    def delete(self, path: str) -> None:
        """Remove an object; none there is fine."""
        import obstore

        with _translated():
            try:
                obstore.delete(self._small, path)
            except FileNotFoundError:
                return

    def names(self, prefix: str) -> list[str]:
        """Keys below a folder, in order."""
        import obstore

        with _translated():
            return sorted(found["path"] for batch in obstore.list(self._small, prefix) for found in batch)


def _check(url: str) -> None:
    """Refuse what can never work; a store that is only away is for later.

    Raises:
        CacheError: see `Objects`.
    """
    try:
        from obstore.exceptions import BaseError
    except ImportError:
        raise CacheError(
            f"the remote cache {_without_secrets(url)} cannot be used",
            "the package obstore is not installed",
            "pip install 'triton-unified-backend[fleet]', or unset TRITON_UNIFIED_REMOTE_CACHE",
        ) from None
    try:
        if _folder(url) is None:
            if (scheme := urlsplit(url).scheme) not in _SCHEMES:
                raise ValueError(f"it begins with {scheme}://, not with {', '.join(f'{one}://' for one in _SCHEMES)}")
            _open(url, _SMALL)
    except (ValueError, BaseError) as error:
        raise CacheError(
            f"the remote cache {_without_secrets(url)} cannot be used",
            _reason(error),
            "Set TRITON_UNIFIED_REMOTE_CACHE to s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX (with "
            "AZURE_STORAGE_ACCOUNT_NAME) or a folder",
        ) from None


def _open(url: str, times: Mapping[str, timedelta]) -> ObjectStore:
    from obstore.store import LocalStore, from_url

    if folder := _folder(url):
        return LocalStore(folder, mkdir=True)
    client: Any = {**times, **({"allow_http": True} if _plain_http_wanted() else {})}
    return from_url(url, client_options=client, retry_config=_RETRIES)  # type: ignore[call-overload, no-any-return]


def _folder(url: str) -> Path | None:
    parts = urlsplit(url)
    if parts.scheme not in ("", "file"):
        return None
    return Path(parts.path if parts.scheme else url).expanduser().absolute()


def _plain_http_wanted() -> bool:
    """Whether the user named an endpoint without TLS (a store on the same host or network)."""
    return any(os.environ.get(name, "").startswith("http://") for name in _ENDPOINTS)


@contextmanager
def _translated() -> Iterator[None]:
    from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

    try:
        yield
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise RemoteError(_reason(error), forbidden=True) from None
    except (BaseError, OSError, ValueError) as error:
        raise RemoteError(_reason(error)) from None


def _reason(error: Exception) -> str:
    """What went wrong in a few words: the store's own text may hold signatures, key names and request headers."""
    text = " ".join(str(error).split())
    if status := re.search(r"status code: (\d{3} [A-Za-z ]+)", text):
        code = re.search(r"<Code>(\w+)</Code>", text)
        return f"{status[1].strip()}{f' ({code[1]})' if code else ''}"
    if "http error" in text.lower():
        return "no answer: the store cannot be reached, or is too slow"
    plain = re.sub(r"\S+://\w\S*", "the store", text.partition(" Debug source")[0])
    return plain[:200] or type(error).__name__


def _without_secrets(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if parts.scheme else url
