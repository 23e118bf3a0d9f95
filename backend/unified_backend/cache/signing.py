"""Who made an entry: an engine is code that runs, so a cache that others can write to has its entries signed."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from unified_backend.cache.manifest import UntrustedError
from unified_backend.errors import CacheError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

__all__ = ["Signer", "read_signer"]

_PURPOSE = b"triton-unified cache entry\n"  # a signature made for something else never passes here
_MEMO = b"triton-unified file memo\n"
_SHORTEST_SECRET = 16


class Signer(Protocol):
    """Signs manifests, and tells its own signatures from others.

    Attributes:
        name: of the key, without anything of it.
        can_sign: whether it is more than a public key.
        memo_secret: what the memo of files is authenticated with; of a host that cannot sign, only this process knows
            it: whatever it kept on disk, anybody could write.
    """

    name: str
    can_sign: bool
    memo_secret: bytes

    def sign(self, manifest: bytes) -> bytes:
        """The signature file's content."""
        ...

    def verify(self, manifest: bytes, signature: bytes | None) -> None:
        """Return if `signature` is of these bytes and by this key.

        Raises:
            UntrustedError: it is not, or there is none.
        """
        ...


def read_signer(file: Path) -> Signer:
    """The signer of a key file: an Ed25519 key in PEM, private (signs and verifies) or public (verifies only), or else
    a shared secret for HMAC-SHA-256: the file's bytes, without white space at the ends.

    Raises:
        CacheError: the file cannot be read, holds another kind of key, or too short a secret. Never ignored: without
            the key nothing could be trusted.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise _unusable(file, error.strerror or str(error)) from None
    # A public key taken for a secret would be one that everybody knows: look for one wherever it begins.
    if b"-----BEGIN" in content or content.lstrip().startswith((b"ssh-", b"ecdsa-", b"sk-")):
        return _ed25519(file, content)
    secret = content.strip()
    if _is_der(content) or _is_der(_from_base64(secret)):
        raise _unusable(file, "it looks like a key in DER, or PEM without its first and last line, not like a secret")
    if len(secret) < _SHORTEST_SECRET:
        raise _unusable(file, f"a secret of {len(secret)} bytes is too short, {_SHORTEST_SECRET} are the least")
    return _Hmac(secret)


def _is_der(content: bytes) -> bool:
    """Whether these bytes are one ASN.1 sequence, as keys are: public ones, too, and those would be no secret."""
    head, size = content[:2], len(content)
    short = head == bytes((0x30, size - 2)) if 2 <= size < 0x82 else False
    # X.690 8.1.3: longer ones give the number of bytes that hold the length.
    return (
        short
        or (head == b"\x30\x81" and size == content[2] + 3)
        or (head == b"\x30\x82" and size == int.from_bytes(content[2:4]) + 4)
    )


def _from_base64(text: bytes) -> bytes:
    try:
        return base64.b64decode(b"".join(text.split()), validate=True)
    except binascii.Error:
        return b""


class _Hmac:
    """HMAC-SHA-256 (RFC 2104): who can verify can also sign."""

    can_sign = True

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self.name = f"hmac-sha256:{hashlib.sha256(_PURPOSE + secret).hexdigest()[:12]}"
        self.memo_secret = hmac.digest(secret, _MEMO, "sha256")

    def sign(self, manifest: bytes) -> bytes:
        return _envelope(self.name, hmac.digest(self._secret, _PURPOSE + manifest, "sha256"))

    def verify(self, manifest: bytes, signature: bytes | None) -> None:
        given = _opened(self.name, signature)
        if not hmac.compare_digest(given, hmac.digest(self._secret, _PURPOSE + manifest, "sha256")):
            raise UntrustedError("wrong signature")


class _Ed25519:
    """Ed25519 (RFC 8032), through `cryptography`."""

    def __init__(self, private: Ed25519PrivateKey | None, public: Ed25519PublicKey) -> None:
        self._private, self._public = private, public
        self.can_sign = private is not None
        self.name = f"ed25519:{hashlib.sha256(public.public_bytes_raw()).hexdigest()[:12]}"
        self.memo_secret = (
            hmac.digest(private.private_bytes_raw(), _MEMO, "sha256") if private else secrets.token_bytes(32)
        )

    def sign(self, manifest: bytes) -> bytes:
        if self._private is None:
            raise ValueError("a public key does not sign")
        return _envelope(self.name, self._private.sign(_PURPOSE + manifest))

    def verify(self, manifest: bytes, signature: bytes | None) -> None:
        from cryptography.exceptions import InvalidSignature

        try:
            self._public.verify(_opened(self.name, signature), _PURPOSE + manifest)
        except InvalidSignature:
            raise UntrustedError("wrong signature") from None


def _ed25519(file: Path, content: bytes) -> Signer:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
    except ImportError:
        raise CacheError(
            f"the key {file} cannot be used",
            "the package cryptography is not installed",
            "pip install 'triton-unified-backend[fleet]', or use a shared secret",
        ) from None
    try:
        if b"PRIVATE KEY-----" in content:
            key: object = serialization.load_pem_private_key(content, password=None)
        else:
            key = serialization.load_pem_public_key(content)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _unusable(file, str(error).split("\n")[0]) from None
    if isinstance(key, Ed25519PrivateKey):
        return _Ed25519(key, key.public_key())
    if isinstance(key, Ed25519PublicKey):
        return _Ed25519(None, key)
    raise _unusable(file, f"it holds a {type(key).__name__.lstrip('_')}, not an Ed25519 key")


def _unusable(file: Path, why: str) -> CacheError:
    return CacheError(
        f"TRITON_UNIFIED_CACHE_KEY_FILE names {file}, which cannot be used",
        why,
        "Make a key with `openssl genpkey -algorithm ed25519 -out FILE`, or unset the variable",
    )


def _envelope(name: str, signature: bytes) -> bytes:
    return json.dumps({"key": name, "signature": base64.b64encode(signature).decode()}).encode()


def _opened(name: str, signature: bytes | None) -> bytes:
    """The raw signature in a signature file made with the key of this name."""
    if signature is None:
        raise UntrustedError("not signed")
    try:
        value = json.loads(signature)
        by, raw = str(value["key"]), base64.b64decode(value["signature"], validate=True)
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error):
        raise UntrustedError("unreadable signature") from None
    if by != name:
        raise UntrustedError(f"signed with the key {by[:40]}, not {name}")
    if signature != _envelope(by, raw):
        raise UntrustedError("unreadable signature")  # Base64 has several spellings of the same bytes
    return raw
