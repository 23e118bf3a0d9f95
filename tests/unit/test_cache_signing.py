"""With a key, only what was signed with it is used; without one that can be used, nothing runs."""

from __future__ import annotations

import base64
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat, PublicFormat
from unified_backend.cache import Cache, Key
from unified_backend.cache.signing import read_signer
from unified_backend.errors import CacheError, NotCachedError
from unified_backend.variables import CacheSettings

KEY, OTHER = Key("engine", {"model": "abc"}), Key("engine", {"model": "xyz"})
PLAIN = serialization.NoEncryption()


def make(folder: Path) -> dict[str, object]:
    (folder / "model.bin").write_bytes(b"weights")
    return {"answer": 42}


def never(folder: Path) -> dict[str, object]:
    raise AssertionError("made again")


def private_pem(key: Ed25519PrivateKey | rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, PLAIN)


def public_pem(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def public_der() -> bytes:
    return Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@pytest.fixture
def key_file(tmp_path) -> Callable[[bytes], Path]:
    def write(content: bytes) -> Path:
        path = tmp_path / f"key{len(list(tmp_path.glob('key*')))}"
        path.write_bytes(content)
        return path

    return write


@pytest.fixture
def cache(tmp_path) -> Callable[[Path | None], Cache]:
    return lambda key_file: Cache.from_settings(CacheSettings(tmp_path / "cache", key_file=key_file))


@pytest.fixture(params=["ed25519", "secret"])
def signed(request, key_file) -> tuple[Path, Path]:
    """A key file, and one of another key of the same kind."""
    if request.param == "ed25519":
        return key_file(private_pem(Ed25519PrivateKey.generate())), key_file(private_pem(Ed25519PrivateKey.generate()))
    return key_file(b"\n a shared secret, long enough \n"), key_file(b"another shared secret of a fleet")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_what_was_signed_with_the_key_is_a_hit(cache, signed, caplog):
    assert cache(signed[0]).get_or_make(KEY, make).origin == "made"
    assert cache(signed[0]).get_or_make(KEY, never).origin == "hit"
    assert warnings(caplog) == []


def test_a_host_without_a_key_uses_what_was_signed(cache, signed):
    cache(signed[0]).get_or_make(KEY, make)
    assert cache(None).get_or_make(KEY, never).origin == "hit"


def unsign(place: Path) -> None:
    (place / "manifest.sig").unlink()


def sign_otherwise(place: Path) -> None:
    value = json.loads((place / "manifest.sig").read_bytes())
    raw = bytearray(base64.b64decode(value["signature"]))
    raw[5] ^= 1
    (place / "manifest.sig").write_text(json.dumps({**value, "signature": base64.b64encode(raw).decode()}))


def take_anothers(place: Path) -> None:
    other = next(path for path in place.parents[1].glob("*/*") if path != place)
    shutil.copyfile(other / "manifest.sig", place / "manifest.sig")


def put_another_entry(place: Path) -> None:
    """An entry that is whole and well signed, but of another key."""
    other = next(path for path in place.parents[1].glob("*/*") if path != place)
    shutil.rmtree(place)
    shutil.copytree(other, place)


TAMPERINGS = {
    "not signed": (unsign, "not signed"),
    "wrongly signed": (sign_otherwise, "wrong signature"),
    "the signature of another entry": (take_anothers, "wrong signature"),
    "a signed entry of another key": (put_another_entry, "manifest of another key"),
    "a signature that is no JSON": (lambda place: (place / "manifest.sig").write_bytes(b"\xff{"), "unreadable"),
    "a signature that is a folder": (
        lambda place: ((place / "manifest.sig").unlink(), (place / "manifest.sig").mkdir()),
        "manifest.sig cannot be read",
    ),
}


@pytest.mark.parametrize(("tamper", "reason"), TAMPERINGS.values(), ids=TAMPERINGS)
def test_what_was_not_so_signed_is_made_again_with_a_warning(cache, signed, caplog, tamper, reason):
    cache(signed[0]).get_or_make(OTHER, make)
    tamper(cache(signed[0]).get_or_make(KEY, make).path)
    assert cache(signed[0]).get_or_make(KEY, make).origin == "made"
    assert cache(signed[0]).get_or_make(KEY, never).origin == "hit"
    assert len(warnings(caplog)) == 1
    assert f'entry={KEY.digest[:12]} reason="{reason}' in warnings(caplog)[0]


def test_what_another_key_signed_is_made_again_with_a_warning(cache, signed, caplog):
    cache(signed[1]).get_or_make(KEY, make)
    assert cache(signed[0]).get_or_make(KEY, make).origin == "made"
    assert "signed with the key" in warnings(caplog)[0]


def test_a_host_with_another_key_leaves_what_it_cannot_replace(cache, signed, key_file):
    """Only whoever publishes a better one may move an entry that others can use."""
    cache(signed[0]).get_or_make(KEY, make)
    with pytest.raises(NotCachedError):
        cache(signed[1]).get_or_make(KEY, never, "model/1", required=True)
    public = key_file(public_pem(Ed25519PrivateKey.generate()))
    assert cache(public).get_or_make(KEY, make).origin == "made"
    assert cache(signed[0]).get_or_make(KEY, never).origin == "hit"


def test_what_was_made_without_a_key_is_not_used_with_one(cache, signed, caplog):
    cache(None).get_or_make(KEY, make)
    assert cache(signed[0]).get_or_make(KEY, make).origin == "made"
    assert "not signed" in warnings(caplog)[0]


def test_another_spelling_of_a_signature_is_damage(cache, signed, caplog):
    place = cache(signed[0]).get_or_make(KEY, make).path
    (place / "manifest.sig").write_text((place / "manifest.sig").read_text() + " ")
    assert cache(signed[0]).get_or_make(KEY, make).origin == "made"


def test_a_public_key_verifies_and_publishes_nothing(cache, key_file, tmp_path, caplog):
    pair = Ed25519PrivateKey.generate()
    private, public = key_file(private_pem(pair)), key_file(public_pem(pair))
    with cache(public) as reader:
        entry = reader.get_or_make(KEY, make)
        assert (entry.path / "model.bin").read_bytes() == b"weights"
        reader.get_or_make(OTHER, make)
    assert not list((tmp_path / "cache").glob("entries/*/*/*"))
    assert len(warnings(caplog)) == 1
    assert "only verifies" in warnings(caplog)[0]
    cache(private).get_or_make(KEY, make)
    assert cache(public).get_or_make(KEY, never).origin == "hit"


def test_an_unsigned_entry_in_a_cache_of_a_public_key_is_not_used(cache, key_file):
    cache(None).get_or_make(KEY, make)
    assert cache(key_file(public_pem(Ed25519PrivateKey.generate()))).get_or_make(KEY, make).origin == "made"


def encrypted(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"word"))


def open_ssh(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)


UNUSABLE = {
    "an RSA key": lambda: private_pem(rsa.generate_private_key(65537, 2048)),
    "an ECDSA key": lambda: private_pem(ec.generate_private_key(ec.SECP256R1())),
    "an encrypted key": lambda: encrypted(Ed25519PrivateKey.generate()),
    "a damaged private key": lambda: private_pem(Ed25519PrivateKey.generate())[:-40],
    "a damaged public key": lambda: public_pem(Ed25519PrivateKey.generate()).replace(b"M", b"!", 1),
    "a certificate": lambda: b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
    "a public key of OpenSSH": lambda: open_ssh(Ed25519PrivateKey.generate()),
    "an empty file": lambda: b"",
    "white space": lambda: b" \n" * 20,
    "a public key in DER": lambda: public_der(),
    "the body of a public key": lambda: base64.b64encode(public_der()),
    "an RSA key in DER": lambda: rsa.generate_private_key(65537, 2048).private_bytes(
        Encoding.DER, PrivateFormat.PKCS8, PLAIN
    ),
    "too short a secret": lambda: b"fifteen letters",
}


@pytest.mark.parametrize("content", UNUSABLE.values(), ids=UNUSABLE)
def test_a_key_that_cannot_be_used_is_never_ignored(cache, key_file, content):
    path = key_file(content())
    with pytest.raises(CacheError, match=r"cannot be used: .*\. Make a key with `openssl genpkey") as error:
        cache(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("path", ["missing", "."])
def test_a_key_file_that_cannot_be_read_is_never_ignored(cache, tmp_path, path):
    with pytest.raises(CacheError, match=r"TRITON_UNIFIED_CACHE_KEY_FILE names .*cannot be used"):
        cache(tmp_path / path)


@pytest.mark.parametrize("before", [b"\xef\xbb\xbf", b"Key of the fleet\n", b"\n\n"])
def test_a_public_key_behind_other_text_is_not_taken_for_a_secret(cache, key_file, before):
    """Everybody knows it: with it as the secret, everybody could sign."""
    content = before + public_pem(Ed25519PrivateKey.generate())
    try:
        signer = read_signer(key_file(content))
    except CacheError:
        return
    assert not signer.can_sign


def test_a_key_that_openssl_made_is_taken(tmp_path, cache):
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl")
    path = tmp_path / "key.pem"
    assert os.spawnv(os.P_WAIT, openssl, ["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(path)]) == 0
    assert cache(path).get_or_make(KEY, make).origin == "made"
    assert cache(path).get_or_make(KEY, never).origin == "hit"


def test_nothing_of_the_secret_is_in_the_cache(cache, key_file, tmp_path):
    cache(key_file(b"a shared secret, long enough")).get_or_make(KEY, make)
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len(files) > 3
    assert not any(b"shared secret" in path.read_bytes() for path in files)
